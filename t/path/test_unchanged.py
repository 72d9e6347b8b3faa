"""What NGINX sends, to clients and to the source, is the same without the module,
with it, and with everything captured."""

import gzip
import os
import re

import pytest

from rig.client import Client, build_request
from rig.client2 import Client2
from rig.nginx import has_http3
from rig.process import SANITIZED, free_port
from rig.sidecar import Sidecar
from rig.source import Response, pattern

HTTP = """
    {capture}
    upstream source {{
        server 127.0.0.1:{source};
        keepalive 8;
    }}
    upstream dead {{ server 127.0.0.1:{dead}; }}
    proxy_cache_path {cache} keys_zone=cache:1m;
    limit_req_zone $uri zone=limit:1m rate=1r/m;
    large_client_header_buffers 4 2k;
    gzip_types text/plain application/json;
    gzip_min_length 10;
    gzip_proxied any;
"""

SERVER = """
    listen 127.0.0.1:{port2} http2;
    {listen3}
    server_name source.test;
    root {root};
    port_in_redirect off;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    error_page 404 /custom-404.html;
    error_page 418 = @teapot;

    location / {{ }}
    location /gzip/ {{ gzip on; alias {root}/; }}
    location /gunzip/ {{ {gunzip} proxy_pass http://source; }}
    location /sub/ {{
        alias {root}/;
        sub_filter_types text/plain;
        sub_filter 1 one;
        sub_filter_once off;
    }}
    location /slice/ {{
        slice 1000;
        proxy_set_header Range $slice_range;
        proxy_cache cache;
        proxy_cache_key $uri$slice_range;
        proxy_cache_valid 206 1h;
        proxy_pass http://source;
    }}
    location /headers/ {{
        alias {root}/;
        add_header X-Added yes always;
        expires 1h;
        charset utf-8;
    }}
    location /return/text {{ return 200 "text\\n"; }}
    location /return/none {{ return 204; }}
    location /return/moved {{ return 301 /elsewhere; }}
    location /return/closed {{ return 444; }}
    location /return/teapot {{ return 418; }}
    location @teapot {{ return 200 "short and stout\\n"; }}
    location /rewrite/ {{ rewrite ^/rewrite/(.*) /$1 last; }}
    location /redirect/ {{ rewrite ^/redirect/(.*) /$1 permanent; }}
    location /try/ {{ try_files /none$uri /small.txt =404; }}
    location /internal/ {{ internal; alias {root}/; }}
    location /deny/ {{ deny all; }}
    location /limit/ {{ limit_req zone=limit; alias {root}/; }}
    location /except/ {{ limit_except GET {{ deny all; }} alias {root}/; }}
    location /auth/ {{ auth_request /allowed; proxy_pass http://source/; }}
    location /noauth/ {{ auth_request /refused; proxy_pass http://source/; }}
    location = /allowed {{ return 204; }}
    location = /refused {{ return 403; }}
    location /mirror/ {{ mirror /mirrored; proxy_pass http://source; }}
    location = /mirrored {{ internal; proxy_pass http://source; }}
    location /proxy/ {{ proxy_pass http://source; }}
    location /gzproxy/ {{ gzip on; proxy_pass http://source; }}
    location /unbuffered/ {{
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_pass http://source;
    }}
    location /intercept/ {{
        proxy_intercept_errors on;
        proxy_pass http://source;
    }}
    location /cache/ {{
        proxy_cache cache;
        proxy_cache_valid any 1h;
        add_header X-Cache $upstream_cache_status;
        proxy_pass http://source;
    }}
    location /small/ {{ client_max_body_size 10; proxy_pass http://source; }}
    location /file/ {{
        client_body_in_file_only clean;
        proxy_pass http://source;
    }}
    location /dead/ {{ proxy_pass http://dead; }}
"""

LISTEN3 = ("listen 127.0.0.1:{} quic; ssl_certificate {}; ssl_certificate_key {};"
           if has_http3() else "")

# the NGINX with sanitizers is built without it
GUNZIP = "" if SANITIZED else "gunzip on;"

CAPTURE = {
    "absent": "",
    "loaded": "",
    "off": "capture_sidecar unix:{socket}; capture off;",
    "unlinked": "capture_sidecar unix:{socket}.none; capture on;",
    "on": "capture_sidecar unix:{socket}; capture on;",
    "all": "capture_sidecar unix:{socket}; capture on;"
           "capture_include not_forwarded unreplayable;",
}


def get(target, *headers, method="GET", **body):
    return build_request(method, target, [("Host", "source.test"), *headers], **body)


def raw(text):
    return text.replace("\n", "\r\n").encode("latin-1")


def pieces():
    """name: what a client sends on a connection, an answer after each"""
    for place in ("", "/gzip", "/sub", "/headers", "/rewrite", "/try", "/except",
                  "/internal", "/deny"):
        yield f"static{place}", [get(f"{place}/small.txt"),
                                 get(f"{place}/small.txt", method="HEAD"),
                                 get(f"{place}/big.bin"),
                                 get(f"{place}/missing"),
                                 get(f"{place}/small.txt",
                                     ("Accept-Encoding", "gzip"))]
    yield "static conditions", [
        get("/small.txt", ("If-None-Match", '"65920080-64"')),
        get("/small.txt", ("If-None-Match", "*")),
        get("/small.txt", ("If-Modified-Since", "Mon, 01 Jan 2024 00:00:00 GMT")),
        get("/small.txt", ("If-Match", '"other"')),
        get("/small.txt", ("If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"))]
    for place in ("/big.bin", "/sub/big.bin", "/slice/big", "/proxy/big",
                  "/cache/big"):
        yield f"ranges {place}", [
            get(place, ("Range", "bytes=" + r), *more)
            for r, *more in (("0-9",), ("5000-",), ("-7",), ("0-1,100-120,-3",),
                             ("90000000-",), ("9-1",), ("x",),
                             ("0-9", ("If-Range", '"no"')))]
    yield "static refuses", [get("/small.txt", method="POST", body=b"x" * 5000),
                             get("/small.txt", method="POST", chunks=[b"abc"] * 9),
                             get("/directory"), get("/directory/"),
                             get("/small.txt", method="OPTIONS"),
                             get("/small.txt", method="DELETE"),
                             get("/missing", method="HEAD"),
                             get("/except/small.txt", method="PUT", body=b"x" * 100),
                             get("/small.txt")]
    for where in ("text", "none", "moved", "teapot", "closed"):
        yield f"return {where}", [get(f"/return/{where}", method="POST", body=b"abc"),
                                  get(f"/return/{where}")]
    yield "redirects", [get("/redirect/a?b=c"), get("/directory?x=y"),
                        get("/redirect/a", method="HEAD")]
    yield "limits", [get("/limit/small.txt"), get("/limit/small.txt"),
                     get("/small/x", method="POST", body=b"x" * 11),
                     get("/small/x", method="POST", chunks=[b"x" * 11])]
    for where in ("/proxy", "/unbuffered", "/file", "/gzproxy", "/intercept",
                  "/mirror", "/auth", "/noauth"):
        yield f"proxied {where}", [
            get(f"{where}/a?b=c", ("X-Odd-cASE", "v"), ("X-2", ""), ("X-2", "b")),
            get(f"{where}/a", method="HEAD"),
            get(f"{where}/a", method="POST", body=b""),
            get(f"{where}/a", method="POST", body=pattern(70_000, 1)),
            get(f"{where}/a", method="POST", chunks=[b"abc", pattern(40_000)]),
            get(f"{where}/a", method="PUT", body=pattern(400_000, 3)),
            get(f"{where}/a", ("Accept-Encoding", "gzip")),
            get(f"{where}/big"), get(f"{where}/chunked"), get(f"{where}/close"),
            get(f"{where}/404"), get(f"{where}/500"), get(f"{where}/204"),
            get(f"{where}/304"), get(f"{where}/moved"), get(f"{where}/a/../b//c"),
            get(f"{where}/a", method="DELETE"),
            get(f"{where}/a", ("Expect", "100-continue"), method="POST",
                body=pattern(30_000))]
    yield "internal redirect of the source", [
        get("/proxy/accel"), get("/proxy/accel", method="POST", body=b"abc"),
        get("/proxy/accel", ("Range", "bytes=1-3"))]
    yield "gunzipped", [get("/gunzip/gzipped"),
                        get("/gunzip/gzipped", ("Accept-Encoding", "gzip"))]
    yield "cached", [get("/cache/a"), get("/cache/a"), get("/cache/404"),
                     get("/cache/404"), get("/cache/a", method="HEAD")]
    yield "no source", [get("/dead/a"), get("/dead/a", method="POST", body=b"abc")]
    yield "a source that dies", [get("/proxy/dies")]
    yield "a source that is cut", [get("/proxy/cut")]
    yield "close", [get("/proxy/a", ("Connection", "close"))]
    yield "HTTP/1.0", [raw("GET /small.txt HTTP/1.0\n\n")]
    yield "HTTP/1.0 proxied", [raw("GET /proxy/chunked HTTP/1.0\n\n")]
    yield "HTTP/1.0 kept", [
        raw("GET /proxy/a HTTP/1.0\nConnection: keep-alive\n\n"),
        raw("GET /small.txt HTTP/1.0\nConnection: keep-alive\n\n")]
    yield "bare LF, leading CRLF", [b"\r\n\r\nGET /proxy/a HTTP/1.1\nHost: x\n\n"]
    yield "absolute", [raw("GET http://other.test/proxy/a HTTP/1.1\nHost: x\n\n")]
    yield "options *", [raw("OPTIONS * HTTP/1.1\nHost: x\n\n")]
    for name, text in {
            "no host": "GET / HTTP/1.1\n\n", "two hosts":
            "GET / HTTP/1.1\nHost: a\nHost: b\n\n", "method": "get / HTTP/1.1\n\n",
            "target": "GET proxy HTTP/1.1\nHost: a\n\n",
            "version": "GET / HTTP/2.0\nHost: a\n\n",
            "name": "GET /proxy/a HTTP/1.1\nHost: a\nna_me: x\nb@d: x\n\n",
            "length": "POST /proxy/a HTTP/1.1\nHost: a\nContent-Length: x\n\n",
            "both": "POST /proxy/a HTTP/1.1\nHost: a\nContent-Length: 3\n"
                    "Transfer-Encoding: chunked\n\n0\n\n",
            "chunk": "POST /proxy/a HTTP/1.1\nHost: a\n"
                     "Transfer-Encoding: chunked\n\nxyz\n",
            "coding": "POST /proxy/a HTTP/1.1\nHost: a\nTransfer-Encoding: gzip\n\n",
            "fold": "GET /proxy/a HTTP/1.1\nHost: a\nX: a\n b\n\n",
            "long line": "GET /" + "l" * 3000 + " HTTP/1.1\nHost: a\n\n",
            "long head": "GET /proxy/a HTTP/1.1\nHost: a\nX: " + "l" * 3000 + "\n\n",
            "long sum": "GET /proxy/a HTTP/1.1\nHost: a\n"
                        + "".join(f"X-{i}: {'l' * 900}\n" for i in range(9)) + "\n",
    }.items():
        yield f"bad {name}", [raw(text)]


def answer(request):
    last = request.target.split("?")[0].rsplit("/", 1)[-1]
    if last.isdigit():
        return Response(int(last), "S", [("X-S", "1")],
                        b"status\n" if last not in ("204", "304") else b"")
    ranged = re.match(r"bytes=(\d+)-(\d+)", request.header("range") or "")
    if last == "big" and ranged and request.target.startswith("/slice/"):
        whole, (at, end) = pattern(5500, 9), map(int, ranged.groups())
        piece = whole[at:end + 1]
        return Response(206, "Partial Content", [
            ("Content-Range", f"bytes {at}-{at + len(piece) - 1}/{len(whole)}"),
            ("ETag", '"s"')], piece)
    special = {
        "big": Response(headers=[("ETag", '"b"'), ("Accept-Ranges", "bytes")],
                        body=pattern(300_000, 2)),
        "chunked": Response(body=pattern(9000), chunked=(1, 100, 5000)),
        "close": Response(body=pattern(9000, 4), until_close=True),
        "moved": Response(302, "Found", [("Location", "http://source/x"),
                                         ("Set-Cookie", "a=b"),
                                         ("Set-Cookie", "c=d; path=/")]),
        "accel": Response(headers=[("X-Accel-Redirect", "/internal/small.txt")],
                          body=b"not this"),
        "gzipped": Response(headers=[("Content-Encoding", "gzip")],
                            body=gzip.compress(pattern(5000), mtime=0)),
        "dies": Response(raw=b"", close=True),
        "cut": Response(body=pattern(5000), cut=1000),
    }
    return special.get(last) or Response(
        headers=[("X-Method", request.method), ("Content-Type", "text/plain"),
                 ("x-oDD", ""), ("Server", "hidden")],
        body=b"%s %d\n" % (request.target.encode("latin-1"), len(request.body)))


@pytest.fixture
def root(workdir):
    path = os.path.join(workdir, "root")
    os.makedirs(os.path.join(path, "directory"))
    for name, data in (("small.txt", b"0123456789" * 10), ("big.bin", pattern(90_000)),
                       ("custom-404.html", b"not here\n")):
        with open(os.path.join(path, name), "wb") as f:
            f.write(data)
        os.utime(os.path.join(path, name), (1704067200, 1704067200))  # 2024
    return path


@pytest.mark.timeout(300)
def test_nginx_sends_the_same_without_with_and_while_capturing(
        workdir, root, nginx, source, broker, topic, certificate):
    source.answer = answer
    socket = os.path.join(workdir, "sock")
    sidecar = Sidecar(os.path.join(workdir, "sidecar"), {
        "listen": f"unix:{socket}", "topic": topic,
        "kafka.bootstrap.servers": broker.bootstrap})
    sidecar.start()
    dead, runs = free_port(), {}
    try:
        for how, capture in CAPTURE.items():
            port2, port3 = free_port(), free_port()
            told = len(sidecar.log_text())
            n = nginx(module=how != "absent", server=SERVER.format(
                root=root, port2=port2, gunzip=GUNZIP,
                listen3=LISTEN3.format(port3, *certificate)), http=HTTP.format(
                    capture=capture.format(socket=socket), source=source.port,
                    dead=dead, cache=os.path.join(workdir, f"cache-{how}")))
            if how in ("on", "all"):
                sidecar.process.wait_for_log("linked", start=told)
            before = len(source.requests)
            answers = {name: converse(n.port, sent) for name, sent in pieces()}
            answers |= dict(converse2("HTTP/2", lambda: Client2(port2)))
            if has_http3():
                answers |= dict(converse2("HTTP/3",
                                          lambda: client3(port3, certificate)))
            assert n.stop(graceful=True) == 0
            runs[how] = answers, sorted(
                (bytes(r.head), bytes(r.body)) for r in source.requests[before:])
        assert sidecar.stop() == 0
        totals = sidecar.check_totals()
    finally:
        sidecar.close()

    print(f"{len(runs['absent'][0])} connections, "
          f"{len(runs['absent'][1])} requests at the source, {totals}")
    assert totals["captured"] > 200 and totals["lost"] == 0
    problems = [f"{how}: {problem}" for how in CAPTURE if how != "absent"
                for problem in differences(runs["absent"], runs[how])]
    assert not problems, "\n".join(
        [f"{len(problems)} differences", *problems[:10]])


def differences(want, got):
    for name, answers in want[0].items():
        for i, (must, have) in enumerate(zip(answers, got[0][name])):
            if must != have:
                yield f"{name}, answer {i}: {short(have)}, without: {short(must)}"
        if len(answers) != len(got[0][name]):
            yield f"{name}: {len(got[0][name])} answers, without: {len(answers)}"
    if want[1] != got[1]:
        more = [short(r) for r in got[1] if r not in want[1]]
        less = [short(r) for r in want[1] if r not in got[1]]
        yield f"the source got {more[:3]}, without: {less[:3]}"


def short(value):
    return repr(value)[:500]


def converse(port, sent):
    """Each answer: (interim heads, head, body, is it whole), None for a closed
    connection; and at last, whether the connection stays open."""
    answers = []
    with Client(port) as c:
        for data in sent:
            c.send(data)
            a = c.receive(data.lstrip(b"\r\n").split(b" ")[0].decode())
            answers.append(a and (a.interim, normal(a.head), normal(a.body),
                                  a.complete))
            if a is None or b"\r\nConnection: close" in a.head or not a.complete:
                answers.append(c.ended())
                return answers
        # what the server would still say, if it thought otherwise of the bytes
        c.send(get("/small.txt", ("Connection", "close")))
        a = c.receive()
        answers.append(a and normal(a.head))
    return answers


def client3(port, certificate):
    from rig.client3 import Client3
    return Client3(port, certificate[0])


def converse2(protocol, connect):
    """The same over HTTP/2 or 3; all of a list at once."""
    for name, requests in {
            "static": [("GET", "/small.txt"), ("HEAD", "/small.txt"),
                       ("GET", "/big.bin"), ("GET", "/missing"),
                       ("POST", "/small.txt", (), b"x" * 5000),
                       ("GET", "/big.bin", [("range", "bytes=3-9")]),
                       ("GET", "/gzip/small.txt", [("accept-encoding", "gzip")]),
                       ("GET", "/small.txt", [("if-none-match", "*")]),
                       ("GET", "/sub/small.txt"), ("GET", "/return/text"),
                       ("GET", "/return/none"), ("GET", "/deny/x"),
                       ("GET", "/directory"), ("OPTIONS", "/small.txt")],
            "proxied": [(m, f"{where}/{t}", [("x-a", "b"), ("cookie", "c=d")], body)
                        for where in ("/proxy", "/unbuffered", "/gzproxy", "/auth")
                        for m, t, body in (
                            ("GET", "a", None), ("HEAD", "a", None),
                            ("POST", "a", b""), ("POST", "a", pattern(100_000)),
                            ("GET", "big", None), ("GET", "chunked", None),
                            ("GET", "404", None), ("GET", "204", None),
                            ("GET", "304", None), ("DELETE", "a", None))]}.items():
        with connect() as c:
            streams = [c.send_request(*r) for r in requests]
            answers = [c.receive(stream) for stream in streams]
            yield f"{protocol} {name}", [a and (normal(a.head), normal(a.body),
                                            a.complete) for a in answers]


def normal(data):
    """Without what changes from run to run: times, and multipart boundaries."""
    data = re.sub(rb"(?i)(\r\n(?:date|expires): )[^\r]*", rb"\1then", bytes(data))
    return re.sub(rb"\b\d{20}\b", b"boundary", data)
