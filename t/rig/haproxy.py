"""HAProxy as a process, in the place of load balancers: its configuration is the
test's, and can be changed while it runs, over its own socket."""

import csv
import os
import shutil
import socket

from .process import Process
from .status import wait_until

BINARY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")

GLOBAL = """\
global
    stats socket {socket} mode 600 level admin
    maxconn 2000
    tune.ssl.default-dh-param 2048
    hard-stop-after 5s
    {extra}

defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout check 5s

"""


class HaProxy:
    """`sections` is the configuration but for `global` and `defaults`; {maps} in
    it is the directory of `maps`: {file: {key: value}}, for use_backend."""

    def __init__(self, directory, sections, maps=None, extra=""):
        self.directory = str(directory)
        self.socket = os.path.join(self.directory, "admin")
        os.makedirs(self.directory, exist_ok=True)
        for name, entries in (maps or {}).items():
            self._write(name, "".join(f"{k} {v}\n" for k, v in entries.items()))
        self.config = self._write(
            "haproxy.cfg", GLOBAL.format(socket=self.socket, extra=extra)
            + sections.replace("{maps}", self.directory))

    def start(self):
        self.process = Process([BINARY, "-db", "-f", self.config],
                               os.path.join(self.directory, "haproxy.log"))
        wait_until(lambda: self.command("show info"), 15, "HAProxy's socket",
                   self.process.dead)

    def close(self):
        if hasattr(self, "process"):
            self.process.stop()

    # while it runs

    def command(self, text):
        """What it says to a command."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(self.socket)
            s.sendall(text.encode() + b"\n")
            answer = b""
            while piece := s.recv(1 << 16):
                answer += piece
        return answer.decode()

    def order(self, text):
        """A command that has nothing to say unless it fails."""
        answer = self.command(text).strip()
        assert not answer, f"{text}: {answer}"

    def route(self, file, key, value):
        """From now on, for new connections."""
        self.order(f"set map {self.directory}/{file} {key} {value}")

    def weight(self, backend, server, weight):
        self.order(f"set server {backend}/{server} weight {weight}")

    def row(self, backend, server="BACKEND"):
        """{column: text} of `show stat`."""
        rows = csv.DictReader(self.command("show stat").lstrip("# ").splitlines())
        return next(r for r in rows
                    if (r["pxname"], r["svname"]) == (backend, server))

    def sessions(self, backend):
        """How many are open to its servers."""
        return int(self.row(backend)["scur"])

    def requests(self, backend, server):
        """How many a server of mode http has had."""
        return int(self.row(backend, server)["req_tot"])

    def health(self, backend, server):
        """(UP or DOWN, status code of the last check) once there was one."""
        row = self.row(backend, server)
        return (row["status"].split(" ")[0],
                int(row["check_code"] or 0)) if row["check_status"] else None

    def wait_health(self, backend, server, status, code):
        wait_until(lambda: self.health(backend, server) == (status, code), 20,
                   f"{backend}/{server} to be {status} by a {code}; it is "
                   f"{self.health(backend, server)}", self.process.dead)

    def _write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, 0o600)
        return path
