"""Redaction: what is named leaves the worker as other bytes of the same length, and
nothing else changes, neither in the record nor on the wire. Bodies that are too large,
or in which nothing can be found, are left out and counted, never cut in silence.
"""

import gzip
import hmac
import json
import os
import re
import string

import pytest

from capture_rig import Message, lengths_fit, same_request, same_response
from path.fidelity import row
from rig.client import build_request
from rig.client2 import Client2, captured
from rig.nginx import http2
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

FIDELITY = "Not captured, or not wholly"

HOST = ("Host", "source.test")
JSON = ("Content-Type", "application/json")
LINES = ("Content-Type", "application/x-ndjson")
SECRET = "S3cr3t-Value"
STARS = "*" * len(SECRET)


def hidden(text):
    if isinstance(text, bytes):
        return text.replace(SECRET.encode(), STARS.encode())
    return text.replace(SECRET, STARS)


def redacted(r, **want):
    """Waits until this was counted, and nothing else."""
    last = {}

    def good():
        last.update(r.status()["total"]["redacted"])
        return {k: n for k, n in last.items() if n} == want
    try:
        wait_until(good, 10)
    except AssertionError:
        raise AssertionError(f"{last}, not {want}") from None


def nowhere(r):
    """The secret is not in the shared memory, all of it, nor in error.log, but for
    the request line that NGINX itself puts at a line's end."""
    r.caught_up()
    for link in r.sidecar.links:
        assert link.map.find(SECRET.encode()) == -1
    assert SECRET not in re.sub(r'(request|upstream): "[^"]*"', "",
                                r.nginx.error_log())


def same_forwarded(r, source, raws):
    """The source has got what the clients have sent, but for the headers that
    NGINX makes."""
    def told(head):
        return [line for line in head.split(b"\r\n")[1:]
                if not re.match(rb"(?i)host|connection|expect|content-length|"
                                rb"transfer-encoding|$", line)]
    assert len(source.requests) == len(raws)
    for got, raw in zip(source.requests, raws):
        head, _, body = raw.partition(b"\r\n\r\n")
        assert told(bytes(got.head)) == told(head)
        assert got.target == head.split(b" ")[1].decode()
        if b"chunked" not in head.lower():
            assert bytes(got.body) == body


# heads

@row("headers named by `capture_redact_header`, arguments by `capture_redact_arg`",
     captured="as many `*`, or letters and digits of a keyed hash", replayed="so",
     limits="the target must let such requests in")
def test_named_headers_are_redacted_in_both_directions(rig, source):
    source.answer = lambda q: Response(headers=[
        ("Set-Cookie", f"a={SECRET}; Path=/"), ("set-cookie", "b"), ("X-Open", SECRET[:3]),
        ("X-My", SECRET)], body=b"ok")
    r = rig(server="capture_redact_header preset X-My;")
    raw = build_request("POST", "/x?y=1", [
        HOST, ("authorization", f"Basic {SECRET}"), ("X-MY", SECRET), ("X-My2", "open"),
        ("Cookie", f"c={SECRET}"), ("X-Api-Key", ""), ("Accept", "a:b")], body=b"12345")
    with r.client() as client:
        client.send(raw)
        answer = client.receive()
    x, = r.exchanges(1)
    want = re.sub(rb"(?mi)^((authorization|x-my|cookie): )(.*?)\r$",
                  lambda m: m[1] + b"*" * len(m[3]) + b"\r", raw)
    assert want != raw and SECRET.encode() not in want
    same_request(x, want)
    got = Message(x.response)
    assert got.all("set-cookie") == ["*" * (len(SECRET) + 10), "*"]
    assert got.all("x-my") == [STARS] and got.all("x-open") == [SECRET[:3]]
    assert answer.header("x-my") == SECRET and got.body == answer.body
    same_forwarded(r, source, [raw])
    redacted(r, headers=6)
    nowhere(r)


def test_nothing_is_redacted_unless_it_is_named(rig, source):
    source.answer = lambda q: Response(headers=[("Set-Cookie", "x")], body=b'{"password":1}')
    r = rig(server="location /off { capture_redact_header off; capture_redact_json off;"
                   "capture_redact_arg off; proxy_pass http://source; }"
                   "location /on { capture_redact_arg a; proxy_pass http://source; }",
            http="capture_redact_header preset; capture_redact_json password;"
                 "capture_redact_arg b;")
    raws = []
    for path in ("/off", "/on"):
        raw = build_request("POST", f"{path}?a=1&b=2", [HOST, JSON, ("Cookie", "c")],
                            body=b'{"password":"p"}')
        raws.append(raw)
        with r.client() as client:
            client.send(raw)
            answer = client.receive()
    first, second = r.exchanges(2)
    same_request(first, raws[0])
    assert Message(first.response).all("set-cookie") == ["x"]
    same_request(second, raws[1].replace(b"a=1", b"a=*").replace(
        b"Cookie: c", b"Cookie: *").replace(b'"p"', b'"*"'))
    assert Message(second.response).body == b'{"password":1}'.replace(b"1", b"1")
    assert answer.header("set-cookie") == "x"
    redacted(r, headers=2, args=1, json=2)


@pytest.mark.parametrize("target, want", [
    ("/?token=abc", "/?token=***"), ("/?token=", "/?token="), ("/?token", "/?token"),
    ("/?a=1&TOKEN=abc&b=2", "/?a=1&TOKEN=***&b=2"),
    ("/?a=1;token=abc;b", "/?a=1;token=***;b"),
    ("/?t%6fken=a%20c#d&x=%", "/?t%6fken=*******&x=%"),
    ("/?tokens=a&atoken=b&token%=c", "/?tokens=a&atoken=b&token%=c"),
    ("/?token=a=b?token=c&token=d", "/?token=***********&token=*"),
    ("/token=a?x=1&my+key=z&my%20key=yy", "/token=a?x=1&my+key=*&my%20key=**"),
    ("http://source.test/a?token=b", "http://source.test/a?token=*")])
def test_query_arguments_are_redacted(rig, target, want):
    r = rig(server="capture_redact_arg token 'my key';")
    raw = build_request("GET", target, [HOST, ("Referer", f"http://x{target}")])
    with r.client() as client:
        client.send(raw)
        assert client.receive().status == 200
    x, = r.exchanges(1)
    if target.startswith("http"):
        same_request(x, raw.replace(b"token=b", b"token=*"))
    else:
        same_request(x, raw.replace(target.encode(), want.encode()))


def test_addresses_in_responses_are_redacted(rig, source):
    source.answer = lambda q: Response(302, headers=[
        ("Location", f"http://x/?token={SECRET}&a=1")])
    r = rig(server=f"capture_redact_arg token; location /r {{ try_files /n /n2?token={SECRET}; }}"
                   "location /n2 { proxy_pass http://source; }"
                   "location /own/ { alias html/; }")
    os.makedirs(os.path.join(r.directory, "html", "d"))
    r.get("/")
    answer = r.get(f"/own/d?token={SECRET}")
    assert answer.status == 301 and SECRET in answer.header("location")
    r.get("/r")
    xs = r.exchanges(3)
    assert Message(xs[0].response).all("location") == [f"http://x/?token={STARS}&a=1"]
    assert Message(xs[1].response).all("location")[0].endswith(f"/own/d/?token={STARS}")
    nowhere(r)


def test_trailers_are_redacted(rig, source):
    source.answer = lambda q: Response(body=b"x")
    r = rig(server=f"add_trailer X-Sum {SECRET}; capture_redact_header x-sum;")
    with r.client() as client:
        client.send(build_request("GET", "/", [HOST, ("TE", "trailers")]))
        client.receive()
    x, = r.exchanges(1)
    assert Message(x.response).trailers == [f"X-Sum: {STARS}".encode()]


# JSON bodies

def document(size=0):
    return json.dumps({"a": [1, {"user": {"password": SECRET, "name": "n"}}],
                       "deep.user.password": SECRET, "fill": "x" * size, "z": None,
                       "user": {"password": [SECRET, {"k": SECRET}]}}).encode()


def bulk(n=3):
    out = b""
    for i in range(n):
        out += b'{"index":{"_id":"%d"}}\n' % i + document(i) + b"\n"
    return out


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("lines", [False, True])
@row("JSON values at the paths of `capture_redact_json`, in requests and responses",
     captured="other strings and numbers of the same length", replayed="so",
     limits="true, false and null stay; what is no JSON is replaced whole")
def test_json_bodies_are_redacted_in_both_directions(rig, source, buffering, framing,
                                                     lines):
    """Sizes beyond one buffer; pieces end anywhere."""
    body = bulk(500) if lines else document(100_000) + b"\n" + document(3)
    source.answer = lambda q: Response(
        headers=[LINES if lines else JSON], body=body,
        chunked=(1, 7, 999) if framing == "chunked" else None)
    r = rig(server="capture_redact_json user.password;",
            location=f"proxy_request_buffering {buffering}; proxy_buffering {buffering};")
    headers = [HOST, LINES if lines else ("Content-Type", "application/json; charset=utf-8")]
    cuts = [body[i:i + 777] for i in range(0, len(body), 777)]
    raw = (build_request("POST", "/_bulk", headers, chunks=cuts) if framing == "chunked"
           else build_request("POST", "/doc", headers, body=body))
    with r.client() as client:
        client.send(raw)
        answer = client.receive()
    x, = r.exchanges(1)
    assert answer.body == body
    assert bytes(source.requests[0].body) == body
    if framing == "chunked":
        assert Message(x.request).body == hidden(body)
        lengths_fit(x)
    else:
        same_request(x, hidden(raw))
    got = Message(x.response)
    assert got.body == hidden(body)
    assert got.all("content-length") == ([] if framing == "chunked" else [str(len(body))])
    redacted(r, json=2 * body.count(SECRET.encode()))
    nowhere(r)


def test_streams_of_http2_are_redacted(rig, source):
    source.answer = lambda q: Response(headers=[JSON, ("X-S", SECRET)], body=document())
    port = free_port()
    r = rig(server=f"{http2(port)} capture_redact_json user.password;"
                   "capture_redact_header x-s; capture_redact_arg t;")
    headers = [("content-type", "application/json"), ("x-s", SECRET)]
    with Client2(port) as c:
        for length in (True, False):
            assert bytes(c.request("POST", f"/?t={SECRET}", headers, document(),
                                   length=length).body) == document()
    for x, length in zip(r.exchanges(2), (True, False)):
        raw = hidden(captured("POST", f"/?t={SECRET}", headers, document(), length))
        if length:
            same_request(x, raw)
        else:
            assert Message(x.request).body == Message(raw).body
            assert x.request.split(b"\r\n\r\n")[0] == raw.split(b"\r\n\r\n")[0]
        assert Message(x.response).body == hidden(document())
    nowhere(r)


@pytest.mark.parametrize("kind, headers, body, want", [
    # what its type does not say its first byte does
    ("json", [], b' {"p":"s"}', b' {"p":"*"}'),
    ("json", [("Content-Type", "application/x-www-form-urlencoded")], b'{"p":"s"}',
     b'{"p":"*"}'),
    ("json", [("Content-Type", "application/vnd.elasticsearch+json;compatible-with=8")],
     b'{"p":12}', b'{"p":11}'),
    ("other", [("Content-Type", "text/plain")], b'p=s {"p":"s"}', b'p=s {"p":"s"}'),
    ("other", [], b"\x00\x01", b"\x00\x01"),
    # JSON that is none
    ("malformed", [JSON], b"{'p':'s'}", b"{********"),
    ("malformed", [JSON], '{"p":"s"}'.encode("utf-16-le"), b"{" + b"*" * 17),
    ("malformed", [LINES], b'{"q":\n{"p":"s"}\n', None),
    # coded as nothing
    ("json", [JSON, ("Content-Encoding", "identity")], b'{"p":"s"}', b'{"p":"*"}')])
def test_what_is_json_and_what_is_not(rig, source, kind, headers, body, want):
    r = rig(server="capture_redact_json p;")
    raw = build_request("POST", "/", [HOST, *headers], body=body)
    with r.client() as client:
        client.send(raw)
        assert client.receive().status == 200
    x, = r.exchanges(1)
    want = body.replace(b'"s"', b'"*"') if want is None else want
    assert Message(x.request).body == want
    assert bytes(source.requests[0].body) == body
    if kind == "malformed" and headers == [JSON]:
        redacted(r, malformed=1)


def test_bulk_is_lines_under_any_type(rig):
    """A wrong line costs that line, not those behind it."""
    r = rig(server="capture_redact_json p;")
    body = b'{"index":{}}\n{"p":"s\n{"index":{}}\n{"q":x "p":"s"}\n{"p":"s","q":1}\n'
    for path in ("/_bulk?a", "/i/_bulk", "/_msearch/template", "/my_bulk"):
        assert r.get(path, method="POST", headers=[HOST, JSON], body=body).status == 200
    *lines, other = [Message(x.request).body for x in r.exchanges(4)]
    for got in lines:
        assert got == (b'{"index":{}}\n{"p":"*\n{"index":{}}\n{"q":* ********\n'
                       b'{"p":"*","q":1}\n')
    assert other == (b'{"index":{}}\n{"p":"*\n************\n****** ********\n'
                     b'***************\n')


@pytest.mark.parametrize("headers", [
    [JSON, ("Content-Encoding", "gzip")], [("Content-Type", "application/cbor")],
    [("Content-Type", "application/yaml")], [("Content-Type", "application/smile")]])
@row("bodies that are coded (gzip, CBOR, SMILE, YAML), where `capture_redact_json` is",
     captured="of a request nothing: filtered(unredactable); of a response the head, "
              "with `X-Capture-Omitted`", replayed="the request if it is readable")
def test_bodies_that_cannot_be_read_are_not_recorded(rig, source, headers):
    coded = gzip.compress(document())
    source.answer = lambda q: Response(headers=headers, body=coded)
    r = rig(server="capture_redact_json user.password;")
    with r.client() as client:
        assert client.request("POST", "/", [HOST, *headers], body=coded).body == coded
        assert client.request("POST", "/", [HOST, JSON], body=b"{}").body == coded
        assert client.request("GET", "/", [HOST]).body == coded
    xs = r.exchanges(2)
    assert len({x.connection.id for x in xs}) == 1
    for x in xs:
        got = Message(x.response)
        assert x.complete and got.body == b"" and got.all("content-length") == ["0"]
        assert got.all("x-capture-omitted") == [f"unredactable; length={len(coded)}"]
        assert not got.all("content-encoding")
    r.total(seen=3, captured=2, unredactable=1)
    redacted(r, omitted=2)


def test_a_part_of_a_json_text_is_not_recorded(rig, source):
    """A range may begin anywhere: nobody can tell where its values are."""
    source.answer = lambda q: Response(206, headers=[
        JSON, ("Content-Range", "bytes 1-12/100")], body=SECRET.encode())
    r = rig(server="capture_redact_json p;")
    assert r.get().body == SECRET.encode()
    x, = r.exchanges(1)
    assert Message(x.response).all("x-capture-omitted") == ["unredactable; length=12"]
    nowhere(r)


# a hash

def key(r, text, mode=0o600):
    path = os.path.join(r, "key")
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)
    return path


def test_with_a_key_users_can_be_told_apart(rig, source, workdir):
    """The same value, the same pseudonym, in heads and in bodies; another key,
    another."""
    source.answer = lambda q: Response(headers=[JSON], body=b'{"id":12345678901}')
    seen = []
    for text in ("0123456789abcdef\n", "fedcba9876543210"):
        r = rig(http=f"capture_redact_key {key(workdir, text)};",
                server="capture_redact_header x-user; capture_redact_arg user;"
                       "capture_redact_json user id;")
        for user in ("alice@example.com", "robot@example.com", "alice@example.com"):
            assert r.get(f"/?user={user}", method="POST",
                         headers=[HOST, JSON, ("X-User", user)],
                         body=json.dumps({"user": user, "n": {"user": [user]}}).encode()
                         ).status == 200
        names = []
        for x in r.exchanges(3):
            message = Message(x.request)
            name, = message.all("x-user")
            assert re.fullmatch("[0-9A-Za-z]{17}", name)
            assert json.loads(message.body) == {"user": name, "n": {"user": [name]}}
            assert f"?user={name} " in message.line
            names.append(name)
            n, = json.loads(Message(x.response).body).values()
            assert 10**10 <= n < 2 * 10**10
        assert names[0] == names[2] != names[1]
        seen += names
        r.nginx.stop()
        for name in ("error.log", "nginx.conf"):
            with open(os.path.join(r.directory, name)) as f:
                assert text.strip() not in f.read()
    assert len(set(seen)) == 4


@pytest.mark.parametrize("size", [16, 64, 65, 4096])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_hash_is_hmac_sha256_and_an_end_too_early_keeps_its_length(
        rig, source, workdir, size, chunked):
    """What was held back of a value whose end never comes is masked."""
    secret = "k" * size
    source.answer = lambda q: Response(headers=[JSON], body=b'{"a":["cut off',
                                       chunked=(5,) if chunked else None)
    r = rig(http=f"capture_redact_key {key(workdir, secret)};",
            server="capture_redact_header x-a; capture_redact_json a;")
    value, cut = "value " * 10, b'{"b":1,"a":[12,"cut off, t\\'
    with r.client() as client:
        raw = build_request("POST", "/", [HOST, JSON, ("X-A", value[:-1])],
                            chunks=[cut[:20], cut[20:]] if chunked else None,
                            body=None if chunked else cut)
        client.send(raw)
        assert client.receive().body == b'{"a":["cut off'
    x, = r.exchanges(1)
    message = Message(x.request)
    digest = hmac.new(secret.encode(), value[:-1].encode(), "sha256").digest()
    letters = string.digits + string.ascii_uppercase + string.ascii_lowercase
    assert message.all("x-a") == ["".join(
        letters[digest[i % 32] % 62] for i in range(len(value) - 1))]
    assert re.fullmatch(rb'\{"b":1,"a":\[1[1-7],"\*{11}', message.body), message.body
    assert Message(x.response).body == b'{"a":["*******'
    lengths_fit(x)


def test_a_value_too_long_for_a_hash_is_masked_and_counted(rig, workdir):
    r = rig(http=f"capture_redact_key {key(workdir, 'k' * 16)};",
            server="capture_redact_json p;", location="proxy_request_buffering off;")
    body = json.dumps({"p": "s" * 100_000, "q": "p"}).encode()
    assert r.get("/", method="POST", headers=[HOST, JSON], body=body).status == 200
    x, = r.exchanges(1)
    assert Message(x.request).body == body.replace(b"s", b"*")
    redacted(r, json=1, unhashed=1)


@pytest.mark.parametrize("text, mode, error", [
    ("0123456789abcde\n", 0o600, "must have 16 to 4096 bytes"),
    ("", 0o600, "must have 16 to 4096 bytes"), ("x" * 5000, 0o600, "must have 16 to"),
    ("0123456789abcdef", 0o644, "chmod o-rw"), (None, 0, "No such file")])
def test_a_wrong_key_file_is_a_clear_error(check_config, workdir, text, mode, error):
    path = key(workdir, text, mode) if text is not None else os.path.join(workdir, "none")
    rc, stderr = check_config(http=f"capture_redact_key {path};")
    assert rc == 1 and error in stderr and path in stderr
    assert not text or text.strip() not in stderr


# sizes

@row("request bodies over `capture_max_request_body`",
     captured="nothing: filtered(too_large)", replayed="nothing")
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_request_that_is_too_large_is_filtered(rig, source, buffering):
    r = rig(server="capture_max_request_body 1000;"
                   "location /all { capture_max_request_body off; proxy_pass http://source; }",
            location=f"proxy_request_buffering {buffering};")
    with r.client() as client:
        for path, size in (("/a", 1000), ("/b", 1001), ("/c", 1000), ("/all", 1001)):
            assert client.request("POST", path, body=pattern(size)).status == 200
            assert client.request("POST", path + "k", chunks=[pattern(500), pattern(size - 500)]
                                  ).status == 200
        assert client.request("GET", "/d").status == 200
    assert [len(q.body) for q in source.requests] == [1000, 1000, 1001, 1001] * 2 + [0]
    wait_until(lambda: len([x for x in r.sidecar.exchanges if x.end]) >= 8, 15)
    kept = [x for x in r.sidecar.exchanges if x.complete]
    assert [x.request.split()[1] for x in kept] == [
        b"/a", b"/ak", b"/c", b"/ck", b"/all", b"/allk", b"/d"]
    assert len({x.connection.id for x in r.sidecar.exchanges}) == 1
    dropped, = [x for x in r.sidecar.exchanges if x.end == "DROP"]
    assert dropped.reason == "too_large" and dropped.eom is None
    r.total(seen=9, captured=7, too_large=2)


@row("response bodies over `capture_max_response_body`",
     captured="the request; the head, with `X-Capture-Omitted`, as if the body were empty. "
              "Without Content-Length: as much as is allowed, told as cut",
     replayed="the request", limits="without Content-Length it ends as truncated")
def test_a_response_that_is_too_large_is_left_out_and_says_so(rig, source):
    source.answer = lambda q: Response(
        headers=[("ETag", '"e"')], body=pattern(int(q.target.split("/")[2])),
        chunked=(100,) if q.target.startswith("/k") else None)
    r = rig(server="capture_max_response_body 1000;"
                   "location /0/ { capture_max_response_body 0; proxy_pass http://source/0/; }")
    with r.client() as client:
        for target in ("/l/1000", "/l/1001", "/k/1000", "/0/5", "/0/0", "/k/1001", "/l/7"):
            answer = client.request("GET", target)
            assert answer.body == pattern(int(target.split("/")[2])), target
        answer = client.request("HEAD", "/l/5000")
    xs = r.exchanges(8)
    bodies = []
    for x in xs[:5]:
        got = Message(x.response)
        assert x.complete and x.eom and got.all("etag") == ['"e"']
        bodies.append((len(got.body), got.all("x-capture-omitted")))
    assert bodies == [(1000, []), (0, ["too_large; length=1001"]), (1000, []),
                      (0, ["too_large; length=5"]), (0, [])]
    assert xs[5].truncated and xs[5].eom
    assert len(xs[5].response) < 2000
    assert xs[6].complete and xs[6].connection.id != xs[5].connection.id
    assert len({x.connection.id for x in xs[:6]}) == 1
    same_response(xs[7], answer, bodyless=True)
    r.total(seen=8, captured=8, truncated=1)
    redacted(r, omitted=2, cut=1)


def test_an_error_page_elsewhere_keeps_the_rules_of_its_request(rig, source):
    source.answer = lambda q: Response(500 if q.target == "/" else 200,
                                       headers=[JSON, ("X-S", SECRET)], body=document())
    r = rig(server="capture_redact_json user.password; capture_redact_header x-s;"
                   "location /page { internal; capture_redact_json off;"
                   "capture_redact_header off; proxy_pass http://source; }",
            location="proxy_intercept_errors on; error_page 500 =200 /page;")
    assert r.get().body == document()
    x, = r.exchanges(1)
    assert Message(x.response).body == hidden(document())
    nowhere(r)


def test_what_is_answered_before_it_is_forwarded_is_redacted(rig):
    """capture_include not_forwarded"""
    r = rig(server="capture_include not_forwarded; capture_redact_header x-s;"
                   "capture_redact_arg t; capture_redact_json a;"
                   "capture_max_response_body 0;",
            location=f"add_header X-S {SECRET} always; return 403;")
    raw = build_request("GET", f"/?t={SECRET}", [HOST, ("X-S", SECRET)])
    with r.client() as client:
        client.send(raw)
        assert client.receive().status == 403
    x, = r.exchanges(1)
    same_request(x, hidden(raw))
    got = Message(x.response)
    assert got.all("x-s") == [STARS] and got.body == b""
    nowhere(r)


# rules

def test_rules_may_go_by_anything_that_nginx_knows(rig, source):
    """Maps on several variables at once."""
    r = rig(http="map $request_method:$uri:$http_x_tenant $keep {"
                 "  default 0; '~^POST:/(a|b)/.*:(?!test)' 1; '~^GET:.*:gold$' 1; }"
                 "map $remote_addr$http_user_agent $skip { default 0; '~^127.*probe' 1; }",
            server="capture_bypass $skip;", capture="$keep")
    for method, path, tenant, agent in (
            ("POST", "/a/", "x", "u"), ("POST", "/c/", "x", "u"), ("GET", "/c/", "gold", "u"),
            ("POST", "/b/1", "test1", "u"), ("POST", "/b/2", "x", "probe")):
        assert r.get(path, method=method, headers=[
            HOST, ("X-Tenant", tenant), ("User-Agent", agent)]).status == 200
    xs = r.exchanges(2)
    assert [x.request.split()[1] for x in xs] == [b"/a/", b"/c/"]
    r.total(seen=5, captured=2, rule=2, bypass=1)


def test_a_sample_of_connections_keeps_whole_connections(rig):
    """split_clients by the connection: all its requests, or none."""
    r = rig(http="split_clients $connection $sample { 50% 1; * 0; }",
            capture="$sample")
    n, each = 40, 3
    for i in range(n):
        with r.client() as client:
            for k in range(each):
                assert client.request("GET", f"/{i}/{k}").status == 200
    wait_until(lambda: sum(r.status()["total"]["filtered"].values())
               + r.status()["total"]["captured"] == n * each, 15)
    kept = {}
    for x in r.sidecar.exchanges:
        i, k = map(int, x.request.split()[1].decode().split("/")[1:])
        kept.setdefault(x.connection.id, []).append((i, k))
    assert 0 < len(kept) < n
    for seen in kept.values():
        i = seen[0][0]
        assert seen == [(i, k) for k in range(each)]
    r.total(seen=n * each, captured=len(kept) * each, rule=(n - len(kept)) * each)


@pytest.mark.parametrize("server, error", [
    ("capture_redact_header;", "invalid number of arguments"),
    ("capture_redact_header content-length;", 'cannot redact "content-length"'),
    ("capture_redact_header X host;", 'cannot redact "host"'),
    ("capture_redact_header a; capture_redact_header b;", "is duplicate"),
    ("capture_redact_header off; capture_redact_header b;", "is duplicate"),
    ("capture_redact_arg a ''; ", "has an empty name"),
    ("capture_redact_arg a; capture_redact_arg a;", "is duplicate"),
    ("capture_redact_json a..b;", 'path "a..b" in "capture_redact_json" has an empty name'),
    ("capture_redact_json a; capture_redact_json a;", "is duplicate"),
    (f"capture_redact_json {'.'.join('a' * 65)};", "all paths together may have 64 names"),
    (f"capture_redact_json {'a' * 129};", "has a name of more than 128 bytes"),
    ("capture_redact_key x;", '"capture_redact_key" directive is not allowed here'),
    ("capture_max_request_body x;", "invalid value"),
    ("capture_max_request_body 1 2;", "invalid number of arguments"),
    ("capture_max_request_body off; capture_max_request_body 1;", "is duplicate"),
    ("capture_max_response_body -1;", "invalid value")])
def test_a_wrong_directive_is_a_clear_error(check_config, server, error):
    rc, stderr = check_config(server=server)
    assert rc == 1
    line, = re.findall(r".*\[emerg\].*", stderr)
    assert error in line
