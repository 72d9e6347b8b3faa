"""NGINX's processes are reloaded, replaced and killed while 200 connections work."""

import os
import random

import pytest

from fault.judge import near
from fault.load import CUT


def reloads(scene, times):
    s = scene(workers=2)
    with s.load() as load:
        load.more(100)
        for i in range(times):
            s.nginx.reload(http=s.nginx.snippets["http"] + f"# {i}\n")
            load.more(10)
        load.more(100)
    s.assert_clean(s.counts())


@pytest.mark.partitions(6)
def test_reloads_cost_nothing(scene):
    reloads(scene, 10)


@pytest.mark.long
@pytest.mark.partitions(6)
@pytest.mark.timeout(300)
def test_fifty_reloads_cost_nothing(scene):
    reloads(scene, 50)


@pytest.mark.partitions(6)
def test_an_upgrade_of_the_binary_costs_nothing(scene):
    s = scene(workers=2, daemon=True)
    with s.load() as load:
        load.more(300)
        s.nginx.upgrade()
        load.more(300)
        s.nginx.upgrade()
        load.more(300)
    s.assert_clean(s.counts())


def replaced_without_kafka(scene, shaky, topic, directory, times):
    """Pools of many workers that have gone wait for Kafka, in the spool."""
    s = scene(broker=shaky, topic=topic, workers=2, daemon=True, sidecar_conf={
        "spool.path": os.path.join(directory, "spool"), "settle.time": "500ms",
        "kafka.reconnect.backoff.max.ms": "500"})
    with s.load(timeout=120) as load:
        load.more(100)
        shaky.kill()
        for i in range(times):
            s.nginx.reload(60, http=s.nginx.snippets["http"] + f"# {i}\n")
            load.more(10)
        s.nginx.upgrade(60)
        load.more(100)
        shaky.start()
        load.more(100)
    s.assert_clean(s.counts(120))


@pytest.mark.partitions(6)
@pytest.mark.timeout(300)
def test_reloads_and_an_upgrade_while_kafka_is_down_cost_nothing(
        scene, shaky, shaky_topic, workdir):
    replaced_without_kafka(scene, shaky, shaky_topic, workdir, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_reloads_while_kafka_is_down_cost_nothing(
        scene, shaky, shaky_topic, workdir):
    replaced_without_kafka(scene, shaky, shaky_topic, workdir, 50)


def kills(scene, times):
    seed = random.randrange(1 << 30)
    print(f"kills: seed {seed}")
    r = random.Random(seed)
    s = scene(workers=2)
    s.nginx.allowed.append("exited on signal 9")
    with s.load() as load:
        for _ in range(times):
            load.more(r.randrange(50, 300))
            s.kill_worker(r)
        load.more(100)
    # what such a worker had in work is cut, for its clients too; all else is whole
    verdict = s.assert_clean(s.counts(), "client_errors", "cut", "lost",
                             "unexecuted", "at_kill")
    assert len(verdict.at_kill) <= 2 * times
    asked = {a.id: a for a in load.asked}
    for id in (*verdict.cut, *verdict.lost, *verdict.unexecuted):
        assert asked[id].end == CUT or near(asked[id], s.kills), asked[id]


@pytest.mark.partitions(6)
def test_a_killed_worker_costs_what_it_had_in_work_and_no_more(scene):
    kills(scene, 4)


@pytest.mark.long
@pytest.mark.partitions(6)
@pytest.mark.timeout(600)
def test_workers_killed_fifty_times(scene):
    kills(scene, 50)
