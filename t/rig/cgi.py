"""FastCGI and uwsgi applications, as small as they can be: they answer with what
they were asked, and the body."""

import socketserver
import struct
import threading

from .process import free_port

# record types of FastCGI
END, PARAMS, STDIN, STDOUT = 3, 4, 5, 6


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class App:
    """Listens on .port from start() to close(). `handler`: FastCgi or Uwsgi."""

    def __init__(self, handler):
        self.port = free_port()
        self._server = _Server(("127.0.0.1", self.port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever,
                                        kwargs={"poll_interval": 0.05},
                                        daemon=True)

    def start(self):
        self._thread.start()
        return self

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(params, body):
    """The CGI answer: head and body."""
    text = b"%s %s %d\n" % (params[b"REQUEST_METHOD"], params[b"REQUEST_URI"],
                            len(body))
    return (b"Content-Type: text/plain\r\nX-App: cgi\r\n\r\n", text + body)


class _Handler(socketserver.StreamRequestHandler):
    def take(self, size):
        data = self.rfile.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def handle(self):
        try:
            self.exchange()
        except (EOFError, ConnectionError):
            pass


class FastCgi(_Handler):
    def exchange(self):
        streams = {PARAMS: b"", STDIN: b""}
        while True:
            _, kind, number, size, pad, _ = struct.unpack(">BBHHBB", self.take(8))
            data = self.take(size)
            self.take(pad)
            if kind in streams:
                streams[kind] += data
                if kind == STDIN and not size:
                    break
        head, body = answer(_pairs(streams[PARAMS]), streams[STDIN])
        out = head + body
        for at in range(0, len(out), 30000):
            self._record(STDOUT, number, out[at:at + 30000])
        self._record(STDOUT, number, b"")
        self._record(END, number, bytes(8))

    def _record(self, kind, number, data):
        self.wfile.write(struct.pack(">BBHHBB", 1, kind, number, len(data), 0, 0)
                         + data)


class Uwsgi(_Handler):
    def exchange(self):
        _, size, _ = struct.unpack("<BHB", self.take(4))
        data, params, at = self.take(size), {}, 0
        while at < size:
            pair = []
            for _ in range(2):
                n, = struct.unpack_from("<H", data, at)
                pair.append(data[at + 2:at + 2 + n])
                at += 2 + n
            params[pair[0]] = pair[1]
        body = self.take(int(params.get(b"CONTENT_LENGTH") or 0))
        head, body = answer(params, body)
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + head + body)


def _pairs(data):
    """FastCGI's parameters."""
    out, at = {}, 0

    def size():
        nonlocal at
        n = data[at]
        if n < 128:
            at += 1
            return n
        at += 4
        return struct.unpack_from(">I", data, at - 4)[0] & 0x7fffffff
    while at < len(data):
        names, values = size(), size()
        out[data[at:at + names]] = data[at + names:at + names + values]
        at += names + values
    return out
