"""HTTP/3 over the whole path: as HTTP/2, what the Replayer reads is HTTP/1.1, one
exchange at a time on each connectionId."""

import threading
from types import SimpleNamespace

import pytest

from refconsumer.verify import verify_topic
from rig.client2 import captured
from rig.nginx import has_http3, has_quic_early_data
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

from path.fidelity import row
from path.session import (Session, assert_balanced, assert_captured, assert_same,
                          by_mark, lost, settled)
from path.session2 import (Session2, a_cut_and_a_half, assert_cut_between,
                           bodies_of_5_mb, echo, requests_of_each_kind,
                           three_times_100_streams)

FIDELITY = "HTTP/3"

pytestmark = pytest.mark.skipif(
    not has_http3(), reason="this NGINX has no HTTP/3: script/test-versions")


class Session3(Session2):
    """An HTTP/3 connection whose exchanges are to be captured."""

    def __init__(self, s, **options):
        from rig.client3 import Client3
        self.client = Client3(s.port3, s.cafile, **options)
        self.exchanges = []


@pytest.fixture
def stack3(stack, certificate):
    """As stack(), with HTTP/3 on s.port3 of the same server."""
    def make(server="", listen="", **options):
        port = free_port()
        s = stack(server=f"listen 127.0.0.1:{port} quic {listen};"
                         f"ssl_certificate {certificate[0]};"
                         f"ssl_certificate_key {certificate[1]}; {server}",
                  **options)
        s.port3, s.cafile = port, certificate[0]
        return s
    return make


@row("HTTP/3: methods, bodies with and without a length, cookies", captured="as of "
     "HTTP/2", replayed="the request as HTTP/1.1",
     limits="NGINX 1.25.0 and newer; a request's trailers are dropped by NGINX")
def test_a_session_is_captured_as_http_1_1(stack3, source):
    source.answer = echo
    s = stack3()
    with Session3(s) as c:
        requests_of_each_kind(c)
    assert_captured(s.drain(), [c])      # one id, in this order


def test_exact_bytes_of_a_normalised_request(stack3, source):
    s = stack3()
    with Session3(s) as c:
        c.client.request("POST", "/a%20b/../c?d=%2F", [
            ("x-mark", "m"), ("cookie", "a=1"), ("expect", "100-continue"),
            ("cookie", "b=2"), ("te", "trailers"), ("accept", "*/*")],
            b"hello", length=False, authority="a.test:9200")
        s.wait_for_status(settled(1))
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    x, = result.exchanges
    assert x.request == (
        b"POST /a%20b/../c?d=%2F HTTP/1.1\r\nhost: a.test:9200\r\nx-mark: m\r\n"
        b"accept: */*\r\ncookie: a=1; b=2\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize("authority", [None, "source.test"])
def test_host_without_authority_keeps_its_place_and_never_comes_twice(
        stack3, source, authority):
    s = stack3()
    with Session3(s) as c:
        c.client.request("GET", "/", [("a", "1"), ("host", "source.test"),
                                      ("b", "2")], authority=authority)
        s.wait_for_status(settled(1))
    x, = verify_topic(s.drain()).exchanges
    heads = [b"a: 1", b"host: source.test", b"b: 2"]
    if authority:
        heads = [heads[1], heads[0], heads[2]]
    assert x.request == b"\r\n".join([b"GET / HTTP/1.1", *heads, b"", b""])


@row("HTTP/3: ends of streams that come later, in an empty DATA frame or in none",
     captured="all of it", replayed="the request as HTTP/1.1")
def test_ends_that_come_late(stack3, source):
    """In a frame without a byte, or in no frame; with and without a length."""
    source.answer = echo
    s = stack3(workers=1)
    with Session3(s) as c:
        for i, (length, body, frame) in enumerate(
                (length, body, frame) for length in (True, False)
                for body in (b"", b"x" * 3000) for frame in (True, False)):
            mark = [("x-mark", f"late-{i}")]
            stream = c.client.start("POST", f"/{i}", mark + (
                [("content-length", str(len(body)))] if length else []), end=False)
            if body:
                c.client.data(stream, body, end=False)
            s.wait_for_status(lambda st: st["total"]["pending"] == 1)
            if frame:
                c.client.empty_frame(stream)
            else:
                c.client.data(stream, b"")
            c.finish(SimpleNamespace(
                stream=stream, mark=mark[0][1].encode(), method=b"POST",
                raw=captured("POST", f"/{i}", mark, body, length)))
            # a body, also where it has no byte
            assert source.requests[-1].header("content-length") == str(len(body))
            s.wait_for_status(lambda st: st["total"]["pending"] == 0)
        c.request("POST", "/none")
        assert source.requests[-1].header("content-length") is None
    assert_captured(s.drain(), [c])


@row("HTTP/3: 100 concurrent streams", captured="each on a connectionId of its own, "
     "which is used again", replayed="at the same time, on as many connections")
def test_100_concurrent_streams_are_100_connections_that_are_reused(stack3, source):
    s = stack3()
    three_times_100_streams(s, Session3(s), source)


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_5_mb_up_and_down_side_by_side(stack3, source, buffering):
    source.answer = lambda q: Response(body=pattern(5_000_000, len(q.body) % 97))
    s = stack3(location=f"proxy_request_buffering {buffering};"
                        f"proxy_buffering {buffering};")
    with Session3(s, timeout=60) as c:
        bodies_of_5_mb(c)
        status = assert_balanced(s.wait_for_status(settled(3), 30))
        assert lost(status) == 0
    assert_captured(s.drain(), [c], lanes=True)


@row("HTTP/3: a stream that is reset", captured="nothing before the request's end: "
     "filtered(client_abort); after it what came of the response",
     replayed="nothing, or the request; its response is named as cut")
def test_resets_leave_nothing_to_replay_or_a_named_cut(stack3, source):
    """NGINX finds out that an answer is not wanted when it writes more of it."""
    hold = threading.Event()
    source.answer = lambda q: (Response(hold_body=hold, body=b"y" * 5000)
                               if q.target == "/cut" else echo(q))
    s = stack3(location="proxy_request_buffering off; proxy_buffering off;")
    with Session3(s) as c:
        c.request("GET", "/before")
        cut, half = a_cut_and_a_half(s, c)
        for stream in (half, cut):
            c.client.reset_stream(stream)
        s.wait_for_status(lambda st: st["total"]["pending"] == 1)
        c.client.receive(cut)            # its end by NGINX: that it is reset
        hold.set()
        s.wait_for_status(lambda st: st["total"]["pending"] == 0)
        c.request("POST", "/after", body=b"abc", length=False)
        status = assert_balanced(s.wait_for_status(settled(4)))
        assert status["total"]["truncated"] == 1
        assert status["total"]["filtered"]["client_abort"] == 1
    assert_cut_between(s.drain())


def assert_whole_but_one(records, session, cut, truncated, buffering):
    """All exchanges of the session are there as they were, and that one, which was
    reset, is named as cut."""
    result = verify_topic(records)
    result.assert_clean(all_closed=True)
    found = by_mark(result)
    assert len(found) == len(session.exchanges) + 1
    for sent in session.exchanges:
        assert_same(found[sent.mark], sent)
    assert truncated == bool(
        result.connections[found[cut.mark].key].exceptions)
    # what was buffered NGINX may have read whole before it wrote again
    assert truncated or buffering == "on"


@row("HTTP/3: streams that wait for flow control", captured="all of it",
     replayed="the request")
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_stalled_streams_are_captured_whole(stack3, source, buffering):
    """A client that does not read gets what its windows hold; one of its streams
    is cancelled then."""
    size = 3_000_000
    source.answer = lambda q: Response(body=pattern(size, len(q.target)))
    s = stack3(location=f"proxy_buffering {buffering};")
    with Session3(s, timeout=60) as c:
        with c.client.stalled():
            started = [c.start("GET", "/" + "x" * i) for i in range(4)]
            s.wait_for_status(lambda st: st["total"]["bytes"] > 100_000
                              and len(source.requests) == 4)
            assert s.status()["total"]["pending"] == 4
            c.client.reset_stream(started[3].stream)
        for x in started[:3]:
            assert len(c.finish(x).body) == size
        c.client.receive(started[3].stream)
        c.request("GET", "/after")
        total = s.wait_for_status(settled(5), 30)["total"]
    assert_whole_but_one(s.drain(), c, started[3], total["truncated"], buffering)


@row("HTTP/3: responses to a client that gives their streams no more credit",
     captured="all of it", replayed="the request")
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_responses_without_credit_are_captured_whole(stack3, source, buffering):
    """The client reads on, and says MAX_STREAM_DATA only later. Its other streams
    have their own credit."""
    window, size = 10_000, 400_000
    source.answer = lambda q: Response(body=pattern(
        size if q.target == "/big" else 10, 3))
    s = stack3(location=f"proxy_buffering {buffering};")
    with Session3(s, window=window) as c:
        big = [c.start("GET", "/big") for _ in range(3)]
        for x in big:
            c.client.receive_head(x.stream, window - 500)
        for _ in range(3):
            c.request("GET", "/small")
        s.wait_for_status(lambda st: st["total"]["pending"] == 3)
        assert all(len(c.client.answers[x.stream].body) < window for x in big)
        c.client.reset_stream(big[2].stream)
        s.wait_for_status(lambda st: st["total"]["pending"] == 2)
        c.client.open_window()
        for x in big[:2]:
            assert len(c.finish(x).body) == size
        total = s.wait_for_status(settled(6))["total"]
    assert_whole_but_one(s.drain(), c, big[2], total["truncated"], buffering)


@row("HTTP/3: an upload that NGINX gives no more credit, as its source does not read",
     captured="all of it", replayed="the request",
     limits="with `proxy_request_buffering off`; else NGINX reads all of it at once")
@pytest.mark.parametrize("ends", ["whole", "reset"])
def test_uploads_without_credit_are_captured_whole_or_dropped(stack3, source, ends):
    go, size = threading.Event(), 12_000_000
    source.keep_unread(go)
    s = stack3(location="proxy_request_buffering off;")
    with Session3(s, timeout=60) as c:
        up = [c.start("POST", f"/{i}", body=pattern(size, i), length=i)
              for i in range(2)]
        seen = []

        def stalled():
            seen.append(s.status()["total"]["bytes"])
            return seen[-5:].count(seen[-1]) == 5 and all(
                c.client.blocked(x.stream) for x in up)
        wait_until(stalled, 60)
        assert seen[-1] < 2 * size and s.status()["total"]["pending"] == 2
        assert [len(q.body) for q in source.requests] == [0, 0]
        if ends == "reset":
            c.client.reset_stream(up.pop().stream)
            s.wait_for_status(lambda st: st["total"]["pending"] == 1)
        go.set()
        for x in up:
            c.finish(x)
        c.request("GET", "/after")
        total = s.wait_for_status(settled(3), 30)["total"]
        assert total["filtered"]["client_abort"] == (ends == "reset")
    assert_captured(s.drain(), [c], lanes=True)


@row("HTTP/3: early data (0-RTT)", captured="what is inside of it",
     replayed="the request",
     limits="NGINX 1.29.1 and newer with OpenSSL 3.5.1 or newer; any other lets the "
     "request come with the handshake's end, and it is captured then")
def test_early_data(stack3, source):
    s = stack3(server="ssl_early_data on; ssl_session_tickets on;"
               "set $early $ssl_early_data; add_header X-Early $early;")
    with Session3(s) as first:
        assert first.request("GET", "/first").header("x-early") is None
        wait_until(lambda: first.client.tickets, what="a ticket")
    sessions, came_early = [first], []
    # the handshake can end while NGINX, on a busy machine, has yet to look
    for turn in range(5):
        with Session3(s, ticket=first.client.tickets[0]) as c:
            sessions.append(c)
            started = [c.start("GET", f"/{turn}"),
                       c.start("POST", f"/{turn}", body=b"abc")]
            answers = [c.finish(x) for x in started]
            c.client.connected()
            assert c.client.early == has_quic_early_data()
            came_early.append(answers[0].header("x-early"))
        if came_early[-1] == "1" or not c.client.early:
            break
    assert came_early[-1] == ("1" if has_quic_early_data() else None), came_early
    assert_captured(s.drain(), sessions, lanes=True)


@pytest.mark.parametrize("length", ["0", "5", None])
def test_a_reset_instead_of_the_end_is_not_replayed(stack3, source, length):
    """Also where nothing but the end is missing: NGINX waits for that."""
    s = stack3()
    with Session3(s) as c:
        stream = c.client.start("POST", "/", [("content-length", length)]
                                if length else [], end=False)
        if length == "5":
            c.client.data(stream, b"hello", end=False)
        s.wait_for_status(lambda st: st["total"]["pending"] == 1)
        c.client.reset_stream(stream)
        s.wait_for_status(lambda st: st["total"]["pending"] == 0)
        c.request("GET", "/after")
        status = assert_balanced(s.wait_for_status(settled(2)))
        assert status["total"]["filtered"]["client_abort"] == 1
    assert [q.target for q in source.requests] == ["/after"]
    assert_captured(s.drain(), [c])


@row("HTTP/3: a connection that is closed, or from which nothing comes any more",
     captured="as of its streams' resets", replayed="as of its streams' resets",
     limits="without a word NGINX notices after `keepalive_timeout`")
@pytest.mark.parametrize("how", ["close", "vanish"])
def test_a_connection_that_ends_early_closes_each_of_its_lanes(stack3, source, how):
    """By CONNECTION_CLOSE, or because nothing comes any more."""
    hold = threading.Event()
    source.answer = lambda q: (Response(hold_body=hold, body=b"y" * 5000)
                               if q.target == "/cut" else echo(q))
    s = stack3(server="keepalive_timeout 2s;", location="proxy_buffering off;"
               "proxy_request_buffering off;")
    with Session(s) as other:
        c = Session3(s)
        c.request("GET", "/whole")
        a_cut_and_a_half(s, c)
        getattr(c.client, how)()
        status = assert_balanced(s.wait_for_status(settled(3), 30))
        assert status["total"]["truncated"] == 1
        assert status["total"]["filtered"]["client_abort"] == 1
        hold.set()
        other.request("GET", "/after")
        s.wait_for_status(settled(4))
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert {x.request.split(b" ")[1] for x in result.exchanges} == {
        b"/whole", b"/cut", b"/after"}


def test_http_1_2_and_3_on_one_server(stack3, source, certificate):
    from rig.client2 import Client2, alpn
    source.answer = echo
    port = free_port()
    s = stack3(server=f"listen 127.0.0.1:{port} ssl; http2 on;")
    two = Session2.__new__(Session2)
    two.client, two.exchanges = Client2(port, tls=alpn(certificate[0])), []
    with Session3(s) as three, Session(s) as one, two:
        for i in range(10):
            three.request("POST", f"/3/{i}", body=pattern(20_000, i), length=i % 2)
            two.request("POST", f"/2/{i}", body=pattern(20_000, i), length=i % 2)
            one.request("PUT", f"/1/{i}", body=b"x")
    assert_captured(s.drain(), [three, two, one])


def test_trailers_of_a_request_are_not_kept(stack3, source):
    source.answer = echo
    s = stack3()
    with Session3(s) as c:
        mark = ("x-mark", "trailers")
        stream = c.client.start("POST", "/", [mark], end=False)
        c.client.data(stream, b"abc", end=False)
        c.client.trailers(stream, [(b"x-t", b"1")])
        c.finish(SimpleNamespace(
            stream=stream, mark=mark[1].encode(), method=b"POST",
            raw=captured("POST", "/", [mark], b"abc", length=False)))
    assert_captured(s.drain(), [c])


def test_an_answer_without_reading_the_body_drops_the_request(stack3, source):
    s = stack3(server="location /s { root html; }")
    with Session3(s) as c:
        stream = c.client.start("POST", "/s", end=False, data=b"abc")
        assert c.client.receive(stream).status == 404
        # and NGINX wants no more of it
        wait_until(lambda: stream in c.client.stopped)
        assert not c.client.data(stream, b"def")
        c.request("GET", "/whole")
        status = assert_balanced(s.wait_for_status(settled(2)))
        assert status["total"]["filtered"]["unread_body"] == 1
    assert_captured(s.drain(), [c])


def test_a_reload_names_what_it_cuts_and_captures_what_follows(stack3, source):
    """Two generations of workers read one UDP port (without quic_bpf), so packets
    of an open connection may go astray: what had begun is whole or named."""
    hold = threading.Event()
    source.answer = lambda q: Response(body=pattern(10_000), hold=hold)
    s = stack3(server="keepalive_timeout 2s;", main="worker_shutdown_timeout 5s;")
    with Session3(s) as old:
        for i in range(20):
            old.start("POST", f"/{i}", body=b"abc", length=False)
        wait_until(lambda: len(source.requests) == 20)
        workers = s.nginx.workers()
        s.nginx.reload()
        s.wait_linked()
        hold.set()
        wait_until(lambda: not set(workers) & set(s.nginx.workers()), 30,
                   "the old worker's end")
        with Session3(s) as new:
            for i in range(5):
                new.request("POST", f"/new/{i}", body=b"def", length=False)
        status = assert_balanced(s.wait_for_status(settled(25), 30))
        assert lost(status) == 0
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert len(result.exchanges) == 25
    whole = [x for x in result.exchanges if x.request.startswith(b"POST /new/")]
    assert len(whole) == 5 and len({x.connection_id for x in whole}) == 1


@row("HTTP/3: an unbuffered upload that is answered before its end, and goes on to it",
     captured="all of it, the response behind the request",
     replayed="the whole request, then the response", limits="as with HTTP/1")
@pytest.mark.parametrize("wait, failure", [
    ("off", "forward"), ("mutating", "forward"), ("mutating", "refuse")])
def test_an_early_response_follows_its_request(stack3, source, wait, failure):
    """The source answers an upload that has not ended; it goes on to its end."""
    more = threading.Event()
    source.early = lambda q: True
    source.answer = lambda q: Response(body=pattern(90_000), hold_body=more,
                                       hold_at=40_000)
    s = stack3(wait=wait, location="proxy_request_buffering off;"
               f"proxy_buffering off; capture_on_failure {failure};")
    body = pattern(50_000)
    with Session3(s) as c:
        for n, length in enumerate((True, False), 1):
            more.clear()
            mark = [("x-mark", f"early-{wait}-{failure}-{n}")]
            stream = c.client.start("POST", "/early", mark + (
                [("content-length", "50000")] if length else []), end=False)
            c.client.data(stream, body[:30_000], end=False)
            c.client.receive_head(stream, 40_000)
            before = s.status()["total"]["bytes"]
            c.client.data(stream, body[30_000:])
            s.wait_for_status(
                lambda st: st["total"]["bytes"] >= before + 20_000 + 40_000
                and (wait == "off" or st["total"]["waits"]["acked"] == n))
            more.set()
            c.finish(SimpleNamespace(
                stream=stream, mark=mark[0][1].encode(), method=b"POST",
                raw=captured("POST", "/early", mark, body, length)))
        waits = s.wait_for_status(settled(2))["total"]["waits"]
        assert waits["held"] == waits["acked"] == (2 if wait != "off" else 0)
    assert_captured(s.drain(), [c])


@row("HTTP/3: the same whose request never ends", ends="unread_body")
@pytest.mark.parametrize("ends", ["answer", "reset", "close"])
def test_an_early_response_whose_request_never_ends_is_dropped(stack3, source, ends):
    """The answer is complete first, its client resets the stream, or leaves."""
    more = threading.Event()
    source.early = lambda q: True
    source.answer = lambda q: Response(body=pattern(9000), hold_body=more,
                                       hold_at=4000)
    s = stack3(location="proxy_request_buffering off; proxy_buffering off;")
    c = Session3(s)
    stream = c.client.start("POST", "/early", [("content-length", "50000")],
                            end=False)
    c.client.data(stream, pattern(30_000), end=False)
    c.client.receive_head(stream, 4000)
    if ends == "answer":
        more.set()
        assert c.client.receive(stream).body == pattern(9000)
    elif ends == "reset":
        c.client.reset_stream(stream)
    else:
        c.client.close()
    total = s.wait_for_status(settled(1))["total"]
    assert total["filtered"]["unread_body"] == 1
    more.set()
    if ends != "close":
        source.early = lambda q: False
        c.request("GET", "/after")
        c.client.close()
    assert_captured(s.drain(), [c])


@pytest.mark.parametrize("ends", ["close", "reset"])
@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_held_request_that_is_refused_when_not_durable_is_withdrawn(
        stack3, source, buffering, length, ends):
    """Under `refuse` a client that leaves first has not asked for anything."""
    s = stack3(wait="mutating", location="capture_on_failure refuse;"
               f"proxy_request_buffering {buffering};")
    s.sidecar.pause()
    c = Session3(s)
    streams = [c.client.send_request("POST", "/", body=b"abc" * 1000, length=length)
               for _ in range(3)]
    s.wait_for_status(lambda st: st["total"]["waits"]["held"] == 3)
    if ends == "close":
        c.client.close()
        s.wait_for_status(lambda st: st["total"]["waits"]["left"] == 3)
    for stream in streams if ends == "reset" else []:
        c.client.reset_stream(stream)
        c.client.receive(stream)         # NGINX has answered with a reset
    s.sidecar.resume()
    total = s.wait_for_status(settled(3))["total"]
    assert total["waits"]["left"] == total["filtered"]["client_abort"] == 3, total
    if ends == "reset":
        c.request("POST", "/after", body=b"abc")
        c.client.close()
    assert_captured(s.drain(), [c])
    if buffering == "on":
        assert [q.target for q in source.requests] == ["/after"] * len(c.exchanges)


@pytest.mark.parametrize("failure", ["forward", "refuse"])
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_request_waits_for_its_record(stack3, source, buffering, failure):
    """An end that is held and released is not read again: NGINX would wait for
    client_body_timeout."""
    source.answer = echo
    s = stack3(wait="mutating", location=f"proxy_request_buffering {buffering};"
               f"capture_on_failure {failure};")
    with Session3(s) as c:
        bodies = [(body, length) for length in (True, False)
                  for body in (b"", b"x", pattern(3000), pattern(300_000))]
        if buffering == "off":
            # Content-Length: 0 whose end comes later: NGINX does not wait for it
            bodies.remove((b"", True))
        for i, (body, length) in enumerate(bodies):
            c.request("POST", f"/{i}", body=body, length=length)
        c.request("DELETE", "/none")
        started = [c.start("POST", f"/at-once/{i}", body=pattern(i * 100, i),
                           length=i % 2) for i in range(50)]
        for x in started:
            c.finish(x)
        n = len(bodies) + 1 + len(started)
        waits = s.wait_for_status(settled(n))["total"]["waits"]
    assert waits["held"] == waits["acked"] == n, waits
    assert_captured(s.drain(), [c], lanes=True)
