"""HTTP/2 over the whole path: what the Replayer reads is HTTP/1.1, one exchange
at a time on each connectionId."""

import re
import threading
from concurrent import futures
from types import SimpleNamespace

import pytest

from refconsumer import http
from refconsumer.verify import verify_topic
from path.fidelity import row
from rig.client2 import Client2, alpn, captured
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import Session, assert_balanced, assert_captured, lost, settled
from path.session2 import (Session2, a_cut_and_a_half, assert_cut_between,
                           bodies_of_5_mb, echo, new_mark, requests_of_each_kind,
                           stack2, three_times_100_streams)  # noqa: F401 (stack2)

FIDELITY = "HTTP/2"


@row("HTTP/2: methods, bodies with and without a length, cookies",
     captured="HTTP/1.1: Host from :authority, no pseudo and no hop-by-hop headers, "
     "cookies joined, a body without a length in chunks", replayed="the request as "
     "HTTP/1.1", limits="a request's trailers end the connection in older NGINX")
def test_a_session_is_captured_as_http_1_1(stack2, source):
    source.answer = echo
    s = stack2()
    with Session2(s.port2) as c:
        requests_of_each_kind(c)
    assert_captured(s.drain(), [c])      # one id, in this order


@row("HTTP/2 by ALPN and by prior knowledge, beside HTTP/1", captured="all of it",
     replayed="the request as HTTP/1.1")
def test_tls_with_alpn_and_both_versions_on_one_server(stack2, source, certificate):
    source.answer = echo
    port = free_port()
    s = stack2(server=f"listen 127.0.0.1:{port} ssl http2;"
                      f"ssl_certificate {certificate[0]};"
                      f"ssl_certificate_key {certificate[1]};")
    with (Session2(port, tls=alpn(certificate[0])) as tls,
          Session2(s.port2) as plain, Session(s) as one):
        for i in range(10):
            tls.request("POST", f"/tls/{i}", body=pattern(20_000, i), length=i % 2)
            plain.request("GET", f"/h2c/{i}")
            one.request("PUT", f"/one/{i}", body=b"x")
    assert_captured(s.drain(), [tls, plain, one])


@row("HTTP/2: ends of streams that come later, in an empty DATA frame",
     captured="all of it", replayed="the request as HTTP/1.1")
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_ends_that_come_late(stack2, source, buffering):
    source.answer = echo
    s = stack2(workers=1, location=f"proxy_request_buffering {buffering};")
    with Session2(s.port2) as c:
        for i, (length, body) in enumerate(
                (length, body) for length in (True, False, None)
                for body in (b"", b"x" * 3000)):
            method = "GET" if length is None else "POST"
            if length is None and body:
                continue
            mark = [("x-mark", f"late-{buffering}-{i}")]
            stream = c.client.start(method, f"/{i}", mark + (
                [("content-length", str(len(body)))] if length else []), end=False)
            if body:
                c.client.data(stream, body, end=False)
            if not (buffering == "off" and length):
                # there the source has all of it, and may have answered
                s.wait_for_status(lambda st: st["total"]["pending"] == 1)
            c.client.data(stream, b"")
            c.finish(SimpleNamespace(
                stream=stream, mark=mark[0][1].encode(), method=method.encode(),
                raw=captured(method, f"/{i}", mark, body, bool(length))))
            s.wait_for_status(lambda st: st["total"]["pending"] == 0)
    assert_captured(s.drain(), [c])


@row("HTTP/2: 100 concurrent streams", captured="each on a connectionId of its own, "
     "which is used again", replayed="at the same time, on as many connections")
def test_100_concurrent_streams_are_100_connections_that_are_reused(stack2, source):
    s = stack2(workers=2)
    three_times_100_streams(s, Session2(s.port2), source)


@row("HTTP/2: clients that once had many streams, and stay", captured="all of it; "
     "idle connectionIds are closed where a worker runs out of room for more",
     replayed="at the same time; a connection that is not used any more ends early")
def test_idle_lanes_are_closed_for_others(stack2, source):
    """More lanes than a worker has slots, one client after the other: without their
    coming back the later clients would be lost(no_slot)."""
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    s = stack2(buffer="1m")

    def closed():
        """Connections that have ended though none of the clients has left."""
        result = verify_topic(s.records())
        result.assert_clean()
        return {k for k, x in result.connections.items() if x.closed}
    slots = int(re.search(r"blocks, (\d+) connections", s.nginx.error_log())[1])
    assert slots < 1000
    clients = [Session2(s.port2) for _ in range(12)]
    for i, c in enumerate(clients):
        release.clear()
        started = [c.start("GET", f"/{i}/{n}") for n in range(100)]
        wait_until(lambda: len(source.requests) == (i + 1) * 100, 30)
        release.set()
        for x in started:
            c.finish(x)
        s.wait_for_status(settled((i + 1) * 100))
        # a slot is free when Kafka has its connectionId's end
        early = set()
        wait_until(lambda: early.update(closed()) or (
            (i + 1) * 100 - len(early) <= slots * 3 // 4), 60)
    assert len(early) >= 1200 - slots
    for i, c in enumerate(clients):
        c.request("GET", f"/{i}/again")
    status = assert_balanced(s.wait_for_status(settled(1212)))
    assert lost(status) == 0 and status["total"]["captured"] == 1212
    for c in clients:
        c.client.close()
    result = assert_captured(s.drain(), clients, lanes=True)
    assert len(result.connections) == 1200
    # the last exchange of each client is on its first lane, which was kept
    again = [x for x in result.exchanges if b"/again" in x.request[:20]]
    assert len(again) == 12 and not {x.key for x in again} & early
    # none was used again once it had ended
    assert all(len(result.by_connection()[k[1]]) == 1 for k in early)


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_5_mb_up_and_down_side_by_side(stack2, source, buffering):
    source.answer = lambda q: Response(body=pattern(5_000_000, len(q.body) % 97))
    s = stack2(location=f"proxy_request_buffering {buffering};"
                        f"proxy_buffering {buffering};")
    with Session2(s.port2) as c:
        bodies_of_5_mb(c)
        status = assert_balanced(s.wait_for_status(settled(3)))
        assert lost(status) == 0
    assert_captured(s.drain(), [c], lanes=True)


@row("HTTP/2: a stream that is reset", captured="nothing before the request's end: "
     "filtered(client_abort); after it what came of the response",
     replayed="nothing, or the request; its response is named as cut")
def test_resets_leave_nothing_to_replay_or_a_named_cut(stack2, source):
    hold = threading.Event()
    source.answer = lambda q: (Response(hold_body=hold, body=b"y" * 5000)
                               if q.target == "/cut" else echo(q))
    s = stack2(location="proxy_request_buffering off; proxy_buffering off;")
    with Session2(s.port2) as c:
        c.request("GET", "/before")
        for stream in reversed(a_cut_and_a_half(s, c)):
            c.client.reset_stream(stream)
        s.wait_for_status(lambda st: st["total"]["pending"] == 0)
        c.request("POST", "/after", body=b"abc", length=False)
        status = assert_balanced(s.wait_for_status(settled(4)))
        assert status["total"]["truncated"] == 1
        assert status["total"]["filtered"]["client_abort"] == 1
        hold.set()
    assert_cut_between(s.drain())


@row("HTTP/2: streams that wait for flow control", captured="all of it", replayed="the request")
def test_stalled_streams_are_captured_whole(stack2, source):
    """One waits for its client's window, one for its client's bytes."""
    source.answer = lambda q: Response(
        body=pattern(400_000 if q.target == "/big" else 10, 3))
    s = stack2(location="proxy_request_buffering off;")
    with Session2(s.port2, window=1000, ack=False) as c:
        big = c.start("GET", "/big")
        c.client.receive_head(big.stream, 1000)
        body = pattern(200_000)
        mark = new_mark()
        stream = c.client.start("POST", "/_bulk", [mark], end=False)
        at = c.client.fill_window(stream, body)
        c.request("GET", "/small")
        s.wait_for_status(lambda st: st["total"]["pending"] == 2)
        c.client.data(stream, body[at:])
        c.finish(SimpleNamespace(
            stream=stream, mark=mark[1].encode(), method=b"POST",
            raw=captured("POST", "/_bulk", [mark], body, length=False)))
        c.client.open_window(big.stream, 1_000_000)
        c.finish(big)
        s.wait_for_status(settled(3))
    assert_captured(s.drain(), [c], lanes=True)


def test_a_reload_with_open_streams_loses_nothing(stack2, source):
    hold = threading.Event()
    source.answer = lambda q: Response(body=pattern(10_000), hold=hold)
    s = stack2()
    with Session2(s.port2) as c, Session2(s.port2) as new:
        started = [c.start("POST", f"/{i}", body=b"abc", length=False)
                   for i in range(20)]
        wait_until(lambda: len(source.requests) == 20)
        s.nginx.reload()
        s.wait_linked()
        hold.set()
        for x in started:
            c.finish(x)
        assert c.client.ended()
        new.client.close()
        new.client = Client2(s.port2)
        new.request("GET", "/new")
        s.wait_for_status(settled(21))
    assert_captured(s.drain(), [c, new], lanes=True)


def test_exact_bytes_of_a_normalised_request(stack2, source):
    s = stack2()
    with Client2(s.port2) as c:
        c.request("POST", "/a?b", [("x-mark", "m"), ("cookie", "a=1"),
                                   ("cookie", "b=2"), ("te", "trailers"),
                                   ("accept", "*/*")], b"hello", length=False)
        s.wait_for_status(settled(1))
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    x, = result.exchanges
    assert x.request == (
        b"POST /a?b HTTP/1.1\r\nhost: source.test\r\nx-mark: m\r\naccept: */*\r\n"
        b"cookie: a=1; b=2\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n")


@pytest.fixture
def grpc_server():
    """A real gRPC server of untyped bytes: its port."""
    grpc = pytest.importorskip("grpc")

    def unary(request, context):
        context.set_trailing_metadata((("x-trailer", "t"),))
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        return b"re:" + request

    def lines(request, _):
        yield from (b"%d" % i for i in range(int(request)))

    def chat(requests, _):
        for request in requests:
            yield b"re:" + request
    handlers = grpc.method_handlers_generic_handler("test.T", {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Lines": grpc.unary_stream_rpc_method_handler(lines),
        "Chat": grpc.stream_stream_rpc_method_handler(chat)})
    port = free_port()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((handlers,))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    yield port
    server.stop(None).wait()


def test_grpc_calls_are_captured_with_their_trailers(
        stack2, source, grpc_server):
    """Unary calls and streams are exchanges, answered before their end or not;
    grpc-status is in a trailer, or in the head of an answer without a message."""
    import grpc
    s = stack2(server=f"location /test.T/ {{ grpc_pass 127.0.0.1:{grpc_server}; }}")
    with grpc.insecure_channel(f"127.0.0.1:{s.port2}") as channel:
        unary = channel.unary_unary("/test.T/Unary")
        for i in range(20):
            assert unary(b"%d" % i * i) == b"re:" + b"%d" % i * i
        calls = [unary.future(b"c%d" % i) for i in range(20)]
        assert [c.result() for c in calls] == [b"re:c%d" % i for i in range(20)]
        with pytest.raises(grpc.RpcError) as error:
            unary(b"fail")
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        assert len(list(channel.unary_stream("/test.T/Lines")(b"50"))) == 50
        more = threading.Event()

        def talk():
            yield b"a"
            assert more.wait(10)
            yield b"b"
        answers = channel.stream_stream("/test.T/Chat")(talk())
        assert next(answers) == b"re:a"
        more.set()
        assert list(answers) == [b"re:b"]
        status = assert_balanced(s.wait_for_status(settled(43)))
    assert status["total"]["captured"] == 43
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert len(result.exchanges) == 43
    for x in result.exchanges:
        request, response = http.parse_request(x.request), http.parse_response(
            x.response, b"POST")
        assert request.values(b"content-type") == [b"application/grpc"]
        assert not request.values(b"te") and response.status == 200
        if request.start_line.startswith(b"POST /test.T/Unary"):
            message = request.body[5:]
            assert len(message) == int.from_bytes(request.body[1:5], "big")
            if message == b"fail":
                assert response.values(b"grpc-status") == [b"5"]
            else:
                assert response.body[5:] == b"re:" + message
                assert response.trailers == [(b"grpc-status", b"0"),
                                             (b"grpc-message", b""),
                                             (b"x-trailer", b"t")]
        elif request.start_line.startswith(b"POST /test.T/Chat"):
            assert request.body == b"\0\0\0\0\1a\0\0\0\0\1b"
            assert response.body == b"\0\0\0\0\4re:a\0\0\0\0\4re:b"
        else:
            assert response.body.count(b"\0\0\0\0") == 50
