"""A source cluster: an HTTP/1.1 server that records every byte it receives and
answers as the test says."""

import asyncio
import socket
import struct
import ssl
import threading
from dataclasses import dataclass, field

from .process import free_port
from .status import POLL


def pattern(size, seed=0):
    """`size` bytes that differ from place to place and from seed to seed, so
    that a lost, repeated or exchanged piece shows."""
    unit = b"".join(b"%08x:%08x " % (seed, i) for i in range(4096))
    # a prime number of bytes: the pieces between block borders all differ
    unit = unit[:65521]
    return (unit * (size // len(unit) + 1))[:size]


@dataclass
class Request:
    """What arrived: `raw` byte for byte, `body` without chunked coding.
    `complete` is False when the peer closed before the request's end."""
    connection: int
    head: bytes
    method: str
    target: str
    headers: list            # [(name, value)] as spelled, in order
    raw: bytearray = field(default_factory=bytearray)
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False

    def header(self, name):
        """The first value of a header, None without one."""
        return next((v for n, v in self.headers if n.lower() == name.lower()),
                    None)


@dataclass
class Response:
    """An answer.

    chunked        sizes of chunks (the last is repeated); None: Content-Length
    until_close    neither of both: the body ends with the connection
    interim        raw bytes sent before, such as a 103
    raw            the whole answer as it is; status to chunked do not count
    hold           a threading.Event to wait for before the head is sent
    hold_body      the same, in the body, after hold_at bytes of it as they are sent
    cut            close the connection after so many bytes of the body
    close          close the connection after it
    reset          with cut or close: so that the peer gets a RST
    trailers       [(name, value)] after the last chunk
    piece, pause   bytes of the body that are written at once, and the seconds
                   after each
    """
    status: int = 200
    reason: str = "OK"
    headers: list = field(default_factory=list)
    body: bytes = b""
    chunked: tuple = None
    until_close: bool = False
    interim: bytes = b""
    raw: bytes = None
    hold: threading.Event = None
    hold_body: threading.Event = None
    hold_at: int = 1
    cut: int = None
    close: bool = False
    reset: bool = False
    trailers: list = field(default_factory=list)
    piece: int = 1 << 18
    pause: float = 0

    def head(self):
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{n}: {v}" for n, v in self.headers]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif not self.until_close and self.status not in (204, 304):
            lines.append(f"Content-Length: {len(self.body)}")
        if self.close or self.until_close:
            lines.append("Connection: close")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def coded_body(self):
        """(bytes of the body as sent, bytes after it)"""
        if not self.chunked:
            return self.body, b""
        out, at, sizes = bytearray(), 0, list(self.chunked)
        while at < len(self.body):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            piece = self.body[at:at + size]
            out += b"%x\r\n%s\r\n" % (len(piece), piece)
            at += size
        end = "".join(f"{n}: {v}\r\n" for n, v in self.trailers)
        return bytes(out), b"0\r\n" + end.encode("latin-1") + b"\r\n"


class Source:
    """answer: a function from a Request to its Response, exchangeable at any
    time; by default 200 with a short body. It runs in the server's thread.
    early: says of a Request, of which only the head is there, whether it is to
    be answered before its body is read; exchangeable as well.
    tls: (certificate, key) files; the names that clients ask for are in `names`."""

    def __init__(self, answer=None, early=None, host="127.0.0.1", port=None,
                 tls=None):
        self.host = host
        self.port = port or free_port(host)
        self.names = []
        self._tls = self._context(*tls) if tls else None
        self.answer = answer or (lambda request: Response(body=b"ok\n"))
        self.early = early or (lambda request: False)
        self.unread = None
        self.requests = []       # in the order in which their heads came
        self.left = []           # those whose peer had gone before their answer
        self.answered = []       # in the order in which their answers were sent
        self.connections = 0
        self.open = 0            # of these
        self.errors = []         # exceptions of answer() and of the server
        self._loop = None
        self._thread = None
        self._writers = set()

    def keep_unread(self, event):
        """Until the threading.Event is set no body is read, and the kernel keeps
        little of one, so that its peer stays with the rest. For connections that
        come after this."""
        for sock in self._server.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.unread = event

    def start(self):
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve():
            self._server = await asyncio.start_server(
                self._connection, self.host, self.port, limit=1 << 20,
                backlog=1024, ssl=self._tls)
            started.set()

        def run():
            self._loop.run_until_complete(serve())
            self._loop.run_forever()
        self._thread = threading.Thread(target=run, daemon=True, name="source")
        self._thread.start()
        assert started.wait(10), "the source has not started"

    def stop(self):
        """Closes the port and every connection; start() opens the port again."""
        async def finish():
            self._server.close()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()
        if self._thread:
            asyncio.run_coroutine_threadsafe(finish(), self._loop)
            self._thread.join(10)
            assert not self._thread.is_alive(), "the source does not end"
            self._loop.close()
            self._thread = None

    def close(self):
        self.stop()
        assert not self.errors, self.errors

    # inside

    def _context(self, certificate, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.sni_callback = lambda sock, name, _: self.names.append(name)
        return context

    async def _connection(self, reader, writer):
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            while await self._exchange(number, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass                 # the peer went away, as it may
        except asyncio.CancelledError:
            pass                 # stop()
        except Exception as e:
            self.errors.append(e)
        finally:
            self.open -= 1
            writer.close()

    async def _exchange(self, number, reader, writer):
        """One request and its answer. Should there be another one after it?"""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        lines = head.decode("latin-1")[:-4].split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = [tuple(line.split(": ", 1)) if ": " in line
                   else (line.rstrip(":"), "") for line in lines[1:]]
        request = Request(number, head, method, target, headers, bytearray(head))
        self.requests.append(request)

        if (request.header("expect") or "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        early = self.early(request)
        if not early:
            if self.unread:
                await _wait(self.unread)
            await _read_body(request, reader)
        response = self.answer(request)
        done = await self._respond(request, response, writer)
        if response.reset and not done:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if reader.at_eof():
            self.left.append(request)
        self.answered.append(request)
        if early and done:
            await _read_body(request, reader)
        wants_close = (request.header("connection") or "").lower() == "close"
        return done and not wants_close

    async def _respond(self, request, response, writer):
        if response.hold:
            await _wait(response.hold)
        if response.raw is not None:
            writer.write(response.raw)
            await writer.drain()
            return not response.close
        head = response.interim + response.head()
        body, end = response.coded_body()
        if request.method == "HEAD" or response.status in (204, 304):
            body, end = b"", b""
        if response.hold_body:
            writer.write(head + body[:response.hold_at])
            await writer.drain()
            await _wait(response.hold_body)
            head, body = b"", body[response.hold_at:]
        if response.cut is not None:
            writer.write(head + body[:response.cut])
            await writer.drain()
            return False
        writer.write(head)
        for at in range(0, len(body), response.piece):
            writer.write(body[at:at + response.piece])
            await writer.drain()
            if response.pause:
                await asyncio.sleep(response.pause)
        writer.write(end)
        await writer.drain()
        return not (response.close or response.until_close)


async def _wait(event):
    # polled: a thread for each request that is held would run out of threads
    while not event.is_set():
        await asyncio.sleep(POLL)


async def _read_body(request, reader):
    async def take(size):
        while size:
            piece = await reader.read(min(size, 1 << 18))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            request.raw.extend(piece)
            request.body.extend(piece)
            size -= len(piece)

    async def line():
        text = await reader.readuntil(b"\r\n")
        request.raw.extend(text)
        return text

    if "chunked" in (request.header("transfer-encoding") or "").lower():
        while size := int((await line()).split(b";")[0], 16):
            await take(size)
            await line()
        while await line() != b"\r\n":
            pass                 # trailers
    else:
        await take(int(request.header("content-length") or 0))
    request.complete = True
