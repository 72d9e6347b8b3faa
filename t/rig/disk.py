"""A disk that a test makes slow or full, for the sidecar's journal (disk.c); and
what becomes of a journal when its host dies."""

import mmap
import os
import sqlite3
import struct
import subprocess

from .process import SANITIZED, TOP


def _preload(library):
    """What LD_PRELOAD must be: the sanitizer's runtime wants to be the first."""
    if not SANITIZED:
        return library
    done = subprocess.run(["gcc", "-print-file-name=libasan.so"],
                          capture_output=True, text=True, check=True)
    return f"{done.stdout.strip()} {library}"


class Disk:
    """Disk(workdir).env goes to the sidecar's environment."""

    def __init__(self, directory):
        library = os.path.join(directory, "disk.so")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
             library, os.path.join(TOP, "t", "rig", "disk.c")], check=True)
        file = os.path.join(directory, "disk")
        with open(file, "wb") as f:
            f.write(bytes(16))
        with open(file, "r+b") as f:
            self._map = mmap.mmap(f.fileno(), 16)
        self.env = {"LD_PRELOAD": _preload(library), "CAPTURE_DISK": file}

    def slow(self, seconds):
        """A sync takes this long at least."""
        self._map[:8] = struct.pack("=q", int(seconds * 1000))

    def fails(self, error):
        """Writing fails with this errno; 0: it does not."""
        self._map[8:] = struct.pack("=q", error)


def another_boot(spool):
    """The journal was written before the host's last start."""
    with sqlite3.connect(os.path.join(spool, "journal", "journal.db")) as db:
        db.execute("UPDATE meta SET value = 'another' WHERE name = 'boot'")
    db.close()


def rows(spool):
    """(connections, chunks of frames) in a journal that nobody has open."""
    db = sqlite3.connect(os.path.join(spool, "journal", "journal.db"))
    try:
        return tuple(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                     for name in ("conns", "frames"))
    finally:
        db.close()
