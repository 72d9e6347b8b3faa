"""HTTP/2 connections whose exchanges are to be captured, and what tests of HTTP/2 and
of HTTP/3 do alike: the latter's sessions are of the same kind."""

import itertools
import threading
from types import SimpleNamespace

import pytest

from refconsumer.verify import verify_topic
from rig.client2 import Client2, captured
from rig.nginx import http2
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import Sent, assert_captured, settled

_marks = itertools.count(1)


def new_mark():
    return ("x-mark", f"h2-{next(_marks)}")


class Session2:
    """An HTTP/2 connection whose exchanges are to be captured."""

    def __init__(self, port, **options):
        self.client = Client2(port, **options)
        self.exchanges = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def start(self, method, target, headers=(), body=None, length=True):
        mark = new_mark()
        headers = [mark, *headers]
        stream = self.client.send_request(method, target, headers, body, length)
        # cookies are put together, at the end of what the client sent
        crumbs = "; ".join(v for n, v in headers if n == "cookie")
        kept = [h for h in headers if h[0] not in ("cookie", "te")]
        raw = captured(method, target, kept, body, length)
        if crumbs:
            at = raw.index(b"\r\n\r\n")
            raw = raw[:at] + b"\r\ncookie: " + crumbs.encode() + raw[at:]
        return SimpleNamespace(stream=stream, mark=mark[1].encode(), raw=raw,
                               method=method.encode())

    def finish(self, started):
        answer = self.client.receive(started.stream)
        assert answer is not None and answer.complete
        self.exchanges.append(Sent(started.mark, started.method, started.raw, answer))
        return answer

    def request(self, *args, **options):
        return self.finish(self.start(*args, **options))


@pytest.fixture
def stack2(stack):
    """As stack(), with HTTP/2 by prior knowledge on s.port2 of the same server."""
    def make(server="", **options):
        port = free_port()
        s = stack(server=f"{http2(port)} {server}", **options)
        s.port2 = port
        return s
    return make


def echo(request):
    return Response(headers=[("X-Method", request.method)],
                    body=b"%s %d\n" % (request.target.encode("latin-1"),
                                       len(request.body)))


# ---- what both do ----

def requests_of_each_kind(c):
    """Methods; bodies with a length, without one, of no byte; cookies."""
    c.request("GET", "/")
    c.request("PUT", "/index/_doc/1?refresh=true", body=b'{"a":1}')
    c.request("POST", "/_bulk", body=b'{"index":{}}\n', length=False)
    c.request("HEAD", "/index")
    c.request("DELETE", "/index/_doc/1")
    c.request("POST", "/empty", body=b"", length=False)
    c.request("POST", "/zero", body=b"")
    c.request("GET", "/_cat", headers=[("cookie", "a=b"), ("te", "trailers"),
                                       ("x", "1"), ("x", "2"), ("cookie", "c=d")])


def three_times_100_streams(s, c, source):
    """100 at once, then again; each must be a connectionId that is used again, in the
    order of time. No two exchanges of one overlap: the consumer would mix them."""
    release = threading.Event()
    source.answer = lambda q: Response(body=q.target.encode() * 300, hold=release)
    with c:
        for turn in range(3):
            release.clear()
            n = len(source.requests)
            started = [c.start("POST" if i % 3 else "GET", f"/{turn}/{i}",
                               body=pattern(i * 10, i) if i % 3 else None,
                               length=i % 2) for i in range(100)]
            wait_until(lambda: len(source.requests) == n + 100, 30)
            release.set()
            for x in started:
                c.finish(x)
        s.wait_for_status(settled(300))
    result = assert_captured(s.drain(), [c], lanes=True)
    assert len(result.connections) == 100
    for exchanges in result.by_connection().values():
        turns = [x.request.split(b"/")[1] for x in exchanges]
        assert turns == sorted(turns) and len(turns) == 3


def bodies_of_5_mb(c):
    """Two up, three down, side by side."""
    started = [c.start("POST", "/_bulk", body=pattern(5_000_000, 1)),
               c.start("POST", "/_bulk", body=pattern(5_000_000, 2), length=False),
               c.start("GET", "/big")]
    for x in started:
        c.finish(x)


def a_cut_and_a_half(s, c):
    """Two streams: one whose response has begun, one whose request has no end."""
    cut = c.start("GET", "/cut")
    c.client.receive_head(cut.stream, 1)
    half = c.client.start("POST", "/half", end=False)
    c.client.data(half, b"half", end=False)
    s.wait_for_status(lambda st: st["total"]["pending"] == 2)
    return cut.stream, half


def assert_cut_between(records):
    """/before, /cut, which ends its connectionId, and /after on another; no /half."""
    result = verify_topic(records)
    result.assert_clean(all_closed=True)
    found = {x.request.split(b" ")[1]: x for x in result.exchanges}
    assert set(found) == {b"/before", b"/cut", b"/after"}
    cut, after = found[b"/cut"], found[b"/after"]
    assert result.connections[(cut.node_id, cut.connection_id)].exceptions
    assert cut.connection_id == found[b"/before"].connection_id != after.connection_id
