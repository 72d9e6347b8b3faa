"""One partition without a leader, and no spool: its connections fill the workers'
memory. They alone lose, and nobody else."""

import time

import pytest


def leaderless(scene, cluster, seconds):
    topic = f"t{time.time_ns()}"
    # the last one is on broker 3 alone
    cluster.create_topic(
        topic, replicas=[[1], [2]] * 3 + [[3]],
        config={"min.insync.replicas": "1"})
    s = scene(broker=cluster, topic=topic, workers=2, buffer="2m")
    with s.load(life=20, timeout=120) as load:
        load.more(200)
        cluster.kill9(3)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            load.more(100)
        cluster.start()
        load.more(200)
    return s


def check(s):
    """Its records come when the partition has a leader again, so that what is lost
    may be there; of all other connections nothing is."""
    counts = s.counts(120)
    pinned = counts.lost.get("pinned", 0)
    assert pinned > 0, counts
    assert counts.total("lost") == pinned + counts.lost.get("response", 0), counts
    verdict = s.verdict(counts)
    verdict.assert_clean("unclosed", "lost", "cut")
    assert len(verdict.lost) <= pinned


def test_one_partition_without_a_leader(scene, cluster):
    check(leaderless(scene, cluster, 6))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_partition_without_a_leader_for_a_minute(scene, cluster):
    check(leaderless(scene, cluster, 60))
