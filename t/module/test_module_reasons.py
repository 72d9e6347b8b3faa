"""What is not captured, or not wholly, is counted with its reason: nothing is
lost in silence, and nothing is replayed that must not be.

The expected counts in r.total(...) are all that is not 0, and rig.status() checks
seen = captured + filtered + lost + pending for each worker at each look.
"""

import os
import threading

import pytest

from capture_rig import Message, lengths_fit, same_request, same_response
from path.fidelity import row
from rig.client import Client, build_request
from rig.client2 import Client2, captured
from rig.nginx import http2, version
from rig.process import SANITIZED, free_port
from rig.source import Response, pattern
from rig.status import wait_until

HOST = ("Host", "source.test")

needs_modules = pytest.mark.skipif(
    SANITIZED, reason="the NGINX with sanitizers is built without ssi, dav, ...")

FIDELITY = "Not captured, or not wholly"


def files(r, **contents):
    root = os.path.join(r.directory, "html")
    os.makedirs(root, exist_ok=True)
    for name, data in contents.items():
        with open(os.path.join(root, name), "wb") as f:
            f.write(data)


# filtered

@pytest.mark.parametrize("directive, status", [
    ("return 403;", 403), ("return 200 ok;", 200), ("return 301 /x;", 301),
    ("rewrite ^ /y permanent;", 301), ("deny all;", 403),
    ("client_max_body_size 2;", 413),
    ("auth_basic x; auth_basic_user_file /dev/null;", 401),
    ("if ($arg_x = '') { return 405; }", 405)])
def test_what_no_content_handler_sees_is_not_forwarded(rig, directive, status):
    r = rig(location=directive)
    with r.client() as client:
        assert client.request("POST", "/", body=b"12345").status == status
    r.total(seen=1, not_forwarded=1)
    assert not r.sidecar.exchanges


def test_a_connection_that_is_closed_without_an_answer_is_not_forwarded(rig):
    """return 444 passes no filter at all."""
    r = rig(location="return 444;")
    with r.client() as client:
        client.send(build_request("GET", "/", [HOST]))
        assert client.ended()
    r.total(seen=1, not_forwarded=1)


@pytest.mark.parametrize("refusal, code", [
    ("deny all;", 403), ("limit_req zone=z;", 503), ("auth_request /auth;", 401),
    ("return 403;", 403)])
@pytest.mark.parametrize("target", ["/sorry", "@sorry"])
def test_a_refused_request_is_not_captured_by_its_error_page(
        rig, source, refusal, code, target):
    """error_page with a proxied page runs the phases again, up to a content
    handler: without care the refused request would be recorded, and replayed."""
    source.answer = lambda q: Response(body=b"page")
    r = rig(http="limit_req_zone $remote_addr zone=z:1m rate=1r/m;",
            location=f"{refusal} error_page {code} {target};",
            server=f"location {target} {{ proxy_pass http://source; }}"
                   "location = /auth { internal; return 401; }")
    n = 1
    if "limit_req" in refusal:
        assert r.get().status == 200
        r.exchanges(1)
        n = 2
    answer = r.get()
    assert (answer.status, answer.body) == (code, b"page")
    assert len(r.exchanges(n - 1)) == n - 1
    want = {"captured": 1} if n == 2 else {}
    r.total(seen=n, not_forwarded=1, **want)


INCLUDE = "capture_include not_forwarded;"


@pytest.mark.parametrize("directive, status", [
    ("return 403;", 403), ("return 200 ok;", 200), ("return 204;", 204),
    ("return 301 /x;", 301), ("rewrite ^ /y permanent;", 301), ("deny all;", 403),
    ("auth_basic x; auth_basic_user_file /dev/null;", 401),
    ("auth_request /auth;", 401),
    ("if ($arg_x = '') { return 405; }", 405)])
@pytest.mark.parametrize("wait", ["off", "mutating"])
def test_with_the_directive_what_nginx_answers_is_captured(rig, directive, status,
                                                           wait):
    """Also where it would wait: it does not go on to the source."""
    r = rig(location=INCLUDE + directive, wait=wait,
            server="location = /auth { internal; return 401; }")
    want = []
    with r.client() as client:
        for method in ("GET", "HEAD", "DELETE", "OPTIONS"):
            raw = build_request(method, "/", [HOST])
            client.send(raw)
            want.append((raw, client.receive(method)))
            assert want[-1][1].status == status
    xs = r.exchanges(4)
    assert len({x.connection.id for x in xs}) == 1
    for x, (raw, answer) in zip(xs, want):
        same_request(x, raw)
        same_response(x, answer, raw.startswith(b"HEAD") or status == 204)
    total = r.total(seen=4, captured=4)
    assert not total["waits"]["held"]


@pytest.mark.parametrize("directive, status", [
    ("return 403;", 403), ("deny all;", 403), ("auth_request /auth;", 401),
    ("client_max_body_size 2;", 413)])
@pytest.mark.parametrize("body", [{"body": b"12345"}, {"chunks": [b"123", b"45"]}])
def test_with_the_directive_a_body_that_nobody_reads_is_not_captured(
        rig, directive, status, body):
    """The head alone would promise a body that never comes. (That a chunked one
    is too large is found out by the handler that reads it.)"""
    r = rig(location=INCLUDE + directive,
            server="location = /auth { internal; return 401; }"
                   "location = /after { return 200; }" + INCLUDE)
    with r.client() as client:
        assert client.request("POST", "/", **body).status == status
        if status != 413:          # that one closes the connection
            assert client.request("GET", "/after").status == 200
    n = int(status != 413)
    r.total(seen=1 + n, unread_body=1, **({"captured": 1} if n else {}))
    assert [x.end for x in r.sidecar.exchanges] == ["DROP", "END"][:1 + n]


@pytest.mark.parametrize("target", ["/sorry", "@sorry"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("wait", ["off", "mutating"])
def test_with_the_directive_an_error_page_of_a_refused_request_is_its_response(
        rig, source, target, method, wait):
    """The page comes from the source, which is given the body, too."""
    source.answer = lambda q: Response(body=b"page %d" % len(q.body))
    r = rig(location="deny all; error_page 403 %s;" % target, wait=wait,
            server=INCLUDE + f"location {target} {{ proxy_pass http://source; }}")
    raw = build_request(method, "/", [HOST], b"12345" if method == "POST" else None)
    with r.client() as client:
        client.send(raw)
        answer = client.receive(method)
    assert answer.status == 403 and answer.body.startswith(b"page")
    x, = r.exchanges(1)
    same_request(x, raw)
    same_response(x, answer)
    total = r.total(seen=1, captured=1)
    assert not total["waits"]["held"]


def test_with_the_directive_limits_are_captured_and_rules_still_count(rig, source):
    r = rig(http="limit_req_zone $server_port zone=z:1m rate=1r/m;"
                 "limit_conn_zone $server_port zone=c:1m;",
            location="limit_req zone=z;" + INCLUDE,
            server="location /rule { capture $arg_on; return 403; %s }"
                   "location /bypass { capture_bypass $arg_b; return 403; %s }"
                   "location /off { capture off; return 403; %s }"
                   "location /conn { limit_conn c 1; %s proxy_pass http://source; }"
                   "location /444 { return 444; %s }" % ((INCLUDE,) * 5))
    hold = threading.Event()
    source.answer = lambda q: Response(hold=hold if "conn" in q.target else None)
    assert [r.get().status, r.get().status] == [200, 503]
    for target in ("/rule", "/rule?on=1", "/bypass", "/bypass?b=1", "/off",
                   f"/?{'x' * 4096}"):
        assert r.get(target).status in (403, 503)
    with r.client() as client:
        client.send(build_request("GET", "/444", [HOST]))
        assert client.ended()
        client.close()
    with r.client() as first:
        first.send(build_request("GET", "/conn/1", [HOST]))
        wait_until(lambda: source.requests[-1].target == "/conn/1")
        assert r.get("/conn/2").status == 503
        hold.set()
        assert first.receive().status == 200
    r.total(seen=10, captured=6, rule=1, bypass=1, unreplayable=1, not_forwarded=1)
    statuses = [x.response.split(b" ")[1] for x in r.exchanges(6)]
    assert statuses == [b"200", b"503", b"403", b"403", b"200", b"503"]


@pytest.mark.parametrize("raw", [
    b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n",
    b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_with_the_directive_a_bad_request_stays_one(rig, raw):
    r = rig(server=INCLUDE + "error_page 400 405 414 /x; location /x { return 200; }")
    with r.client() as client:
        client.send(raw)
        assert client.receive()
    r.total(seen=1, bad_request=1)
    assert not r.sidecar.exchanges


def test_with_the_directive_streams_are_captured_too(rig):
    port = free_port()
    r = rig(location=INCLUDE + "return 403 no;", server=http2(port))
    with Client2(port) as c:
        assert c.request("GET", "/1").status == 403
        assert c.request("POST", "/2", body=b"abc").status == 403
        assert c.request("GET", "/3").status == 403
    r.total(seen=3, captured=2, unread_body=1)
    assert [x.request.split(b" ")[1] for x in r.sidecar.exchanges
            if x.end == "END"] == [b"/1", b"/3"]


def test_error_page_as_a_switch_is_captured(rig, source):
    """The idiom `error_page 418 = @other; return 418;` refuses nothing."""
    r = rig(location="error_page 418 = @other; return 418;",
            server="location @other { proxy_pass http://source; }")
    answer = r.get()
    assert answer.status == 200
    x, = r.exchanges(1)
    same_response(x, answer)


@pytest.mark.parametrize("raw, status", [
    (b"BAD\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
     b"Transfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET /" + b"x" * 40000 + b" HTTP/1.1\r\n", 414),
    (b"GET / HTTP/1.1\r\nX: " + b"x" * 40000 + b"\r\n", 400),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    # 405 where NGINX knows what is right after CONNECT, and that differs
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", (400, 405)),
    (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", (400, 405)),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400)])
def test_what_nginx_cannot_read_is_a_bad_request(rig, raw, status):
    r = rig()
    with r.client() as client:
        client.send(raw)
        try:
            answer = client.receive()
            wanted = status if isinstance(status, tuple) else (status,)
            assert answer is None or answer.status in wanted, answer
        except ValueError:       # a body without a head
            pass
    r.total(seen=1, bad_request=1)


def test_a_head_that_never_ends_is_not_seen(rig):
    r = rig(server="client_header_timeout 1s;")
    with r.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHo")
    with r.client() as client:
        client.send(b"GE")
        client.ended()
    r.get()
    r.total(seen=1, captured=1)


def test_the_variable_of_capture_and_bypass_decide(rig):
    r = rig(http="map $arg_c $c { default 1; no 0; off off; '' ''; yes yes; }",
            server="capture_bypass $arg_b $http_x_bypass;", capture="$c")
    for target in ("/?c=no", "/?c=off", "/", "/?c=yes", "/?c=x", "/?c=yes&b=1",
                   "/?c=yes&b=0", "/?c=no&b=1"):
        assert r.get(target).status == 200
    assert r.get("/?c=x", headers=[HOST, ("X-Bypass", "y")]).status == 200
    xs = r.exchanges(3)
    assert [x.request.split()[1] for x in xs] == [b"/?c=yes", b"/?c=x",
                                                  b"/?c=yes&b=0"]
    r.total(seen=9, captured=3, rule=4, bypass=2)
    log = "\n".join(r.log(9))
    assert log.count("[filtered(rule)] -") == 4
    assert log.count("[filtered(bypass)] -") == 2


def test_capture_off_counts_nothing(rig):
    r = rig(server="location /off { capture off; proxy_pass http://source; }"
                   "location /if { if ($arg_x) { capture on; } return 200; }",
            capture="on")
    assert r.get("/off").status == 200
    r.get("/on")
    r.exchanges(1)
    r.total(seen=1, captured=1)


@row("the same with `capture_include unreplayable`", captured="all of it",
     replayed="nothing, as long as the Replayer has these limits")
@pytest.mark.parametrize("include", ["", "capture_include unreplayable;"])
def test_what_the_replayer_cannot_take_is_unreplayable(rig, include):
    """Its limits: 4,096 bytes of request line, 8,192 of header lines; exactly."""
    r = rig(server=include, http="large_client_header_buffers 8 32k;")

    def get(line, headers):
        target = "/" + "u" * (line - len("GET / HTTP/1.1"))
        size = headers - len("Host: source.test") - len("X: ")
        raw = build_request("GET", target, [HOST, ("X", "v" * size)])
        with r.client() as client:
            client.send(raw)
            assert client.receive().status == 200
        return raw
    raws = [get(4096, 100), get(100, 8192), get(4097, 100), get(100, 8193)]
    if include:
        for x, raw in zip(r.exchanges(4), raws):
            same_request(x, raw)
        r.total(seen=4, captured=4)
    else:
        for x, raw in zip(r.exchanges(2), raws):
            same_request(x, raw)
        r.total(seen=4, captured=2, unreplayable=2)


def test_an_upgrade_is_dropped_and_its_tunnel_not_captured(rig, source):
    source.answer = lambda q: Response(
        raw=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\nTUNNEL")
    r = rig(location='proxy_set_header Upgrade $http_upgrade;'
                     'proxy_set_header Connection "Upgrade";')
    with r.client() as client:
        client.send(build_request("GET", "/ws", [HOST, ("Upgrade", "websocket"),
                                                 ("Connection", "Upgrade")]))
        answer = client.receive()
        assert answer.status == 101
        assert client.receive_some(6) == b"TUNNEL"
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    x, = r.exchanges(1)
    assert (x.end, x.reason, x.eom) == ("DROP", "upgrade", None)
    assert b"TUNNEL" not in x.request + x.response
    r.closed(1)
    r.total(seen=1, upgrade=1)


def test_an_upgrade_that_is_not_taken_up_is_a_usual_exchange(rig, source):
    r = rig()
    raw = build_request("POST", "/", [HOST, ("Upgrade", "h2c"),
                                      ("Connection", "Upgrade")], b"abc")
    with r.client() as client:
        client.send(raw)
        answer = client.receive()
    x, = r.exchanges(1)
    same_request(x, raw)
    same_response(x, answer)


def test_http_09_is_unsupported(rig, source):
    r = rig()
    with r.client() as client:
        client.send(b"GET /old\r\n")
        while client._fill():
            pass
        assert bytes(client._buffer) == b"ok\n"
    r.total(seen=1, unsupported=1)


def test_http2_is_captured_without_a_word_in_the_log(rig, source):
    """All of it is in test_module_http2.py."""
    port = free_port()
    r = rig(http=f"server {{ listen 127.0.0.1:{port} http2; capture on;"
                 "location / { proxy_pass http://source; } }")
    with Client2(port) as client:
        for target in ("/1", "/2"):
            assert client.request("GET", target).status == 200
    for x, target in zip(r.exchanges(2), ("/1", "/2")):
        same_request(x, captured("GET", target))
    r.total(seen=2, captured=2)
    assert "not captured by this build" not in r.nginx.error_log()


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("raw", [
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf of it",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_in_its_body_drops_the_request(rig, raw, how,
                                                            buffering):
    """A head that promises a body which never comes would poison the replay."""
    r = rig(server=f"proxy_request_buffering {buffering};")
    client = r.client()
    client.send(raw)
    wait_until(lambda: r.sidecar.exchanges and b"half" in
               r.sidecar.exchanges[0].request, what="the body's beginning")
    getattr(client, how)()
    x, = r.exchanges(1)
    assert (x.end, x.reason, x.eom) == ("DROP", "client_abort", None)
    connection, = r.closed(1)
    assert connection.end == "CLOSE"
    r.total(seen=1, client_abort=1)


def test_a_body_that_does_not_come_in_time_is_a_client_abort(rig):
    r = rig(server="client_body_timeout 1s;")
    with r.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        client.receive()
    x, = r.exchanges(1)
    assert (x.end, x.reason) == ("DROP", "client_abort")
    r.total(seen=1, client_abort=1)


@pytest.mark.parametrize("name, status", [("page", 405), ("none", 404)])
def test_an_answer_without_reading_the_body_drops_the_request(rig, name, status):
    """Static files take no POST; the connection goes on under its id."""
    r = rig(server="location /s/ { alias html/; }")
    files(r, page=b"hello")
    with r.client() as client:
        for size in (5, 200_000):
            answer = client.request("POST", f"/s/{name}", body=pattern(size))
            assert answer.status == status
        answer = client.request("GET", "/")
    a, b, c = r.exchanges(3)
    for x in (a, b):
        assert (x.end, x.reason, x.eom) == ("DROP", "unread_body", None)
    same_response(c, answer)
    assert a.connection is b.connection is c.connection
    r.total(seen=3, unread_body=2, captured=1)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_early_answer_of_the_source_drops_the_request(rig, source, framing):
    """The record's grammar has no response before the request's end."""
    r = rig(server="proxy_request_buffering off;")
    source.early = lambda q: True
    source.answer = lambda q: Response(413, "Too Large", body=b"no")
    with r.client() as client:
        head = ("Content-Length: 1000" if framing == "length"
                else "Transfer-Encoding: chunked")
        client.send(f"POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
        client.send(b"x" if framing == "length" else b"1\r\nx\r\n")
        assert client.receive().status == 413
    x, = r.exchanges(1)
    assert (x.end, x.reason, x.eom) == ("DROP", "unread_body", None)
    r.total(seen=1, unread_body=1)


def test_a_chunked_body_that_is_broken_or_too_large_is_dropped(rig):
    r = rig(server="client_max_body_size 10;")
    for body, status in ((b"5\r\nab", None), (b"4\r\nabcdXY", 400),
                         (b"8\r\nabcdefgh\r\n8\r\nabcdefgh\r\n0\r\n\r\n", 413)):
        with r.client() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\n"
                        b"Transfer-Encoding: chunked\r\n\r\n" + body)
            if status:
                assert client.receive().status == status
    xs = r.exchanges(3)
    assert all(x.end == "DROP" and not x.eom for x in xs)
    r.total(seen=3, client_abort=1, unread_body=2)


# cut

def test_a_client_that_leaves_in_the_response_truncates_it(rig, source):
    r = rig(options={"hold_slots": True}, buffer="64m")
    source.answer = lambda q: Response(body=pattern(20_000_000))
    client = r.client()
    client.send(build_request("GET", "/", [HOST]))
    client.receive_some(1000)
    client.reset()
    x, = r.exchanges(1)
    assert x.truncated and x.eom
    connection, = r.closed(1)
    assert connection.end == "END"
    r.total(seen=1, captured=1, truncated=1)


@pytest.mark.parametrize("chunked", [None, (100,)])
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_source_that_cuts_its_response_truncates_it(rig, source, chunked,
                                                      buffering):
    r = rig(server=f"proxy_buffering {buffering};")
    source.answer = lambda q: Response(body=pattern(5000), cut=1234,
                                       chunked=chunked)
    with r.client() as client:
        answer = client.request("GET", "/")
        assert not answer.complete
    x, = r.exchanges(1)
    assert x.truncated
    assert x.response.count(b"\r\n\r\n") == 1 and not x.response.endswith(
        b"0\r\n\r\n")
    r.total(seen=1, captured=1, truncated=1)


@pytest.mark.parametrize("ignore", ["on", "off"])
def test_a_client_that_leaves_while_the_source_works_is_truncated(rig, source,
                                                                  ignore):
    """Its request was complete: the source may have executed it."""
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig(server=f"proxy_ignore_client_abort {ignore};")
    client = r.client()
    client.send(build_request("GET", "/", [HOST]))
    wait_until(lambda: source.requests, what="the request")
    client.close()
    if ignore == "off":
        r.exchanges(1)
    release.set()
    x, = r.exchanges(1)
    assert x.eom and (ignore == "on" or (x.truncated and not x.response))
    r.closed(1)


@row("a 103 of the source, which older NGINX takes for the final head",
     captured="the request: lost(response)", replayed="the request")
@pytest.mark.parametrize("hints", ["", "early_hints 1;"])
def test_an_interim_head_of_the_source_is_no_response(rig, source, hints):
    """NGINX before 1.29.0 takes a 103 for the final head; a record must not have
    it, nor where NGINX passes it on."""
    known = version() >= (1, 29, 0)
    if hints and not known:
        pytest.skip("NGINX has early_hints since 1.29.0")
    source.answer = lambda q: Response(raw=(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    r = rig(location=hints)
    raw = build_request("GET", "/", [HOST])
    with r.client() as client:
        client.send(raw)
        answer = client.receive() if known else None
        x, = r.exchanges(1)
    same_request(x, raw)
    if known:
        assert len(answer.interim) == bool(hints)
        same_response(x, answer)
        r.total(seen=1, captured=1)
        return
    assert (x.end, x.reason, x.response) == ("ABANDON", "response", b"")
    r.total(seen=1, response=1)


# nginx's own detours

def test_a_502_of_nginx_is_captured(rig, source):
    r = rig()
    source.stop()
    answer = r.get()
    assert answer.status == 502
    x, = r.exchanges(1)
    same_response(x, answer)
    source.start()


@pytest.mark.parametrize("target", ["/page", "@page"])
def test_an_error_page_of_a_forwarded_request_is_its_response(rig, source, target):
    """The request stays the client's, the response is what the client got."""
    def answer(q):
        return Response(503 if q.target == "/x" else 200, body=q.target.encode())
    source.answer = answer
    r = rig(server=f"location /x {{ proxy_pass http://source;"
                   f" proxy_intercept_errors on; error_page 503 {target}; }}"
                   f"location {target} {{ proxy_pass http://source/page; }}"
            if target[0] == "/" else
            "location /x { proxy_pass http://source; proxy_intercept_errors on;"
            " error_page 503 @page; }"
            "location @page { rewrite ^ /page break; proxy_pass http://source; }")
    raw = build_request("POST", "/x", [HOST], b"body")
    with r.client() as client:
        client.send(raw)
        got = client.receive()
        assert (got.status, got.body) == (503, b"/page")
        client.request("GET", "/y")
    x, _ = r.exchanges(2)
    same_request(x, raw)
    same_response(x, got)
    r.total(seen=2, captured=2)


def test_x_accel_redirect_gives_the_inner_response(rig, source):
    source.answer = lambda q: Response(
        headers=[("X-Accel-Redirect", "/inner/f")] if q.target == "/x" else [],
        body=b"hidden")
    r = rig(server="location /inner/ { internal; capture off; alias html/; }")
    files(r, f=pattern(100_000))
    with r.client() as client:
        answer = client.request("POST", "/x", body=b"q")
    assert answer.body == pattern(100_000)
    x, = r.exchanges(1)
    same_response(x, answer, ignore=("accept-ranges",))
    r.total(seen=1, captured=1)


def test_try_files_index_and_rewrites_keep_the_client_s_request(rig, source):
    r = rig(server="location /t/ { alias html/; try_files $uri /fall$uri; }"
                   "location /fall { proxy_pass http://source/; }"
                   "location /i/ { alias html/; index page; }"
                   "location /w { rewrite ^ /else last; }")
    files(r, page=b"hello")
    targets = ["/t/page", "/t/none", "/i/", "/w"]
    with r.client() as client:
        answers = [client.request("GET", t) for t in targets]
    for x, t, answer in zip(r.exchanges(4), targets, answers):
        assert answer.status == 200
        same_request(x, build_request("GET", t, [HOST]))
        same_response(x, answer, ignore=("accept-ranges",))


def test_subrequests_of_mirror_and_auth_request_are_no_exchanges(rig, source):
    r = rig(location="mirror /mirror; auth_request /auth;",
            server="location = /mirror { internal; proxy_pass http://source; }"
                   "location = /auth { internal; proxy_pass http://source/auth;"
                   "proxy_pass_request_body off; "
                   'proxy_set_header Content-Length ""; }')
    raw = build_request("POST", "/x", [HOST], pattern(100_000))
    with r.client() as client:
        client.send(raw)
        answer = client.receive()
        client.send(raw)
        client.receive()
    for x in r.exchanges(2):
        same_request(x, raw)
        same_response(x, answer, ignore=("date",))
    wait_until(lambda: len(source.requests) == 6, what="the subrequests")
    r.closed(1)
    r.total(seen=2, captured=2)


def test_a_client_that_leaves_in_the_access_phase_is_a_client_abort(rig, source):
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig(location="auth_request /auth;",
            server="location = /auth { internal; proxy_pass http://source; }")
    client = r.client()
    client.send(build_request("GET", "/", [HOST]))
    wait_until(lambda: source.requests)
    client.close()
    r.total(seen=1, client_abort=1)
    release.set()


@needs_modules
def test_output_of_ssi_addition_sub_and_slice_comes_in_order(rig, source):
    """The filter must stand below postpone: config names the order."""
    r = rig(http="sub_filter_types *;",
            server="location /ssi { alias html/; ssi on; ssi_types *; }"
                   "location /add { proxy_pass http://source; addition_types *;"
                   "add_before_body /before; add_after_body /after; }"
                   "location /sub { proxy_pass http://source;"
                   "sub_filter aaa bbbb; sub_filter_once off; }"
                   "location /slice { slice 1k; proxy_set_header Range"
                   " $slice_range; proxy_pass http://source; }")
    files(r, s=b"1<!--# include virtual=\"/a\" -->2<!--# include virtual=\"/b\""
               b" -->3")

    def answer(q):
        if q.target == "/slice":
            first, last = q.header("range").removeprefix("bytes=").split("-")
            part = pattern(5000)[int(first):int(last) + 1]
            return Response(206, "Partial", body=part, headers=[
                ("Content-Range",
                 f"bytes {first}-{int(first) + len(part) - 1}/5000")])
        return Response(body=b"aaa" * 10 if q.target == "/sub"
                        else q.target.encode() * 2000)
    source.answer = answer
    with r.client() as client:
        answers = [client.request("GET", t)
                   for t in ("/ssi/s", "/add", "/sub", "/slice")]
    xs = r.exchanges(4)
    for x, got in zip(xs, answers):
        same_response(x, got, ignore=("accept-ranges",))
    assert answers[0].body == b"1" + b"/a" * 2000 + b"2" + b"/b" * 2000 + b"3"
    assert answers[2].body == b"bbbb" * 10
    assert answers[3].body == pattern(5000)


@pytest.mark.parametrize("aio", ["", "aio threads;", "directio 512;",
                                 "sendfile on; sendfile_max_chunk 16k;",
                                 "output_buffers 1 8k; aio threads; directio 4k;"])
def test_static_files_come_whole(rig, aio):
    r = rig(server=f"location /s/ {{ alias html/; {aio} }}")
    body = pattern(3_000_000)
    files(r, f=body, empty=b"")
    for name in ("f", "empty"):
        answer = r.get(f"/s/{name}")
        x = r.exchanges(1 + (name == "empty"))[-1]
        same_response(x, answer, ignore=("accept-ranges",))
    answer = r.get("/s/f", method="HEAD")
    same_response(r.exchanges(3)[-1], answer, bodyless=True,
                  ignore=("accept-ranges",))


def test_ranges_that_nginx_cuts_come_as_206_with_their_body(rig):
    """The filter sees 200 and the full length in the head, and cut bytes."""
    r = rig(server="location /s/ { alias html/; }")
    files(r, f=pattern(10_000))
    cases = [("bytes=10-19", 206), ("bytes=-5", 206), ("bytes=0-1,5-6", 206),
             ("bytes=99999-", 416), ("bytes=0-99999", 206)]
    for n, (value, status) in enumerate(cases):
        answer = r.get("/s/f", headers=[HOST, ("Range", value)])
        assert answer.status == status
        x = r.exchanges(n + 1)[-1]
        assert value.encode() in x.request
        same_response(x, answer)


def test_ranges_and_conditions_on_a_cached_response(rig, source):
    """A 206 and a 304 that NGINX makes from its cache; HEAD of it."""
    r = rig(http="proxy_cache_path cache keys_zone=c:1m;",
            location="proxy_cache c; proxy_cache_valid 1h;")
    source.answer = lambda q: Response(
        body=pattern(100_000), headers=[("ETag", '"e"'), (
            "Last-Modified", "Mon, 28 Sep 1970 06:00:00 GMT")])
    r.get()
    r.exchanges(1)
    cases = [("GET", []), ("GET", [("Range", "bytes=5-70000")]), ("HEAD", []),
             ("GET", [("If-None-Match", '"e"')]),
             ("HEAD", [("Range", "bytes=5-9")]),
             ("GET", [("If-Modified-Since", "Mon, 28 Sep 1970 06:00:00 GMT")])]
    for i, (method, headers) in enumerate(cases):
        answer = r.get(method=method, headers=[HOST, *headers])
        x = r.exchanges(i + 2)[-1]
        same_response(x, answer, ignore=("accept-ranges",),
                      bodyless=method == "HEAD" or answer.status == 304)
    assert len(source.requests) == 1


def test_redirects_of_nginx_have_the_location_that_the_client_gets(rig):
    r = rig(server="location /s/ { alias html/; }"
                   "location /r/ { alias html/; absolute_redirect off; }")
    files(r)
    os.makedirs(os.path.join(r.directory, "html", "dir"))
    for n, target in enumerate(("/s/dir", "/r/dir")):
        answer = r.get(target)
        assert answer.status == 301
        x = r.exchanges(n + 1)[-1]
        got = Message(x.response)
        want = [h for h in answer.headers if h[0] != "Connection"]
        assert sorted(got.headers) == sorted(want)


def test_post_action_is_no_exchange(rig, source):
    r = rig(location="post_action /done;",
            server="location /done { proxy_pass http://source; }")
    with r.client() as client:
        client.send(build_request("GET", "/", [HOST]))
        answer = client.receive()
        wait_until(lambda: len(source.requests) == 2, what="the post_action")
        assert client.request("GET", "/").status == 200
    a, b = r.exchanges(2)
    same_response(a, answer)
    r.closed(1)
    r.total(seen=2, captured=2)


@pytest.mark.parametrize("server, status, header", [
    ("location / { charset utf-8; alias html/; default_type text/plain; }",
     200, ("Content-Type", "text/plain; charset=utf-8")),
    ("server_tokens off; location / { alias html/; }", 200, ("Server", "nginx")),
    ("server_tokens build; location / { alias html/; add_header X-A b; }", 200,
     ("X-A", "b")),
    ("location / { alias html/; expires 1h; }", 200,
     ("Cache-Control", "max-age=3600")),
    ("location / { alias html/none/; }", 404, ("Content-Type", "text/html")),
    ("location / { alias html/; etag off; }", 200, ("Content-Length", "5"))])
def test_the_head_is_as_nginx_sends_it(rig, server, status, header):
    port = free_port()
    r = rig(http=f"server {{ listen 127.0.0.1:{port}; capture on; {server} }}")
    files(r, f=b"hello")
    with Client(port) as client:
        answer = client.request("GET", "/f")
    assert answer.status == status
    assert header in answer.headers
    x, = r.exchanges(1)
    same_response(x, answer, ignore=("accept-ranges",))


@needs_modules
def test_dav_put_to_a_file_is_captured(rig):
    r = rig(server="location /d/ { alias html/; dav_methods PUT DELETE; }")
    files(r)
    raw = build_request("PUT", "/d/f", [HOST], pattern(300_000))
    with r.client() as client:
        client.send(raw)
        answer = client.receive()
        assert answer.status == 201
        client.request("DELETE", "/d/f")
    x, _ = r.exchanges(2)
    same_request(x, raw)
    got = Message(x.response)
    assert got.line == "HTTP/1.1 201 Created"
    lengths_fit(x)


# counters

def test_without_a_link_exchanges_are_unlinked(rig):
    r = rig(sidecar=False)
    for _ in range(3):
        assert r.get().status == 200
    r.total(seen=3, unlinked=3)
    assert all(line.endswith("[lost(unlinked)] -") for line in r.log(3))
    assert r.nginx.error_log().count("exchanges are not captured until") == 1


def test_pending_is_what_the_sidecar_has_not_reported(rig, source):
    r = rig(options={"consume": False})
    release = threading.Event()
    source.answer = lambda q: Response(hold=release if q.target == "/2" else None)
    r.get("/1")
    client = r.client()
    client.send(build_request("GET", "/2", [HOST]))
    wait_until(lambda: len(source.requests) == 2)
    r.total(seen=2, pending=2)
    r.link.consume = True
    r.total(seen=2, captured=1, pending=1)
    release.set()
    r.total(seen=2, captured=2)
    client.close()


def test_the_sum_holds_at_every_look_under_load(rig, source):
    """A look never catches an exchange between two classes: checked in
    Rig.status() for each row and the total."""
    r = rig(workers=2, location="capture_bypass $arg_b;")
    stop = threading.Event()
    count = [0, 0, 0]

    def load(i):
        with r.client() as client:
            while not stop.is_set():
                client.request("GET", "/?b=1" if i == 2 else "/")
                count[i] += 1
    threads = [threading.Thread(target=load, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    wait_until(lambda: r.status() and min(count) > 150, 30)
    stop.set()
    for t in threads:
        t.join()
    r.total(seen=sum(count), captured=count[0] + count[1], bypass=count[2])


# trailers

TRAILERS = 'add_trailer X-Sum "s um"; add_trailer X-None ""; add_trailer X-End e;'


@row("`add_trailer`, trailers that NGINX passes on", captured="all of it, in chunks",
     replayed="the request", section="What NGINX does with a request",
     limits="up to 8,192 bytes; those of a proxied HTTP/1 response are thrown away by "
     "NGINX unless `proxy_pass_trailers` is on")
@pytest.mark.parametrize("chunked", [None, (100,)])
@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
def test_trailers_are_captured_as_the_client_gets_them(rig, source, version, chunked):
    """They make a chunked response out of one with a length; HTTP/1.0 has none."""
    port = free_port()
    r = rig(server=f"listen 127.0.0.1:{port} http2; {TRAILERS}")
    source.answer = lambda q: Response(body=pattern(1000), chunked=chunked,
                                       trailers=[("X-Source", "1")])
    if version == "2":
        with Client2(port) as client:
            answer = client.request("GET", "/")
    else:
        with r.client() as client:
            client.send(f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode())
            answer = client.receive()
    x, = r.exchanges(1)
    got = Message(x.response)
    assert got.body == bytes(answer.body) == pattern(1000)
    want = [] if version == "1.0" else ["X-Sum: s um", "X-End: e"]
    assert [f"{n}: {v}".lower() for n, v in answer.trailers] == [
        line.lower() for line in want]
    assert got.trailers == [line.encode() for line in want]
    # HTTP/2 can have a length beside trailers
    assert got.all("content-length") == (
        [] if want else [v for n, v in answer.headers if n == "Content-Length"])


def test_trailers_that_the_replayer_cannot_take_are_left_out(rig, source):
    r = rig(http="map '' $long { default '%s'; }" % ("v" * 4000),
            server="add_trailer A $long; add_trailer B $long;"
                   "location /more { add_trailer A $long; add_trailer B $long;"
                   "add_trailer C $long; proxy_pass http://source; }")
    answers = [r.get(target) for target in ("/", "/more")]
    assert [len(a.trailers) for a in answers] == [2, 3]
    few, many = r.exchanges(2)
    assert len(Message(few.response).trailers) == 2
    assert Message(many.response).trailers == []
    assert Message(many.response).body == b"ok\n"


def test_heads_have_no_trailers(rig, source):
    r = rig(server=TRAILERS)
    source.answer = lambda q: Response(
        status=int(q.target[1:4]), body=b"" if q.method == "HEAD" else b"x")
    for n, (method, target) in enumerate((("HEAD", "/200"), ("GET", "/304"),
                                          ("GET", "/204"))):
        answer = r.get(target, method=method)
        same_response(r.exchanges(n + 1)[-1], answer, bodyless=True)
