"""A time of day that a test can step while processes run (clock.c).

    clock = Clock(workdir)
    s = stack(env=clock.env)
    clock.step(-3600)

For NGINX alone: librdkafka waits by the time of day, and would do so by the
kernel's.
"""

import struct
import time

from .shim import Shim


class Clock:
    def __init__(self, directory):
        shim = Shim(directory, "clock", 8)
        self.env = shim.env
        self._map = shim.memory
        self.offset = 0                  # ns

    def step(self, seconds):
        self.offset += int(seconds * 1e9)
        self._map[:] = struct.pack("=q", self.offset)

    def now(self):
        """Theirs, in ns."""
        return time.time_ns() + self.offset
