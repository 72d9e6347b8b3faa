"""What a captured exchange looks like in the worker's memory: the request in
canonical form, byte for byte, and the response as the client got it.

FakeSidecar checks the grammar, contiguous sequence numbers, timestamps and fresh
connectionIds in every test of this directory.
"""

import threading
import time

import pytest

from capture_rig import Message, lengths_fit, same_request, same_response
from rig.client import build_request
from rig.clock import Clock
from rig.process import SANITIZED
from rig.source import Response, pattern
from rig.status import wait_until

HOST = ("Host", "source.test:9200")

needs_clock = pytest.mark.skipif(
    SANITIZED, reason="ASan must be the first of preloaded libraries")


def test_keep_alive_requests_of_all_methods_come_in_order_under_one_id(rig, source):
    """The replay is per connectionId and in its order."""
    r = rig()
    source.answer = lambda q: Response(headers=[("X-Method", q.method)],
                                       body=q.method.encode() * 3)
    sent, answers = [], []
    with r.client() as client:
        for i, method in enumerate(["GET", "POST", "PUT", "HEAD", "DELETE",
                                    "PATCH", "OPTIONS", "GET"]):
            body = pattern(700, i) if method in ("POST", "PUT", "PATCH") else None
            sent.append(build_request(method, f"/i{i}?q={i}", [HOST], body))
            client.send(sent[-1])
            answers.append((client.receive(method), method))
    for x, raw, (answer, method) in zip(r.exchanges(8), sent, answers):
        same_request(x, raw)
        same_response(x, answer, bodyless=method == "HEAD")
        assert x.complete
    connection, = r.closed(1)
    assert connection.end == "CLOSE"
    r.total(seen=8, captured=8)


def test_headers_keep_spelling_order_duplicates_and_empty_values(rig):
    """Replay compares what the source saw with what the target sees."""
    headers = [("hOsT", "a.b"), ("X-Twice", "1"), ("x-other", "ä"), ("X-TWICE", "2"),
               ("X-Empty", ""), ("accept", "*/*"), ("X-Twice", "1"),
               ("Cookie", "a=b"), ("Cookie", "c=d"), ("Connection", "keep-alive"),
               ("Authorization", "Basic eA==")]
    raw = build_request("GET", "/a%20b/../c?x=%2F&y", headers)
    r = rig()
    with r.client() as client:
        client.send(raw)
        client.receive()
    x, = r.exchanges(1)
    same_request(x, raw)


def test_loose_spelling_on_the_wire_comes_in_canonical_form(rig):
    """Spaces around values, bare LF and leading empty lines are the wire's."""
    r = rig()
    with r.client() as client:
        client.send(b"\r\n\r\nGET /x HTTP/1.1\nHost:h\r\nA:  1 \r\nB:2\nC:\r\n\n")
        assert client.receive().status == 200
    x, = r.exchanges(1)
    same_request(x, b"GET /x HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\nC: \r\n\r\n")


def test_the_request_line_comes_verbatim(rig):
    r = rig()
    lines = [b"GET http://other.test/p%41th?q HTTP/1.1", b"GET //a//b HTTP/1.1",
             b"GET /a;b=c?d=e HTTP/1.0"]
    for line in lines:
        with r.client() as client:
            client.send(line + b"\r\nHost: source.test\r\n\r\n")
            assert client.receive().status == 200
    for x, line in zip(r.exchanges(3), lines):
        assert x.request == line + b"\r\nHost: source.test\r\n\r\n"
        lengths_fit(x)


def test_a_request_without_any_header_is_captured(rig):
    r = rig()
    with r.client() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = client.receive()
    x, = r.exchanges(1)
    assert x.request == b"GET / HTTP/1.0\r\n\r\n"
    assert x.eom == (14, 0)
    same_response(x, answer)


@pytest.mark.parametrize("chunks", [
    [b"a"], [pattern(10), pattern(70000, 1), b"z"], [pattern(300_000, 2)] * 3, []])
def test_a_chunked_request_is_chunked_again(rig, source, chunks):
    """NGINX has taken the client's chunks apart; the content must be the same."""
    r = rig()
    with r.client() as client:
        client.send(build_request("POST", "/_bulk", [HOST], chunks=chunks))
        assert client.receive("POST").status == 200
    x, = r.exchanges(1)
    m = Message(x.request)
    assert (m.line, m.headers) == ("POST /_bulk HTTP/1.1",
                                   [HOST, ("Transfer-Encoding", "chunked")])
    assert m.body == b"".join(chunks) == bytes(source.requests[0].body)
    lengths_fit(x)


def test_chunk_extensions_and_trailers_of_a_request_are_left_out(rig):
    """Documented: NGINX discards them before any filter."""
    r = rig()
    with r.client() as client:
        client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                    b"\r\n3;ext=1\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n")
        assert client.receive("PUT").status == 200
    x, = r.exchanges(1)
    assert Message(x.request).body == b"abc"
    assert b"Trailer" not in x.request


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_25_mb_body_comes_byte_for_byte(rig, source, buffering):
    """_bulk: larger than the pool, so blocks go round, for a client paced below
    what the acknowledgements sustain."""
    r = rig(server=f"proxy_request_buffering {buffering};")
    raw = build_request("POST", "/_bulk", [HOST], pattern(25_000_000))
    with r.client() as client:
        for at in range(0, len(raw), 1 << 20):
            client.send(raw[at:at + (1 << 20)])
            r.caught_up()
        assert client.receive("POST").status == 200
    x, = r.exchanges(1)
    same_request(x, raw)
    assert source.requests[0].complete
    assert len(r.link.blocks) > 25_000_000 // 65536
    assert r.link.size <= 8 << 20


def test_a_50_mb_response_comes_byte_for_byte(rig, source):
    r = rig(buffer="64m")
    source.answer = lambda q: Response(body=pattern(50_000_000, 3))
    with r.client() as client:
        answer = client.request("GET", "/big")
    x, = r.exchanges(1)
    same_response(x, answer)
    r.total(seen=1, captured=1)


def test_a_response_from_nginx_temporary_files_comes_whole(rig, source):
    """File buffers must be read before they come to the capture filter."""
    r = rig(server="proxy_buffers 4 4k; proxy_buffer_size 4k;")
    source.answer = lambda q: Response(body=pattern(5_000_000, 4))
    with r.client() as client:
        client.send(build_request("GET", "/slow", [HOST]))
        wait_until(lambda: "buffered to a temporary file" in r.nginx.error_log(),
                   what="the temporary file")
        answer = client.receive()
    x, = r.exchanges(1)
    same_response(x, answer)


def test_pipelined_requests_are_separate_exchanges_in_order(rig, source):
    """Exact boundaries: one endOfMessage too few merges two requests."""
    r = rig()
    source.answer = lambda q: Response(body=q.target.encode() * 50,
                                       chunked=(30,) if "3" in q.target else None)
    raws = [build_request("POST" if i % 3 == 2 else "GET", f"/p{i}", [HOST],
                          pattern(i * 500, i) if i % 3 == 2 else None)
            for i in range(9)]
    with r.client() as client:
        client.send(b"\r\n".join(raws))
        answers = [client.receive() for _ in raws]
    for x, raw, answer in zip(r.exchanges(9), raws, answers):
        same_request(x, raw)
        same_response(x, answer, ignore=("content-length",))
    assert len(r.closed(1)) == 1


@pytest.mark.parametrize("status, headers", [
    (204, []), (304, [("ETag", '"x"')]), (304, [("Last-Modified",
     "Mon, 28 Sep 1970 06:00:00 GMT")])])
def test_answers_without_a_body_end_with_their_head(rig, source, status, headers):
    r = rig()
    source.answer = lambda q: Response(status, "X", headers)
    with r.client() as client:
        first = client.request("GET", "/1")
        client.request("GET", "/2")
    x, _ = r.exchanges(2)
    got = same_response(x, first, bodyless=True)
    assert not got.all("transfer-encoding")


def test_head_has_the_length_and_no_body(rig, source):
    r = rig()
    for chunked in (None, (5,)):
        source.answer = lambda q: Response(body=b"x" * 50, chunked=chunked)
        answer = r.get(method="HEAD")
        x = r.exchanges(1 + bool(chunked))[-1]
        same_response(x, answer, bodyless=True)


def test_a_response_is_captured_before_gzip(rig, source):
    """The replay compares bodies; the target's compression is its own."""
    r = rig(http="gzip on; gzip_types *; gzip_min_length 1; gzip_vary on;")
    body = pattern(100_000)
    source.answer = lambda q: Response(headers=[("Content-Type", "text/plain"),
                                                ("ETag", '"strong"')], body=body)
    with r.client() as client:
        answer = client.request("GET", "/", [HOST, ("Accept-Encoding", "gzip")])
    assert answer.header("content-encoding") == "gzip"
    x, = r.exchanges(1)
    got = Message(x.response)
    assert got.body == body
    assert got.all("content-length") == ["100000"]
    assert got.all("etag") == ['"strong"']
    assert not got.all("content-encoding")


def test_a_response_that_the_source_compressed_keeps_its_coding(rig, source):
    r = rig()
    source.answer = lambda q: Response(headers=[("Content-Encoding", "gzip")],
                                       body=pattern(5000))
    answer = r.get()
    x, = r.exchanges(1)
    same_response(x, answer)


@pytest.mark.parametrize("trailers", [[], [("X-T", "1")]])
def test_a_chunked_response_is_chunked_again(rig, source, trailers):
    r = rig()
    source.answer = lambda q: Response(body=pattern(200_000, 5), trailers=trailers,
                                       chunked=(1, 7, 40_000))
    answer = r.get()
    x, = r.exchanges(1)
    got = same_response(x, answer)
    assert got.all("transfer-encoding") == ["chunked"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_response_until_close_is_framed_as_chunked(rig, source, version):
    """HTTP/1.0 clients and sources have no framing; the record needs one."""
    r = rig()
    source.answer = lambda q: Response(body=pattern(30_000), until_close=True)
    with r.client() as client:
        client.send(f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        answer = client.receive()
    assert answer.complete
    x, = r.exchanges(1)
    same_response(x, answer)
    assert x.complete


def test_an_empty_chunked_response_has_its_last_chunk(rig, source):
    r = rig()
    source.answer = lambda q: Response(body=b"", chunked=(1,))
    answer = r.get()
    x, = r.exchanges(1)
    same_response(x, answer)
    assert x.response.endswith(b"\r\n\r\n0\r\n\r\n")


def test_expect_is_left_out_and_the_100_too(rig, source):
    """The Replayer takes the target's 100 for the answer."""
    r = rig()
    with r.client() as client:
        client.send(b"PUT /e HTTP/1.1\r\nHost: a\r\neXpect: 100-continue\r\n"
                    b"Content-Length: 3\r\nX-Expect: y\r\n\r\n")
        assert client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        answer = client.receive()
    x, = r.exchanges(1)
    assert x.request == (b"PUT /e HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
                         b"X-Expect: y\r\n\r\nabc")
    lengths_fit(x)
    same_response(x, answer)


def test_content_length_zero_and_no_body_differ(rig):
    r = rig()
    raws = [build_request("POST", "/", [HOST], b""), build_request("POST", "/", [HOST])]
    with r.client() as client:
        for raw in raws:
            client.send(raw)
            client.receive("POST")
    for x, raw in zip(r.exchanges(2), raws):
        same_request(x, raw)


def test_a_head_of_a_large_buffer_and_over_reads_comes_whole(rig):
    """The head arrives in pieces, and moves into NGINX's large buffers."""
    r = rig(http="client_header_buffer_size 256; large_client_header_buffers 4 8k;")
    raw = build_request("GET", "/" + "u" * 2000,
                        [HOST] + [(f"X-{i}", "v" * 700) for i in range(7)])
    with r.client() as client:
        for at in range(0, len(raw), 311):
            client.send(raw[at:at + 311])
        assert client.receive().status == 200
        client.send(raw)
        assert client.receive().status == 200
    for x in r.exchanges(2):
        same_request(x, raw)


def test_a_request_has_its_arrival_s_time_and_times_never_go_back(rig, source):
    r = rig()
    before = time.time_ns()
    r.get()
    after = time.time_ns()
    x, = r.exchanges(1)
    assert before <= x.first_ts <= x.last_ts <= after
    assert before <= x.connection.opened <= after


@needs_clock
def test_times_never_go_back_where_the_clock_does(rig, source, workdir):
    """On one connection; another one has the new time. (FakeSidecar checks that
    no frame has an earlier time than the one before it.)"""
    clock = Clock(workdir)
    r = rig(env=clock.env)
    newest, behind = 0, 0
    with r.client() as old:
        for i, step in enumerate((0, -30, 20, -15, 0.5, 24.7)):
            clock.step(step)
            before = clock.now()
            assert old.request("GET", "/old").status == 200
            assert r.get("/new").status == 200
            after = clock.now()
            x, new = r.exchanges(2 * i + 2)[-2:]
            assert before <= new.first_ts <= new.last_ts <= after
            assert max(before, newest) <= x.first_ts <= x.last_ts
            assert x.last_ts <= max(after, newest)
            behind += x.last_ts > after
            newest = x.last_ts
    assert behind == 4


def test_a_request_has_its_arrival_s_time_though_it_waits_in_a_phase(rig, source):
    """auth_request takes its time: whether it is captured is known after it."""
    hold = threading.Event()
    source.answer = lambda q: Response(hold=hold if q.target == "/auth" else None)
    r = rig(location="auth_request /auth;",
            server="location = /auth { internal; proxy_pass http://source; }")
    with r.client() as client:
        before = time.time_ns()
        client.send(build_request("GET", "/", [HOST]))
        wait_until(lambda: source.requests)
        arrived = time.time_ns()
        hold.set()
        assert client.receive().status == 200
    x, = r.exchanges(1)
    assert before <= x.first_ts <= arrived <= x.last_ts


def test_many_connections_at_once_have_ids_and_slots_of_their_own(rig, source):
    r = rig(workers=2)
    clients = [r.client() for _ in range(60)]
    for turn in range(5):
        for i, client in enumerate(clients):
            client.send(build_request("POST", f"/{i}/{turn}", [HOST],
                                      pattern(50 + i, turn)))
        for client in clients:
            assert client.receive("POST").status == 200
    for client in clients:
        client.close()
    r.exchanges(300)
    connections = r.closed(60)
    assert len(connections) == len({c.id for c in connections}) == 60
    for c in connections:
        targets = [x.request.split()[1].split(b"/") for x in c.exchanges]
        assert len({i for _, i, _ in targets}) == 1
        assert [int(t) for _, _, t in targets] == list(range(5))
    r.total(seen=300, captured=300)
    # one worker's ids and nodeId are not the other's
    assert len({link.node_id for link in r.sidecar.links}) == 2


def test_a_slot_is_used_again_only_after_its_return(rig):
    """FakeSidecar fails when one comes back before."""
    r = rig(options={"hold_slots": True})
    for _ in range(5):
        r.get()
    slots = [c.slot for c in r.closed(5)]
    assert len(set(slots)) == 5
    r.link.hold_slots = False
    r.link.return_all()
    r.status()                   # the worker takes up what was returned
    for _ in range(5):
        r.get()
    again = r.closed(10)[5:]
    assert {c.slot for c in again} <= set(slots)
    r.total(seen=10, captured=10)


def test_the_variables_tell_id_and_result(rig, source):
    """$capture_result is mostly pending: the log phase is before the ack."""
    r = rig(location="add_header X-Id $capture_connection_id always;"
                     "add_header X-Wait $capture_wait_time;")
    with r.client() as client:
        first = client.request("GET", "/")
        second = client.request("GET", "/")
    x, _ = r.exchanges(2)
    assert first.header("x-id") == second.header("x-id") == x.connection.id
    assert first.header("x-wait") == "0.000"
    for line in r.log(2):
        assert line.split("[")[1].split("]")[0] in ("pending", "captured")
        assert line.endswith(x.connection.id)
