"""Requests that wait: the source sees their end when they are durable, and no
sooner; what is refused was never executed, and is never replayed."""

import random
import threading
import time

import pytest
from rig.client2 import Client2
from rig.process import free_port
from rig.source import pattern
from rig.tcp_fault import FROM_TARGET, TO_TARGET

from fault.durable import LOG_APPEND_TIME, durable_at
from fault.judge import near
from fault.load import ANSWERED

MUTATING = ("POST", "PUT", "PATCH", "DELETE")
WAIT = "capture_on_failure {}; capture_wait_timeout {};"


def waiting(scene, shaky, failure="forward", timeout="10s", server="", **options):
    """Its way to Kafka is shaky.fault."""
    topic = f"w{time.time_ns()}"
    shaky.create_topic(topic, 6, LOG_APPEND_TIME)
    return scene(broker=shaky, topic=topic, workers=2, wait="mutating",
                 http="proxy_ignore_client_abort on;",
                 server=server + WAIT.format(failure, timeout),
                 sidecar_conf={"kafka.bootstrap.servers": shaky.fault.bootstrap},
                 **options)


def assert_durable_first(s, waited):
    """By the broker's clock, and the source's: of one machine."""
    durable = durable_at(s.stack.broker.read_stamped(s.stack.topic))
    early = [(id, s.executions[id][0][1] / 1e6 - durable[id]) for id in waited
             if s.executions[id][0][1] < durable[id] * 1_000_000]
    assert not early, f"{len(early)} of {len(waited)} too early (ms): {early[:10]}"


@pytest.mark.parametrize("location", ["", "proxy_request_buffering off;"])
def test_the_source_sees_the_end_after_the_topic_has_it(scene, shaky, location):
    """With a way to Kafka that takes 20 ms, so that a request that did not wait
    would be seen to be early."""
    shaky.fault.delay(0.02)
    s = waiting(scene, shaky, location=location)
    with s.load(rate=200, mutating=0.8) as load:
        load.more(800)
    s.assert_clean(s.counts())
    waited = [a.id for a in load.asked if a.method in MUTATING]
    assert len(waited) > 400
    assert_durable_first(s, waited)


def test_over_http_2_too(scene, shaky):
    shaky.fault.delay(0.02)
    port = free_port()
    s = waiting(scene, shaky, server=f"listen 127.0.0.1:{port} http2;")
    errors = []

    def client(n):
        try:
            with Client2(port) as c:
                for i in range(30):
                    answer = c.request("POST", f"/{n}/{i}", [
                        ("x-id", f"h{n}-{i}")], pattern(1000 * (i % 5), i),
                        length=i % 2 == 0)
                    assert answer.header("x-id") == f"h{n}-{i}"
        except Exception as e:
            errors.append(e)
    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors, errors[0]
    counts = s.counts()
    assert counts.captured == len(s.executions) == 240, counts
    s.stack.drain()
    assert_durable_first(s, list(s.executions))


@pytest.mark.parametrize("way", [FROM_TARGET, TO_TARGET])
def test_while_kafka_is_silent_what_waits_waits_and_the_rest_does_not(
        scene, shaky, way):
    """Held either way: a record that is written, and not acknowledged, releases
    nothing."""
    s = waiting(scene, shaky, timeout="30s")
    with s.load() as load:
        load.more(200)
        shaky.fault.hold(way)
        held = time.monotonic_ns()
        load.more(100)              # those that do not wait
        let_go = time.monotonic_ns()
        executed = {id for id, stamps in s.executions.items()
                    if stamps[0][0] < let_go}
        asked = [a for a in list(load.asked)
                 if a.method in MUTATING and held < a.sent_ns < let_go]
        assert len(asked) > 5
        early = [a.id for a in asked if a.id in executed]
        shaky.fault.heal()
        load.more(300)
    assert not early, early[:10]
    s.assert_clean(s.counts())


def test_a_replay_does_what_the_source_has_done(scene, shaky):
    """refuse, late acknowledgements, and clients that ask again after a 503 (each
    time with another id): the requests that a replay sends are those that the
    source has executed."""
    seed = random.randrange(1 << 30)
    print(f"network: seed {seed}")
    r = random.Random(seed)
    s = waiting(scene, shaky, "refuse", "200ms")
    with s.load() as load:
        for _ in range(6):
            load.more(100)
            r.choice((lambda: shaky.fault.hold(FROM_TARGET),
                      lambda: shaky.fault.hold(TO_TARGET),
                      lambda: shaky.fault.delay(0.15, 0.15)))()
            load.more(100)
            if r.random() < 0.5:
                shaky.fault.reset()
            shaky.fault.heal()
        load.more(100)
    counts = s.counts()
    verdict = s.assert_clean(counts)    # nothing lost, nothing unexecuted
    assert verdict.refused == counts.filtered["refused"] > 20
    assert all(a.took < 5 for a in load.asked if a.status == 503)


def test_what_an_ack_has_released_is_in_the_topic_though_its_worker_is_killed(
        scene, shaky):
    seed = random.randrange(1 << 30)
    print(f"kills: seed {seed}")
    r = random.Random(seed)
    s = waiting(scene, shaky)
    s.nginx.allowed.append("exited on signal 9")
    with s.load() as load:
        for _ in range(4):
            load.more(200)
            s.kill_worker(r)
        load.more(100)
    verdict = s.assert_clean(s.counts(), "client_errors", "cut", "lost",
                             "unexecuted", "at_kill")
    asked = {a.id: a for a in load.asked}
    waited = [id for id in (*verdict.lost, *verdict.at_kill)
              if asked[id].method in MUTATING and id in s.executions]
    assert not waited, f"executed, and not in the topic: {waited}"
    for id in (*verdict.lost, *verdict.cut):
        assert asked[id].end != ANSWERED or near(asked[id], s.kills), asked[id]
