"""Clients and sources that go away, at every stage of an exchange: each ends in
one named class, nothing is merged, nothing hangs. All run against one NGINX; the
table says what each becomes, docs/fidelity.md is made from it."""

import itertools
import shutil
import tempfile
import threading
from dataclasses import dataclass

import pytest

from path.fidelity import ENDS
from path.session import by_mark, marked, settled
from refconsumer import http
from refconsumer.verify import verify_topic
from rig.client import Client, build_request
from rig.process import free_port
from rig.source import Response, Source, pattern
from rig.stack import Stack
from rig.status import wait_until

FIDELITY = "Clients and sources that go away"

# request and response: buffered or unbuffered
ALL = ("bb", "bu", "ub", "uu")
REQUEST, RESPONSE, BOTH = ("bb", "ub"), ("bb", "bu"), ("bb", "uu")
HOWS = ("close", "reset")
BIG = 8_000_000

SERVER = "\n".join(
    f"location /{way}/ {{ proxy_pass http://source;"
    f" proxy_request_buffering {'on' if way[0] == 'b' else 'off'};"
    f" proxy_buffering {'on' if way[1] == 'b' else 'off'}; }}"
    f"location /{way}/refused {{ proxy_pass http://127.0.0.1:@REFUSED@;"
    f" proxy_request_buffering {'on' if way[0] == 'b' else 'off'}; }}"
    f"location /{way}/default {{ proxy_pass http://source;"
    f" proxy_ignore_client_abort off;"
    f" proxy_request_buffering {'on' if way[0] == 'b' else 'off'};"
    f" proxy_buffering {'on' if way[1] == 'b' else 'off'}; }}"
    for way in ALL) + """
    proxy_ignore_client_abort on; postpone_output 0; lingering_timeout 100ms;
    proxy_max_temp_file_size 0;"""


@dataclass
class Abort:
    name: str
    ends: str
    run: object
    hows: tuple
    ways: tuple
    or_captured: bool

    def runs(self):
        return itertools.product([self], self.hows, self.ways)


def abort(name, ends, run, hows, ways, or_captured=False, limits=""):
    """A row: in each of `ways`, how each of `hows`, what run() does ends so. With
    or_captured time decides."""
    assert ends in ENDS
    return Abort(name, ends, run, hows, ways, or_captured)


class Stage:
    """What run() gets: it sends with the client, and returns what it received,
    or None."""

    def __init__(self, table, abort, how, way):
        self.source, self.status = table.source, table.stack.wait_for_status
        self.seen = table.seen
        self.way, self.how = way, how
        self.client = Client(table.stack.port)
        self.hold = threading.Event()
        self.mark = None

    def request(self, method="GET", what="x", **body):
        raw, self.mark = marked(method, f"/{self.way}/{what}", **body)
        return raw

    def answer(self, **options):
        self.source.answer = lambda q: Response(**options)

    def begun(self):
        """Its request is known to the module."""
        self.status(lambda s: s["total"]["pending"] == 1)

    def arrived(self):
        n = len(self.source.requests)
        return lambda: wait_until(lambda: len(self.source.requests) > n,
                                  what="the request at the source")

    def leave(self):
        getattr(self.client, self.how)()


# the client

def in_line(t):
    t.client.send(t.request()[:9])
    t.leave()


def in_headers(t):
    t.client.send(t.request()[:-6])
    t.leave()


def in_body(t):
    raw = t.request("POST", body=pattern(100_000))
    t.client.send(raw[:70_000])
    t.begun()
    t.leave()


def in_chunked_body(t):
    raw = t.request("POST", chunks=[pattern(50_000), pattern(50_000)])
    t.client.send(raw[:70_000])
    t.begun()
    t.leave()


def before_the_response(t, what="x"):
    t.answer(body=b"late", hold=t.hold)
    arrived = t.arrived()
    t.client.send(t.request("POST", what, body=b"abc"))
    arrived()
    t.leave()
    if what == "default":
        t.status(settled(t.seen + 1))
    t.hold.set()
    return t.client.receive() if t.how == "half_close" else None


def before_the_response_default(t):
    return before_the_response(t, "default") and None


def in_the_response(t, chunked=None, what="x"):
    t.answer(body=pattern(BIG), chunked=chunked)
    t.client.send(t.request("GET", what))
    t.client.receive_some(5000)
    t.leave()


def in_a_chunked_response(t):
    in_the_response(t, (30_000,))


def half_closed(t):
    t.answer(body=pattern(300_000), hold_body=t.hold)
    t.client.send(t.request("POST", body=pattern(100_000)))
    t.client.half_close()
    t.hold.set()
    return t.client.receive()


# the source

def refused(t):
    t.client.send(t.request("POST", "refused", body=pattern(50_000)))
    return t.client.receive()


def refused_in_the_upload(t):
    t.client.send(t.request("POST", "refused", body=pattern(50_000))[:40_000])
    return t.client.receive()


def before_its_head(t):
    t.answer(raw=b"", close=True, reset=t.how == "reset")
    t.client.send(t.request("POST", body=b"abc"))
    return t.client.receive()


def in_its_head(t):
    t.answer(raw=b"HTTP/1.1 200 OK\r\nContent-Le", close=True,
             reset=t.how == "reset")
    t.client.send(t.request("POST", body=b"abc"))
    return t.client.receive()


def in_its_body(t, **options):
    # a RST throws away what the peer has not read yet
    t.answer(body=pattern(90_000), cut=0, hold_body=t.hold, hold_at=40_000,
             reset=t.how == "reset", **options)
    t.client.send(t.request("POST", body=b"abc"))
    wait_until(lambda: b"\r\n\r\n" in t.client._buffer or t.client._fill())
    t.hold.set()
    while t.client._fill():
        pass


def in_its_chunked_body(t):
    in_its_body(t, chunked=(3000,))


def in_its_endless_body(t):
    in_its_body(t, until_close=True)


def in_the_upload(t):
    t.source.early = lambda q: True
    t.answer(raw=b"", close=True, reset=t.how == "reset")
    raw = t.request("POST", body=pattern(100_000))
    t.client.send(raw[:50_000])
    answer = t.client.receive()
    t.client.close()
    return answer


def of_its_keepalive(t, method="GET"):
    """The second request on a connection to the source is met by its close."""
    t.source.answer = lambda q: Response(body=b"%d" % q.connection)
    t.client.send(build_request("GET", f"/{t.way}/first", [
        ("Host", "a"), ("X-Mark", f"first{t.way}{method}{t.how}")]))
    first = t.client.receive().body
    t.source.answer = lambda q: (
        Response(raw=b"", close=True, reset=t.how == "reset")
        if b"%d" % q.connection == first else Response(body=b"other"))
    t.client.send(t.request(method, **(
        {"body": b"abc"} if method == "POST" else {})))
    return t.client.receive()


def of_its_keepalive_post(t):
    return of_its_keepalive(t, "POST")


ROWS = [
    abort("the client leaves in its request line", "unseen", in_line, HOWS, ("bb",)),
    abort("the client leaves in its headers", "unseen", in_headers, HOWS, ("bb",)),
    abort("the client leaves in a body with a length", "client_abort", in_body,
          HOWS + ("half_close",), REQUEST),
    abort("the client leaves in a chunked body", "client_abort", in_chunked_body,
          HOWS + ("half_close",), REQUEST),
    abort("the client leaves before the response, `proxy_ignore_client_abort on`",
          "truncated", before_the_response, HOWS, BOTH, or_captured=True,
          limits="captured where NGINX writes a short response before it notices"),
    abort("the client leaves before the response, `proxy_ignore_client_abort off`",
          "truncated", before_the_response_default, HOWS, BOTH,
          limits="NGINX may not have forwarded the request, yet it is replayed"),
    abort("the client leaves in a response with a length", "truncated",
          in_the_response, HOWS, RESPONSE),
    abort("the client leaves in a chunked response", "truncated",
          in_a_chunked_response, HOWS, RESPONSE),
    abort("the client closes its side after the request, "
          "`proxy_ignore_client_abort on`", "captured", half_closed,
          ("half_close",), ALL),
    abort("the client closes its side after the request, "
          "`proxy_ignore_client_abort off`", "truncated",
          before_the_response_default, ("half_close",), BOTH,
          limits="NGINX takes it for a departure"),
    abort("the source refuses the connection (502)", "captured", refused,
          ("refused",), ("bb",)),
    abort("the source refuses the connection while an unbuffered request comes (502)",
          "unread_body", refused_in_the_upload, ("refused",), ("ub",)),
    abort("the source leaves before its head (502)", "captured", before_its_head,
          HOWS, BOTH),
    abort("the source leaves in its head (502)", "captured", in_its_head, HOWS, BOTH),
    abort("the source leaves in a body with a length", "truncated", in_its_body,
          HOWS, RESPONSE),
    abort("the source leaves in a chunked body", "truncated", in_its_chunked_body,
          HOWS, RESPONSE),
    abort("the source resets in a body without framing", "truncated",
          in_its_endless_body, ("reset",), RESPONSE),
    abort("the source leaves while an unbuffered request comes (502)",
          "unread_body", in_the_upload, HOWS, ("ub", "uu")),
    abort("the source closes a kept connection: another is taken", "captured",
          of_its_keepalive, HOWS, BOTH),
    abort("the same with POST, which is not repeated (502)", "captured",
          of_its_keepalive_post, HOWS, BOTH),
]


@dataclass
class Outcome:
    ends: str = None
    mark: bytes = None
    answer: object = None
    error: str = None


class Table:
    """Runs all rows, one after the other, each until it has its class."""

    def __init__(self, directory, source, broker, topic):
        self.source = source
        self.stack = Stack(directory, source, broker, topic,
                           server=SERVER.replace("@REFUSED@", str(free_port())))
        self.outcomes = {}
        self.seen = 0

    def run(self):
        self.stack.start()
        for row in ROWS:
            for _, how, way in row.runs():
                self.outcomes[row.name, how, way] = self._one(row, how, way)
        self.result = verify_topic(self.stack.drain())
        self.found = by_mark(self.result)
        assert len(self.found) == len(self.result.exchanges)

    def _one(self, row, how, way):
        before = _classes(self.stack.status())
        self.source.early = lambda q: False
        t = Stage(self, row, how, way)
        out = Outcome()
        try:
            out.answer = row.run(t)
            out.mark = t.mark
            # what is not seen can only be told from what comes after it
            with Client(self.stack.port) as c:
                self.source.answer, self.source.early = lambda q: Response(), (
                    lambda q: False)
                raw, _ = marked("GET", "/bb/after")
                c.send(raw)
                c.receive()
            total = self.stack.wait_for_status(
                lambda s: s["total"]["pending"] == 0
                and settled(s["total"]["seen"])(s))
            self.seen = total["total"]["seen"]
            out.ends = _difference(before, _classes(total), row.run in (
                of_its_keepalive, of_its_keepalive_post))
        except Exception as e:
            out.error = repr(e)
        finally:
            t.hold.set()
            t.client.close()
        return out


def _classes(status):
    total = status["total"]
    return {"captured": total["captured"] - total["truncated"],
            "truncated": total["truncated"], **total["filtered"], **total["lost"]}


def _difference(before, after, first):
    """What has ended since, but for the request after it, and the first."""
    more = {n: after[n] - before[n] for n in after if after[n] > before[n]}
    more["captured"] = more.get("captured", 0) - 1 - first
    ends = [n for n, count in more.items() for _ in range(count)]
    assert len(ends) <= 1, ends
    return ends[0] if ends else "unseen"


@pytest.fixture(scope="module")
def table(broker):
    directory = tempfile.mkdtemp(prefix="cap-", dir="/tmp")
    topic = f"aborts-{directory[-8:]}"
    broker.start()
    broker.create_topic(topic, 4)
    source = Source()
    source.start()
    t = Table(directory, source, broker, topic)
    try:
        t.run()
    finally:
        try:
            t.stack.close()
        finally:
            source.close()
    yield t
    if any(o.error for o in t.outcomes.values()):
        print(f"left for you to look at: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name.replace(" ", "_"))
def test_abort(table, row):
    for _, how, way in row.runs():
        outcome = table.outcomes[row.name, how, way]
        assert not outcome.error, (how, way, outcome.error)
        assert outcome.ends == row.ends or (
            row.or_captured and outcome.ends == "captured"), (how, way, outcome.ends)
        check(table, outcome)


def check(table, outcome):
    """What is in the topic of it."""
    x = table.found.get(outcome.mark)
    if outcome.ends in ("captured", "truncated"):
        http.parse_request(x.request)
        connection = table.result.connections[x.node_id, x.connection_id]
        if outcome.ends == "truncated":
            assert connection.exceptions
        else:
            response = http.parse_response(x.response, b"GET")
            if outcome.answer:
                assert response.status == outcome.answer.status
                assert response.body == outcome.answer.body
    else:
        assert x is None


def test_the_topic_keeps_every_rule(table):
    """Nothing is merged: each connection is a row of whole exchanges, but for a
    last one that is cut, and is named as such."""
    table.result.assert_clean(all_closed=True)
