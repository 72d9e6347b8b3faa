"""A disk that a test makes slow or full, for the sidecar's journal and the blocks of
a directory named spool (disk.c); and
what becomes of a journal when its host dies."""

import os
import sqlite3
import struct

from .shim import Shim


class Disk:
    """Disk(workdir).env goes to the sidecar's environment."""

    def __init__(self, directory):
        shim = Shim(directory, "disk", 16)
        self.env = shim.env
        self._map = shim.memory

    def slow(self, seconds):
        """A sync, or that a file grows, takes this long at least."""
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
