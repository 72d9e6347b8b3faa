"""Requests that wait: when their end goes on, and what becomes of them if it
does not. FakeSidecar acknowledges when the test says so."""

import signal
import socket
import threading
import time

import pytest

from capture_rig import dechunk, same_request
from rig.client import build_request
from rig.client2 import Client2, captured
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

HOST = [("Host", "source.test")]


class Durable:
    """Answers 200, and notes each request that was complete at the source before
    the test said that it may be."""

    def __init__(self, source):
        self.said = threading.Event()
        self.early = []
        source.answer = self

    def __call__(self, request):
        if not self.said.is_set():
            self.early.append(request.target)
        return Response(body=request.target.encode())


@pytest.fixture
def durable(source):
    d = Durable(source)
    yield d
    assert d.early == [], "complete at the source before they were durable"


@pytest.fixture
def held(rig):
    """A rig whose sidecar acknowledges nothing until it is told to; HTTP/2 is
    on port2."""
    def make(server="", http="", wait="mutating", **options):
        port = free_port()
        r = rig(server=f"listen 127.0.0.1:{port} http2; {server}", wait=wait,
                http="capture_wait_timeout 60s; log_format waits '$request_uri $status "
                     "[$capture_result] $capture_wait_time';"
                     f"access_log waits.log waits; {http}",
                options={"ack": False, **options.pop("options", {})}, **options)
        r.port2 = port
        r.client2 = lambda **o: Client2(port, **o)
        return r
    return make


def waits(r):
    """{result: count} without zeros; `now`: held at this moment."""
    row = r.status()["total"]["waits"]
    ms = row.pop("ms")
    out = dict(row, now=row["held"] - sum(
        row[n] for n in ("acked", "timed_out", "lost", "left")))
    assert min(out.values()) >= 0 and (ms == 0 or row["held"]), out
    return {name: n for name, n in out.items() if n}


def waiting(r, **want):
    """Waits until the counters of waits are these."""
    last = {}

    def good():
        last.update(now=waits(r))
        return last["now"] == want
    try:
        wait_until(good, 15)
    except AssertionError:
        raise AssertionError(f"waits are {last['now']}, not {want}") from None


def holds(r, n):
    """Waits until n requests are held at once."""
    try:
        wait_until(lambda: waits(r).get("now", 0) == n, 20)
    except AssertionError:
        raise AssertionError(f"not {n} held: {waits(r)}, {r.sidecar.exchanges}") from None
    r.caught_up()


# which, and every way in which a request can come

SIZES = (0, 1, 3000, 5_000_000)


def framed(framing, size, seed):
    body = pattern(size, seed)
    if framing == "none":
        return {}
    if framing == "length":
        return {"body": body}
    return {"chunks": [body[i:i + 70001] for i in range(0, size, 70001)]}


WAYS = [(version, framing, size)
        for version in ("1.1", "1.0")
        for framing in ("none", "length", "chunked")
        for size in (SIZES if framing != "none" else (0,))
        if (version, framing) != ("1.0", "chunked")]

LOCATIONS = {
    "buffered": "",
    "unbuffered": "proxy_request_buffering off;",
    "in a file": "client_body_in_file_only clean;",
    "in one buffer": "client_body_in_single_buffer on;",
    "mirrored": "mirror /mirror;",
    "authorised": "auth_request /auth;",
}

SUBREQUESTS = """
    location = /mirror { internal; capture off; proxy_pass http://other; }
    location = /auth { internal; capture off; return 204; }
"""


@pytest.mark.parametrize("refuse", [False, True])
def test_what_is_on_the_sidecars_disk_is_let_go(held, source, durable, refuse):
    """Not acknowledged by Kafka yet; and what is not on the disk is held."""
    r = held("capture_on_failure refuse;" if refuse else "")
    for i in range(3):
        c = r.client()
        c.send(build_request("POST", f"/{i}", HOST, body=b"x"))
        holds(r, 1)
        assert len(source.requests) == i
        durable.said.set()
        r.link.sync()
        assert c.receive("POST").status == 200
        waiting(r, held=i + 1, acked=i + 1)
        durable.said.clear()
        c.close()
    r.link.acknowledge()
    assert all(x.complete for x in r.exchanges(3))


@pytest.mark.parametrize("how", LOCATIONS)
def test_nothing_is_complete_at_the_source_while_it_is_held(
        held, source, durable, how):
    """HTTP/1.0 and 1.1, all at once; the source gets what can be streamed, but
    never the end."""
    port = free_port()
    r = held(location=LOCATIONS[how], buffer="128m",
             http=f"upstream other {{ server 127.0.0.1:{port}; }}",
             server=SUBREQUESTS + f"listen 127.0.0.1:{port};"
             if how != "mirrored" else SUBREQUESTS)
    clients, raws = [], []
    for i, (version, framing, size) in enumerate(WAYS):
        raw = build_request("POST", f"/{version}/{framing}/{size}", HOST,
                            **framed(framing, size, i))
        raw = raw.replace(b"HTTP/1.1\r\n", b"HTTP/%s\r\n" % version.encode(), 1)
        clients.append(r.client())
        clients[-1].send(raw)
        raws.append(raw)
    holds(r, len(WAYS))
    assert not any(q.complete for q in source.requests)
    if how == "unbuffered":
        streamed = {q.target: len(q.body) for q in source.requests}
        # a piece is held back, as large as a buffer at most
        wait_until(lambda: all(
            len(q.body) >= 4_900_000 for q in source.requests
            if q.target.endswith("/5000000")), 20, "the streamed bodies")
        assert len(streamed) >= 3
    else:
        assert source.requests == []
    durable.said.set()
    r.link.acknowledge()
    for client, (version, framing, size) in zip(clients, WAYS):
        answer = client.receive("POST")
        assert answer.status == 200
        assert answer.body.decode() == f"/{version}/{framing}/{size}"
        client.close()
    waiting(r, held=len(WAYS), acked=len(WAYS))
    xs = {x.request.split(b" ")[1]: x for x in r.exchanges(len(WAYS))}
    sent = {raw.split(b" ")[1]: raw for raw in raws}
    for target, raw in sent.items():
        assert xs[target].complete
        if b"chunked" not in target:
            same_request(xs[target], raw)
    bodies = {q.target: bytes(q.body) for q in source.requests}
    for i, (version, framing, size) in enumerate(WAYS):
        assert bodies[f"/{version}/{framing}/{size}"] == pattern(size, i)


WAYS2 = [(length, end, size) for length in (True, False)
         for end in ("with", "after") for size in SIZES]


@pytest.mark.parametrize("how", ["buffered", "unbuffered"])
def test_http2_is_held_however_its_end_comes(held, source, durable, how):
    """END_STREAM with the last DATA, in an empty one after it, with HEADERS; with
    Content-Length and without."""
    r = held(location=LOCATIONS[how], buffer="128m",
             server="http2_max_concurrent_streams 64;")
    with r.client2(timeout=40) as c:
        streams = [c.start("DELETE", "/none")]
        for i, (length, end, size) in enumerate(WAYS2):
            body = pattern(size, i)
            s = c.start("POST", f"/{length}/{end}/{size}",
                        [("content-length", str(size))] if length else [],
                        end=False)
            streams.append(s)
            assert c.data(s, body, end=end == "with")
        if how == "unbuffered":
            # the source acts on the last byte: END_STREAM may be missing yet
            early = [w for w in WAYS2 if w[0] and w[1] == "after"]
            holds(r, 1 + len(early) + len(WAYS2) // 2)
        for s, (length, end, size) in zip(streams[1:], WAYS2):
            if end == "after":
                c.data(s, b"", end=True)
        holds(r, 1 + len(WAYS2))
        assert not any(q.complete for q in source.requests)
        durable.said.set()
        r.link.acknowledge()
        for s in streams:
            assert c.receive(s).status == 200
    n = 1 + len(WAYS2)
    waiting(r, held=n, acked=n)
    xs = {x.request.split(b" ")[1].decode(): x for x in r.exchanges(n)}
    bodies = {q.target: bytes(q.body) for q in source.requests}
    for i, (length, end, size) in enumerate(WAYS2):
        target = f"/{length}/{end}/{size}"
        assert xs[target].complete
        assert bodies[target] == pattern(size, i)
        if length:
            same_request(xs[target], captured("POST", target, [],
                                              pattern(size, i)))


def test_grpc_waits(held, source, durable):
    """grpc_pass never buffers; NGINX plays the source that speaks HTTP/2."""
    port = free_port()
    r = held(location="", server="location = /call { grpc_pass grpc://127.0.0.1:"
             f"{port}; }}", http=f"server {{ listen 127.0.0.1:{port} http2;"
             "location / { proxy_pass http://source; } }")
    with r.client2() as c:
        a = c.start("POST", "/call", [("te", "trailers")], end=False)
        c.data(a, b"\0\0\0\0\5hello", end=True)
        b = c.start("POST", "/call", [("te", "trailers")], end=False)
        c.data(b, b"\0\0\0\0\5world", end=False)
        c.data(b, b"", end=True)
        holds(r, 2)
        assert source.requests == []
        durable.said.set()
        r.link.acknowledge()
        assert [c.receive(s).status for s in (a, b)] == [200, 200]
    assert sorted(bytes(q.body) for q in source.requests) == [
        b"\0\0\0\0\5hello", b"\0\0\0\0\5world"]
    waiting(r, held=2, acked=2)


def test_expect_and_pipelined_requests_wait_one_after_the_other(
        held, source, durable):
    r = held(location="")
    raws = [build_request("POST", f"/{i}", HOST, body=pattern(100 * i, i))
            for i in range(4)] + [build_request("DELETE", "/4", HOST)]
    with r.client() as client:
        client.send(b"".join(raws))
        durable.said.set()
        for i in range(5):
            holds(r, 1)
            assert len(source.requests) == i
            r.link.acknowledge(more=False)
            assert client.receive("POST").body == b"/%d" % i
        durable.said.clear()
        client.send(build_request("POST", "/e", [
            *HOST, ("Expect", "100-continue"), ("Content-Length", "3")]))
        assert client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        holds(r, 1)
        durable.said.set()
        r.link.acknowledge()
        assert client.receive("POST").body == b"/e"
    for x, raw in zip(r.exchanges(6), raws):
        same_request(x, raw)
    waiting(r, held=6, acked=6)


def test_who_waits(held, source):
    """By default what changes something; with variables what these say. What is
    not captured does not wait, and nothing waits twice."""
    r = held(wait="mutating", http="""
        map $request_uri $slow { ~/_search 0; ~/_msearch ''; default 1; }
        map $arg_no $no { default $arg_no; }""", location="capture_bypass $no;",
        server="""
        location /chosen { capture_wait $slow; proxy_pass http://source; }
        location /two { capture_wait $arg_a $arg_b; proxy_pass http://source; }
        location /off { capture_wait off; proxy_pass http://source; }
        location /uncaptured { capture off; proxy_pass http://source; }
        location /return { return 200; }
        """)
    with r.client() as client:
        for method in ("GET", "HEAD", "OPTIONS", "PROPFIND"):
            assert client.request(method, "/").status == 200
        for target in ("/?no=1", "/chosen/_search", "/chosen/_msearch", "/two",
                       "/two?a=0", "/off", "/uncaptured", "/return"):
            answer = client.request("POST", target, body=b"x")
            assert answer.status == 200, target
    waiting(r)
    for n, (method, target) in enumerate([
            ("POST", "/"), ("PUT", "/"), ("DELETE", "/"), ("PATCH", "/"),
            ("GET", "/chosen/x"), ("POST", "/two?b=1"), ("GET", "/two?a=yes")]):
        with r.client() as client:
            client.send(build_request(method, target, HOST))
            holds(r, 1)
            before = len(source.requests)
            r.link.acknowledge(more=False)
            assert client.receive().status == 200
            assert len(source.requests) == before + 1
        waiting(r, held=n + 1, acked=n + 1)


@pytest.mark.parametrize("body", [None, pattern(30_000)])
def test_nothing_waits_twice(held, source, body):
    """Internal redirects run the phases again."""
    def answer(request):
        if request.target == "/accel":
            return Response(headers=[("X-Accel-Redirect", "/inside")])
        return Response(500 if request.target == "/error" else 200,
                        body=request.target.encode())
    source.answer = answer
    r = held(server="""
        location = /try { try_files /nothing @named; }
        location @named { proxy_pass http://source; }
        location = /inside { internal; proxy_pass http://source; }
        location = /error { proxy_pass http://source; error_page 500 = @after;
                            proxy_intercept_errors on; }
        location @after { rewrite ^ /after break; proxy_pass http://source; }
        """)
    got = []
    for i, target in enumerate(["/try", "/accel", "/error"]):
        with r.client() as client:
            client.send(build_request("POST", target, HOST, body=body))
            holds(r, 1)
            r.link.acknowledge(more=False)
            got.append(client.receive("POST").body.decode())
        waiting(r, held=i + 1, acked=i + 1)
    assert got == ["/try", "/inside", "/after"]
    r.total(seen=3, captured=3)


# a wait that ends otherwise

def send(r, version, target, body=b"abc", **options):
    """A request that will be held; (client, what receives its answer)"""
    if version == 2:
        c = r.client2(**options)
        s = c.send_request("POST", target, body=body)
        return c, lambda: c.receive(s)
    c = r.client(**options)
    c.send(build_request("POST", target, HOST, body=body))
    return c, lambda: c.receive("POST")


EVERY = [(version, body, buffering) for version in (1, 2)
         for body in (None, b"abc", pattern(200_000)) for buffering in ("on", "off")]


@pytest.mark.parametrize("mode", ["forward", "refuse"])
def test_a_timeout(held, source, mode):
    """forward: it goes on, and its record counts when it comes; refuse: it never
    was, also when the acknowledgement comes late."""
    r = held(location="", server=f"capture_on_failure {mode};"
             "capture_wait_timeout 400ms; client_body_timeout 200ms;"
             "location /on { proxy_pass http://source; }"
             "location /off { proxy_request_buffering off;"
             "proxy_pass http://source; }")
    for n, (version, body, buffering) in enumerate(EVERY):
        if n % 4 == 3:           # the breaker is of another test
            c, receive = send(r, 1, "/on/ok")
            holds(r, 1)
            r.link.acknowledge(more=False)
            assert receive().status == 200
            c.close()
        c, receive = send(r, version, f"/{buffering}/{n}", body)
        answer = receive()
        if mode == "forward":
            assert answer.status == 200
        else:
            assert answer.status == 503
            assert [v for k, v in answer.headers
                    if k.lower() == "retry-after"] == ["1"]
        c.close()
    n = len(EVERY)
    waiting(r, held=n + n // 4, timed_out=n, acked=n // 4)
    r.link.acknowledge()
    xs = r.exchanges(n + n // 4)
    odd = [x for x in xs if b"/ok" not in x.request.split(b" ")[1]]
    executed = [q for q in source.requests if q.complete]
    if mode == "forward":
        assert all(x.complete for x in xs) and len(executed) == n + n // 4
        r.total(seen=n + n // 4, captured=n + n // 4)
    else:
        assert len(executed) == n // 4
        assert all((x.eom, x.end, x.reason) == (None, "DROP", "refused")
                   for x in odd), odd
        r.total(seen=n + n // 4, captured=n // 4, refused=n)
    times = [float(line.rsplit(" ", 1)[1]) for line in
             wait_until(lambda: r.nginx._read("waits.log").splitlines())
             if "/ok" not in line and "/capture_status" not in line]
    assert len(times) == n and all(0.39 <= t < 15 for t in times), times


def test_a_body_timeout_does_not_end_a_hold(held, source):
    r = held(location="", server="client_body_timeout 100ms; send_timeout 100ms;"
             "location /on { proxy_pass http://source; }"
             "location /off { proxy_request_buffering off;"
             "proxy_pass http://source; }")
    todo = [send(r, version, f"/{buffering}", body)
            for version, body, buffering in EVERY]
    holds(r, len(EVERY))
    start = time.monotonic()
    wait_until(lambda: time.monotonic() - start > 0.5)
    holds(r, len(EVERY))
    r.link.acknowledge()
    for c, receive in todo:
        assert receive().status == 200
        c.close()
    waiting(r, held=len(EVERY), acked=len(EVERY))


LEAVES = ["close", "reset"]


@pytest.mark.parametrize("mode", ["forward", "refuse"])
def test_a_client_that_leaves_while_it_is_held(held, source, durable, mode):
    """forward: it is executed and captured all the same; refuse: it is withdrawn,
    nothing of it is replayed or executed."""
    r = held(location="", server=f"capture_on_failure {mode};"
             "proxy_ignore_client_abort on;"
             "location /on { proxy_pass http://source; }"
             "location /off { proxy_request_buffering off;"
             "proxy_pass http://source; }")
    n = 0
    for version, body, buffering in EVERY:
        for how in LEAVES + (["stream"] if version == 2 else []):
            c, _ = send(r, version, f"/{buffering}/{version}/{how}/{n}", body)
            n += 1
            if mode == "forward":
                holds(r, n)
            else:
                holds(r, 1)
            if how == "close":
                c.close()
            elif how == "reset":
                c.reset()
            else:
                c.reset_stream(1)
            if mode == "refuse":
                waiting(r, held=n, left=n)
                c.close()
    if mode == "forward":
        holds(r, n)
        durable.said.set()
        r.link.acknowledge()
        waiting(r, held=n, acked=n)
        wait_until(lambda: sum(q.complete for q in source.requests) == n, 15,
                   "the requests at the source")
        xs = r.exchanges(n)
        assert all(x.eom for x in xs)
    else:
        r.link.acknowledge()
        xs = r.exchanges(n)
        assert all((x.eom, x.end, x.reason) == (None, "DROP", "client_abort")
                   for x in xs), xs
        assert not any(q.complete for q in source.requests)
        r.total(seen=n, client_abort=n)


def test_a_stream_that_is_reset_with_its_last_bytes(held, source):
    """DATA and RST_STREAM come in one piece: NGINX drops the stream before it
    looks at the data, so that nothing is held and nothing replayed."""
    r = held(location="proxy_ignore_client_abort on;")
    with r.client2() as c:
        s = c.start("POST", "/x", end=False)
        wait_until(lambda: r.sidecar.exchanges)
        c.h2.send_data(s, b"abc", end_stream=True)
        c.h2.reset_stream(s, 8)
        c.flush()
        r.total(seen=1, client_abort=1)
    waiting(r)
    x, = r.exchanges(1)
    assert x.eom is None
    assert source.requests == []


def test_a_client_that_left_before_its_request_is_held(held, source):
    """A request without a body, and the end of its connection, in one piece."""
    r = held(location="capture_on_failure refuse;")
    for n in range(1, 6):
        client = r.client()
        client.send(build_request("DELETE", "/x", HOST))
        client.close()
        r.total(seen=n, client_abort=n)
    assert source.requests == []


def test_a_half_held_pool_is_lost_at_once(held, source):
    """The sidecar hangs up: forward goes on, refuse is refused; nobody waits for
    the timeout."""
    r = held(location="", server="capture_wait_timeout 60s;"
             "location /on { proxy_pass http://source; }"
             "location /off { proxy_request_buffering off;"
             "proxy_pass http://source; }"
             "location /r/on { capture_on_failure refuse;"
             "proxy_pass http://source; }"
             "location /r/off { proxy_request_buffering off;"
             "capture_on_failure refuse; proxy_pass http://source; }")
    todo = [(send(r, version, f"{prefix}/{buffering}", body), status)
            for prefix, status in (("", 200), ("/r", 503))
            for version, body, buffering in EVERY]
    n = len(EVERY)
    holds(r, 2 * n)
    r.sidecar.stop()
    for (c, receive), status in todo:
        assert receive().status == status
        c.close()
    waiting(r, held=2 * n, lost=2 * n)
    r.total(seen=2 * n, link_lost=2 * n)
    assert sum(q.complete for q in source.requests) == n
    # and without a sidecar nobody is held at all
    source.requests.clear()
    for prefix, status in (("", 200), ("/r", 503)):
        for version, body, buffering in EVERY:
            c, receive = send(r, version, f"{prefix}/{buffering}", body)
            assert receive().status == status
            c.close()
    waiting(r, held=2 * n, lost=2 * n)
    assert sum(q.complete for q in source.requests) == n
    r.total(seen=4 * n, link_lost=2 * n, unlinked=n, refused=n)


@pytest.mark.parametrize("mode", ["forward", "refuse"])
def test_a_connection_that_the_sidecar_gives_up(held, source, mode):
    """As for a record that the broker refuses: that one's wait ends at once."""
    r = held(location=f"capture_on_failure {mode}; capture_wait_timeout 60s;")
    todo = [send(r, version, f"/{i}", body) for i, (version, body) in enumerate(
        [(1, None), (1, b"abc"), (2, None), (2, b"abc")])]
    other, receive_other = send(r, 1, "/other")
    holds(r, 5)
    for c in r.sidecar.connections:
        if b"/other" not in c.open.request:
            r.link.abandon(c)
    r.link.ring()
    for c, receive in todo:
        assert receive().status == (200 if mode == "forward" else 503)
        c.close()
    waiting(r, held=5, lost=4, now=1)
    r.link.acknowledge()
    assert receive_other().status == 200
    other.close()
    waiting(r, held=5, lost=4, acked=1)
    r.total(seen=5, captured=1, internal=4)


def test_the_breaker(held, source):
    """After five timeouts in a row one request at a time still waits, until one
    has been acknowledged."""
    r = held(location="capture_wait_timeout 300ms;",
             server="location /r { capture_on_failure refuse;"
             "capture_wait_timeout 300ms; proxy_pass http://source; }"
             "location /probe { capture_wait_timeout 60s;"
             "proxy_pass http://source; }")
    for i in range(5):
        assert r.get("/", method="POST").status == 200
    waiting(r, held=5, timed_out=5)
    log = "5 requests in a row waited in vain"
    assert r.nginx.error_log().count(log) == 1
    probe, receive = send(r, 1, "/probe")
    holds(r, 1)
    assert r.get("/", method="POST").status == 200
    assert r.get("/", method="POST", body=b"abc").status == 200
    assert r.get("/r", method="POST").status == 503
    assert r.get("/r", method="POST", body=b"abc").status == 503
    waiting(r, held=6, timed_out=5, now=1, skipped=4)
    # a probe that leaves makes room for another
    r.link.abandon(next(c for c in r.sidecar.connections if c.open))
    r.link.ring()
    assert receive().status == 200
    probe.close()
    assert r.get("/", method="POST").status == 200     # in vain
    waiting(r, held=7, timed_out=6, lost=1, skipped=4)
    probe, receive = send(r, 1, "/probe")
    holds(r, 1)
    r.link.acknowledge(more=False)
    assert receive().status == 200
    probe.close()
    todo = [send(r, 1, "/probe") for _ in range(3)]
    holds(r, 3)
    r.link.acknowledge()
    for c, receive in todo:
        assert receive().status == 200
        c.close()
    waiting(r, held=11, timed_out=6, lost=1, skipped=4, acked=4)
    assert r.nginx.error_log().count(log) == 1
    r.total(seen=15, captured=12, internal=1, refused=2)


def test_a_custom_page_for_a_refusal(held, source):
    """503 goes through error_page as NGINX's own; Retry-After comes once."""
    r = held(location="capture_on_failure refuse; capture_wait_timeout 200ms;"
             "error_page 503 /page; error_page 404 /page;",
             server="location = /page { internal; return 503 'busy'; }"
             "location /proxied { capture_on_failure refuse;"
             "capture_wait_timeout 200ms; error_page 503 = @source;"
             "proxy_pass http://source; }"
             "location @source { proxy_pass http://source; }")
    for body in (None, b"abc"):
        answer = r.get("/", method="POST", body=body)
        assert (answer.status, answer.body) == (503, b"busy")
        assert [v for k, v in answer.headers if k == "Retry-After"] == ["1"]
        # never to the source, whatever the configuration says
        answer = r.get("/proxied", method="POST", body=body)
        assert answer.status == 503
        assert [v for k, v in answer.headers if k == "Retry-After"] == ["1"]
    assert source.requests == []
    r.link.acknowledge()
    r.total(seen=4, refused=4)


def test_a_refusal_says_what_becomes_of_the_connection(held, source):
    """Its body has not been read to its end as NGINX sees it: what was read with
    it, of a next request, must not be taken apart. So it is closed, and says so."""
    r = held(location="capture_on_failure refuse; capture_wait_timeout 100ms;",
             server="location /off { proxy_request_buffering off;"
             "capture_on_failure refuse; capture_wait_timeout 100ms;"
             "proxy_pass http://source; }")
    for target in ("/on", "/off"):
        for request in ({"body": b"abc"}, {"chunks": [b"abc"]},
                        {"body": pattern(100_000)}, {}):
            with r.client() as client:
                client.send(build_request("POST", target, HOST, **request)
                            + build_request("GET", "/next", HOST))
                answer = client.receive("POST")
                if not request:  # nothing was read
                    assert client.receive().status == 200
                    continue
                assert (answer.status, answer.header("Connection")) == (
                    503, "close")
                assert client.ended()
    assert {q.target for q in source.requests if q.complete} == {"/next"}


# upgrades

@pytest.mark.parametrize("mode", ["forward", "refuse"])
@pytest.mark.parametrize("status", [101, 200])
def test_an_upgrade_waits_for_its_reads(held, source, durable, mode, status):
    source_answer = durable

    def answer(request):
        source_answer(request)
        if status == 101:
            return Response(raw=b"HTTP/1.1 101 Switching Protocols\r\n"
                            b"Upgrade: x\r\nConnection: upgrade\r\n\r\n",
                            close=True)
        return Response(body=b"plain")
    source.answer = answer
    r = held(location=f"capture_on_failure {mode};"
             "proxy_set_header Upgrade $http_upgrade;"
             "proxy_set_header Connection upgrade;")
    for body in (None, b"abc"):
        with r.client() as client:
            client.send(build_request("POST", "/x", [
                *HOST, ("Upgrade", "x"), ("Connection", "upgrade")], body=body))
            holds(r, 1)
            x = r.sidecar.exchanges[-1]
            assert x.eom is None
            durable.said.set()
            r.link.acknowledge(more=False)
            assert client.receive("POST").status == status
            durable.said.clear()
    waiting(r, held=2, acked=2)
    for x in r.exchanges(2):
        if status == 101:
            assert (x.eom, x.end, x.reason) == (None, "DROP", "upgrade")
        else:
            assert x.complete


# the process

def test_a_graceful_quit_waits_for_held_requests(held, source, durable):
    r = held(location="")
    todo = [send(r, 1, "/a", None), send(r, 1, "/b", b"abc"), send(r, 2, "/c")]
    holds(r, 3)
    link, worker = r.link, r.nginx.workers()[0]
    r.nginx.process.send(signal.SIGQUIT)
    r.nginx.wait_for_log("gracefully shutting down")
    assert r.nginx.running() and worker in r.nginx.workers()
    durable.said.set()
    link.acknowledge()
    for c, receive in todo:
        assert receive().status == 200
        c.close()
    assert r.nginx.process.wait(15) == 0
    assert all(x.complete for x in r.exchanges(3))


def test_a_reload_leaves_held_requests_to_their_worker(held, source, durable):
    r = held(location="")
    todo = [send(r, 1, "/a", None), send(r, 1, "/b", b"abc"), send(r, 2, "/c")]
    holds(r, 3)
    old = r.link
    r.nginx.reload()
    wait_until(lambda: len(r.sidecar.links) == 2)
    durable.said.set()
    old.acknowledge()
    for c, receive in todo:
        assert receive().status == 200
        c.close()
    assert all(x.complete for x in r.exchanges(3))
    wait_until(lambda: len(r.nginx.workers()) == 1, 15, "the old worker's end")
    waiting(r, held=3, acked=3)


@pytest.mark.parametrize("how", ["worker_shutdown_timeout", "fast stop"])
@pytest.mark.parametrize("mode", ["forward", "refuse"])
def test_a_shutdown_that_does_not_wait(held, source, how, mode):
    r = held(location=f"capture_on_failure {mode};",
             main="worker_shutdown_timeout 300ms;")
    todo = [send(r, 1, "/a", None), send(r, 1, "/b", b"abc"), send(r, 2, "/c")]
    holds(r, 3)
    r.nginx.process.send(signal.SIGTERM if how == "fast stop" else signal.SIGQUIT)
    assert r.nginx.process.wait(15) == 0
    for c, _ in todo:
        c.close()
    r.sidecar.stop()
    for x in r.exchanges(3):
        if how == "fast stop":
            assert x.end == "CUT"
        else:
            assert x.end == ("END" if mode == "forward" else "DROP"), x
        assert bool(x.eom) == (mode == "forward")
    # a stream's request goes on, as one that NGINX has sent already would
    assert len(source.requests) <= (mode == "forward" and how != "fast stop")


def test_without_a_master(held, source, durable):
    r = held(location="", main="master_process off;")
    todo = [send(r, 1, "/a", None), send(r, 1, "/b", b"abc"), send(r, 2, "/c")]
    holds(r, 3)
    durable.said.set()
    r.link.acknowledge()
    for c, receive in todo:
        assert receive().status == 200
        c.close()
    waiting(r, held=3, acked=3)


# answers before the end

@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("mode", ["forward", "refuse"])
def test_an_answer_while_the_end_is_held(held, source, version, mode):
    """The source need not have read a request to answer it: its client gets the
    answer at once, and nobody waits any longer."""
    go = threading.Event()
    source.early = lambda request: True
    source.answer = lambda request: Response(413, body=b"too much", hold=go,
                                             close=True)
    r = held(location="proxy_request_buffering off; capture_wait_timeout 60s;"
             f"capture_on_failure {mode};")
    c, receive = send(r, version, "/x", pattern(3000))
    holds(r, 1)
    go.set()
    answer = receive()
    assert (answer.status, bytes(answer.body)) == (413, b"too much")
    c.close()
    waiting(r, held=1, left=1)
    r.link.acknowledge()
    x, = r.exchanges(1)
    assert not source.requests[0].complete
    if mode == "refuse":
        assert (x.eom, x.end) == (None, "DROP")
        r.total(seen=1, unread_body=1)
    else:
        assert x.complete
        r.total(seen=1, captured=1)


# a full pool

def stalls(r, upload):
    """Starts `upload` in a thread; waits until its worker is starved."""
    result = []

    def run():
        try:
            result.append(upload())
        except OSError:
            result.append(None)
    thread = threading.Thread(target=run)
    thread.start()
    wait_until(r.link.starved, 15, "a starved worker")
    return thread, result


STALLING = [(1, "on", "length"), (1, "on", "chunked"), (1, "off", "length"),
            (1, "off", "chunked"), (2, "off", "length"), (2, "off", "chunked")]


def uploads(r, version, framing, target, body, **options):
    """A function that sends all of it and returns the answer; None where the
    answer has come before all was sent, and no more is read."""
    if version == 2:
        def upload():
            with r.client2(**options) as c:
                return c.request("POST", target, body=body,
                                 length=framing == "length")
    else:
        def upload():
            with r.client(**options) as c:
                return c.request("POST", target, HOST, **(
                    {"body": body} if framing == "length" else
                    {"chunks": [body[i:i + 50_001]
                                for i in range(0, len(body), 50_001)]}))
    return upload


@pytest.mark.parametrize("version, buffering, framing", STALLING)
def test_a_body_is_read_no_further_while_the_pool_is_full(
        held, source, version, buffering, framing):
    """And goes on as blocks come back: nothing is lost, nobody is told 408."""
    r = held(buffer="1m", options={"ack": True, "hold_blocks": True},
             location=f"proxy_request_buffering {buffering};"
             "client_body_timeout 1s; client_body_buffer_size 1m;")
    body = pattern(3_000_000, 5)
    thread, result = stalls(r, uploads(r, version, framing, "/x", body))
    blocks = r.status()["workers"][0]
    assert blocks["blocks_used"] <= blocks["blocks"]
    start = time.monotonic()
    if framing == "length":      # longer than client_body_timeout
        wait_until(lambda: time.monotonic() - start > 1.3)
    assert r.link.starved() and not any(q.complete for q in source.requests)

    def ended():
        r.link.return_all()
        return not thread.is_alive()
    wait_until(ended, 20, "the upload's end")
    assert result[0].status == 200
    assert bytes(source.requests[0].body) == body
    x, = r.exchanges(1)
    assert x.complete
    got = x.request.partition(b"\r\n\r\n")[2]
    assert body == (dechunk(got)[0] if framing == "chunked" else got)
    assert not r.link.starved()
    waiting(r, held=1, acked=1)
    r.total(seen=1, captured=1)


@pytest.mark.parametrize("mode", ["forward", "refuse"])
@pytest.mark.parametrize("version, buffering, framing", STALLING)
def test_a_pool_that_stays_full(held, source, version, buffering, framing, mode):
    """After capture_wait_timeout without progress: forward loses, refuse refuses;
    a request that does not wait is not held up by it."""
    r = held(buffer="1m", options={"ack": True, "hold_blocks": True},
             server=f"capture_on_failure {mode};",
             location=f"proxy_request_buffering {buffering};"
             "capture_wait_timeout 500ms;")
    body = pattern(3_000_000, 5)
    upload = uploads(r, version, framing, "/x", body,
                     timeout=3 if mode == "refuse" else 30)
    thread, result = stalls(r, upload)
    assert r.get("/other").status == 200
    thread.join(20)
    done = [q for q in source.requests if q.target == "/x" and q.complete]
    if mode == "forward":
        assert result[0].status == 200
        assert bytes(done[0].body) == body
    else:
        assert result[0] is None or result[0].status == 503
        assert done == []
    reason = "pool_full" if mode == "forward" else "refused"
    wait_until(lambda: sum(
        dict(r.status()["total"]["lost"], **r.status()["total"]["filtered"])
        .get(n, 0) for n in (reason,)) >= 1)
    assert not r.link.starved()
    r.link.return_all()


def test_a_link_that_ends_while_a_body_is_stalled(held, source):
    r = held(buffer="1m", options={"ack": True, "hold_blocks": True},
             server="client_body_timeout 200ms;")
    body = pattern(3_000_000, 5)
    thread, result = stalls(r, uploads(r, 1, "length", "/x", body))
    r.sidecar.stop()
    thread.join(20)
    assert result[0].status == 200
    r.total(seen=1, link_lost=1)


def test_a_client_that_leaves_while_its_body_is_stalled(held, source):
    r = held(buffer="1m", options={"ack": True, "hold_blocks": True},
             location="proxy_request_buffering off;")
    c = r.client2()
    s = c.start("POST", "/x", end=False)
    thread, _ = stalls(r, lambda: c.data(s, pattern(3_000_000, 5)))
    c.sock.shutdown(socket.SHUT_RDWR)
    thread.join(20)
    c.close()
    r.link.return_all()
    x, = r.exchanges(1)
    assert (x.eom, x.end, x.reason) == (None, "DROP", "client_abort")
    assert not r.link.starved()


def test_a_loss_in_the_middle_of_a_body_is_refused(held, source):
    """Not only one that is noticed with the last byte."""
    r = held(location="capture_on_failure refuse; proxy_request_buffering off;")
    with r.client() as c:
        c.send(build_request("POST", "/x", [*HOST, ("Content-Length", "30")]))
        c.send(b"0123456789")
        wait_until(lambda: source.requests and source.requests[0].body)
        r.sidecar.stop()
        wait_until(lambda: "closed the link" in r.nginx.error_log())
        for _ in range(2):
            c.send(b"0123456789")
        assert c.receive("POST").status == 503
    assert not source.requests[0].complete
