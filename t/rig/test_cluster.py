"""The cluster and the fault proxy by themselves; see test_rig.py."""

import time

import pytest
from rig.client import Client
from rig.source import Response, pattern
from rig.status import wait_until
from rig.tcp_fault import FROM_TARGET, TO_TARGET


@pytest.fixture
def fault(fault, source):
    """A fault proxy before the source."""
    fault.target = source.port
    return fault


def test_it_passes_bytes_and_delays_them(fault, source):
    with Client(fault.port) as c:
        assert c.request("GET", "/").body == b"ok\n"
        fault.delay(0.15)
        start = time.monotonic()
        assert c.request("GET", "/").body == b"ok\n"
        assert time.monotonic() - start >= 0.3
        fault.heal()
        body = pattern(300_000)
        source.answer = lambda r: Response(body=bytes(r.body))
        assert c.request("POST", "/", body=body).body == body
    assert fault.passed[FROM_TARGET] > fault.passed[TO_TARGET] / 2 > 150_000


def test_it_holds_answers_and_lets_them_go(fault, source):
    with Client(fault.port, timeout=0.3) as c:
        fault.hold(FROM_TARGET)
        with pytest.raises(TimeoutError):
            c.request("GET", "/")
        assert len(source.requests) == 1      # the question has arrived
        fault.release()
        c.sock.settimeout(10)
        assert c.receive().body == b"ok\n"


def test_it_resets_refuses_and_says_nothing(fault, source):
    with Client(fault.port) as c:
        c.request("GET", "/")
        fault.reset()
        with pytest.raises(ConnectionResetError):
            c.sock.recv(1)
    fault.refuse = True
    assert refused(fault.port)
    fault.heal()
    fault.silent = True
    with Client(fault.port, timeout=0.2) as c, pytest.raises(TimeoutError):
        c.request("GET", "/")
    assert len(source.requests) == 1


def refused(port):
    try:
        with Client(port) as client:
            return client.ended()
    except ConnectionResetError:      # so soon that connect() fails
        return True


@pytest.mark.long
def test_three_brokers_fail_and_come_back_one_at_a_time(cluster):
    cluster.create_topic("t", 3)
    assert cluster.leaders("t") == {0: 1, 1: 2, 2: 3}
    cluster.kill9(2)
    wait_until(lambda: cluster.leaders("t")[1] == 3, 30, "another leader")
    cluster.produce("t", pattern(1000), partition=1)
    cluster.start()
    wait_until(lambda: cluster.in_sync("t"), 30, "replicas in sync")
    assert cluster.elect_preferred("t") == 1
    # with one replica, its broker's end leaves the partition without a leader
    cluster.create_topic("alone", replicas=[[3], [1]])
    cluster.stop(3)
    wait_until(lambda: cluster.leaders("alone") == {0: -1, 1: 1}, 30,
               "no leader")
    cluster.add_partitions("t", 5)
    cluster.produce("t", b"x", partition=0)
    cluster.start()
    wait_until(lambda: cluster.leaders("alone") == {0: 3, 1: 1}, 30,
               "the leader again")
    assert [r.value for r in cluster.read_topic("t")] == [b"x", pattern(1000)]
