"""One client and the whole path: what it sent and received is in the topic."""

from refconsumer.verify import verify_topic
from path.fidelity import row
from rig.source import Response, pattern

from path.session import (Session, assert_balanced, assert_captured, marked,
                          settled)

FIDELITY = "HTTP/1"


def echo(request):
    """An answer that depends on all that the source got."""
    return Response(headers=[("X-Method", request.method),
                             ("Content-Type", "text/plain; charset=UTF-8")],
                    body=b"%s %d\n" % (request.target.encode("latin-1"),
                                       len(request.body)))


@row("keep-alive; methods with and without bodies, HEAD",
     captured="all of it", replayed="the request")
def test_a_keepalive_session_is_captured_byte_for_byte(stack, source):
    """The plainest way: methods with and without bodies on one connection."""
    source.answer = echo
    s = stack()
    with Session(s) as c:
        c.request("GET", "/")
        c.request("PUT", "/index/_doc/1?refresh=true", body=b'{"a":1}')
        c.request("POST", "/_bulk", body=b'{"index":{}}\n{"b":2}\n')
        c.request("HEAD", "/index")
        c.request("DELETE", "/index/_doc/1")
        c.request("GET", "/_cat/indices?v")
        c.request("POST", "/empty", body=b"")
    assert_captured(s.drain(), [c])


@row("chunked requests and responses", captured="all of it, framed in chunks again",
     replayed="the request", limits="chunk borders, extensions and a request's "
     "trailers are not kept")
def test_chunked_requests_and_responses_keep_their_bodies(stack, source):
    source.answer = lambda r: Response(chunked=(1, 3, 70000),
                                       body=pattern(150000))
    s = stack()
    with Session(s) as c:
        c.request("POST", "/_bulk", chunks=[b"a", b"bc" * 5000, b"def"])
        c.request("GET", "/chunked")
        c.request("PUT", "/x", chunks=[pattern(200000)])
    assert_captured(s.drain(), [c])


def test_an_unbuffered_upload_is_captured_as_a_buffered_one(stack, source):
    source.answer = echo
    s = stack(location="proxy_request_buffering off;")
    with Session(s) as c:
        c.request("POST", "/_bulk", body=pattern(300000))
        c.request("POST", "/_bulk", chunks=[pattern(100000)] * 2)
    assert_captured(s.drain(), [c])


def test_pipelined_requests_are_separated_at_exact_boundaries(stack, source):
    """Two requests in one read would be replayed as one."""
    source.answer = echo
    s = stack()
    with Session(s) as c:
        batch = [marked("GET", "/1"), marked("POST", "/2", body=b"two"),
                 marked("POST", "/3", chunks=[b"th", b"ree"]),
                 marked("GET", "/4")]
        c.client.send(b"".join(raw for raw, _ in batch))
        for raw, mark in batch:
            c.received(raw.split(b" ")[0].decode(), raw, mark)
    assert_captured(s.drain(), [c])


@row("204, 304", captured="all of it", replayed="the request")
def test_statuses_without_a_body_end_with_their_head(stack, source):
    source.answer = lambda r: Response(status=int(r.target[1:4]), reason="X",
                                       headers=[("ETag", '"1"')])
    s = stack()
    with Session(s) as c:
        for status in (204, 304, 200):
            c.request("GET", f"/{status}")
    assert_captured(s.drain(), [c])


@row("502, 504 and what else NGINX answers for a source", captured="all of it", replayed="the request")
def test_errors_that_nginx_makes_are_captured_like_any_answer(stack, source):
    s = stack()
    source.stop()
    with Session(s) as c:
        assert c.request("GET", "/").status == 502
    source.start()
    assert_captured(s.drain(), [c])


@row("`Expect: 100-continue`", captured="the request without it, the final response",
     replayed="the request, without waiting for a 100")
def test_expect_is_stripped_and_the_client_still_gets_its_100(stack, source):
    """The Replayer would take the target's 100 for the answer."""
    source.answer = echo
    s = stack()
    with Session(s) as c:
        a = c.request("POST", "/_bulk", headers=[("Expect", "100-continue")],
                      body=b"x" * 1000)
        assert len(a.interim) == 1
    result = assert_captured(s.drain(), [c])
    assert b"xpect" not in result.exchanges[0].request


@row("`master_process off`", captured="all of it", replayed="the request",
     section="What NGINX does with a request")
def test_without_a_master_process_all_is_captured(stack, source):
    s = stack(main="master_process off;", wait="mutating")
    with Session(s) as c, Session(s) as d:
        for i in range(5):
            c.request("POST", f"/{i}", body=pattern(50_000, i))
            d.request("GET", f"/{i}")
        waits = s.wait_for_status(settled(10))["total"]["waits"]
    assert waits["held"] == waits["acked"] == 5
    assert_captured(s.drain(), [c, d])


def test_gzip_is_captured_before_it_is_applied(stack, source):
    source.answer = lambda r: Response(
        headers=[("Content-Type", "application/json")], body=b'{"a":1}' * 500)
    s = stack(http="gzip on; gzip_types application/json; gzip_min_length 10;"
                   "gzip_proxied any; gzip_http_version 1.1;")
    with Session(s) as c:
        a = c.request("GET", "/", headers=[("Accept-Encoding", "gzip")])
        assert a.header("content-encoding") == "gzip"
        a.body = b'{"a":1}' * 500
    assert_captured(s.drain(), [c], ignore=(
        b"content-encoding", b"content-length", b"vary"))


def test_a_record_comes_without_waiting_for_the_close(stack, source):
    """A connection that stays open must not hold back what is complete."""
    s = stack()
    with Session(s) as c:
        c.request("GET", "/")
        s.wait_for_status(lambda st: st["total"]["captured"] == 1)
        assert len(s.records()) == 1


def test_the_status_page_counts_each_exchange_once(stack, source):
    s = stack(workers=2, server="location /denied { return 403; }")
    with Session(s) as c:
        for i in range(10):
            c.request("GET", f"/{i}")
        c.client.request("GET", "/denied")
        status = s.wait_for_status(settled(11))
    assert_balanced(status)
    assert status["total"]["captured"] == 10
    assert status["total"]["filtered"]["not_forwarded"] == 1


def test_a_client_that_leaves_in_its_request_leaves_nothing_to_replay(
        stack, source):
    s = stack(location="proxy_request_buffering off;")
    with Session(s) as whole:
        whole.request("GET", "/before")
        raw, _ = marked("POST", "/cut", body=b"x" * 200000)
        cut = s.client()
        cut.send(raw[:150000])
        s.wait_for_status(lambda st: st["total"]["pending"] == 1)
        cut.reset()
        status = s.wait_for_status(
            lambda st: st["total"]["filtered"]["client_abort"] == 1)
    assert_balanced(status)
    assert_captured(s.drain(), [whole])


def test_a_response_that_is_cut_ends_its_connection_and_is_named(
        stack, source):
    """The source dies in its answer: the client gets a part, so does the
    record, and an exception says that it is no whole answer."""
    source.answer = lambda r: Response(body=b"y" * 5000, cut=1000)
    s = stack()
    c = s.client()
    raw, _ = marked("GET", "/cut")
    c.send(raw)
    answer = c.receive()
    assert not answer.complete
    status = s.wait_for_status(settled(1))
    assert status["total"]["truncated"] == 1
    c.close()

    result = verify_topic(s.drain())
    (exchange,) = result.exchanges
    assert exchange.response.endswith(answer.body)
    (connection,) = result.connections.values()
    assert connection.exceptions and connection.closed
