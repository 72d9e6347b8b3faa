"""Kafka's brokers stop, move and come back, or the network to them fails, while 200
connections work. As long as the pools have room nothing is lost; and nothing is
ever written twice."""

import os
import random
import time

import pytest
from rig.status import wait_until
from rig.tcp_fault import FROM_TARGET, TO_TARGET

from fault.counts import of_status

# brokers that start take their time where cores are few
pytestmark = pytest.mark.timeout(300)

# the sidecar sees it sooner
EAGER = {"kafka.reconnect.backoff.max.ms": "500"}
# a broker that is slow in its last second is not taken for one stuck partition
PATIENT = {**EAGER, "pinned.time": "60s"}


def test_a_broker_that_stops_and_comes_back(scene, shaky, shaky_topic):
    s = scene(broker=shaky, topic=shaky_topic, workers=2, sidecar_conf=EAGER)
    with s.load() as load:
        load.more(100)
        shaky.stop()
        load.more(300)
        shaky.start()
        load.more(100)
    s.assert_clean(s.counts(90))


def test_an_outage_longer_than_the_pools_is_counted_exactly(scene, shaky, shaky_topic):
    s = scene(broker=shaky, topic=shaky_topic, workers=2, buffer="1m",
              sidecar_conf=PATIENT)
    with s.load(rate=600) as load:
        load.more(100)
        shaky.kill()
        wait_until(lambda: of_status(s.stack.status()).absent() > 100, 60,
                   "losses")
        shaky.start()
        load.more(100)
    counts = s.counts(90)
    verdict = s.assert_clean(counts, "lost", "cut")
    assert len(verdict.lost) == counts.absent() == counts.lost["pool_full"] > 100
    assert len(verdict.cut) == counts.lost["response"]


def outage(scene, shaky, shaky_topic, directory, seconds):
    """Longer than the workers' memory: the spool has what does not fit there."""
    s = scene(broker=shaky, topic=shaky_topic, workers=2, buffer="2m", sidecar_conf={
        **EAGER, "spool.path": os.path.join(directory, "spool"), "settle.time": "500ms"})
    with s.load(rate=200, timeout=120) as load:
        load.more(100)
        shaky.kill()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            load.more(50)
        wait_until(lambda: s.metric("spool_bytes") > 0, 60, "something in the spool")
        shaky.start()
        load.more(100)
    s.assert_clean(s.counts(120))


def test_an_outage_with_a_spool_loses_nothing(scene, shaky, shaky_topic, workdir):
    outage(scene, shaky, shaky_topic, workdir, 4)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_an_outage_of_a_minute_with_a_spool_loses_nothing(
        scene, shaky, shaky_topic, workdir):
    outage(scene, shaky, shaky_topic, workdir, 60)


def test_a_broker_of_three_is_killed_and_leaders_move_back(scene, cluster):
    name = f"moving{time.time_ns()}"
    cluster.create_topic(name, 3)
    s = scene(broker=cluster, topic=name, workers=2, sidecar_conf=EAGER)
    with s.load(rate=300) as load:
        load.more(100)
        cluster.kill9(2)
        wait_until(lambda: cluster.leaders(name)[1] != 2, 30, "another leader")
        load.more(100)
        cluster.start()
        wait_until(lambda: cluster.in_sync(name), 60, "replicas in sync")
        assert cluster.elect_preferred(name) > 0
        load.more(100)
    s.assert_clean(s.counts(90))


@pytest.mark.long
@pytest.mark.timeout(200)
def test_added_partitions_are_for_new_connections_only(scene, cluster):
    """They are seen within a minute; a connection stays where it began."""
    name = f"more{time.time_ns()}"
    cluster.create_topic(name, 3)
    s = scene(broker=cluster, topic=name, workers=2)
    with s.load(rate=100) as load:
        load.more(100)
        cluster.add_partitions(name, 7)
        wait_until(lambda: all(cluster.end_offset(name, p) > 20
                               for p in range(3, 7)), 100,
                   "records in new partitions")
    s.assert_clean(s.counts())


@pytest.mark.long
@pytest.mark.timeout(400)
def test_brokers_restart_one_after_the_other(scene, cluster):
    name = f"rolling{time.time_ns()}"
    cluster.create_topic(name, 3)
    s = scene(broker=cluster, topic=name, workers=2)
    with s.load(rate=200) as load:
        for _ in range(2):
            for node in cluster.brokers:
                load.more(100)
                cluster.stop(node)
                load.more(100)
                cluster.start()
                wait_until(lambda: cluster.in_sync(name), 60, "replicas in sync")
            assert cluster.elect_preferred(name) > 0
        load.more(100)
    s.assert_clean(s.counts(90))


def outage_of_one_partition(scene, cluster, seconds, drop=()):
    """Of three partitions with one replica each, one has no leader. drop: brokers
    of others whose connections are reset again and again meanwhile."""
    name = f"alone{time.time_ns()}"
    cluster.create_topic(name, config={"min.insync.replicas": "1"},
                         replicas=[[1], [2], [3]])
    s = scene(broker=cluster, topic=name, workers=2, sidecar_conf={
        "kafka.bootstrap.servers": cluster.fault_bootstrap, **EAGER})
    with s.load(rate=200) as load:
        load.more(100)
        cluster.stop(3)
        wait_until(lambda: cluster.leaders(name)[2] == -1, 30, "no leader")
        before = ends(cluster, name)
        faults = [cluster.brokers[node].fault for node in drop]
        connected = [fault.accepted for fault in faults]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for fault in faults:
                fault.hold(FROM_TARGET)     # with acknowledgements on their way
                load.more(20)
                fault.reset()
                fault.heal()
            load.more(50)
        after = ends(cluster, name)
        assert all(f.accepted > n for f, n in zip(faults, connected)), "none dropped"
        cluster.start()
        load.more(100)
    # the other partitions have gone on
    assert all(after[p] > before[p] for p in (0, 1)), (before, after)
    s.assert_clean(s.counts(90))


def ends(cluster, name):
    return {p: cluster.end_offset(name, p) for p in (0, 1)}


@pytest.mark.long
def test_a_partition_without_a_leader_keeps_no_other_waiting(scene, cluster):
    outage_of_one_partition(scene, cluster, 2)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_partition_without_a_leader_for_a_minute(scene, cluster):
    outage_of_one_partition(scene, cluster, 60)


def test_a_partition_without_a_leader_while_connections_to_others_drop(scene, cluster):
    outage_of_one_partition(scene, cluster, 2, drop=(1, 2))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_same_for_a_minute(scene, cluster):
    outage_of_one_partition(scene, cluster, 60, drop=(1, 2))


def bad_network(scene, broker, topic, seconds, conf=None, load=None, **options):
    """Delays, silence one way or both, resets and refusals, by turns at random."""
    seed = random.randrange(1 << 30)
    print(f"network: seed {seed}")
    r = random.Random(seed)
    fault = broker.fault
    before = fault.accepted
    s = scene(broker=broker, topic=topic, workers=2, **options, sidecar_conf={
        "kafka.bootstrap.servers": fault.bootstrap, **EAGER, **(conf or {})})

    def reset():
        """With acknowledgements, or requests, on their way."""
        fault.hold(r.choice((FROM_TARGET, TO_TARGET)))
        load.more(40)
        fault.reset()

    def refuse():
        fault.refuse = True
        fault.reset()

    def silent():
        fault.silent = True
        fault.reset()
    evils = (reset, reset, refuse, silent,
             lambda: fault.delay(0.05, 0.1),
             lambda: fault.hold(FROM_TARGET),
             lambda: fault.hold(TO_TARGET))
    with s.load(**(load or {})) as load:
        load.more(100)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            r.choice(evils)()
            load.more(r.randrange(20, 300))
            fault.heal()
            load.more(r.randrange(20, 100))
    assert fault.accepted > before + 1
    fault.reset()      # those that were accepted and never answered
    return s


def test_a_bad_network_loses_and_doubles_nothing(scene, shaky, shaky_topic):
    s = bad_network(scene, shaky, shaky_topic, 6)
    s.assert_clean(s.counts(90))


def test_what_a_bad_network_costs_is_counted_exactly(scene, shaky, shaky_topic):
    """With hardly any memory, and no spool."""
    s = bad_network(scene, shaky, shaky_topic, 6, PATIENT, {"rate": 1000},
                    buffer="1m")
    counts = s.counts(90)
    verdict = s.assert_clean(counts, "lost", "cut")
    assert len(verdict.lost) == counts.absent() == counts.lost["pool_full"] > 0
    assert len(verdict.cut) == counts.lost["response"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_bad_network_for_minutes(scene, shaky, shaky_topic):
    """With time-outs that come, too: answers that are later than librdkafka waits."""
    s = bad_network(scene, shaky, shaky_topic, 120,
                    {"kafka.socket.timeout.ms": "1000",
                     "kafka.request.timeout.ms": "1000"})
    s.assert_clean(s.counts(90))


def test_the_first_record_in_a_partition_is_acknowledged_before_the_next_goes(
        stack, source, shaky):
    """A leader that has just been made can refuse one request and take the next,
    since it knows no sequence numbers yet: the first record would be lost, and
    reported as persisted (KAFKA-15591)."""
    name = f"first{time.time_ns()}"
    shaky.create_topic(name, 1)
    s = stack(broker=shaky, topic=name, sidecar_conf={
        "kafka.bootstrap.servers": shaky.fault.bootstrap, "kafka.debug": "eos",
        "log.level": "debug"})
    s.sidecar.process.wait_for_log("is ready: 1 partition", 30)
    s.sidecar.process.wait_for_log("-> Assigned", 30)  # it has its producer's id
    shaky.fault.hold(FROM_TARGET)
    clients = [s.client() for _ in range(12)]
    for client in clients:
        assert client.request("GET", "/").status == 200
    wait_until(lambda: shaky.end_offsets(name)[0] > 0, 30, "the first record")
    # its acknowledgement is held: nothing may follow, however long one looks
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert shaky.end_offsets(name)[0] == 1
    shaky.fault.release(FROM_TARGET)
    for client in clients:
        client.close()
    s.wait_for_status(lambda st: st["total"]["captured"] == 12, 30)
    assert len(s.drain()) == 24
