"""What NGINX can do with a request, case by case: each is captured as its client
saw it, or counted with its reason. The cases share one NGINX and one topic, see
matrix.py; docs/fidelity.md is made from them."""

import shutil
import ssl
import subprocess
import tempfile
import threading
import time

import pytest

from path.matrix import CASES, Matrix, case
from path.session import Sent, marked
from rig.cgi import App, FastCgi, Uwsgi
from rig.client import Answer, parse_head
from rig.process import TOP
from rig.source import Response, Source, pattern
from rig.status import wait_until

FIDELITY = "What NGINX does with a request"

WHOLE = "all of it"
# NGINX adds it to the head of what it can cut into ranges, behind the capture
RANGES = ("accept-ranges",)


@pytest.fixture(scope="module")
def matrix(broker, certificate):
    directory = tempfile.mkdtemp(prefix="cap-", dir="/tmp")
    topic = f"matrix-{directory[-8:]}"
    broker.start()
    broker.create_topic(topic, 4)
    source = Source()
    source.start()
    apps = [App(FastCgi).start(), App(Uwsgi).start()]
    m = Matrix(directory, source, broker, topic, certificate,
               {"fastcgi": apps[0].port, "uwsgi": apps[1].port})
    try:
        try:
            m.run()
        finally:
            m.stack.close()
        yield m
    finally:
        for app in apps:
            app.close()
        source.close()
    if not m.broken:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"left for you to look at: {directory}")


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.function.__name__)
def test_case(matrix, c):
    missing = matrix.missing(c)
    if missing:
        pytest.skip(f"this NGINX is built without {', '.join(missing)}")
    matrix.judge(c)


def test_nothing_else_is_in_the_topic_and_all_is_counted(matrix):
    matrix.judge_all()


def header(answer, name, *values):
    assert answer.header(name) in values, answer.head
    return answer


# proxy_pass

@case("`proxy_request_buffering` and `proxy_buffering`, each on and off",
      captured=WHOLE, replayed="the request",
      server="""
        location /buffering/bb { proxy_pass @SOURCE@; }
        location /buffering/bu { proxy_pass @SOURCE@; proxy_buffering off; }
        location /buffering/ub { proxy_pass @SOURCE@;
            proxy_request_buffering off; proxy_http_version 1.1; }
        location /buffering/uu { proxy_pass @SOURCE@; proxy_buffering off;
            proxy_request_buffering off; proxy_http_version 1.1; }""")
def buffering(m):
    m.answer(lambda q: Response(body=pattern(len(q.body) or 9, 1),
                                chunked=(777,) if "c" in q.target else None))
    for way in ("bb", "bu", "ub", "uu"):
        with m.session() as c:
            for end in ("l", "c"):
                c.request("POST", f"/buffering/{way}/{end}", body=pattern(90_000))
                c.request("PUT", f"/buffering/{way}/{end}",
                          chunks=[pattern(40_000), b"x", pattern(300)])
                c.request("GET", f"/buffering/{way}/{end}")


@case("temporary files: `client_body_buffer_size`, `proxy_max_temp_file_size`",
      captured=WHOLE, replayed="the request",
      server="""
        location /temporary { proxy_pass @SOURCE@; client_body_buffer_size 1k;
            proxy_buffers 2 4k; proxy_buffer_size 4k; proxy_busy_buffers_size 4k; }""")
def temporary(m):
    m.answer(lambda q: Response(body=bytes(q.body) * 4))
    with m.session() as c:
        c.request("POST", "/temporary", body=pattern(300_000))
        c.request("POST", "/temporary", chunks=[pattern(100_000, 2)] * 2)


@case("`client_body_in_file_only` on and clean", captured=WHOLE,
      replayed="the request",
      server="""
        location /in_file { client_body_in_file_only on; proxy_pass @SOURCE@; }
        location /in_file/clean { client_body_in_file_only clean;
            proxy_pass @SOURCE@; }""")
def in_file(m):
    with m.session() as c:
        for target in ("/in_file", "/in_file/clean"):
            c.request("POST", target, body=pattern(20_000))
            c.request("POST", target, chunks=[b"a", b"bc"])
            c.request("GET", target)


@case("`client_body_in_single_buffer`", captured=WHOLE, replayed="the request",
      server="""
        location /single { client_body_in_single_buffer on;
            client_body_buffer_size 64k; proxy_pass @SOURCE@;
            proxy_set_header X-Body $request_body; }""")
def single(m):
    with m.session() as c:
        c.request("POST", "/single", body=b"x" * 9000)
        c.request("POST", "/single", chunks=[b"a" * 5000, b"bc"])


@case("`proxy_set_body`, `proxy_method`, `proxy_set_header`, `proxy_hide_header`",
      captured="the client's own request; the response as the client gets it",
      replayed="the client's own request",
      limits="what NGINX changes on the way to the source is not in it",
      server="""
        location /changed { proxy_set_body other; proxy_method PUT;
            proxy_set_header X-Mark none; proxy_hide_header X-Hidden;
            add_header X-Added yes; proxy_pass @SOURCE@/changed/else; }""")
def changed(m):
    m.answer(lambda q: Response(headers=[("X-Hidden", "1")],
                                body=q.method.encode() + bytes(q.body)))
    with m.session() as c:
        a = c.request("POST", "/changed/x", body=b"mine")
        assert a.body == b"PUTother" and not a.header("x-hidden")
        header(a, "x-added", "yes")


@case("`proxy_next_upstream`", captured="one exchange: the request, the response "
      "that the client gets", replayed="the request, once",
      http="""
        upstream next { server 127.0.0.1:@PORT:closed@; server 127.0.0.1:@PORT:other@;
                        server 127.0.0.1:@PORT:last@ backup; }""",
      server="""
        location /next { proxy_next_upstream error http_503 non_idempotent;
            proxy_pass http://next; }""")
def next_upstream(m):
    with_503, last = Source(), Source()
    with_503.port, last.port = m.port("other"), m.port("last")
    with_503.answer = lambda q: Response(503, body=b"not me")
    last.answer = lambda q: Response(body=b"me")
    for source in (with_503, last):
        source.start()
    try:
        with m.session() as c:
            assert c.request("GET", "/next").body == b"me"
            assert c.request("POST", "/next", body=pattern(50_000)).body == b"me"
    finally:
        with_503.close()
        last.close()


@case("a source whose response has no framing, until it closes",
      captured="all of it, in chunks", replayed="the request")
def until_close(m):
    m.answer(lambda q: Response(until_close=True, body=pattern(20_000)))
    with m.session() as c:
        assert c.request("GET", "/until_close").body == pattern(20_000)
        c.request("GET", "/until_close/2")


# what others than proxy_pass answer

@case("`fastcgi_pass`", captured=WHOLE, replayed="the request", needs=("fastcgi",),
      server="""
        location /fastcgi { fastcgi_pass 127.0.0.1:@PORT:fastcgi@;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param REQUEST_URI $request_uri;
            fastcgi_param CONTENT_LENGTH $content_length; }
        location /fastcgi/unbuffered { fastcgi_pass 127.0.0.1:@PORT:fastcgi@;
            fastcgi_request_buffering off; fastcgi_buffering off;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param REQUEST_URI $request_uri; }""")
def fastcgi(m):
    with m.session() as c:
        for target in ("/fastcgi", "/fastcgi/unbuffered"):
            header(c.request("GET", target), "x-app", "cgi")
            a = c.request("POST", target, body=pattern(80_000))
            assert a.body.endswith(pattern(80_000))
            c.request("POST", target, chunks=[b"abc", b"d" * 9000])
            c.request("HEAD", target)


@case("`uwsgi_pass`", captured=WHOLE, replayed="the request", needs=("uwsgi",),
      server="""
        location /uwsgi { uwsgi_pass 127.0.0.1:@PORT:uwsgi@;
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param REQUEST_URI $request_uri;
            uwsgi_param CONTENT_LENGTH $content_length; }""")
def uwsgi(m):
    with m.session() as c:
        header(c.request("GET", "/uwsgi"), "x-app", "cgi")
        a = c.request("POST", "/uwsgi", body=pattern(80_000))
        assert a.body.endswith(pattern(80_000))
        c.request("POST", "/uwsgi", chunks=[b"abc", b"d" * 9000])


@case("static files: `sendfile`, `aio threads`, `directio`", captured=WHOLE,
      replayed="the request", needs=("threads",),
      limits="captured files are read into memory: sendfile is not used for them; "
             "`Accept-Ranges` is left out",
      server="""
        location /static/ { alias @DIR@/html/; sendfile on; }
        location /static/aio/ { alias @DIR@/html/; aio threads; }
        location /static/direct/ { alias @DIR@/html/; aio threads; directio 4k; }""")
def static(m):
    m.file("static", pattern(700_000))
    m.file("small", b"hello")
    with m.session(ignore=RANGES) as c:
        for way in ("", "aio/", "direct/"):
            assert c.request("GET", f"/static/{way}static").body == pattern(700_000)
            c.request("GET", f"/static/{way}small")
            c.request("HEAD", f"/static/{way}static")
            assert c.request("GET", f"/static/{way}none").status == 404


@case("ranges that NGINX cuts (206, 416), conditions that it answers (304, 412)",
      captured="all of it: status, head and bytes that the client gets",
      replayed="the request",
      server="location /ranges/ { alias @DIR@/html/; }")
def ranges(m):
    m.file("ranged", pattern(10_000))
    with m.session() as c:
        for value, status in (("bytes=0-9", 206), ("bytes=-7", 206),
                              ("bytes=1-2,5-6", 206), ("bytes=99999-", 416)):
            a = c.request("GET", "/ranges/ranged", [("Range", value)])
            assert a.status == status
        c.ignore = (b"accept-ranges",)
        etag = c.request("GET", "/ranges/ranged").header("etag")
        assert c.request("GET", "/ranges/ranged",
                         [("If-None-Match", etag)]).status == 304
        assert c.request("GET", "/ranges/ranged",
                         [("If-Match", '"x"')]).status == 412


@case("ranges that the source cuts (206)", captured=WHOLE, replayed="the request")
def source_ranges(m):
    m.answer(lambda q: Response(206, "Partial Content", body=b"1234", headers=[
        ("Content-Range", "bytes 1-4/10")]))
    with m.session() as c:
        assert c.request("GET", "/source_ranges",
                         [("Range", "bytes=1-4")]).status == 206


# proxy_cache

@case("`proxy_cache`: miss, hit, HEAD and 304 from the cache", captured=WHOLE,
      replayed="the request, hit or miss", limits="`Accept-Ranges` is left out",
      http="proxy_cache_path cache keys_zone=matrix:1m;",
      server="location /cache { proxy_cache_valid 1h; proxy_cache matrix;"
             "proxy_cache_key $uri; add_header X-Cache $upstream_cache_status;"
             "proxy_pass @SOURCE@; }")
def cache(m):
    m.answer(lambda q: Response(headers=[("ETag", '"e"')], body=pattern(30_000)))
    with m.session(ignore=RANGES) as c:
        header(c.request("GET", "/cache"), "x-cache", "MISS")
        header(c.request("GET", "/cache"), "x-cache", "HIT")
        header(c.request("HEAD", "/cache"), "x-cache", "HIT")
        assert c.request("GET", "/cache", [("If-None-Match", '"e"')]).status == 304


@case("`proxy_cache`: stale answers, background updates",
      captured="the exchange of the client; the update is none",
      replayed="the request",
      server="location /stale { proxy_cache matrix; proxy_cache_key $uri;"
             "proxy_cache_use_stale updating error; proxy_cache_background_update on;"
             "add_header X-Cache $upstream_cache_status; proxy_pass @SOURCE@; }")
def stale(m):
    turn = []

    def answer(q):
        turn.append(1)
        return Response(headers=[("Cache-Control", "max-age=1")],
                        body=b"%d" % len(turn))
    m.answer(answer)
    with m.session(ignore=RANGES) as c:
        first = header(c.request("GET", "/stale"), "x-cache", "MISS")
        got = wait_until(lambda: _first_of(c, "/stale", "STALE"), 10)
        assert got is None or got.body == first.body
        wait_until(lambda: c.request("GET", "/stale").body != first.body, 10)
    assert len(turn) > 1


def _first_of(c, target, status):
    time.sleep(0.05)
    a = c.request("GET", target)
    return a if a.header("x-cache") == status else None


@case("`slice`", captured="all of it, put together",
      replayed="the request, once", needs=("slice",),
      server="location /slice { slice 1k; proxy_set_header Range $slice_range;"
             "proxy_pass @SOURCE@; }")
def slices(m):
    body = pattern(5000)

    def answer(q):
        first, last = q.header("range").removeprefix("bytes=").split("-")
        part = body[int(first):int(last) + 1]
        return Response(206, "Partial", body=part, headers=[
            ("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/5000")])
    m.answers["slice"] = answer
    with m.session(ignore=RANGES) as c:
        assert c.request("GET", "/slice").body == body


# filters

@case("`gzip`", captured="the response before gzip", replayed="the request",
      limits="the client's Content-Encoding is not in it",
      server="location /gzip { gzip on; gzip_types text/plain; gzip_min_length 1;"
             "proxy_pass @SOURCE@; }", needs=("gzip",))
def gzipped(m):
    m.answers["gzip"] = lambda q: Response(
        headers=[("Content-Type", "text/plain")], body=b"abc" * 3000)
    with m.session(ignore=("content-encoding", "content-length", "vary")) as c:
        a = c.request("GET", "/gzip", [("Accept-Encoding", "gzip")])
        assert a.header("content-encoding") == "gzip"
        a.body = b"abc" * 3000


@case("`gunzip`", captured="the response after gunzip, as the client gets it",
      replayed="the request", needs=("gunzip",),
      server="location /gunzip { gunzip on; proxy_pass @SOURCE@; }")
def gunzip(m):
    import gzip
    m.answer(lambda q: Response(headers=[("Content-Encoding", "gzip")],
                                body=gzip.compress(b"abc" * 3000)))
    with m.session() as c:
        assert c.request("GET", "/gunzip").body == b"abc" * 3000
        a = c.request("GET", "/gunzip", [("Accept-Encoding", "gzip")])
        assert a.header("content-encoding") == "gzip"


@case("`sub_filter`", captured="the response as it was changed",
      replayed="the request", needs=("sub",),
      server="location /sub { sub_filter_types *; sub_filter aaa bbbb;"
             "sub_filter_once off; proxy_pass @SOURCE@; }")
def sub(m):
    m.answer(lambda q: Response(body=b"aaa" * 5000))
    with m.session() as c:
        assert c.request("GET", "/sub").body == b"bbbb" * 5000


@case("`addition`", captured="the response as the client gets it",
      replayed="the request", needs=("addition",),
      server="location /addition { addition_types *; add_before_body /part/1;"
             "add_after_body /part/2; proxy_pass @SOURCE@; }"
             "location /part { internal; proxy_pass @SOURCE@; }")
def addition(m):
    m.answer(lambda q: Response(body=b"middle"))
    with m.session() as c:
        body = c.request("GET", "/addition").body
        assert b"/part/1" in body and b"middle" in body and b"/part/2" in body


# detours

@case("`auth_request`: granted", captured=WHOLE, replayed="the request",
      limits="the subrequest is no exchange", needs=("auth_request",),
      server="location /auth/ { auth_request /auth_ok; proxy_pass @SOURCE@; }"
             "location = /auth_ok { internal; proxy_pass @SOURCE@;"
             'proxy_pass_request_body off; proxy_set_header Content-Length ""; }')
def auth(m):
    with m.session() as c:
        c.request("GET", "/auth/1")
        c.request("POST", "/auth/2", body=pattern(50_000))


@case("`auth_request`, `auth_basic`, `limit_req`, `limit_conn`, `deny`, `return`, "
      "413: refused", ends="not_forwarded", needs=("auth_request",),
      limits="`capture_include not_forwarded` captures them all the same",
      http="limit_req_zone $server_port zone=refused:1m rate=1r/m;"
           "limit_conn_zone $server_port zone=refused_conn:1m;",
      server="location /refused/auth { auth_request /auth_no; proxy_pass @SOURCE@; }"
             "location /refused/deny { deny all; proxy_pass @SOURCE@; }"
             "location /refused/return { return 204; }"
             "location /refused/limit { limit_req zone=refused; proxy_pass @SOURCE@; }"
             "location /refused/conn { limit_conn refused_conn 1; proxy_pass @SOURCE@; }"
             "location /refused/basic { auth_basic x; auth_basic_user_file @DIR@/none;"
             "proxy_pass @SOURCE@; }"
             "location /refused/size { client_max_body_size 1; proxy_pass @SOURCE@; }"
             "location = /auth_no { internal; return 401; }")
def refused(m):
    hold = threading.Event()
    m.answer(lambda q: Response(hold=hold if "conn" in q.target else None))
    with m.session() as c, m.session() as other:
        assert c.request("GET", "/refused/limit").status == 200
        for what, status in (("auth", 401), ("deny", 403), ("return", 204),
                             ("limit", 503), ("basic", 401)):
            assert c.client.request("GET", f"/refused/{what}").status == status
        raw, mark = marked("GET", "/refused/conn")
        other.client.send(raw)
        wait_until(lambda: m.source.requests[-1].target == "/refused/conn")
        assert c.client.request("GET", "/refused/conn").status == 503
        hold.set()
        assert other.received("GET", raw, mark).status == 200
        assert c.client.request("POST", "/refused/size", [("Host", "a")],
                                b"123").status == 413
    m.filtered("not_forwarded", 7)


@case("the same with `capture_include not_forwarded`, and their error pages",
      captured=WHOLE, replayed="the request, against NGINX's own answer",
      limits="with a body that nobody reads: filtered(unread_body); `return 444` has "
             "no answer: filtered(not_forwarded); it never waits",
      needs=("auth_request",),
      http="limit_req_zone $server_port zone=included:1m rate=1r/m;",
      server="location /included/ { capture_include not_forwarded;"
             "location /included/auth { auth_request /auth_no; proxy_pass @SOURCE@; }"
             "location /included/deny { deny all; proxy_pass @SOURCE@; }"
             "location /included/return { return 200 text; }"
             "location /included/moved { return 301 /x; }"
             "location /included/limit { limit_req zone=included; proxy_pass @SOURCE@; }"
             "location /included/page { deny all; error_page 403 /included/sorry; }"
             "location /included/sorry { proxy_pass @SOURCE@; }"
             "location /included/444 { return 444; } }")
def included(m):
    with m.session() as c:
        assert c.request("GET", "/included/limit").status == 200
        for what, status in (("auth", 401), ("deny", 403), ("return", 200),
                             ("moved", 301), ("limit", 503), ("page", 403)):
            for method in ("GET", "HEAD", "DELETE"):
                assert c.request(method, f"/included/{what}").status == status
        a = c.request("POST", "/included/page", body=b"abc")
        assert a.status == 403 and a.body.startswith(b"/included/sorry")
        assert c.client.request("POST", "/included/return", [("Host", "a")],
                                b"123").status == 200
        c.request("GET", "/included/return")
        c.client.send(marked("GET", "/included/444")[0])
        assert c.client.ended()
    m.filtered("unread_body", 1)
    m.filtered("not_forwarded", 1)


@case("what NGINX cannot read or does not take: 400, 414, 494, 505, `OPTIONS *`",
      ends="bad_request")
def unreadable(m):
    for raw in (b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n",
                b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n",
                b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
                b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"):
        c = m.session()
        c.client.send(raw)
        assert c.client.receive().status >= 400
    m.filtered("bad_request", 6)


@case("`mirror`", captured="one exchange", replayed="the request, once",
      limits="the mirrored request is no exchange",
      server="location /mirror { mirror /mirrored; proxy_pass @SOURCE@; }"
             "location /mirrored { internal; proxy_pass @SOURCE@; }")
def mirror(m):
    with m.session() as c:
        c.request("GET", "/mirror")
        c.request("POST", "/mirror", body=pattern(50_000))


@case("`X-Accel-Redirect`", captured="the client's request, the response that it "
      "gets", replayed="the request", limits="`Accept-Ranges` is left out",
      server="location /accel { proxy_pass @SOURCE@; }"
             "location /hidden/ { internal; alias @DIR@/html/; }")
def accel(m):
    m.file("accel", pattern(100_000))
    m.answer(lambda q: Response(headers=[("X-Accel-Redirect", "/hidden/accel")]))
    with m.session(ignore=RANGES) as c:
        assert c.request("POST", "/accel", body=b"q").body == pattern(100_000)


@case("`try_files`, `index`, `rewrite`, named locations",
      captured="the request as the client sent it", replayed="the request",
      server="location /detour/try/ { alias @DIR@/html/;"
             "try_files $uri @named; }"
             "location /detour/rewrite { rewrite ^ /else?x=1 last; }"
             "location /detour/break { rewrite ^ /broken break; proxy_pass @SOURCE@; }"
             "location @named { proxy_pass @SOURCE@; }")
def detour(m):
    m.file("here", b"hello")
    with m.session(ignore=RANGES) as c:
        assert c.request("GET", "/detour/try/here").body == b"hello"
        c.request("POST", "/detour/try/not", body=b"abc")
        assert c.request("GET", "/detour/rewrite").body.startswith(b"/else?x=1")
        assert c.request("PUT", "/detour/break", body=b"1").body == b"/broken 1\n"


@case("`error_page`, `proxy_intercept_errors`", captured="the client's request, "
      "the response that it gets", replayed="the request",
      server="location /error { proxy_intercept_errors on; proxy_pass @SOURCE@;"
             "error_page 503 @page; error_page 404 =200 /error_page; }"
             "location @page { proxy_pass @SOURCE@; }"
             "location /error_page { proxy_pass @SOURCE@; }")
def error(m):
    m.answer(lambda q: Response(404 if "404" in q.target
                                else 503 if "503" in q.target else 200))
    with m.session() as c:
        assert c.request("POST", "/error/503", body=b"abc").status == 503
        assert c.request("GET", "/error/404").status == 200
        c.request("GET", "/error/200")


@case("`post_action`", captured="one exchange", replayed="the request, once",
      server="location /post_action { post_action /posted; proxy_pass @SOURCE@; }"
             "location /posted { internal; proxy_pass @SOURCE@; }")
def post_action(m):
    for _ in range(2):
        with m.session() as c:
            c.request("GET", "/post_action", [("Connection", "close")])


@case("handlers that do not read the request's body (static files, 405)",
      ends="unread_body",
      server="location /unread/ { alias @DIR@/html/; }")
def unread(m):
    m.file("unread", b"hello")
    with m.session(ignore=RANGES) as c:
        for body in (b"abc", pattern(50_000)):
            assert c.client.request("POST", "/unread/unread", [("Host", "a")],
                                    body).status == 405
        c.request("GET", "/unread/unread")
    m.filtered("unread_body", 2)


# what cannot be replayed

@case("a request line over 4,096 bytes, or headers over 8,192", ends="unreplayable",
      limits="`capture_include unreplayable` captures it all the same",
      http="large_client_header_buffers 8 32k;")
def too_long(m):
    with m.session() as c:
        for target, headers in (("/too_long/" + "x" * 4096, []),
                                ("/too_long", [("X-Long", "x" * 8192)])):
            raw, _ = marked("GET", target, headers)
            c.client.send(raw)
            assert c.client.receive().status == 200
        c.request("GET", "/too_long")
    m.filtered("unreplayable", 2)


@case("Upgrade, WebSocket, answered by 101", ends="upgrade",
      limits="an Upgrade that the source does not take up is an exchange like any "
             "other",
      server="location /upgrade { proxy_pass @SOURCE@;"
             "proxy_set_header Upgrade $http_upgrade;"
             'proxy_set_header Connection "Upgrade"; }')
def upgrade(m):
    m.answer(lambda q: Response(
        raw=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\nTUNNEL")
        if "taken" in q.target else Response(426))
    wanted = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    for method in ("GET", "POST"):
        with m.session() as c:
            body = b"abc" if method == "POST" else None
            assert c.request(method, "/upgrade/no", wanted, body).status == 426
            c.client.send(marked(method, "/upgrade/taken", wanted, body)[0])
            assert c.client.receive().status == 101
            assert c.client.receive_some(6) == b"TUNNEL"
            c.client.send(marked("GET", "/never/seen")[0])
        m.filtered("upgrade", 1)


@case("HTTP/0.9", ends="unsupported")
def http_09(m):
    c = m.session()
    c.client.send(b"GET /http_09\r\n")
    while c.client._fill():
        pass
    assert bytes(c.client._buffer) == b"/http_09 0\n"
    m.filtered("unsupported", 1)


# connections

@case("`keepalive_requests`, `Connection: close`, HTTP/1.0", captured=WHOLE,
      replayed="the request",
      http="server { listen 127.0.0.1:@PORT:few@; keepalive_requests 3; capture on;"
           "location / { proxy_pass @SOURCE@; } }")
def few(m):
    for _ in range(2):
        with m.session(m.port("few")) as c:
            for i in range(3):
                c.request("GET", f"/{i}")
            assert c.client.ended()
    with m.session(m.port("few")) as c:
        c.request("GET", "/", [("Connection", "close")])
        assert c.client.ended()
    with m.session(m.port("few")) as c:
        raw, mark = marked("GET", "/old")
        raw = raw.replace(b"HTTP/1.1", b"HTTP/1.0")
        c.client.send(raw)
        c.received("GET", raw, mark)
        assert c.client.ended()


@case("`lingering_close always`, `reset_timedout_connection`, `tcp_nopush`",
      captured=WHOLE, replayed="the request",
      http="server { listen 127.0.0.1:@PORT:lingering@; lingering_close always;"
           "lingering_timeout 200ms; reset_timedout_connection on; sendfile on;"
           "tcp_nopush on; capture on; location / { proxy_pass @SOURCE@; } }")
def lingering(m):
    with m.session(m.port("lingering")) as c:
        c.request("POST", "/", [("Connection", "close")], body=pattern(30_000))
        c.client.sock.sendall(b"thrown away")
        assert c.client.ended()


@case("pipelined requests", captured="each an exchange of its own, in order",
      replayed="the requests, in order")
def pipelined(m):
    with m.session() as c:
        batch = [marked("GET", "/pipelined/1"),
                 marked("POST", "/pipelined/2", body=b"two"),
                 marked("PUT", "/pipelined/3", chunks=[b"th", b"ree"]),
                 marked("HEAD", "/pipelined/4")]
        c.client.send(b"".join(raw for raw, _ in batch))
        for raw, mark in batch:
            c.received(raw.split(b" ")[0].decode(), raw, mark)


@case("request lines and heads: absolute form, leading line ends, "
      "LF alone, empty, doubled and non-ASCII headers",
      captured="the request line verbatim; headers as `Name: value`, in their order",
      replayed="the request",
      limits="the Replayer encodes non-ASCII bytes anew where it rewrites headers; "
             "headers with underscores are dropped by NGINX unless "
             "`underscores_in_headers` is on")
def heads(m):
    for first in (b"", b"\r\n\r\n"):
        for line, eol in ((b"GET http://source.test/heads?x=1 HTTP/1.1", b"\r\n"),
                          (b"GET /heads/%41?\xc3\xa4 HTTP/1.1", b"\r\n"),
                          (b"GET /heads/lf HTTP/1.1", b"\n")):
            with m.session() as c:
                raw, mark = marked("GET", "/x", [
                    ("X-Empty", ""), ("x-two", "1"), ("X-TWO", "2"),
                    ("X-Latin", "\xe4\xf6")])
                raw = first + line + raw[raw.index(b"\r\n"):]
                raw = raw.replace(b"\r\n", eol)
                c.client.send(raw)
                assert c.received(line.split()[0].decode(), raw, mark)


@case("`realip`", captured=WHOLE, replayed="the request",
      limits="the client's address is not in a record", needs=("realip",),
      server="location /realip { set_real_ip_from 127.0.0.0/8;"
             "real_ip_header X-Forwarded-For; add_header X-IP $remote_addr;"
             "proxy_pass @SOURCE@; }")
def realip(m):
    with m.session() as c:
        header(c.request("GET", "/realip", [("X-Forwarded-For", "192.0.2.7")]),
               "x-ip", "192.0.2.7")


@case("PROXY protocol, versions 1 and 2", captured="the request without it",
      replayed="the request", needs=("realip",),
      http="server { listen 127.0.0.1:@PORT:proxyp@ proxy_protocol; capture on;"
           "set_real_ip_from 127.0.0.0/8; real_ip_header proxy_protocol;"
           "location / { add_header X-IP $remote_addr; proxy_pass @SOURCE@; } }")
def proxy_protocol(m):
    two = (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([192, 0, 2, 9])
           + bytes([127, 0, 0, 1]) + b"\x12\x34\x12\x35")
    for first, ip in ((b"PROXY TCP4 192.0.2.8 127.0.0.1 4000 4001\r\n", "192.0.2.8"),
                      (two, "192.0.2.9")):
        with m.session(m.port("proxyp"), first=first) as c:
            header(c.request("GET", "/1"), "x-ip", ip)
            c.request("POST", "/2", body=b"abc")


# TLS

def context(m, client=False):
    made = ssl.create_default_context(cafile=m.certificate[0])
    if client:
        made.load_cert_chain(*m.certificate)
    return made


@case("TLS: SNI, client certificates", captured="what is inside of it",
      replayed="the request, with whatever the Replayer's target wants",
      limits="names and certificates of the handshake are not in a record",
      http="""
    server { listen 127.0.0.1:@PORT:tls@ ssl; capture on; server_name source.test;
        ssl_certificate @CRT@; ssl_certificate_key @KEY@;
        ssl_client_certificate @CRT@; ssl_verify_client optional;
        ssl_session_cache shared:tls:1m; add_header X-Reused $ssl_session_reused;
        add_header X-Verify $ssl_client_verify; add_header X-SNI $ssl_server_name;
        location / { proxy_pass @SOURCE@; } }""")
def tls(m):
    for client, verify in ((False, "NONE"), (True, "SUCCESS")):
        with m.session(m.port("tls"), tls=context(m, client)) as c:
            a = c.request("POST", "/tls", body=pattern(70_000))
            header(a, "x-verify", verify)
            header(a, "x-sni", "source.test")
            c.request("GET", "/tls/2")


@case("TLS: session resumption", captured="what is inside of it",
      replayed="the request")
def resumption(m):
    at = context(m)
    at.maximum_version = ssl.TLSVersion.TLSv1_2     # a session at once
    with m.session(m.port("tls"), tls=at) as c:
        header(c.request("GET", "/resumption"), "x-reused", ".")
        session = c.client.sock.session
    with m.session(m.port("tls"), tls=at, tls_session=session) as c:
        header(c.request("GET", "/resumption/2"), "x-reused", "r")


@case("TLS 1.3: early data (0-RTT)", captured="what is inside of it",
      replayed="the request",
      limits="whether it came early is not in a record, nor is a 425 repeated",
      http="""
    server { listen 127.0.0.1:@PORT:early@ ssl; capture on; ssl_early_data on;
        ssl_certificate @CRT@; ssl_certificate_key @KEY@; ssl_protocols TLSv1.3;
        set $early $ssl_early_data; # as it was before the handshake could end
        add_header X-Early $early; location / { proxy_pass @SOURCE@; } }""")
def early_data(m):
    c = m.session()
    came_early = []
    # the handshake can end while NGINX, on a busy machine, has yet to look
    for turn, early in enumerate((None, "1", "1", "1", "1", "1")):
        if "1" in came_early:
            break
        raw, mark = marked("GET", f"/early_data/{turn}", [("Connection", "close")])
        head, _, body = s_client(m, raw, early).partition(b"\r\n\r\n")
        answer = parse_head(head + b"\r\n\r\n")
        assert isinstance(answer, Answer)
        came_early.append(answer.header("x-early"))
        answer.body = body
        one = m.session()
        one.exchanges.append(Sent(mark, b"GET", raw, answer))
    assert came_early[0] is None and came_early[-1] == "1", came_early
    c.client.close()


def s_client(m, raw, early):
    """What `openssl s_client` gets for a request, at first without early data,
    then with, in the session of the first."""
    ticket, request = f"{m.directory}/ticket", f"{m.directory}/request"
    with open(request, "wb") as f:
        f.write(raw)
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{m.port('early')}",
            "-servername", "source.test", "-tls1_3", "-quiet"]
    argv += (["-sess_in", ticket, "-early_data", request] if early
             else ["-sess_out", ticket])
    done = subprocess.run(argv, input=b"" if early else raw, cwd=TOP,
                          capture_output=True, timeout=20)
    assert done.stdout, done.stderr
    return done.stdout
