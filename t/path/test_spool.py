"""The disk spool: what has no room in the workers' memory."""

import os
import struct
import subprocess
import threading

import pytest

from refconsumer.verify import verify_topic
from rig.process import BUILD
from rig.source import Response, pattern
from rig.status import wait_until

from fault.test_resume import mortal
from path.session import (Session, assert_balanced, assert_captured, settled,
                          without_barriers)

MIB = 1 << 20


@pytest.fixture
def spooling(stack, source, own_broker, workdir):
    """A stack with a small pool and a spool, and a broker to stop."""
    def make(size="256m", **options):
        broker = own_broker()
        broker.create_topic("t", 3)
        s = stack(broker=broker, topic="t", buffer="8m", sidecar_conf={
            "spool.path": os.path.join(workdir, "spool"), "spool.size": size,
            "settle.time": "200ms"}, **options)
        return s, broker
    return make


def spooled(s):
    return os.stat(os.path.join(s.sidecar.conf["spool.path"], "blocks")).st_blocks * 512


def blocks_there(s):
    """By the table of the spool's file (sidecar/spool.c)."""
    with open(os.path.join(s.sidecar.conf["spool.path"], "blocks"), "rb") as f:
        header = f.read(64)
        table = f.read(64 * struct.unpack_from("<I", header, 12)[0])
    return sum(struct.unpack_from("<I", table, at)[0] != 0
               for at in range(0, len(table), 64))


def traffic(session, n, size, spooling=None):
    """`spooling`: the stack that spools what comes; its sidecar gets its time for
    that where the machine is busy, as the memory holds but few of these."""
    for i in range(n):
        if spooling:
            def has_room(status):
                worker, = status["workers"]
                return worker["blocks_used"] < .8 * worker["blocks"]
            spooling.wait_for_status(has_room, 60)
        assert session.request("POST", f"/{i}", body=pattern(size, i)).status == 200


def test_an_outage_longer_than_the_memory_loses_nothing(spooling):
    s, broker = spooling()
    with Session(s) as c, Session(s) as other:
        traffic(c, 3, 1000)
        s.wait_for_status(settled(3))
        broker.stop()
        traffic(c, 120, 300_000, s)
        traffic(other, 5, 10_000)
        assert spooled(s) > 10 * MIB
        broker.start()
        traffic(c, 5, 300_000, s)
        status = assert_balanced(s.wait_for_status(settled(133), 60))
    assert status["total"]["captured"] == 133
    assert_captured(without_barriers(s.drain()), [c, other])
    assert spooled(s) < MIB  # the disk has its room back


@pytest.mark.parametrize("death", ["kill", "term"])
def test_the_spool_outlives_the_sidecar(spooling, death):
    s, broker = spooling()
    s.sidecar.conf["drain.time"] = "100ms"
    with Session(s) as c:
        traffic(c, 3, 1000)
        s.wait_for_status(settled(3))
        broker.stop()
        traffic(c, 60, 300_000, s)
        if death == "kill":
            s.sidecar.kill9()
        else:
            assert s.sidecar.stop() == 3
        traffic(c, 2, 50_000)
        s.sidecar.start()
        s.wait_linked()
        traffic(c, 30, 300_000, s)
        assert spooled(s) > 10 * MIB
        if death == "kill":
            s.sidecar.kill9()
            s.sidecar.start()
        broker.start()
        status = assert_balanced(s.wait_for_status(settled(95), 60))
    assert status["total"]["captured"] == 95, status["total"]
    assert_captured(without_barriers(s.drain()), [c])


def die_when_spooled(s, count):
    s.sidecar.kill9()
    s.sidecar.env = {"CAPTURE_KILL_POINT": f"SPOOLED:{count}"}
    s.sidecar.start(wait=False)


@pytest.mark.parametrize("count", [
    2, pytest.param(40, marks=pytest.mark.long)], ids=["first", "later"])
def test_death_where_the_pool_says_what_the_spool_has(spooling, count):
    """When blocks go there, and when they leave it, or the pool is taken over."""
    s, broker = spooling()
    s.sidecar.binary = mortal() or s.sidecar.binary

    def has_room_or_died():
        worker, = s.status()["workers"]
        return (not s.sidecar.running()
                or worker["blocks_used"] < .8 * worker["blocks"])
    with Session(s) as c:
        traffic(c, 3, 1000)
        s.wait_for_status(settled(3))
        broker.stop()
        die_when_spooled(s, count)
        s.wait_linked()
        for i in range(200):
            wait_until(has_room_or_died, 30)
            if not s.sidecar.running():
                break
            assert c.request("POST", f"/{i}", body=pattern(50_000, i)).status == 200
        assert not s.sidecar.running(), "it has not died"
        die_when_spooled(s, count)
        broker.start()
        wait_until(lambda: not s.sidecar.running(), 60, "the second death")
        s.sidecar.env = {}
        s.sidecar.start()
        s.wait_linked()
        status = assert_balanced(s.wait_for_status(
            lambda st: st["total"]["pending"] == 0, 60))
        assert sum(status["total"]["lost"].values()) == 0, status["total"]
    assert_captured(without_barriers(s.drain()), [c])
    assert blocks_there(s) == 0


def test_a_full_spool_is_a_loss_that_is_counted(spooling, source):
    s, broker = spooling(size="4m")
    with Session(s) as c:
        traffic(c, 3, 1000)
        s.wait_for_status(settled(3))
        broker.stop()
        traffic(c, 120, 300_000)
        status = s.status()["total"]
        assert status["lost"]["pool_full"] > 0
        broker.start()
        status = assert_balanced(s.wait_for_status(settled(123), 60))["total"]
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert len(result.exchanges) == status["captured"] + status["lost"]["response"]
    assert status["captured"] > 12


def test_a_partition_that_is_stuck_does_not_hold_the_memory_of_others(spooling):
    """One connection's frames pin blocks that hold those of others."""
    s, broker = spooling()
    with Session(s) as c:
        traffic(c, 1, 100)
        s.wait_for_status(settled(1))
        broker.stop()
        sessions = [Session(s) for _ in range(10)]
        for i in range(6):
            for x in sessions:
                x.request("POST", f"/{i}", body=pattern(30_000, i))
        broker.start()
        status = assert_balanced(s.wait_for_status(settled(61), 60))
        assert status["total"]["captured"] == 61
        for x in sessions:
            x.client.close()
    assert_captured(without_barriers(s.drain()), [c, *sessions])


def test_a_second_sidecar_leaves_the_firsts_spool_alone(spooling, workdir):
    s, _ = spooling()
    conf = {**s.sidecar.conf, "listen": f"unix:{workdir}/second"}
    path = os.path.join(workdir, "second.conf")
    with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
        f.writelines(f"{key} = {value}\n" for key, value in conf.items())
    done = subprocess.run([os.path.join(BUILD, "capture-sidecar"), "-c", path],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 1, done.stderr
    assert "another capture-sidecar uses it" in done.stderr
