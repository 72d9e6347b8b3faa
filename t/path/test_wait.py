"""Requests that are held until they are durable (capture_wait), with the broker
that makes them so. What the module does by itself is in t/module."""

import re
import threading
import urllib.request

import pytest

from refconsumer.verify import verify_topic
from rig.client import build_request
from rig.client2 import Client2, captured
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import (Sent, Session, assert_captured, mark_of, marked,
                          settled, without_barriers)

WAYS = [(framing, size) for framing in ("length", "chunked", "none")
        for size in ((0,) if framing == "none" else (0, 1, 3000, 5_000_000))]

LOCATIONS = """
    location /on { proxy_pass http://source; }
    location /off { proxy_request_buffering off; proxy_pass http://source; }
    location /long { capture_wait_timeout 120s; proxy_pass http://source; }
"""


def body_of(framing, size):
    body = pattern(size, 7)
    return {"length": {"body": body}, "none": {},
            "chunked": {"chunks": [body[i:i + 70001]
                                   for i in range(0, size, 70001)]}}[framing]


@pytest.fixture
def hanging(broker):
    """The broker, which the test may pause."""
    yield broker
    broker.resume()


def waits(stack):
    row = stack.status()["total"]["waits"]
    row.pop("ms")
    row["now"] = row["held"] - sum(
        row[n] for n in ("acked", "timed_out", "lost", "left"))
    return {name: n for name, n in row.items() if n}


def waiting(stack, timeout=20, **want):
    last = {}

    def good():
        last.update(now=waits(stack))
        return last["now"] == want
    try:
        wait_until(good, timeout)
    except AssertionError:
        raise AssertionError(f"waits are {last['now']}, not {want}") from None


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_mutating_request_waits_and_is_captured(stack, source, buffering):
    s = stack(wait="mutating", location=f"proxy_request_buffering {buffering};")
    with Session(s) as c:
        for framing, size in WAYS:
            answer = c.request("POST", f"/{framing}/{size}",
                               **body_of(framing, size))
            assert answer.status == 200
        c.request("GET", "/does-not-wait")
    n = len(WAYS)
    total = s.wait_for_status(settled(n + 1))["total"]["waits"]
    assert total["held"] == total["acked"] == n, total
    assert_captured(s.drain(), [c])


def test_no_request_is_complete_at_the_source_before_it_is_durable(
        stack, source, hanging):
    """While the broker hangs every request is held; large unbuffered bodies
    stream, but for their last bytes. HTTP/1 and 2, all at once."""
    durable = threading.Event()
    early = []

    def answer(request):
        if not durable.is_set():
            early.append(request.target)
        return Response(body=request.target.encode())
    source.answer = answer
    port = free_port()
    s = stack(wait="mutating", buffer="128m", server=LOCATIONS
              + f"listen 127.0.0.1:{port} http2; capture_wait_timeout 120s;")
    with Session(s) as warm:
        durable.set()
        assert warm.request("POST", "/on/warm", body=b"x").status == 200
        durable.clear()
    hanging.pause()
    sessions = []
    for buffering in ("on", "off"):
        for framing, size in WAYS:
            c = Session(s)
            raw, mark = marked("POST", f"/{buffering}/{framing}/{size}", (),
                               **body_of(framing, size))
            c.client.send(raw)
            sessions.append((c, raw, mark))
    c2 = Client2(port, timeout=60)
    streams = []
    for buffering in ("on", "off"):
        for size in (0, 1, 3000, 2_000_000):
            for length in (True, False):
                mark = f"h2-{len(streams)}"
                target, body = f"/{buffering}/{size}/{length}", pattern(size, 3)
                stream = c2.send_request("POST", target, [("x-mark", mark)], body,
                                         length)
                raw = captured("POST", target, [("x-mark", mark)], body, length)
                streams.append((stream, raw, mark))
    n = len(sessions) + len(streams)
    waiting(s, 60, held=n + 1, acked=1, now=n)
    large = [q for q in source.requests
             if re.match(r"/off/(length|chunked)/5000000|/off/2000000/", q.target)]
    wait_until(lambda: len(large) == 4 and all(
        len(q.body) > 1_900_000 for q in large), 30, "the streamed bodies")
    assert not any(q.complete for q in source.requests if "warm" not in q.target)
    assert early == []
    # the first acknowledgement cannot come before this
    durable.set()
    hanging.resume()
    for c, raw, mark in sessions:
        assert c.received("POST", raw, mark).status == 200
        c.client.close()
    second = Session(s)
    for stream, raw, mark in streams:
        answer = c2.receive(stream)
        assert answer.status == 200
        answer.head = re.sub(rb"^HTTP/1.1 200 ", b"HTTP/1.1 200 OK", answer.head)
        second.exchanges.append(Sent(mark.encode(), b"POST", raw, answer))
    c2.close()
    second.client.close()
    waiting(s, held=n + 1, acked=n + 1)
    s.wait_for_status(settled(n + 1))
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    sent = {x.mark: x.raw for x in second.exchanges}
    sent |= {mark: raw for _, raw, mark in sessions}
    sent |= {x.mark: x.raw for x in warm.exchanges}
    found = [mark_of(x.request) for x in result.exchanges]
    assert sorted(found) == sorted(sent)


def test_after_a_timeout_the_request_goes_on_and_its_record_comes_later(
        stack, source, hanging):
    s = stack(wait="mutating", server=LOCATIONS + "capture_wait_timeout 300ms;",
              http="log_format w '$uri $capture_wait_time'; access_log w.log w;",
              sidecar_conf={"metrics.listen": f"127.0.0.1:{free_port()}"})
    with Session(s) as c:
        assert c.request("POST", "/long", body=b"x").status == 200
        s.wait_for_status(settled(1))
        hanging.pause()
        for i in range(8):       # 5, then probes: nobody else comes meanwhile
            assert c.request("POST", f"/on/{i}", body=b"x").status == 200
        status = s.status()["total"]
        assert status["pending"] == 8 and status["captured"] == 1, status
        waiting(s, held=9, acked=1, timed_out=8)
        hanging.resume()
        s.wait_for_status(settled(9), 30)
        assert c.request("POST", "/long", body=b"x").status == 200
    total = s.wait_for_status(settled(10))["total"]
    assert total["captured"] == 10
    assert total["waits"]["acked"] == 2
    at = s.sidecar.conf["metrics.listen"]

    def metrics():
        with urllib.request.urlopen(f"http://{at}/metrics", timeout=5) as r:
            lines = re.findall(r'capture_waits_total{result="(\w+)"} (\d+)',
                               r.read().decode())
        return {name: int(n) for name, n in lines}
    assert metrics() == {k: v for k, v in total["waits"].items() if k != "ms"}
    lines = [line.split() for line in s.nginx._read("w.log").splitlines()
             if line.startswith("/on")]
    assert len(lines) == 8
    assert all(0.29 <= float(t) < 20 for _, t in lines), lines
    assert_captured(s.drain(), [c])


def test_what_is_refused_is_never_replayed_and_what_is_retried_once(
        stack, source, hanging):
    """Clients repeat a request until it is not refused: a replay of the topic
    does what the source has done, in number and bytes, though the
    acknowledgements of what was refused come later."""
    executed = []

    def answer(request):
        executed.append(bytes(request.body))
        return Response(body=b"done")
    source.answer = answer
    s = stack(wait="mutating", server=LOCATIONS
              + "capture_on_failure refuse; capture_wait_timeout 300ms;"
              "proxy_ignore_client_abort on;")
    bodies = [pattern(size, i) for i, size in
              enumerate((0, 10, 3000, 200_000) * 3)]
    refused = 0
    clients = [s.client() for _ in bodies]
    with s.client() as c:
        assert c.request("POST", "/long", body=b"first").status == 200
    hanging.pause()
    for i, (c, body) in enumerate(zip(clients, bodies)):
        c.send(build_request("POST", ("/on", "/off")[i % 2],
                             [("Host", "x")], body=body))
    for c in clients:
        answer = c.receive("POST")
        assert answer.status == 503 and answer.header("Retry-After") == "1"
        c.close()
        refused += 1
    assert executed == [b"first"]
    hanging.resume()

    def retried(i, body):
        nonlocal refused
        while True:
            with s.client() as c:
                answer = c.request("POST", ("/on", "/off")[i % 2], body=body)
            if answer.status == 200:
                return True
            refused += 1
    for i, body in enumerate(bodies):
        wait_until(lambda: retried(i, body), 30)
    total = s.wait_for_status(lambda st: st["total"]["pending"] == 0)["total"]
    assert total["filtered"]["refused"] == refused
    assert total["captured"] == 1 + len(bodies), total
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    replayed = [x.request.partition(b"\r\n\r\n")[2] for x in result.exchanges]
    assert sorted(replayed) == sorted(executed) == sorted([b"first", *bodies])


@pytest.mark.parametrize("mode", ["forward", "refuse"])
def test_a_client_that_leaves_while_the_broker_hangs(stack, source, hanging, mode):
    s = stack(wait="mutating", server=LOCATIONS
              + f"capture_on_failure {mode}; capture_wait_timeout 120s;"
              "proxy_ignore_client_abort on;")
    with s.client() as c:
        assert c.request("POST", "/on/first", body=b"x").status == 200
    hanging.pause()
    n = 0
    for target in ("/on", "/off"):
        for body in (None, b"abc", pattern(100_000)):
            for leave in ("close", "reset"):
                c = s.client()
                c.send(build_request("POST", f"{target}/{n}", [("Host", "x")],
                                     body=body))
                n += 1
                if mode == "forward":
                    waiting(s, held=n + 1, acked=1, now=n)
                    getattr(c, leave)()
                else:
                    waiting(s, held=n + 1, acked=1, now=1,
                            **({"left": n - 1} if n > 1 else {}))
                    getattr(c, leave)()
                    waiting(s, held=n + 1, acked=1, left=n)
    hanging.resume()
    total = s.wait_for_status(lambda st: st["total"]["pending"] == 0, 30)["total"]
    done = [q.target for q in source.requests if q.complete]
    if mode == "forward":
        assert total["captured"] == n + 1 == len(done)
    else:
        assert (total["captured"], total["filtered"]["client_abort"]) == (1, n)
        assert done == ["/on/first"]
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    replayed = [x.request.split(b" ")[1].decode() for x in result.exchanges]
    assert sorted(replayed) == sorted(done)


def test_a_sidecar_that_hangs_and_one_that_dies(stack, source):
    """No longer than capture_wait_timeout allows; and where that is long, what is
    held is let go by the next sidecar, when it has made it durable."""
    s = stack(wait="mutating", sidecar_conf={"settle.time": "200ms"},
              server="capture_wait_timeout 300ms;" + LOCATIONS + """
        location /refuse { capture_wait_timeout 120s; capture_on_failure refuse;
                           proxy_pass http://source; }""")
    c = Session(s)
    assert c.request("POST", "/long", body=b"x").status == 200
    s.sidecar.pause()
    assert c.request("POST", "/", body=b"x").status == 200
    waiting(s, held=2, acked=1, timed_out=1)
    held = []
    for target in ("/long", "/refuse"):
        raw, mark = marked("POST", target, body=b"x")
        held.append((Session(s), raw, mark))
        held[-1][0].client.send(raw)
    waiting(s, held=4, acked=1, timed_out=1, now=2)
    s.sidecar.kill9()
    assert c.request("POST", "/", body=b"x").status == 200
    waiting(s, held=5, acked=1, timed_out=2, now=2)
    assert sum(q.complete for q in source.requests) == 3
    s.sidecar.start()
    for session, raw, mark in held:
        assert session.received("POST", raw, mark).status == 200
        session.client.close()
    waiting(s, held=5, acked=3, timed_out=2)
    c.client.close()
    s.wait_for_status(settled(5), 30)
    assert_captured(without_barriers(s.drain()),
                    [c, *(session for session, _, _ in held)])


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_body_that_is_larger_than_the_pool_is_captured(
        stack, source, hanging, buffering):
    """Also when the broker hangs meanwhile: it is read as room comes back."""
    s = stack(wait="mutating", buffer="1m", server=LOCATIONS
              + "capture_wait_timeout 120s; client_body_buffer_size 256k;")
    body = pattern(8_000_000, 3)
    with Session(s) as c:
        assert c.request("POST", "/on", body=b"first").status == 200
        hanging.pause()
        thread = threading.Thread(
            target=lambda: c.request("POST", f"/{buffering}", body=body))
        thread.start()

        def full():
            row = s.status()["workers"][0]
            return row["blocks_used"] >= row["blocks"] - 3
        wait_until(full, 15, "a full pool")
        assert not any(q.complete for q in source.requests[1:])
        hanging.resume()
        thread.join(60)
        assert c.exchanges[1].answer.status == 200
        for chunks in (None, [body[i:i + 100_001]
                              for i in range(0, len(body), 100_001)]):
            answer = c.request("PUT", f"/{buffering}", chunks=chunks,
                               body=None if chunks else body)
            assert answer.status == 200
    total = s.wait_for_status(settled(4))["total"]
    assert total["captured"] == 4, total
    assert_captured(s.drain(), [c])
