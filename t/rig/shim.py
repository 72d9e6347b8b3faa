"""A library of a test's own under a process, and a few bytes of memory that both
share (clock.c, disk.c, names.c; bench/syncs.c)."""

import mmap
import os
import subprocess

from .process import SANITIZED, TOP


def _preload(library):
    """What LD_PRELOAD must be: the sanitizer's runtime wants to be the first."""
    if not SANITIZED:
        return library
    done = subprocess.run(["gcc", "-print-file-name=libasan.so"],
                          capture_output=True, text=True, check=True)
    return f"{done.stdout.strip()} {library}"


class Shim:
    """NAME.c of t/rig (or `sources`), compiled into `directory`: .env is for the
    process, .memory are `size` bytes, 0 at first, of the file that CAPTURE_NAME
    names there."""

    def __init__(self, directory, name, size, sources="t/rig"):
        library = os.path.join(directory, f"{name}.so")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
             library, os.path.join(TOP, sources, f"{name}.c")], check=True)
        file = os.path.join(directory, name)
        with open(file, "wb") as f:
            f.write(bytes(size))
        with open(file, "r+b") as f:
            self.memory = mmap.mmap(f.fileno(), size)
        self.env = {"LD_PRELOAD": _preload(library),
                    f"CAPTURE_{name.upper()}": file}
