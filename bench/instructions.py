"""Instructions per request, by callgrind: what a worker executes in user
space. It counts alike on every run and every machine of an architecture.

A worker under callgrind serves one connection. USR1 makes it call
ngx_reopen_files, and callgrind writes down at each such call what was executed
since the last one: so start-up and warm-up fall away.
"""

import os
import re
import signal
import socket
import time
from collections import Counter

from load import LOADS
from server import Proxy

from rig.status import wait_until

KEYS = ("get-1k", "post-1k")
PROGRAM = ["valgrind", "--tool=callgrind", "--dump-line=no", "--dump-instr=no",
           "--compress-strings=no", "--compress-pos=no",
           "--dump-before=ngx_reopen_files"]


class Client:
    """Sends one request after the other over one connection."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)

    def requests(self, what, number):
        body = b"x" * what.body
        head = (f"{what.method} {what.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        if body:
            head += ("Content-Type: application/json\r\n"
                     f"Content-Length: {len(body)}\r\n")
        request = head.encode() + b"\r\n" + body
        for _ in range(number):
            self.sock.sendall(request)
            self.answer()

    def answer(self):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"callgrind's worker answered {head[:60]!r}")
        left = int(re.search(rb"(?i)content-length: (\d+)", head)[1]) - len(rest)
        while left > 0:
            left -= len(self._receive())

    def _receive(self):
        data = self.sock.recv(65536)
        if not data:
            raise RuntimeError("callgrind's worker closed the connection")
        return data

    def close(self):
        self.sock.close()


def _profile(path):
    """{function: its own instructions} of one dump."""
    own = Counter()
    with open(path) as f:
        function, skip = None, False
        for line in f:
            if line.startswith("fn="):
                function = line[3:].strip().split("'")[0]  # less recursion's
                if function.startswith("0x"):
                    function = "(no symbol)"
            elif line.startswith("calls="):
                skip = True  # the next line is what the callee has cost
            elif line[0].isdigit() or line[0] in "+-*":
                if not skip:
                    own[function] += int(line.split()[1])
                skip = False
    return own


class Worker:
    """A proxy under callgrind."""

    def __init__(self, case, directory, source, module, reader, prefix):
        self.directory = os.path.join(directory, f"callgrind-{case}")
        self.dumps = 0
        out = os.path.join(self.directory, "cg")
        self.proxy = Proxy(
            case, self.directory, source, module,
            socket=reader and reader.socket, master=False,
            prefix=prefix + PROGRAM + [f"--callgrind-out-file={out}"])
        self.out = out

    def start(self):
        self.proxy.start(timeout=60)
        self.client = Client(self.proxy.port)

    def mark(self):
        """Ends a part; its profile."""
        self.dumps += 1
        path = f"{self.out}.{self.dumps}"
        os.kill(self.proxy.worker, signal.SIGUSR1)

        def written():
            with open(path) as f:
                return "totals:" in f.read() or None
        wait_until(written, 30, f"callgrind's {path}", self.proxy.process.dead)
        return _profile(path)

    def measure(self, what, number):
        """{function: instructions per request}"""
        self.client.requests(what, 50)
        time.sleep(0.3)  # timers that the first requests have set
        self.mark()
        self.client.requests(what, number)
        return Counter({f: n / number for f, n in self.mark().items()})

    def stop(self):
        if self.proxy.process:
            self.proxy.stop()


def measure(cases, directory, source, module, readers, number, prefix,
            progress):
    """{load key: {case: {function: instructions per request}}}; readers:
    {case: what its sidecar is, or None}."""
    result = {key: {} for key in KEYS}
    for case in cases:
        worker = Worker(case, directory, source, module, readers.get(case),
                         prefix)
        try:
            worker.start()
            for key in KEYS:
                result[key][case] = worker.measure(LOADS[key], number)
                progress(f"{case} {key}")
        finally:
            worker.stop()
    return result
