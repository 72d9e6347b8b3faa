"""Responses that begin before their request has ended. The record has a place
for them behind the request only: they are held until that is there.

FakeSidecar fails for a WRITE before its exchange's EOM, in every test here.
"""

import os
import threading

import pytest

from capture_rig import Message, same_request, same_response
from rig.client import build_request
from rig.client2 import Client2, captured
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

HOST = ("Host", "source.test")
HOLD_MAX = 256 * 1024            # of an exchange: memory, pieces' heads included
PIECE = 8192

UPLOAD = "proxy_request_buffering off; postpone_output 0;"


class Early:
    """A source that sends `at` bytes of its answer's body when a request's head
    is there, and the rest at more.set(). Clients of it begin their bodies and
    end them."""

    def __init__(self, source, body=b"answer", at=1, **options):
        self.more = threading.Event()
        source.early = lambda q: q.target != "/usual"
        source.answer = lambda q: (
            Response(body=b"usual") if q.target == "/usual" else
            Response(body=body, hold_body=self.more, hold_at=at, **options))

    def begin(self, client, framing="length", body=b"body", target="/up",
              headers=()):
        """Sends all but the end; returns (the whole request, its end)."""
        headers = [HOST, *headers]
        raw = (build_request("POST", target, headers, body) if framing == "length"
               else build_request("POST", target, headers, chunks=[body]))
        at = raw.index(b"\r\n\r\n") + 4 + len(body) // 2
        client.send(raw[:at])
        return raw, raw[at:]


def begins(client, size=0):
    """Waits for a response's head and `size` bytes more; takes nothing."""
    while client._buffer.find(b"\r\n\r\n") < 0 or (
            len(client._buffer) - client._buffer.index(b"\r\n\r\n") - 4 < size):
        assert client._fill(), "no response"


def begun(r):
    """The one exchange, when its head is there."""
    wait_until(lambda: r.sidecar.exchanges, what="the request's head")
    x, = r.sidecar.exchanges
    return x


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("coding", [None, (300,)])
@pytest.mark.parametrize("upgrade", [(), (("Upgrade", "h2c"),)])
def test_a_response_that_begins_early_follows_its_request(
        rig, source, buffering, framing, coding, upgrade):
    r = rig(server=f"{UPLOAD} proxy_buffering {buffering};")
    early = Early(source, pattern(50_000), at=20_000, chunked=coding)
    with r.client() as client:
        raw, end = early.begin(client, framing, headers=upgrade)
        begins(client)
        x = begun(r)
        assert not x.eom and not x.response and not x.end
        client.send(end)
        wait_until(lambda: x.eom, what="the request's end")
        wait_until(lambda: x.response, what="what was held")
        early.more.set()
        answer = client.receive("POST")
        same = client.request("GET", "/usual")
    x, y = r.exchanges(2)
    if framing == "length":
        same_request(x, raw)
    else:
        assert Message(x.request).body == b"body"
    same_response(x, answer)
    same_response(y, same)
    assert x.connection is y.connection
    r.total(seen=2, captured=2)


def test_streams_of_http2_are_held_each_for_itself(rig, source):
    port = free_port()
    r = rig(server=f"{UPLOAD} listen 127.0.0.1:{port} http2;")
    early = Early(source, pattern(50_000), at=20_000)
    with Client2(port) as c:
        streams = [c.start("POST", f"/{i}", end=False) for i in range(5)]
        for s in streams:
            c.data(s, b"half", end=False)
        for s in streams:
            c.receive_head(s, 1)
        for s in reversed(streams):
            c.data(s, b"ends")
        wait_until(lambda: all(x.eom for x in r.sidecar.exchanges))
        early.more.set()
        answers = [c.receive(s) for s in streams]
    xs = {x.request.split(b" ")[1]: x for x in r.exchanges(5)}
    for i, answer in enumerate(answers):
        x = xs[b"/%d" % i]
        assert x.complete and Message(x.request).body == b"halfends"
        assert Message(x.response).body == bytes(answer.body) == pattern(50_000)
    r.total(seen=5, captured=5)


def test_a_response_that_ends_before_its_request_drops_it_at_once(rig, source):
    """What NGINX reads after that is thrown away: nobody has that request."""
    r = rig(server=f"{UPLOAD} proxy_buffering off;")
    early = Early(source)
    early.more.set()
    with r.client() as client:
        raw, end = early.begin(client)
        assert client.receive("POST").body == b"answer"
        x, = r.exchanges(1)
        assert (x.end, x.reason, x.eom, x.response) == (
            "DROP", "unread_body", None, b"")
        r.total(seen=1, unread_body=1)
        client.send(end)
        assert client.ended()
    r.total(seen=1, unread_body=1)


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_client_that_stops_after_an_early_response_began(rig, source, how):
    r = rig(server=f"{UPLOAD} proxy_buffering off;")
    early = Early(source)
    client = r.client()
    early.begin(client)
    begins(client)
    getattr(client, how)()
    x, = r.exchanges(1)
    assert (x.end, x.reason, x.eom, x.response) == (
        "DROP", "unread_body", None, b"")
    early.more.set()
    client.close()
    r.get("/usual")
    r.total(seen=2, unread_body=1, captured=1)


@pytest.mark.parametrize("ended", [False, True])
def test_a_source_that_cuts_its_early_response(rig, source, ended):
    """The request decides: with its end it is an exchange whose response was
    cut, without it there is nothing to replay."""
    r = rig(server=f"{UPLOAD} proxy_buffering off; lingering_timeout 100ms;")
    early = Early(source, b"x" * 100, cut=0)
    client = r.client()
    raw, end = early.begin(client)
    begins(client)
    x = begun(r)
    if ended:
        client.send(end)
        wait_until(lambda: x.eom)
    early.more.set()
    x, = r.exchanges(1)
    if ended:
        same_request(x, raw)
        assert x.truncated and x.response.endswith(b"\r\n\r\nx")
        r.total(seen=1, captured=1, truncated=1)
    else:
        assert (x.end, x.reason, x.response) == ("DROP", "unread_body", b"")
        r.total(seen=1, unread_body=1)
    client.close()


def test_beyond_its_bound_a_response_is_lost_and_its_request_is_not(rig, source):
    r = rig(server=f"{UPLOAD} proxy_buffering off;")
    body = pattern(1_000_000)
    early = Early(source, body, at=600_000)
    with r.client() as client:
        raw, end = early.begin(client)
        begins(client, 600_000)
        client.send(end)
        x, = r.exchanges(1)
        early.more.set()
        assert client.receive("POST").body == body
        client.request("GET", "/usual")
    x, y = r.exchanges(2)
    same_request(x, raw)
    assert (x.end, x.reason) == ("ABANDON", "response")
    got = x.response.partition(b"\r\n\r\n")[2]
    assert body.startswith(got)
    assert HOLD_MAX * 0.95 < len(x.response) < HOLD_MAX
    assert y.complete and y.connection is not x.connection
    r.total(seen=2, response=1, captured=1)


def test_what_a_worker_holds_is_bounded_and_given_back(rig, source):
    """An eighth of capture_buffer, in pieces of 8 KiB: 16 of them here."""
    r = rig(server=f"{UPLOAD} proxy_buffering off;", buffer="1m")

    def turn(sizes):
        """The lengths of the captured responses of exchanges that are held
        after so many bytes of their bodies."""
        before = len(r.sidecar.exchanges)
        clients = []
        for i, size in enumerate(sizes):
            early = Early(source, pattern(size + 10), at=size)
            client = r.client()
            _, end = early.begin(client, target=f"/{i}")
            begins(client, size)
            # the source has looked at its request: the next may be another one
            clients.append((client, end, early))
        for client, end, early in clients:
            client.send(end)
            early.more.set()
        xs = r.exchanges(before + len(sizes))[before:]
        for client, _, _ in clients:
            client.close()
        xs.sort(key=lambda x: x.request)
        return [(x.end, x.reason, len(x.response)) for x in xs]

    for _ in range(2):
        a, b, c = turn([100_000, 100_000, 100_000])
        assert a[:2] == ("END", None) and a[2] > 100_010
        assert b[:2] == c[:2] == ("ABANDON", "response")
        assert 2 * PIECE < b[2] <= 3 * PIECE + 100 and c[2] == 0
    # those that never end give back as well
    for _ in range(3):
        early = Early(source, pattern(100_000), at=90_000)
        client = r.client()
        early.begin(client)
        begins(client, 90_000)
        client.reset()
        early.more.set()
    r.total(seen=9, captured=2, response=4, unread_body=3)
    assert turn([100_000])[0][:2] == ("END", None)


def test_a_sidecar_that_goes_takes_what_is_held(rig, source):
    r = rig(server=f"{UPLOAD} proxy_buffering off;")
    early = Early(source)
    with r.client() as client:
        raw, end = early.begin(client)
        begins(client)
        r.link.hang_up()
        r.linked(1)
        client.send(end)
        early.more.set()
        assert client.receive("POST").body == b"answer"
        client.request("GET", "/usual")
    r.total(seen=2, captured=1, link_lost=1)


def test_a_pool_that_is_full_at_the_request_s_end(rig, source):
    """What is held finds no room: the request is recorded, its response lost."""
    r = rig(server=f"{UPLOAD} proxy_buffering off;", buffer="2m",
            options={"hold_blocks": True})
    early = Early(source, pattern(200_010), at=200_000)
    with r.client() as client, r.client() as other:
        raw, end = early.begin(client)
        begins(client, 200_000)
        usual = Response(body=pattern(1_650_000))
        source.early, source.answer = lambda q: False, lambda q: usual
        other.request("GET", "/fill")
        client.send(end)
        x, y = r.exchanges(2)
        early.more.set()
        assert client.receive("POST").body == pattern(200_010)
    same_request(x, raw)
    assert (x.end, x.reason) == ("ABANDON", "response") and y.complete
    assert x.response.startswith(b"HTTP/1.1 200")
    r.total(seen=2, response=1, captured=1)


def test_what_nobody_will_read_is_dropped_at_the_response_s_head(rig):
    """A file asked for with a body: it need not be held, nor even copied."""
    r = rig(server="location /s/ { alias html/; }")
    os.makedirs(os.path.join(r.directory, "html"))
    with open(os.path.join(r.directory, "html", "f"), "wb") as f:
        f.truncate(50_000_000)
    with r.client() as client:
        client.send(build_request("GET", "/s/f", [HOST], b"body")[:-2])
        begins(client)
        x, = r.exchanges(1)          # the client has not got it all by far
    assert (x.end, x.reason, x.response) == ("DROP", "unread_body", b"")
    r.total(seen=1, unread_body=1)
