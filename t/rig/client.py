"""An HTTP/1.1 client over a plain socket: it sends exactly the bytes it is given
and returns exactly the bytes it gets."""

import socket
import struct
from dataclasses import dataclass, field


def build_request(method, target, headers=(), body=None, chunks=None):
    """The bytes of a request in canonical form: the headers as given and in that
    order, then the framing: Content-Length for `body`, chunked for `chunks` (a
    list of bytes, each a chunk). Host is only there if it is given."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers]
    coded = b""
    if chunks is not None:
        lines.append("Transfer-Encoding: chunked")
        coded = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks if c)
        coded += b"0\r\n\r\n"
    elif body is not None:
        lines.append(f"Content-Length: {len(body)}")
        coded = bytes(body)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + coded


@dataclass
class Answer:
    """A response: `head` raw with its empty line, `body` decoded. `interim` are
    raw heads of 1xx responses before it. `complete` is False when the connection
    ended before the body's framing said so."""
    head: bytes
    status: int
    reason: str
    headers: list
    body: bytes = b""
    interim: list = field(default_factory=list)
    trailers: list = field(default_factory=list)
    complete: bool = True

    def header(self, name):
        """The first value of a header, None without one."""
        return next((v for n, v in self.headers if n.lower() == name.lower()),
                    None)


class Client:
    """One connection. `sent` keeps every byte that went out on it."""

    def __init__(self, port, host="127.0.0.1", timeout=30):
        self.sock = socket.create_connection((host, port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = bytearray()
        self._buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def request(self, method, target, headers=(("Host", "source.test"),),
                body=None, chunks=None):
        """Sends a request and returns its Answer."""
        self.send(build_request(method, target, headers, body, chunks))
        return self.receive(method)

    def send(self, data):
        self.sent += data
        self.sock.sendall(data)

    def receive(self, method="GET"):
        """The next Answer; `method` is that of its request. None when the
        connection was closed instead."""
        interim = []
        while True:
            head = self._until(b"\r\n\r\n")
            if head is None:
                return None
            answer = parse_head(head)
            if not 100 <= answer.status < 200 or answer.status == 101:
                break
            interim.append(head)
        answer.interim = interim
        self._body(answer, method)
        return answer

    def receive_some(self, size):
        """Up to `size` raw bytes, at least one; b"" at the connection's end. For
        a client that reads at its own pace."""
        if not self._buffer:
            self._fill()
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    def ended(self):
        """Waits for the peer to close; False when data comes instead."""
        return not self._buffer and not self._fill()

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Closes so that the peer gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self):
        self.sock.close()

    # inside

    def _fill(self):
        try:
            piece = self.sock.recv(1 << 18)
        except ConnectionResetError:
            piece = b""
        self._buffer += piece
        return bool(piece)

    def _until(self, mark):
        """Up to and with mark; None if the connection ends before."""
        seen = 0
        while True:
            at = self._buffer.find(mark, max(0, seen - len(mark)))
            if at >= 0:
                at += len(mark)
                piece = bytes(self._buffer[:at])
                del self._buffer[:at]
                return piece
            seen = len(self._buffer)
            if not self._fill():
                return None

    def _exactly(self, size):
        """size bytes, or fewer if the connection ends before."""
        while len(self._buffer) < size and self._fill():
            pass
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    def _body(self, answer, method):
        if (method == "HEAD" or answer.status in (101, 204, 304)
                or (method == "CONNECT" and answer.status // 100 == 2)):
            return
        length = answer.header("content-length")
        if "chunked" in (answer.header("transfer-encoding") or "").lower():
            answer.body, answer.complete = self._chunks(answer.trailers)
        elif length is not None:
            answer.body = self._exactly(int(length))
            answer.complete = len(answer.body) == int(length)
        else:
            while self._fill():
                pass
            answer.body = bytes(self._buffer)
            self._buffer.clear()

    def _chunks(self, trailers):
        body = bytearray()
        while True:
            line = self._until(b"\r\n")
            if line is None:
                return bytes(body), False
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            piece = self._exactly(size)
            body += piece
            if len(piece) < size or self._until(b"\r\n") is None:
                return bytes(body), False
        while (line := self._until(b"\r\n")) != b"\r\n":
            if line is None:
                return bytes(body), False
            name, _, value = line[:-2].decode("latin-1").partition(":")
            trailers.append((name, value.strip(" \t")))
        return bytes(body), True


def parse_head(head):
    """An Answer without its body, from the raw head of a response."""
    lines = head.decode("latin-1")[:-4].split("\r\n")
    _, status, *reason = lines[0].split(" ", 2)
    headers = [(n, v.strip(" \t")) for n, _, v in
               (line.partition(":") for line in lines[1:])]
    return Answer(head, int(status), "".join(reason), headers)
