"""A time of day that a test can step while processes run (clock.c).

    clock = Clock(workdir)
    s = stack(env=clock.env)
    clock.step(-3600)

For NGINX alone: librdkafka waits by the time of day, and would do so by the
kernel's.
"""

import mmap
import os
import struct
import subprocess
import time

from .process import TOP


class Clock:
    def __init__(self, directory):
        library = os.path.join(directory, "clock.so")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
             library, os.path.join(TOP, "t", "rig", "clock.c")], check=True)
        file = os.path.join(directory, "clock")
        with open(file, "wb") as f:
            f.write(bytes(8))
        with open(file, "r+b") as f:
            self._map = mmap.mmap(f.fileno(), 8)
        self.offset = 0                  # ns
        self.env = {"LD_PRELOAD": library, "CAPTURE_CLOCK": file}

    def step(self, seconds):
        self.offset += int(seconds * 1e9)
        self._map[:] = struct.pack("=q", self.offset)

    def now(self):
        """Theirs, in ns."""
        return time.time_ns() + self.offset
