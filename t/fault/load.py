"""Clients that keep their connections and ask all the time, at a bounded rate: what
each sent, and what became of it. Two hundred of them take a tenth of a core."""

import asyncio
import random
import threading
import time
from dataclasses import dataclass

from rig.client import build_request, parse_head
from rig.source import Response, pattern
from rig.status import wait_until

# how a request can end
ANSWERED = "answered"
CUT = "cut"             # no whole answer: its connection broke, or it took too long
UNSERVED = "unserved"   # the server had closed the idle connection that it came on


@dataclass
class Asked:
    """One request and its end. Times are time.monotonic_ns()."""
    id: str
    connection: int        # of the client's; a new one after each break
    method: str
    raw: bytes
    sent_ns: int
    end: str = None
    status: int = None
    head: bytes = b""
    body: bytes = b""
    end_ns: int = None

    @property
    def took(self):
        return (self.end_ns - self.sent_ns) / 1e9


class Load:
    """    with Load(stack.port, rate=400) as load:
            load.more(500)

    connections   clients, each with one connection at a time
    rate          requests a second of all together, at most
    life          requests of a connection, at most
    mutating      the share of POST, PUT, DELETE and PATCH
    most          bytes of the largest body
    timeout       seconds for an answer
    ids           begins each id; unique among the loads of a topic
    tls           an ssl.SSLContext; the name that it verifies is source.test
    """

    def __init__(self, port, connections=200, rate=400, life=60, mutating=0.6,
                 most=20_000, timeout=30, seed=None, ids="a", tls=None):
        self.port = port
        self.tls = tls
        self.size = connections
        self.pause = connections / rate
        self.life = life
        self.mutating = mutating
        self.most = most
        self.timeout = timeout
        self.ids = ids
        self.asked = []
        self.refused = 0       # connections that were not to be had
        self.seed = random.randrange(1 << 30) if seed is None else seed
        self.errors = []       # bugs of this file; breaks are in `asked`
        self._connections = 0
        self._ending = False
        print(f"load {ids}: seed {self.seed}")

    # life

    def __enter__(self):
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._all()), daemon=True, name="load")
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        """Each client finishes what it has begun, and closes."""
        self._ending = True
        self._thread.join(self.timeout + 10)
        assert not self._thread.is_alive(), "the load does not end"
        if kind is None:
            assert not self.errors, self.errors[0]

    def count(self, *ends):
        return sum(a.end in (ends or (ANSWERED,)) for a in list(self.asked))

    def more(self, count, timeout=60):
        """Waits until so many more requests have been answered."""
        goal = self.count() + count
        wait_until(lambda: self.count() >= goal, timeout,
                   f"{count} more answers (of seed {self.seed})",
                   lambda: self.errors and repr(self.errors[0]))

    # inside

    async def _all(self):
        await asyncio.gather(*(self._client(i) for i in range(self.size)))

    async def _client(self, i):
        r = random.Random(f"{self.seed}-{i}")
        try:
            await self._rest(self.pause * r.random())
            while not self._ending:
                await self._connection(r)
        except Exception as e:
            self.errors.append(e)

    async def _rest(self, seconds):
        end = time.monotonic() + seconds
        while not self._ending and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    async def _connection(self, r):
        self._connections += 1
        number = self._connections
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, limit=1 << 20, ssl=self.tls,
                server_hostname="source.test" if self.tls else None)
        except OSError:
            self.refused += 1
            await self._rest(0.1)      # nothing was asked
            return
        try:
            what = None
            for n in range(r.randint(1, self.life)):
                asked, what = self._make(r, number, what)
                if not await self._ask(asked, n == 0, reader, writer):
                    return
                if asked.status != 503:      # else it asks the same again
                    what = None
                await self._rest(self.pause * r.uniform(0.5, 1.5))
                if self._ending or reader.at_eof():
                    return
        finally:
            writer.close()

    def _make(self, r, number, what):
        id = f"{self.ids}{len(self.asked)}"
        what = what or _request(r, id, self.mutating, self.most)
        method, fields = what
        raw = build_request(method, f"/{self.ids}/{number}/{id}", [
            ("Host", "source.test"), ("X-Id", id)], **fields)
        asked = Asked(id, number, method, raw, time.monotonic_ns())
        self.asked.append(asked)
        return asked, what

    async def _ask(self, asked, fresh, reader, writer):
        """Can the connection be used again?"""
        try:
            writer.write(asked.raw)
            async with asyncio.timeout(self.timeout):
                await _receive(asked, reader)
            asked.end = ANSWERED
        except (OSError, EOFError, TimeoutError) as e:
            silent = not asked.head and not isinstance(e, TimeoutError)
            asked.end = UNSERVED if silent and not fresh else CUT
        asked.end_ns = time.monotonic_ns()
        return (asked.end == ANSWERED
                and b"\r\nconnection: close\r\n" not in asked.head.lower())


def _request(r, id, mutating, most):
    """(method, the body's arguments of build_request)"""
    if r.random() >= mutating:
        return r.choice(("GET", "GET", "GET", "HEAD")), {}
    method = r.choice(("POST", "POST", "PUT", "PATCH", "DELETE"))
    if method == "DELETE" and r.random() < 0.5:
        return method, {}
    size = r.choice((0, 10, 300, 1000, 1000, 4000, r.randrange(most)))
    body = f"{id}\n".encode() + pattern(size, r.randrange(1000))
    if r.random() < 0.2:
        return method, {"chunks": [body[:200], body[200:]]}
    return method, {"body": body}


async def _receive(asked, reader):
    asked.head = await reader.readuntil(b"\r\n\r\n")
    answer = parse_head(asked.head)
    asked.status = answer.status
    if asked.method == "HEAD" or answer.status in (204, 304):
        return
    if "chunked" not in (answer.header("transfer-encoding") or ""):
        asked.body = await reader.readexactly(int(answer.header("content-length")))
        return
    body = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    asked.body = bytes(body)


class Executions(dict):
    """The answers of the source: {id: [(monotonic ns, wall clock ns), ...]} of the
    moments at which it had the whole of a request. `source.answer = Executions()`"""

    def __call__(self, request):
        id = request.header("X-Id")
        stamp = (time.monotonic_ns(), time.time_ns())
        self.setdefault(id, []).append(stamp)
        r = random.Random(id)
        status = r.choice((200, 200, 200, 201, 404, 500))
        size = r.choice((0, 10, 500, 500, 2000, 9000))
        return Response(status, "As Usual", [("X-Id", id)],
                        id.encode() + pattern(size, r.randrange(1000)),
                        chunked=(1000, 4000) if r.random() < 0.3 else None)
