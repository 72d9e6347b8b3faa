"""The principal may write to the topic and not read it, as the Migration Assistant's
own role: what is in doubt when the sidecar dies is sent again, or not. Nothing outside
of these counts is lost or doubled."""

import re
import threading
import time
import urllib.request

import pytest
from rig.process import BUILD, free_port
from rig.status import wait_until

from path.session import Session, settled
from fault.test_resume import CONF, RENAMES, SETTLE, die_at, mortal, seeded

pytestmark = pytest.mark.partitions(6)


@pytest.fixture(scope="module")
def writers_broker(tmp_path_factory):
    from rig.kafka import KafkaBroker
    broker = KafkaBroker(tmp_path_factory.mktemp("writers"), users={"w": "secret-w"})
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def writer(writers_broker):
    """Options of scene() for a topic that may only be written to."""
    broker, topic = writers_broker, f"t{time.time_ns()}"
    broker.create_topic(topic, 6)
    broker.permit("w", topic)
    return {"broker": broker, "topic": topic, "workers": 2, "sidecar_conf": {
        **CONF, "kafka.bootstrap.servers": broker.sasl_bootstrap,
        "kafka.security.protocol": "SASL_PLAINTEXT",
        "kafka.sasl.mechanism": "PLAIN", "kafka.sasl.username": "w",
        "kafka.sasl.password": "secret-w"}}


def finish(s, drop):
    """Within the counts, as judge.py's rules have it; and further."""
    counts = s.status_counts(120)
    maybe_lost = counts.lost.get("maybe_lost", 0)
    assert counts.total("lost") == maybe_lost, counts
    verdict = s.verdict(counts)
    verdict.assert_clean("unclosed", "lost", "cut", "doubled")
    assert len(verdict.lost) + len(verdict.cut) <= maybe_lost
    if drop:
        assert counts.maybe_doubled == 0
    else:
        # only answers are lost: requests were kept until their end was there
        assert not verdict.lost
    return counts, verdict


def kills(scene, writer, times, drop, wait="off"):
    r = seeded()
    writer["sidecar_conf"]["settle.unreadable"] = "drop" if drop else "resend"
    s = scene(wait=wait, **writer)
    s.sidecar.process.wait_for_log("may not be read", 30)
    with s.load(timeout=120) as load:
        for i in range(times):
            if i % 2:
                time.sleep(SETTLE + 2 + r.random())
            load.more(r.randrange(1, 200))
            s.sidecar.kill9()
            time.sleep(r.choice((0, 0.1, 0.5)))
            s.sidecar.start()
        load.more(200)
    return finish(s, drop)


@pytest.mark.parametrize("drop", [False, True], ids=["resend", "drop"])
def test_only_what_is_in_doubt_is_lost_or_doubled(scene, writer, drop):
    kills(scene, writer, 3, drop)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wait", ["off", "mutating"])
@pytest.mark.parametrize("drop", [False, True], ids=["resend", "drop"])
def test_only_what_is_in_doubt_is_lost_or_doubled_often(scene, writer, drop, wait):
    counts, verdict = kills(scene, writer, 100, drop, wait)
    assert counts.lost.get("maybe_lost", 0) if drop else verdict.doubled


@pytest.mark.skipif("asan" in BUILD, reason="has no kill points")
def test_death_while_an_id_is_given_up(scene, writer):
    """The record that is in doubt is acknowledged by the broker and not by us, so
    that there is something to give up."""
    binary = mortal()
    s = scene(wait="mutating", **writer)
    with s.load(timeout=120) as load:
        load.more(100)
        s.sidecar.kill9()
        s.sidecar.binary = binary
        for step in RENAMES:
            die_at(s, load, "PRODUCED", 3)
            die_at(s, load, step, 1)
        s.sidecar.env = {}
        s.sidecar.start()
        load.more(200)
    counts, verdict = finish(s, drop=False)
    assert counts.maybe_doubled > 0


def test_a_client_that_waits_for_what_is_passed_over_learns_it(
        stack, source, writer):
    """It is forwarded at once, and not as if its record were durable."""
    conf = {**writer.pop("sidecar_conf"), "settle.unreadable": "drop",
            "metrics.listen": f"127.0.0.1:{free_port()}"}
    s = stack(wait="mutating", sidecar_conf=conf, **{**writer, "workers": 1})
    s.sidecar.process.wait_for_log("may not be read", 30)
    with Session(s) as first, Session(s) as c:
        first.request("POST", "/1", body=b"1")
        s.wait_for_status(settled(1))
        writer["broker"].pause()
        try:
            waiter = threading.Thread(
                target=lambda: c.request("POST", "/2", body=b"2"))
            waiter.start()
            wait_until(lambda: metric(conf, "inflight_records") == 1)
            s.sidecar.kill9()
        finally:
            writer["broker"].resume()
        s.sidecar.start()
        waiter.join(30)
        total = s.wait_for_status(settled(2))["total"]
    assert total["lost"]["maybe_lost"] == 1
    assert (total["waits"]["acked"], total["waits"]["lost"]) == (1, 1)
    assert total["maybe_doubled"] == 0


def metric(conf, name):
    url = f"http://{conf['metrics.listen']}/metrics"
    with urllib.request.urlopen(url, timeout=5) as r:
        return int(re.search(rf"^capture_{name} (\d+)$", r.read().decode(), re.M)[1])
