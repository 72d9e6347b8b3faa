"""Keeps the sidecar's descriptors while it is started again, as systemd does
(FDSTORE): give it to Sidecar as `keeper`."""

import fcntl
import os
import socket
import sys
import threading

HIGH = 200      # beyond all that are given
# (not a shell's redirections: it keeps descriptors of its own from 10 on)
START = """
import os, sys
n = int(sys.argv[1])
for i, fd in enumerate(map(int, sys.argv[2:2 + n])):
    os.dup2(fd, 3 + i, inheritable=True)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + n], sys.argv[2 + n:])
"""


class Keeper:
    def __init__(self, directory):
        self.path = os.path.join(str(directory), "keep")
        self.kept = {}          # name: [descriptor]
        self.said = []          # READY=1 ...
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._thread = threading.Thread(target=self._listen, daemon=True,
                                        name="keeper")
        self._thread.start()

    def names(self):
        with self._lock:
            return sorted(self.kept)

    def command(self, argv):
        """(argv, environment, descriptors) that start `argv` with all of it."""
        with self._lock:
            fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for fd in self.kept.values()]
            names = ":".join(self.kept)
        return ([sys.executable, "-IS", "-c", START, str(len(fds)), *map(str, fds),
                 *argv],
                {"NOTIFY_SOCKET": self.path, "FDSTORE": "1000",
                 "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}, fds)

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"", self.path)    # the end
        self._thread.join(5)
        self._socket.close()
        for fd in self.kept.values():
            os.close(fd)

    def _listen(self):
        while True:
            try:
                text, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
            except OSError:
                return
            if not text and not fds:
                return
            with self._lock:
                self._take(text.decode().split("\n"), fds)

    def _take(self, lines, fds):
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), None)
        if "FDSTORE=1" in lines and name not in self.kept:
            self.kept[name] = fds.pop()
        elif "FDSTOREREMOVE=1" in lines and name in self.kept:
            os.close(self.kept.pop(name))
        elif "FDSTORE=1" not in lines:
            self.said += lines
        for fd in fds:
            os.close(fd)
