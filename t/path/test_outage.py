"""Parts that are not there: Kafka, the sidecar."""

import os
import signal
import threading
import time

from refconsumer.verify import verify_topic
from rig.source import Response, pattern

from path.session import (Session, assert_balanced, assert_captured, lost,
                          settled)


def test_requests_go_on_while_kafka_is_stopped_and_losses_are_counted(
        stack, source, own_broker):
    """At the pool's bound exchanges are lost, by reason; their connectionIds
    are abandoned; when Kafka is back so is capture."""
    broker = own_broker()
    broker.create_topic("t", 3)
    source.answer = lambda r: Response(body=pattern(20000, 1))
    s = stack(broker=broker, topic="t", buffer="1m")
    with Session(s) as c:
        for i in range(20):
            c.request("GET", f"/up/{i}")
        s.wait_for_status(settled(20))
        usual = slowest(c, 100)
        s.wait_for_status(settled(120))
        broker.stop()

        stopped = slowest(c, 200)
        status = assert_balanced(s.wait_for_status(
            lambda st: st["total"]["seen"] == 320))
        losses = status["total"]["lost"]
        assert lost(status) == losses["pool_full"] + losses["response"] > 50
        assert status["total"]["pending"] > 0
        # nothing waits: a loaded machine is all that may make a difference
        assert stopped < max(10 * usual, 0.25), (usual, stopped)

        broker.start()
        s.wait_for_status(settled(320), 90)
        before = s.status()["total"]
        c.request("GET", "/back")
        status = s.wait_for_status(
            lambda st: st["total"]["captured"] == before["captured"] + 1, 30)
    assert_balanced(status)
    print(f"slowest request: {usual * 1000:.1f} ms with Kafka, "
          f"{stopped * 1000:.1f} ms without; lost {lost(status)} of "
          f"{status['total']['seen']}")

    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    whole = status["total"]["captured"]
    cut = status["total"]["lost"]["response"]
    assert len(result.exchanges) == whole + cut
    assert any(b"/back" in e.request for e in result.exchanges)


def slowest(session, count):
    worst = 0
    for i in range(count):
        start = time.monotonic()
        assert session.client.request("GET", f"/{i}", headers=(
            ("Host", "h"), ("X-Mark", f"s{time.monotonic_ns()}"))).complete
        worst = max(worst, time.monotonic() - start)
    return worst


def test_capture_begins_when_the_sidecar_comes(stack, source):
    s = stack(workers=2, start_sidecar=False)
    early = Session(s)
    for i in range(3):
        assert early.request("GET", f"/{i}").status == 200
    status = assert_balanced(s.wait_for_status(settled(3)))
    assert status["total"]["lost"]["unlinked"] == 3
    assert not any(w["linked"] for w in status["workers"])

    s.sidecar.start()
    s.wait_for_status(lambda st: all(w["linked"] for w in st["workers"]))
    early.exchanges.clear()
    early.request("POST", "/now", body=b"x")
    with Session(s) as late:
        late.request("GET", "/late")
        status = assert_balanced(s.wait_for_status(settled(5)))
    assert status["total"]["captured"] == 2
    early.client.close()
    assert_captured(s.drain(), [early, late])


def test_a_worker_that_is_killed_leaves_whole_exchanges_or_named_losses(
        stack, source):
    gate = threading.Event()
    source.answer = lambda r: Response(
        body=b"z", hold=gate if r.target == "/held" else None)
    s = stack()
    s.nginx.allowed.append("exited on signal 9")
    with Session(s) as c:
        c.request("GET", "/done")
        held = s.client()
        held.send(b"GET /held HTTP/1.1\r\nHost: h\r\nX-Mark: held\r\n\r\n")
        s.wait_for_status(lambda st: st["total"]["pending"] == 1)
        (worker,) = s.nginx.workers()
        os.kill(worker, signal.SIGKILL)
        assert held.ended()
        gate.set()
        s.wait_for_status(lambda st: any(
            w["linked"] and w["pid"] != worker for w in st["workers"]))
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert sorted(e.request.split(b" ")[1] for e in result.exchanges) == [
        b"/done", b"/held"]
