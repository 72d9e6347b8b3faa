"""HTTP/2: what a stream looks like in the worker's memory, as HTTP/1.1, and how
concurrent streams share a connection's lanes.

FakeSidecar fails when two exchanges of one connectionId overlap: that, in every
test here, is the lanes' rule.
"""

import os
import random
import threading

import pytest

from capture_rig import Message, lengths_fit, same_request, same_response
from rig.client import Client, build_request
from rig.client2 import Client2, alpn, captured
from rig.nginx import http2, version
from rig.process import SANITIZED, free_port
from rig.source import Response, pattern
from rig.status import wait_until


@pytest.fixture
def rig2(rig):
    """As rig(), with HTTP/2 by prior knowledge on r.port2 of the same server."""
    def make(server="", **options):
        port = free_port()
        r = rig(server=f"{http2(port)} {server}", **options)
        r.port2 = port
        r.client2 = lambda **o: Client2(port, **o)
        return r
    return make


def same_response2(exchange, answer, bodyless=False, ignore=()):
    """The captured response is what the client got; HTTP/2 has names in lower
    case, no reason, and an order of its own for different names."""
    got = Message(exchange.response, bodyless)
    without = {"transfer-encoding", *ignore}

    def keep(headers):
        return sorted(((n.lower(), v) for n, v in headers
                       if n.lower() not in without), key=lambda h: h[0])
    assert got.line.split(" ", 2)[:2] == ["HTTP/1.1", str(answer.status)]
    assert keep(got.headers) == keep(answer.headers)
    assert got.body == bytes(answer.body)
    return got


def by_target(r, n):
    return {x.request.split(b" ", 2)[1].decode(): x for x in r.exchanges(n)}


def ids(xs):
    return [x.connection.id for x in xs]


# the request in its canonical form

def test_streams_one_after_the_other_are_a_keep_alive_connection(rig2, source):
    source.answer = lambda q: Response(headers=[("X-Method", q.method)],
                                       body=q.method.encode() * 3)
    r = rig2()
    raws, answers = [], []
    with r.client2() as c:
        for i, method in enumerate(["GET", "POST", "PUT", "HEAD", "DELETE",
                                    "PATCH", "OPTIONS", "GET"]):
            body = pattern(700, i) if method in ("POST", "PUT", "PATCH") else None
            raws.append(captured(method, f"/i{i}?q={i}", [("x", "y")], body))
            answers.append(c.request(method, f"/i{i}?q={i}", [("x", "y")], body))
    xs = r.exchanges(8)
    for x, raw, answer in zip(xs, raws, answers):
        same_request(x, raw)
        same_response2(x, answer, x.request.startswith(b"HEAD"))
        assert x.complete
    assert len(set(ids(xs))) == 1
    connection, = r.closed(1)
    assert connection.end == "CLOSE"
    r.total(seen=8, captured=8)


def test_the_head_has_no_pseudo_and_no_hop_headers(rig2, source):
    """Order, duplicates and empty values stay; cookies become one, at the end;
    framing is NGINX's; Expect goes as it does in HTTP/1.1."""
    r = rig2()
    with r.client2() as c:
        c.request("GET", "/a%20b/../c?x=%2F&y", [
            ("x-twice", "1"), ("cookie", "a=b"), ("te", "trailers"),
            ("connection", "keep-alive"), ("x-empty", ""), ("keep-alive", "x"),
            ("x-other", "ä"), ("cookie", "c=d; e=f"), ("x-twice", "2"),
            ("proxy-connection", "x"), ("upgrade", "h2c"), ("x-te", "t"),
            ("expect", "100-continue"), ("tex", "t"), ("cookie", "g=h"),
            ("authorization", "Basic eA==")], authority="a.b:9200")
    x, = r.exchanges(1)
    same_request(x, build_request("GET", "/a%20b/../c?x=%2F&y", [
        ("host", "a.b:9200"), ("x-twice", "1"), ("x-empty", ""), ("x-other", "ä"),
        ("x-twice", "2"), ("x-te", "t"), ("tex", "t"),
        ("authorization", "Basic eA=="), ("cookie", "a=b; c=d; e=f; g=h")]))


def test_a_transfer_encoding_of_the_client_gives_one_framing(rig2, source):
    r = rig2()
    with r.client2() as c:
        s = c.start("POST", "/", [("transfer-encoding", "chunked")], end=False)
        c.data(s, b"abc")
        assert c.receive(s).status == 200
    x, = r.exchanges(1)
    same_request(x, captured("POST", "/", [], b"abc", length=False))


def test_host_stays_at_its_place_without_authority(rig2):
    r = rig2()
    with r.client2() as c:
        c.request("GET", "/", [("a", "1"), ("host", "h.test"), ("b", "2")],
                  authority=None)
    x, = r.exchanges(1)
    same_request(x, build_request("GET", "/", [("a", "1"), ("host", "h.test"),
                                               ("b", "2")]))


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_a_body_without_a_length_is_chunked(rig2, source, size, buffering):
    r = rig2(location=f"proxy_request_buffering {buffering};")
    body = pattern(size)
    with r.client2() as c:
        for late in (False, True):
            s = c.start("POST", "/_bulk", end=False)
            c.data(s, body, end=not late)
            if late:
                c.data(s, b"")
            assert c.receive(s).status == 200
    for x, q in zip(r.exchanges(2), source.requests):
        m = Message(x.request)
        assert m.line == "POST /_bulk HTTP/1.1"
        assert m.headers == [("host", "source.test"),
                             ("transfer-encoding", "chunked")]
        assert m.body == body == bytes(q.body)
        lengths_fit(x)
    r.total(seen=2, captured=2)


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("frame", [1, 1 << 14])
@pytest.mark.parametrize("late", [False, True])
def test_a_body_with_a_length_keeps_it(rig2, source, late, frame, buffering):
    r = rig2(location=f"proxy_request_buffering {buffering};")
    with r.client2() as c:
        for body in (b"", b"x", pattern(300)):
            s = c.start("PUT", "/x", [("content-length", str(len(body)))], end=False)
            c.data(s, body, end=not late, frame=frame)
            if late:
                c.data(s, b"")
            assert c.receive(s).status == 200
    for x, body in zip(r.exchanges(3), (b"", b"x", pattern(300))):
        same_request(x, captured("PUT", "/x", [], body))
    r.total(seen=3, captured=3)


def test_a_get_that_ends_in_an_empty_data_frame(rig2, source):
    """NGINX has seen no end yet when it takes the head, so the framing says that
    a body may come: an empty one."""
    r = rig2()
    with r.client2() as c:
        s = c.start("GET", "/", end=False)
        c.data(s, b"")
        answer = c.receive(s)
    x, = r.exchanges(1)
    same_request(x, captured("GET", "/", [], b"", length=False))
    same_response2(x, answer)


def test_content_length_zero_and_no_body_differ(rig2):
    r = rig2()
    with r.client2() as c:
        c.receive(c.start("POST", "/", [("content-length", "0")]))
        c.receive(c.start("POST", "/"))
    a, b = r.exchanges(2)
    same_request(a, captured("POST", "/", [("content-length", "0")]))
    same_request(b, captured("POST", "/"))


def test_the_replayer_s_limits_are_those_of_the_normalised_head(rig2):
    r = rig2(http="large_client_header_buffers 8 32k;")
    host = len("host: source.test")
    with r.client2() as c:
        for line, size in ((4096, 100), (100, 8192), (4097, 100), (100, 8193)):
            target = "/" + "u" * (line - len("GET / HTTP/1.1"))
            assert c.request("GET", target, [
                ("x", "v" * (size - host - len("x: "))),
                # not counted: they are not captured
                ("te", "trailers"), ("keep-alive", "k" * 200)]).status == 200
    a, b = r.exchanges(2)
    assert (a.eom, b.eom) == ((4096, 100), (100, 8192))
    lengths_fit(a)
    lengths_fit(b)
    r.total(seen=4, captured=2, unreplayable=2)


def test_a_head_in_several_frames(rig2):
    """HEADERS and CONTINUATION."""
    r = rig2(http="large_client_header_buffers 8 32k;",
             server="capture_include unreplayable;")
    headers = [(f"x-{i}", pattern(12_000, i).decode()) for i in range(4)]
    with r.client2() as c:
        assert c.request("POST", "/", headers, b"abc").status == 200
    x, = r.exchanges(1)
    same_request(x, captured("POST", "/", headers, b"abc"))


# the response

@pytest.mark.parametrize("status", [204, 304, 200])
def test_answers_without_a_body_end_with_their_head(rig2, source, status):
    source.answer = lambda q: Response(status, "X", [("ETag", '"x"')])
    r = rig2()
    with r.client2() as c:
        answers = [c.request(method, "/") for method in ("GET", "HEAD")]
    for x, answer in zip(r.exchanges(2), answers):
        same_response2(x, answer, bodyless=x.request.startswith(b"HEAD")
                       or status != 200)


@pytest.mark.parametrize("options", [
    {"chunked": (1, 7, 40_000)}, {"until_close": True},
    {"chunked": (9,), "trailers": [("X-T", "1")]}])
def test_a_response_without_a_length_is_chunked(rig2, source, options):
    source.answer = lambda q: Response(body=pattern(200_000, 5), **options)
    r = rig2()
    with r.client2() as c:
        answer = c.request("GET", "/")
    x, = r.exchanges(1)
    got = same_response2(x, answer)
    assert got.all("transfer-encoding") == ["chunked"]


def test_a_response_is_captured_before_gzip(rig2, source):
    r = rig2(http="gzip on; gzip_types *; gzip_min_length 1;")
    body = pattern(100_000)
    source.answer = lambda q: Response(headers=[("Content-Type", "text/plain")],
                                       body=body)
    with r.client2() as c:
        answer = c.request("GET", "/", [("accept-encoding", "gzip")])
    assert answer.header("content-encoding") == "gzip"
    x, = r.exchanges(1)
    got = Message(x.response)
    assert got.body == body and got.all("content-length") == ["100000"]
    assert not got.all("content-encoding")


def test_a_redirect_is_captured_as_absolute_as_it_was_sent(rig2):
    r = rig2(server="location /d { alias html/d; }")
    os.makedirs(os.path.join(r.directory, "html", "d"))
    with r.client2() as c:
        answer = c.request("GET", "/d")
    assert answer.header("location") == f"http://source.test:{r.port2}/d/"
    x, = r.exchanges(1)
    same_response2(x, answer)


def test_ranges_of_a_static_file(rig2):
    r = rig2(server="location /s/ { alias html/; }")
    os.makedirs(os.path.join(r.directory, "html"))
    with open(os.path.join(r.directory, "html", "f"), "wb") as f:
        f.write(pattern(200_000))
    with r.client2() as c:
        for value, status in (("bytes=5-100004", 206), ("bytes=999999-", 416)):
            answer = c.request("GET", "/s/f", [("range", value)])
            assert answer.status == status
            x = r.exchanges(1 + (status == 416))[-1]
            same_response2(x, answer)


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("length", [True, False])
def test_5_mb_up_and_down(rig2, source, length, buffering):
    r = rig2(buffer="64m", location=f"proxy_request_buffering {buffering};"
                                    f"proxy_buffering {buffering};")
    source.answer = lambda q: Response(body=pattern(5_000_000, 3))
    body = pattern(5_000_000)
    with r.client2() as c:
        answer = c.request("POST", "/_bulk", [], body, length)
    x, = r.exchanges(1)
    assert Message(x.request).body == body == bytes(source.requests[0].body)
    lengths_fit(x)
    same_response2(x, answer)
    r.total(seen=1, captured=1)


# lanes

def test_100_concurrent_streams_take_100_lanes_and_give_them_back(rig2, source):
    release = threading.Event()
    source.answer = lambda q: Response(body=q.target.encode() * 20, hold=release)
    r = rig2()
    with r.client2() as c:
        streams = [c.send_request("POST" if i % 2 else "GET", f"/{i}", [],
                                  pattern(i, i) if i % 2 else None,
                                  length=i % 4 == 1) for i in range(100)]
        wait_until(lambda: len(source.requests) == 100, what="100 requests")
        r.total(seen=100, pending=100)
        release.set()
        answers = [c.receive(s) for s in streams]
        xs = by_target(r, 100)
        first = [xs[f"/{i}"].connection.id for i in range(100)]
        assert len(set(first)) == 100
        for i, answer in enumerate(answers):
            x = xs[f"/{i}"]
            same_response2(x, answer)
            assert Message(x.request).body == (pattern(i, i) if i % 2 else b"")
        # fewer at once: the lowest lanes
        release.clear()
        streams = [c.start("GET", f"/{100 + i}") for i in range(10)]
        wait_until(lambda: len(source.requests) == 110, what="110 requests")
        release.set()
        for s in streams:
            c.receive(s)
        xs = by_target(r, 110)
        assert [xs[f"/{100 + i}"].connection.id for i in range(10)] == first[:10]
        # one by one: the first alone
        for i in range(110, 115):
            c.request("GET", f"/{i}")
        xs = by_target(r, 115)
        assert {xs[f"/{i}"].connection.id for i in range(110, 115)} == {first[0]}
        assert not any(x.end for x in r.sidecar.connections)
    connections = r.closed(100)
    assert [x.end for x in connections] == ["CLOSE"] * 100
    r.total(seen=115, captured=115)


def test_a_lane_in_the_middle_is_taken_first_when_it_is_free(rig2, source):
    holds = {f"/{i}": threading.Event() for i in range(5)}
    source.answer = lambda q: Response(hold=holds.get(q.target))
    r = rig2()
    with r.client2() as c:
        streams = [c.start("GET", f"/{i}") for i in range(5)]
        wait_until(lambda: len(source.requests) == 5)
        holds["/2"].set()
        c.receive(streams[2])
        c.request("GET", "/a")
        holds["/1"].set()
        c.receive(streams[1])
        c.request("GET", "/b")
        for hold in holds.values():
            hold.set()
        for s in streams:
            c.receive(s)
    xs = by_target(r, 7)
    assert xs["/a"].connection is xs["/2"].connection
    assert xs["/b"].connection is xs["/1"].connection
    assert len(r.closed(5)) == 5
    r.total(seen=7, captured=7)


def test_connections_do_not_share_lanes(rig2, source):
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig2()
    clients = [r.client2() for _ in range(5)]
    streams = [(c, c.start("GET", f"/{i}/{j}"))
               for j in range(4) for i, c in enumerate(clients)]
    wait_until(lambda: len(source.requests) == 20)
    release.set()
    for c, s in streams:
        c.receive(s)
    for i, c in enumerate(clients):
        for j in range(4, 8):
            c.request("GET", f"/{i}/{j}")
        c.close()
    r.exchanges(40)
    for connection in r.closed(20):
        owners = {x.request.split(b"/")[1] for x in connection.exchanges}
        assert len(owners) == 1
    r.total(seen=40, captured=40)


def test_the_variables_tell_each_stream_its_lane(rig2, source):
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig2(location="add_header X-Id $capture_connection_id always;")
    with r.client2() as c:
        streams = [c.start("GET", f"/{i}") for i in range(5)]
        wait_until(lambda: len(source.requests) == 5)
        release.set()
        answers = [c.receive(s) for s in streams]
    xs = by_target(r, 5)
    for i, answer in enumerate(answers):
        assert answer.header("x-id") == xs[f"/{i}"].connection.id


def test_a_lane_that_the_sidecar_gives_up_leaves_the_others_alone(rig2, source):
    hold = threading.Event()
    source.answer = lambda q: Response(hold=hold)
    r = rig2()
    with r.client2() as c:
        streams = [c.start("GET", f"/{i}") for i in range(3)]
        wait_until(lambda: len(r.sidecar.exchanges) == 3
                   and len(source.requests) == 3)
        x = next(x for x in r.sidecar.exchanges if b"/1 " in x.request)
        r.link.abandon(x.connection)
        r.status()
        s = c.start("GET", "/new")   # takes the lane that is free now
        wait_until(lambda: len(source.requests) == 4)
        hold.set()
        for s in (*streams, s):
            assert c.receive(s).complete
    xs = by_target(r, 4)
    assert xs["/1"].end == "ABANDON"
    assert all(xs[t].complete for t in ("/0", "/2", "/new"))
    assert len(set(ids(xs.values()))) == 4
    r.total(seen=4, captured=3, internal=1)


def test_a_link_that_breaks_under_open_lanes_starts_them_anew(rig2, source):
    hold = threading.Event()
    source.answer = lambda q: Response(hold=hold)
    r = rig2()
    with r.client2() as c:
        streams = [c.start("GET", f"/{i}") for i in range(4)]
        wait_until(lambda: len(source.requests) == 4)
        r.sidecar.stop()
        r.sidecar.start()
        r.linked()
        late = [c.start("GET", f"/l{i}") for i in range(4)]
        wait_until(lambda: len(source.requests) == 8)
        hold.set()
        for s in streams + late:
            assert c.receive(s).complete
        assert c.request("GET", "/end").status == 200
    wait_until(lambda: sum(x.complete for x in r.link.exchanges) == 5)
    assert len(r.link.connections) == 4
    r.total(seen=9, captured=5, link_lost=4)


# resets

def test_a_reset_before_the_end_of_an_empty_body_drops_the_request(rig2, source):
    """NGINX would not have forwarded it before."""
    r = rig2()
    with r.client2() as c:
        s = c.start("POST", "/", [("content-length", "0")], end=False)
        wait_until(lambda: r.sidecar.exchanges)
        c.reset_stream(s)
        x, = r.exchanges(1)
    assert (x.end, x.reason, x.eom) == ("DROP", "client_abort", None)
    assert not source.requests
    r.total(seen=1, client_abort=1)


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("length", ["100000", None])
@pytest.mark.parametrize("sent", [b"", b"half"])
def test_a_reset_in_the_request_drops_it(rig2, source, sent, length, buffering):
    r = rig2(location=f"proxy_request_buffering {buffering};")
    headers = [("content-length", length)] if length else []
    with r.client2() as c:
        for code in (8, 0, 2):
            n = len(r.sidecar.exchanges)
            s = c.start("POST", "/", headers, end=False)
            if sent:
                c.data(s, sent, end=False)
            wait_until(lambda: len(r.sidecar.exchanges) > n
                       and sent in r.sidecar.exchanges[-1].request)
            c.reset_stream(s, code)
            r.exchanges(n + 1)
        assert c.request("GET", "/after").status == 200
    *cut, after = r.exchanges(4)
    for x in cut:
        assert (x.end, x.reason, x.eom) == ("DROP", "client_abort", None)
    assert after.complete
    assert len(set(ids(r.sidecar.exchanges))) == 1
    r.total(seen=4, captured=1, client_abort=3)


def test_a_head_and_its_reset_at_once(rig2, source):
    """Nothing hangs, and each is named, whichever comes first; a complete one
    stays captured: the source may have got it."""
    r = rig2(server="proxy_ignore_client_abort on;")
    with r.client2() as c:
        for i in range(60):
            s = c.start("GET", f"/{i}", end=i % 2 == 0, flush=False)
            c.reset_stream(s)
        assert c.request("GET", "/end").status == 200
        xs = r.exchanges(61)
    assert sum(x.end == "DROP" for x in xs) == 30
    assert sum(x.truncated for x in xs) == 30
    r.total(seen=61, captured=31, truncated=30, client_abort=30)


@pytest.mark.parametrize("ignore", ["on", "off"])
@pytest.mark.parametrize("at", ["head", "body"])
def test_a_reset_in_the_response_truncates_it(rig2, source, at, ignore):
    """The lane takes a new connectionId, the others keep theirs."""
    hold, other = threading.Event(), threading.Event()

    def answer(q):
        if q.target == "/cut":
            return Response(body=pattern(5000), **(
                {"hold": hold} if at == "head" else {"hold_body": hold}))
        return Response(hold=other if q.target == "/other" else None)
    source.answer = answer
    r = rig2(server=f"proxy_ignore_client_abort {ignore}; proxy_buffering off;")
    with r.client2() as c:
        s = c.start("POST", "/cut", end=False)
        c.data(s, b"abc")
        o = c.start("GET", "/other")
        wait_until(lambda: len(source.requests) == 2)
        if at == "body":
            c.receive_head(s, 1)
        c.reset_stream(s)
        if ignore == "on":
            hold.set()
        wait_until(lambda: any(x.end for x in r.sidecar.exchanges))
        hold.set()
        c.request("GET", "/next")
        other.set()
        assert c.receive(o).complete
        c.request("GET", "/last")
    xs = by_target(r, 4)
    assert xs["/cut"].truncated and xs["/cut"].eom
    assert xs["/next"].connection is not xs["/cut"].connection
    assert xs["/last"].connection is xs["/next"].connection
    assert xs["/other"].connection not in (xs["/cut"].connection,
                                           xs["/next"].connection)
    assert xs["/other"].complete
    assert sorted(c.end for c in r.closed(3)) == ["CLOSE", "CLOSE", "END"]
    r.total(seen=4, captured=4, truncated=1)


@pytest.mark.parametrize("how", ["close", "reset", "goaway"])
def test_a_connection_that_ends_ends_all_its_streams(rig2, source, how):
    hold = threading.Event()
    source.answer = lambda q: Response(hold_body=hold, body=b"12345")
    r = rig2(location="proxy_buffering off;")
    c = r.client2()
    uploads = [c.start("POST", f"/u{i}", end=False) for i in range(5)]
    downloads = [c.start("GET", f"/d{i}") for i in range(5)]
    for s in downloads:
        c.receive_head(s, 1)
    wait_until(lambda: len(r.sidecar.exchanges) == 10)
    if how == "goaway":          # NGINX goes on with what is in flight
        c.send_goaway()
        hold.set()
        for s in downloads:
            assert c.receive(s).complete
        c.close()
    else:
        getattr(c, how)()
    xs = by_target(r, 10)
    hold.set()
    for i in range(5):
        assert (xs[f"/u{i}"].end, xs[f"/u{i}"].reason) == ("DROP", "client_abort")
        assert xs[f"/d{i}"].complete if how == "goaway" else (
            xs[f"/d{i}"].truncated)
    assert len(r.closed(10)) == 10
    want = {} if how == "goaway" else {"truncated": 5}
    r.total(seen=10, captured=5, client_abort=5, **want)


@pytest.mark.parametrize("chunked", [None, (100,)])
def test_a_source_that_cuts_its_response_truncates_it(rig2, source, chunked):
    source.answer = lambda q: Response(body=pattern(5000), cut=1234,
                                       chunked=chunked)
    r = rig2()
    with r.client2() as c:
        assert not c.request("GET", "/").complete
        source.answer = lambda q: Response()
        assert c.request("GET", "/").complete
    a, b = r.exchanges(2)
    assert a.truncated and b.complete and a.connection is not b.connection
    r.total(seen=2, captured=2, truncated=1)


# flow control

@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("end", ["open", "reset"])
def test_a_response_that_stalls_at_its_window(rig2, source, end, buffering):
    """What the client does not take up is not an end; other streams pass by."""
    body = pattern(1_000_000, 2)
    source.answer = lambda q: Response(body=body if q.target == "/big" else b"s")
    r = rig2(location=f"proxy_buffering {buffering};"
                      "proxy_max_temp_file_size 0; proxy_buffers 8 8k;")
    with r.client2(window=1000, ack=False) as c:
        s = c.start("GET", "/big")
        c.receive_head(s, 1000)
        for i in range(3):
            assert c.request("GET", "/small").body == b"s"
        r.total(seen=4, captured=3, pending=1)
        if end == "reset":
            c.reset_stream(s)
        else:
            c.open_window(s, 50_000)
            c.receive_head(s, 51_000)
            r.total(seen=4, captured=3, pending=1)
            c.open_window(s, 2_000_000)
            answer = c.receive(s)
            assert answer.complete and answer.body == body
    xs = r.exchanges(4)
    assert len({x.connection for x in xs[1:]}) == 1
    if end == "reset":
        assert xs[0].truncated
        r.total(seen=4, captured=4, truncated=1)
    else:
        same_response2(xs[0], answer)
        r.total(seen=4, captured=4)


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("length", [True, False])
def test_a_request_that_stalls_at_its_window(rig2, source, length, buffering):
    """Its client sends what it may, stops, and goes on when others have passed."""
    r = rig2(location=f"proxy_request_buffering {buffering};"
                      "client_body_buffer_size 16k;")
    body = pattern(400_000)
    headers = [("content-length", str(len(body)))] if length else []
    with r.client2() as c:
        s = c.start("POST", "/_bulk", headers, end=False)
        at = c.fill_window(s, body)
        assert 0 < at < len(body)
        assert c.request("GET", "/small").status == 200
        wait_until(lambda: any(len(x.request) >= at for x in r.sidecar.exchanges))
        r.total(seen=2, captured=1, pending=1)
        at += c.fill_window(s, body[at:])
        c.data(s, body[at:])
        assert c.receive(s).complete
    xs = by_target(r, 2)
    assert Message(xs["/_bulk"].request).body == body
    assert bytes(source.requests[-1].body) == body or (
        bytes(source.requests[0].body) == body)
    assert len(set(ids(xs.values()))) == 2
    r.total(seen=2, captured=2)


@pytest.mark.parametrize("size", [0, 3000])
def test_the_last_byte_completes_a_request_that_nginx_does_not_buffer(
        rig2, source, size):
    """The source has it all, and answers, before the client says END_STREAM."""
    r = rig2(location="proxy_request_buffering off;")
    body = pattern(size)
    with r.client2() as c:
        s = c.start("POST", "/", [("content-length", str(size))], end=False)
        c.data(s, body, end=False)
        answer = c.receive_head(s, 3)
        c.data(s, b"")
        assert c.receive(s).complete
    x, = r.exchanges(1)
    same_request(x, captured("POST", "/", [], body))
    same_response2(x, answer)
    r.total(seen=1, captured=1)


# not captured

@pytest.mark.parametrize("directive, status", [
    ("return 403;", 403), ("return 301 /x;", 301), ("deny all;", 403),
    ("client_max_body_size 2;", 413)])
def test_what_no_content_handler_sees_is_not_forwarded(rig2, directive, status):
    r = rig2(location=directive)
    with r.client2() as c:
        for length in (True, False)[:1 if status == 413 else 2]:
            assert c.request("POST", "/", [], b"12345", length).status == status
    n = 1 if status == 413 else 2
    r.total(seen=n, not_forwarded=n)
    assert not r.sidecar.exchanges


def test_limits_and_their_resets_are_not_forwarded(rig2):
    r = rig2(http="limit_req_zone $remote_addr zone=z:1m rate=1r/m;",
             location="limit_req zone=z;",
             server="location /slow { limit_req zone=z burst=9; }")
    with r.client2() as c:
        assert [c.request("GET", "/").status for _ in range(3)] == [200, 503, 503]
        s = c.start("GET", "/slow")      # waits in limit_req
        c.request("GET", "/")
        c.reset_stream(s)
        r.total(seen=5, captured=1, not_forwarded=3, client_abort=1)


def test_a_body_without_a_length_that_is_too_large_is_dropped(rig2):
    r = rig2(server="client_max_body_size 10;")
    with r.client2() as c:
        s = c.start("POST", "/", end=False)
        c.data(s, b"12345678", end=False)
        wait_until(lambda: r.sidecar.exchanges
                   and b"5678" in r.sidecar.exchanges[0].request)
        c.data(s, b"12345678")
        assert c.receive(s).status == 413
        c.request("GET", "/")
    x, y = r.exchanges(2)
    assert (x.end, x.reason, x.eom) == ("DROP", "unread_body", None)
    assert y.connection is x.connection
    r.total(seen=2, captured=1, unread_body=1)


@pytest.mark.parametrize("sent, length", [(b"12345", 6), (b"1234567", 6)])
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_body_that_is_not_as_long_as_it_said_is_dropped(rig2, sent, length,
                                                          buffering):
    r = rig2(location=f"proxy_request_buffering {buffering};")
    with r.client2() as c:
        s = c.start("POST", "/", [("content-length", str(length))], end=False)
        c.data(s, sent)
        assert c.receive(s).status == 400
        s = c.start("POST", "/", [("content-length", str(length))], end=False)
        c.data(s, sent[:2], end=False)
        wait_until(lambda: len(r.sidecar.exchanges) == 2
                   and r.sidecar.exchanges[1].request.endswith(b"12"))
        c.data(s, sent[2:])
        c.receive(s)
    for x in r.exchanges(2):
        assert (x.end, x.reason, x.eom) == ("DROP", "unread_body", None)
    r.total(seen=2, unread_body=2)


@pytest.mark.parametrize("case", [
    dict(authority=None), dict(headers=[("host", "b")]),
    dict(headers=[("content-length", "5")]), dict(target="nopath"),
    dict(target="*", method="OPTIONS"), dict(target="/a b"),
    dict(method="CONNECT"), dict(method="ge t"),
    dict(headers=[("content-length", "x")]), dict(authority="a/b")])
def test_what_nginx_cannot_read_is_a_bad_request(rig2, case):
    r = rig2()
    with r.client2() as c:
        case = {"method": "GET", "target": "/", **case}
        answer = c.receive(c.start(**case))
        assert answer.status in (400, 405)
        assert c.request("GET", "/").status == 200
    r.exchanges(1)
    r.total(seen=2, captured=1, bad_request=1)


def test_a_length_and_a_transfer_encoding_are_refused_or_give_one_framing(rig2):
    """Newer versions of NGINX ignore the latter in HTTP/2."""
    r = rig2()
    with r.client2() as c:
        answer = c.receive(c.start("POST", "/", [
            ("content-length", "0"), ("transfer-encoding", "chunked")]))
        assert c.request("GET", "/").status == 200
    if answer.status == 400:
        r.exchanges(1)
        r.total(seen=2, captured=1, bad_request=1)
    else:
        same_request(r.exchanges(2)[0], captured("POST", "/", [], b""))
        r.total(seen=2, captured=2)


@pytest.mark.parametrize("headers", [
    [("x", "a\r\nevil: 1")], [("x\r\ny", "1")], [("Upper", "1")], [("a b", "1")],
    [("a:b", "1")], [("", "1")]])
@pytest.mark.parametrize("invalid", ["on", "off"])
def test_no_header_can_split_the_captured_head(rig2, headers, invalid):
    """NGINX resets such streams, or ends their connection: not seen. Or, in newer
    versions, answers 400."""
    r = rig2(server=f"ignore_invalid_headers {invalid};")
    with r.client2() as c:
        answer = c.receive(c.start("GET", "/", headers))
    r.get()
    r.exchanges(1)
    if answer is None:
        r.total(seen=1, captured=1)
    else:
        assert answer.status == 400
        r.total(seen=2, captured=1, bad_request=1)


def test_trailers_of_a_request_end_the_connection(rig2, source):
    """This NGINX takes them for a protocol error."""
    r = rig2()
    with r.client2() as c:
        s = c.start("POST", "/", end=False)
        c.data(s, b"abc", end=False)
        wait_until(lambda: r.sidecar.exchanges)
        c.trailers(s, [(b"x-t", b"1")])
        answer = c.receive(s)
        assert answer is None and c.goaway
    x, = r.exchanges(1)
    assert (x.end, x.reason) == ("DROP", "client_abort")
    r.total(seen=1, client_abort=1)


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_without_reading_the_body_drops_the_request(rig2, late):
    """Static files. A GET whose END_STREAM comes later counts as one, too."""
    r = rig2(server="location /s/ { alias html/; }")
    os.makedirs(os.path.join(r.directory, "html"))
    with open(os.path.join(r.directory, "html", "f"), "wb") as f:
        f.write(b"hello")
    with r.client2() as c:
        if late:
            s = c.start("GET", "/s/f", end=False)
            assert c.receive_head(s, 5).status == 200
            c.data(s, b"")
            c.receive(s)
        else:
            assert c.request("POST", "/s/f", [], b"abc").status == 405
        answer = c.request("GET", "/s/f")
    x, y = r.exchanges(2)
    assert (x.end, x.reason, x.eom) == ("DROP", "unread_body", None)
    same_response2(y, answer, ignore=("accept-ranges",))
    assert x.connection is y.connection
    r.total(seen=2, captured=1, unread_body=1)


@pytest.mark.parametrize("length", ["1000", None])
def test_an_early_answer_of_the_source_drops_the_request(rig2, source, length):
    r = rig2(server="proxy_request_buffering off;")
    source.early = lambda q: True
    source.answer = lambda q: Response(413, "Too Large", body=b"no")
    with r.client2() as c:
        s = c.start("POST", "/", [("content-length", length)] if length else [],
                    end=False)
        c.data(s, b"x", end=False)
        assert c.receive(s).status == 413
    x, = r.exchanges(1)
    assert (x.end, x.reason, x.eom) == ("DROP", "unread_body", None)
    r.total(seen=1, unread_body=1)


def test_a_101_of_the_source_drops_the_stream(rig2, source):
    """HTTP/2 has no Upgrade: the source must not, and this NGINX goes astray; the
    record does not."""
    source.answer = lambda q: Response(
        raw=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\nTUNNEL", close=True)
    r = rig2(location='proxy_set_header Upgrade $http_upgrade;'
                      'proxy_set_header Connection "Upgrade";')
    r.nginx.allowed.append("while proxying upgraded connection")
    with r.client2() as c:
        c.start("GET", "/ws", [("upgrade", "websocket")])
        x, = r.exchanges(1)
    assert (x.end, x.reason) == ("DROP", "upgrade") and not x.response
    r.total(seen=1, upgrade=1)


def test_off_rules_and_bypass(rig2):
    r = rig2(http="map $arg_c $c { default 1; no 0; }", capture="$c",
             server="capture_bypass $arg_b;"
                    "location /off { capture off; proxy_pass http://source; }")
    with r.client2() as c:
        for target in ("/off", "/?c=no", "/?b=1", "/", "/off"):
            assert c.request("GET", target).status == 200
    r.exchanges(1)
    r.total(seen=3, captured=1, rule=1, bypass=1)


# the rest of NGINX

def test_http_1_and_2_by_tls_on_the_same_port(rig2, source, certificate):
    port = free_port()
    r = rig2(server=f"listen 127.0.0.1:{port} ssl http2;"
                    f"ssl_certificate {certificate[0]};"
                    f"ssl_certificate_key {certificate[1]};")
    context = alpn(certificate[0])
    with Client2(port, tls=context) as c:
        answers = [c.request("POST", f"/{i}", [], pattern(70_000, i), i % 2)
                   for i in range(4)]
    context.set_alpn_protocols(["http/1.1"])
    one = Client(port)
    one.sock = context.wrap_socket(one.sock, server_hostname="source.test")
    with one:
        last = one.request("POST", "/4", body=pattern(70_000, 4))
    xs = r.exchanges(5)
    for i, x in enumerate(xs):
        assert Message(x.request).body == pattern(70_000, i)
    for x, answer in zip(xs, answers):
        same_response2(x, answer)
    same_response(xs[4], last)
    assert [len(c.exchanges) for c in r.closed(2)] == [4, 1]
    r.total(seen=5, captured=5)


def test_both_protocols_on_the_same_server_at_once(rig2, source):
    r = rig2()
    with r.client2() as two, r.client() as one:
        for i in range(20):
            assert two.request("PUT", f"/two/{i}", [], b"2").status == 200
            assert one.request("PUT", f"/one/{i}", body=b"1").status == 200
    r.exchanges(40)
    assert [len(c.exchanges) for c in r.closed(2)] == [20, 20]
    r.total(seen=40, captured=40)


def test_keepalive_requests_ends_the_connection_and_no_exchange(rig2, source):
    r = rig2(server="keepalive_requests 3;")
    for _ in range(2):
        with r.client2() as c:
            for i in range(3):
                answer = c.request("POST", "/", [], b"x")
                assert answer.complete
            assert c.ended() and c.goaway
    assert [len(x.exchanges) for x in r.closed(2)] == [3, 3]
    r.total(seen=6, captured=6)


def test_a_mirror_is_no_exchange(rig2, source):
    r = rig2(location="mirror /m;",
             server="location /m { internal; proxy_pass http://source; }")
    with r.client2() as c:
        c.request("POST", "/", [], b"abc", length=False)
        c.request("POST", "/", [], b"abc")
    wait_until(lambda: len(source.requests) == 4, what="the mirror's requests")
    for x in r.exchanges(2):
        assert Message(x.request).body == b"abc"
    r.total(seen=2, captured=2)


def test_a_reload_lets_open_streams_end(rig2, source):
    """The old worker says GOAWAY and ends what is in flight; its lanes close."""
    hold = threading.Event()
    source.answer = lambda q: Response(hold=hold)
    r = rig2()
    with r.client2() as c:
        streams = [c.start("GET", f"/{i}") for i in range(5)]
        up = c.start("POST", "/up", end=False)
        c.data(up, b"abc", end=False)
        wait_until(lambda: len(r.sidecar.exchanges) == 6
                   and len(source.requests) == 5)
        r.nginx.reload()
        r.linked(2)
        hold.set()
        for s in streams:
            assert c.receive(s).complete
        c.data(up, b"def")
        assert c.receive(up).complete
        assert c.ended() and c.goaway
    with r.client2() as c:
        assert c.request("GET", "/new").status == 200
    xs = by_target(r, 7)
    assert all(x.complete for x in xs.values())
    assert Message(xs["/up"].request).body == b"abcdef"
    assert [c.end for c in r.closed(7)] == ["CLOSE"] * 7
    r.total(seen=7, captured=7)


@pytest.mark.skipif(SANITIZED or version() >= (1, 25, 1),
                    reason="NGINX has no push since 1.25.1; before, once is enough")
def test_what_nginx_pushes_is_an_exchange_of_its_own(rig2, source):
    """The source has executed it; the client has not asked for it."""
    r = rig2(server="location = /page { http2_push /style.css;"
                    "proxy_pass http://source; }")
    with r.client2(push=True) as c:
        assert c.request("GET", "/page").complete
        wait_until(lambda: c.pushed or not c.pump())
        assert c.receive(c.pushed[0]).complete
    xs = by_target(r, 2)
    assert Message(xs["/style.css"].request).all("host") == ["source.test"]
    r.total(seen=2, captured=2)


def test_a_pool_that_is_full_loses_what_it_says_and_nothing_else(rig2, source):
    """Concurrent large answers through 1 MB: some are cut, each client has all."""
    source.answer = lambda q: Response(
        body=pattern(300_000, int(q.target[1:].split("?")[0])))
    r = rig2(buffer="1m", options={"hold_blocks": True})
    with r.client2() as c:
        streams = [c.start("GET", f"/{i}") for i in range(10)]
        for i, s in enumerate(streams):
            assert c.receive(s).body == pattern(300_000, i)
        r.link.hold_blocks = False
        r.link.return_all()
        r.status()
        assert c.request("GET", "/99").complete
    r.caught_up()
    total = r.status()["total"]
    assert total["seen"] == 11 and total["pending"] == 0
    assert sum(total["lost"].values()) > 0
    for x in r.sidecar.exchanges:
        assert x.complete or x.end == "ABANDON", x
    assert r.sidecar.exchanges[-1].complete


def burst(client, source, release, n=100, prefix="/"):
    """n streams at once, to their ends; their targets."""
    release.clear()
    before = len(source.requests)
    streams = [client.start("GET", f"{prefix}{i}") for i in range(n)]
    wait_until(lambda: len(source.requests) == before + n, 20)
    release.set()
    for stream in streams:
        assert client.receive(stream).status == 200


def test_lanes_need_slots_as_connections_do(rig2, source):
    """As many exchanges at once as there are slots; then idle lanes give theirs
    back, and a connection's first lane keeps its own."""
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig2(buffer="1m")
    slots = r.link.nslots
    clients = [r.client2() for _ in range(slots // 100 + 1)]
    for i in range(slots + 10):
        clients[i // 100].start("GET", f"/{i}")
    wait_until(lambda: len(source.requests) == slots + 10, 20)
    release.set()
    r.total(seen=slots + 10, captured=slots, no_slot=10)
    r.closed(slots // 4)
    for client in clients[:-1]:
        assert client.request("GET", "/again").status == 200
    r.total(seen=slots + 9 + len(clients), captured=slots - 1 + len(clients),
            no_slot=10)
    n = len(clients) - 1
    assert len({x.connection.id for x in r.sidecar.exchanges[-n:]}) == n
    for c in clients:
        c.close()
    r.closed(len(r.sidecar.connections))


def test_lanes_that_are_idle_make_room_for_others(rig2, source):
    """Clients that had 100 streams at once, one after the other, and stay: more
    lanes than there are slots. The longest idle are closed first."""
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig2(buffer="1m")
    slots = r.link.nslots
    n = 2 * slots // 100 + 2
    clients = [r.client2() for _ in range(n)]
    try:
        for i, client in enumerate(clients):
            burst(client, source, release, prefix=f"/{i}/")
            # a slot is free when the sidecar has seen its end
            wait_until(lambda: sum(not c.end for c in r.sidecar.connections)
                       <= slots * 3 // 4, 30)
        r.total(seen=100 * n, captured=100 * n)
        open_ = [c for c in r.sidecar.connections if not c.end]
        assert len(open_) <= slots
        assert {c.end for c in r.sidecar.connections if c.end} == {"CLOSE"}
        owner = {x.connection.id: int(x.request.split(b"/")[1])
                 for x in r.exchanges(100 * n)}
        left = [sum(owner[c.id] == i for c in open_) for i in range(n)]
        # the first lane of each; and of the last what there is room for
        assert left[-1] == 100 and left[0] == 1 and min(left) == 1, left
        assert left == sorted(left), left
        # each goes on where it was
        for i, client in enumerate(clients):
            assert client.request("GET", f"/{i}/again").status == 200
        again = r.exchanges(101 * n)[-n:]
        assert [owner[x.connection.id] for x in again] == list(range(n))
    finally:
        for client in clients:
            client.close()
    r.closed(len(r.sidecar.connections))
    r.total(seen=101 * n, captured=101 * n)


def test_few_lanes_stay_open_while_their_connection_is_idle(rig2, source):
    """Where slots are many nothing is closed: connectionIds are used again."""
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig2(buffer="8m")
    assert r.link.nslots > 400
    with r.client2() as client:
        for turn in range(3):
            burst(client, source, release, prefix=f"/{turn}/")
        r.exchanges(300)
        assert len(r.sidecar.connections) == 100
        assert not any(c.end for c in r.sidecar.connections)


def test_a_shutdown_that_does_not_wait_names_what_it_cuts(rig2, source):
    """worker_shutdown_timeout ends connections whose streams have not ended."""
    hold = threading.Event()
    source.answer = lambda q: Response(hold=hold)
    r = rig2(main="worker_shutdown_timeout 200ms;")
    with r.client2() as c:
        c.start("GET", "/1")
        c.start("POST", "/2", end=False)
        wait_until(lambda: len(r.sidecar.exchanges) == 2 and source.requests)
        r.nginx.reload()
        r.linked(2)
        assert c.ended()
        xs = by_target(r, 2)
        assert xs["/1"].truncated
        assert (xs["/2"].end, xs["/2"].reason) == ("DROP", "client_abort")
        r.closed(2)
        hold.set()


@pytest.mark.parametrize("seed", range(3))
def test_a_random_mix_keeps_every_rule(rig2, source, seed):
    """Streams that begin, grow, end and are cut in any order; the seed is the
    test's parameter. The fake sidecar checks the grammar, the counters sum up."""
    dice = random.Random(seed)
    source.answer = lambda q: Response(
        body=pattern(len(q.body) * 3 + 10, 1),
        chunked=(1000,) if "c" in q.target else None)
    r = rig2(buffer="64m", server="proxy_ignore_client_abort on;"
             f"proxy_request_buffering {dice.choice(['on', 'off'])};"
             f"proxy_buffering {dice.choice(['on', 'off'])};")
    whole = {}
    clients = [r.client2() for _ in range(3)]
    open_ = []
    for i in range(150):
        c = dice.choice(clients)
        kind = dice.choice(["get", "length", "none", "cut", "reset"])
        target = f"/{i}{dice.choice(['', '/c'])}"
        body = pattern(dice.choice([0, 1, 100, 20_000]), i)
        if kind == "get":
            s = c.start("GET", target)
            whole[target] = (c, s, b"")
        elif kind == "reset":
            s = c.start("GET", target)
            c.reset_stream(s)
        else:
            headers = [("content-length", str(len(body)))] * (kind == "length")
            open_.append((kind, c, c.start("POST", target, headers, end=False),
                          target, body))
        while len(open_) > dice.randrange(30):
            kind, c, s, target, body = open_.pop(dice.randrange(len(open_)))
            if kind == "cut":
                c.data(s, body, end=False)
                c.reset_stream(s)
            else:
                c.data(s, body)
                whole[target] = (c, s, body)
    for kind, c, s, target, body in open_:
        c.data(s, body)
        whole[target] = (c, s, body)
    answers = {t: (c.receive(s), body) for t, (c, s, body) in whole.items()}
    for c in clients:
        c.close()
    xs = by_target(r, 150)
    for target, (answer, body) in answers.items():
        assert answer.complete and xs[target].complete, target
        assert Message(xs[target].request).body == body
        same_response2(xs[target], answer)
    for target in set(xs) - set(answers):
        assert xs[target].end == "DROP" or xs[target].truncated or (
            xs[target].complete)
    total = r.status()["total"]
    assert total["pending"] == 0 and total["seen"] == 150
    assert not sum(total["lost"].values())
