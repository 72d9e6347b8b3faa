"""Redaction and size policies through the whole path: what is named is nowhere
outside NGINX, and what is in the topic can be replayed as it is."""

import glob
import json
import os
import re
import resource
import signal
import subprocess
import urllib.request

import pytest

from refconsumer import http
from refconsumer.verify import verify_topic
from rig.nginx import BINARY
from rig.process import SANITIZED, free_port
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import Session, assert_captured, by_mark, mark_of, settled

# each in another place; none is a part of another
SECRETS = {name: f"S3cr3t-{name}-0123456789".encode() for name in
           ("header", "cookie", "arg", "value", "nested", "response", "answer", "line")}
KEY = "k3y-of-the-operator-0123456789abcdef"

JSON = ("Content-Type", "application/json")


def text(name):
    return SECRETS[name].decode()


def mappings(pid):
    """(first address, last, flags, name) of each of a process' mappings."""
    found, at = [], None
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            if at is None or re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                span, _, _, _, _, *name = line.split(None, 5)
                at = [int(a, 16) for a in span.split("-")] + [(name or [""])[0].strip()]
            elif line.startswith("VmFlags:"):
                found.append((at[0], at[1], line.split()[1:], at[2]))
    return found


def in_memory(pid, what):
    """Flags of the mappings of a process that hold these bytes."""
    holders = []
    with open(f"/proc/{pid}/mem", "rb", 0) as f:
        for first, last, flags, name in mappings(pid):
            if name.startswith("[v") or last - first > 1 << 30:
                continue
            try:
                f.seek(first)
                data = f.read(last - first)
            except OSError:
                continue
            if what in data:
                holders.append((flags, name))
    return holders


def shared(stack):
    """The bytes of every worker's pool."""
    out = []
    for pid in stack.nginx.workers():
        fds = f"/proc/{pid}/fd"
        for fd in os.listdir(fds):
            if "memfd:" in os.readlink(os.path.join(fds, fd)):
                with open(os.path.join(fds, fd), "rb") as f:
                    out.append(f.read())
    assert out
    return out


def page(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as r:
        return r.read()


def answer(request):
    return Response(headers=[JSON, ("Set-Cookie", text("response"))],
                    body=json.dumps({"hits": [{"_source": {
                        "user": {"password": text("answer")}, "n": 1}}]}).encode())


def exchange(session):
    """One of each kind."""
    headers = [JSON, ("Authorization", f"Basic {text('header')}"),
               ("Cookie", f"sid={text('cookie')}; a=b")]
    target = f"/i/_doc/1?token={text('arg')}&refresh=true"
    session.request("PUT", target, headers, body=json.dumps(
        {"user": {"password": text("value"), "name": "n"},
         "x": {"secret": [1, {"y": text("nested")}]}}).encode())
    line = b'{"index":{}}\n{"user.password":"%s","n":1}\n' % SECRETS["line"]
    session.request("POST", "/_bulk", [("Content-Type", "application/x-ndjson")],
                    chunks=[line[:20], line[20:40], line[40:], line * 2000])
    session.request("GET", "/i/_search")


def test_what_is_redacted_is_nowhere_outside_nginx(stack, source, workdir):
    """Topic, shared memory, logs, metrics; the key is in no core dump."""
    key = os.path.join(workdir, "key")
    with open(key, "w") as f:
        f.write(KEY)
    os.chmod(key, 0o600)
    source.answer = answer
    metrics = free_port()
    s = stack(http=f"capture_redact_key {key}; capture_redact_header preset;"
                   "capture_redact_arg token; capture_redact_json user.password *.secret;",
              sidecar_conf={"metrics.listen": f"127.0.0.1:{metrics}", "log.level": "debug"},
              log_level="info")
    with Session(s) as a, Session(s) as b:
        exchange(a)
        exchange(b)
        total = s.wait_for_status(settled(6))["total"]
        assert total["captured"] == 6
        assert total["redacted"] == {"headers": 10, "args": 2, "json": 4014, "unhashed": 0,
                                     "malformed": 0, "omitted": 0, "cut": 0}
        told = page(metrics, "/metrics")
        assert b'capture_redacted_total{kind="json"} 4014' in told
        places = {"the pool": b"".join(shared(s)), "/metrics": told,
                  "capture_status": json.dumps(s.status()).encode()}
        for pid in [] if SANITIZED else s.nginx.workers():
            holders = in_memory(pid, KEY.encode())
            assert holders and all("dd" in flags for flags, _ in holders), holders
    records = s.drain()
    for r in records:
        places[f"record {r.partition}/{r.offset}"] = r.key + r.value
    places["sidecar.log"] = s.sidecar.log_text().encode()
    # but for what NGINX itself says of the request in each line
    places["error.log"] = re.sub(r'(request|upstream): "[^"]*"', "",
                                 s.nginx.error_log()).encode()
    for place, data in places.items():
        for name, secret in {**SECRETS, "key": KEY.encode()}.items():
            assert secret not in data, f"{name} in {place}"

    result = verify_topic(records)
    result.assert_clean(all_closed=True)
    sent = {x.mark: x for c in (a, b) for x in c.exchanges}
    names = []
    for x in result.exchanges:
        raw = sent[mark_of(x.request)].raw
        if b"chunked" not in raw:
            assert len(x.request) == len(raw)
        body = bytes(http.parse_request(x.request).body)
        if x.request.startswith(b"PUT"):
            document = json.loads(body)
            names.append(document["user"]["password"])
            assert document["user"]["name"] == "n"
            assert document["x"]["secret"][0] == 1
        elif x.request.startswith(b"POST"):
            lines = [json.loads(line) for line in body.splitlines()]
            assert len(lines) == 4002 and lines[0] == {"index": {}}
            assert len({line["user.password"] for line in lines[1::2]}) == 1
        got = json.loads(bytes(http.parse_response(x.response).body))
        assert got["hits"][0]["_source"]["n"] == 1
    assert len(names) == 2 and len(set(names)) == 1


def may_dump():
    """Whether a core file comes to the directory of who has crashed."""
    with open("/proc/sys/kernel/core_pattern") as f:
        return ("/" not in f.read() and not SANITIZED and os.geteuid() == 0
                and resource.getrlimit(resource.RLIMIT_CORE)[1] != 0)


@pytest.mark.skipif(not may_dump(), reason="core files of this machine, or of "
                    "sanitizers, go elsewhere; needs root")
def test_no_dump_has_the_key_or_what_is_in_the_pool(stack, workdir):
    """A worker's core file, and nginx -T."""
    key = os.path.join(workdir, "key")
    with open(key, "w") as f:
        f.write(KEY)
    os.chmod(key, 0o600)
    os.chmod(workdir, 0o755)
    s = stack(main=f"worker_rlimit_core 2g; working_directory {workdir};",
              http=f"capture_redact_key {key}; capture_redact_header preset;")
    s.nginx.allowed.append("exited on signal 6")
    mark = b"only-in-the-pool"
    s.sidecar.pause()  # nothing is acknowledged
    try:
        with s.client() as client:
            for _ in range(200):
                assert client.request("GET", "/a",
                                      [("Host", "a"), ("X-Mark", mark.decode())]
                                      ).status == 200
        assert sum(pool.count(mark) for pool in shared(s)) >= 200
        worker, = s.nginx.workers()
        os.kill(worker, signal.SIGABRT)
        wait_until(lambda: "(core dumped)" in s.nginx.error_log(), 60, "a core file")
    finally:
        s.sidecar.resume()
    core, = glob.glob(f"{workdir}/core*")
    with open(core, "rb") as f:
        data = f.read()
    assert key.encode() in data  # it is a core file, of this worker
    assert KEY.encode() not in data
    # a request's own memory is NGINX's, which uses it again
    assert data.count(mark) < 100
    whole = subprocess.run([BINARY, "-T", "-p", s.nginx.directory + "/", "-c",
                            "nginx.conf", "-e", "stderr"], capture_output=True)
    assert b"capture_redact_key" in whole.stdout, whole.stderr
    assert KEY.encode() not in whole.stdout + whole.stderr


def test_what_is_too_large_leaves_a_topic_that_can_be_replayed(stack, source):
    """Exchanges around it are whole, on the same connectionId where nothing was cut."""
    source.answer = lambda q: Response(
        body=pattern(int(q.target[2:] or 0)),
        chunked=(1000,) if q.target.startswith("/k") else None)
    s = stack(http="capture_max_request_body 64k; capture_max_response_body 100k;", wait="mutating")
    with Session(s) as c, Session(s) as cut:
        c.request("POST", "/l10", body=pattern(65536))
        c.request("GET", "/l200000")
        c.request("POST", "/l10", body=pattern(65537))
        c.request("POST", "/l10", chunks=[pattern(40000)] * 2)
        c.request("POST", "/l10", chunks=[pattern(100)])
        c.request("HEAD", "/l200000")
        cut.request("GET", "/l1")
        cut.request("GET", "/k200000")
        cut.request("GET", "/k2000")
    total = s.wait_for_status(settled(9))["total"]
    assert total["captured"] == 7 and total["filtered"]["too_large"] == 2
    assert total["truncated"] == 1
    assert (total["redacted"]["omitted"], total["redacted"]["cut"]) == (1, 1)
    left_out = [c.exchanges.pop(i) for i in (3, 2)]
    omitted, = [c.exchanges.pop(1)]
    broken = cut.exchanges.pop(1)
    records = s.drain()
    result = verify_topic(records)
    result.assert_clean(all_closed=True)
    found = by_mark(result)
    assert not set(found) & {x.mark for x in left_out}
    response = http.parse_response(found[omitted.mark].response)
    assert response.status == 200 and response.body == b""
    assert response.values(b"x-capture-omitted") == [b"too_large; length=200000"]
    ids = {found[x.mark].connection_id for x in [omitted, *c.exchanges]}
    assert len(ids) == 1
    assert len(found[broken.mark].response) <= 110_000
    assert found[cut.exchanges[0].mark].connection_id == found[broken.mark].connection_id
    assert found[cut.exchanges[1].mark].connection_id != found[broken.mark].connection_id


def test_a_sample_of_connections_is_replayable_as_it_is(stack, source):
    """split_clients by the connection, as docs/operations.md has it."""
    s = stack(http="split_clients $remote_addr$remote_port $sample { 50% 1; * 0; }",
              capture="$sample", workers=2)
    sessions = []
    for _ in range(24):
        with Session(s) as c:
            for k in range(3):
                c.request("POST", f"/{k}", body=b"%d" % k)
            sessions.append(c)
    total = s.wait_for_status(settled(72))["total"]
    assert total["captured"] + total["filtered"]["rule"] == 72
    records = s.drain()
    kept = {mark_of(x.request) for x in verify_topic(records).exchanges}
    whole = [c for c in sessions if {x.mark for x in c.exchanges} <= kept]
    assert 0 < len(whole) < 24
    assert total["captured"] == 3 * len(whole)
    assert_captured(records, whole)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_larger_than_the_memory_is_redacted_piece_by_piece(
        stack, source, workdir, framing):
    """With backpressure: what was held back for a hash is neither lost nor doubled; and a
    limit that is met meanwhile lets the rest of the request pass."""
    key = os.path.join(workdir, "key")
    with open(key, "w") as f:
        f.write(KEY)
    os.chmod(key, 0o600)
    s = stack(http=f"capture_redact_key {key}; capture_redact_json password;"
                   "capture_max_request_body 6m;",
              location="proxy_request_buffering off; client_body_buffer_size 256k;",
              wait="mutating", buffer="1m")
    line = b'{"index":{}}\n{"password":"%s","n":12345}\n' % SECRETS["line"]
    body = line * 90_000
    with Session(s) as c:
        for data in (body, body * 2):
            # (a length of its own for each chunk: pieces end anywhere)
            how = ({"body": data} if framing == "length" else
                   {"chunks": [data[i:i + 70_001] for i in range(0, len(data), 70_001)]})
            assert c.request("POST", "/_bulk", [JSON], **how).status == 200
    assert [bytes(q.body) for q in source.requests] == [body, body * 2]
    total = s.wait_for_status(settled(2))["total"]
    assert (total["captured"], total["filtered"]["too_large"]) == (1, 1)
    records = s.drain()
    result = verify_topic(records)
    result.assert_clean(all_closed=True)
    x, = [x for x in result.exchanges]
    got = bytes(http.parse_request(x.request).body)
    assert len(got) == len(body) and SECRETS["line"] not in got
    pseudonym = got.split(b'"')[5]
    assert len(pseudonym) == len(SECRETS["line"])
    assert got == body.replace(SECRETS["line"], pseudonym)
