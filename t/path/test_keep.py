"""Pools outlive worker and sidecar: in the spool, and with a keeper of descriptors
(systemd's FDSTORE, which the launcher is, too)."""

import os
import random
import signal
import threading
import time

import pytest

from fault.counts import of_metrics
from fault.test_resume import ORPHANS, mortal
from rig.process import free_port
from rig.source import pattern
from rig.status import wait_until

from path.session import Session, assert_captured, settled, without_barriers

SETTLE = {"settle.time": "200ms"}


@pytest.fixture
def kept(stack, source):
    """A stack whose sidecar has a keeper and /metrics: (stack, counts)."""
    def make(keeper=True, sidecar_conf=None, **options):
        address = f"127.0.0.1:{free_port()}"
        s = stack(keeper=keeper, sidecar_conf={
            "metrics.listen": address, **SETTLE, **(sidecar_conf or {})}, **options)
        s.nginx.allowed.append("exited on signal 9")
        return s, lambda: of_metrics(address)
    return make


def all_settled(counts, n, timeout=60):
    def good():
        c = counts()
        assert c.balanced(), c
        assert c.pending == 0 and c.seen >= n, c
        return c
    return wait_until(good, timeout, f"an end of {n} exchanges")


def kill_worker(s):
    """The only one; returns when there is another."""
    worker, = s.nginx.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: s.nginx.workers() not in ([], [worker]), what="a new worker")


def publish(s):
    """What the worker has done before is published: it is at another turn."""
    s.status()
    s.status()


# ---- with a keeper ----

@pytest.mark.parametrize("first", ["worker", "sidecar", "both"])
def test_worker_and_sidecar_killed_in_any_order_lose_nothing(kept, first):
    s, counts = kept()
    c, other = Session(s), Session(s)
    for i in range(3):
        c.request("POST", f"/sent/{i}", body=pattern(3000, i))
    other.request("GET", "/other")
    s.wait_for_status(settled(4))
    s.sidecar.pause()
    for i in range(4):
        c.request("POST", f"/unread/{i}", body=pattern(100_000, i))
    publish(s)
    if first == "sidecar":
        s.sidecar.kill9()
        c.request("POST", "/without", body=pattern(200_000, 9))
        publish(s)
    if first == "both":
        os.kill(s.nginx.workers()[0], signal.SIGKILL)
        s.sidecar.kill9()
    else:
        kill_worker(s)
        s.sidecar.kill9()
    n = 9 if first == "sidecar" else 8
    s.sidecar.start()
    s.wait_linked()
    after = Session(s)
    after.request("GET", "/after")
    total = all_settled(counts, n + 1)
    assert (total.seen, total.captured) == (n + 1, n + 1), total
    after.client.close()
    records = without_barriers(s.drain())
    assert_captured(records, [c, other, after])
    assert len({r.key for r in records}) == 3


def test_a_worker_that_ends_without_a_sidecar_need_not_wait_for_one(kept):
    s, counts = kept()
    c = Session(s)
    c.request("GET", "/1")
    s.wait_for_status(settled(1))
    s.sidecar.kill9()
    c.request("POST", "/2", body=pattern(100_000, 2))
    old, = s.nginx.workers()
    c.client.close()
    start = time.monotonic()
    s.nginx.reload()
    wait_until(lambda: old not in s.nginx.workers(), what="the old worker's end")
    took = time.monotonic() - start
    s.sidecar.start()
    s.wait_linked()
    assert all_settled(counts, 2).captured == 2
    assert_captured(without_barriers(s.drain()), [c])
    assert took < 1.9
    assert "not reported" not in s.nginx.error_log()


class Liar:
    """Promises more descriptors than there are."""

    def command(self, argv):
        script = 'LISTEN_PID=$$ exec "$@"'
        return (["bash", "-c", script, "bash", *argv],
                {"LISTEN_FDS": "5", "LISTEN_FDNAMES": "listener:totals:pool-a:pool-b"}, [])

    def close(self):
        pass


def test_descriptors_that_are_promised_and_not_there(stack):
    """Their numbers are the sidecar's own ones soon: those must not be taken for them."""
    s = stack(start_sidecar=False)
    s.sidecar.keeper = Liar()
    s.sidecar.start()
    s.wait_linked()
    with Session(s) as c:
        c.request("POST", "/", body=b"x")
        s.wait_for_status(settled(1))
    assert "LISTEN_FDS = 5, but descriptor 7 is not open" in s.sidecar.log_text()


def test_a_pool_whose_worker_lives_waits_for_it(kept):
    s, counts = kept()
    with Session(s) as c:
        c.request("GET", "/1")
        s.wait_for_status(settled(1))
        s.sidecar.kill9()
        worker, = s.nginx.workers()
        os.kill(worker, signal.SIGSTOP)
        try:
            s.sidecar.start()
            wait_until(lambda: "capture_pools_kept 1" in metrics(s), what="a kept pool")
        finally:
            os.kill(worker, signal.SIGCONT)
        s.wait_linked()
        wait_until(lambda: "capture_pools_kept 0" in metrics(s), what="its worker")
        c.request("GET", "/2")
        s.wait_for_status(settled(2))
    records = without_barriers(s.drain())
    assert_captured(records, [c])
    assert len({r.key for r in records}) == 1
    assert s.sidecar.keeper.names() == ["totals"]


@pytest.mark.parametrize("where", ["keeper", "spool", "neither"])
def test_totals_survive_the_sidecar(kept, workdir, where):
    s, counts = kept(keeper=where == "keeper", sidecar_conf={
        "spool.path": os.path.join(workdir, "spool")} if where == "spool" else {})
    c = Session(s)
    for i in range(5):
        c.request("POST", f"/{i}", body=pattern(3000, i))
    c.client.close()
    s.wait_for_status(settled(5))
    old, = s.nginx.workers()
    s.nginx.reload()
    wait_until(lambda: "is settled: taken 5" in s.sidecar.log_text(),
               what="the old worker's pool")
    s.wait_linked()
    for n in (1, 2):
        before = all_settled(counts, 5 * n)
        s.sidecar.kill9()
        s.sidecar.start()
        s.wait_linked()
        after = all_settled(counts, 0)
        if where == "neither":
            assert after.seen == 0
            break
        assert after == before
        with Session(s) as more:
            for i in range(5):
                more.request("GET", f"/{n}/{i}")
        counted = all_settled(counts, 5 * n + 5)
        status = s.wait_for_status(lambda st: st["total"]["pending"] == 0)["total"]
        assert counted.captured + status["left"] == 5 * n + 5 == (
            status["captured"] + status["left"])
    assert s.drain()


def metrics(s):
    import urllib.request
    address = s.sidecar.conf["metrics.listen"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as r:
        return r.read().decode()


# ---- with a spool ----

@pytest.fixture
def spooling(kept, own_broker, workdir):
    def make(**options):
        broker = own_broker()
        broker.create_topic("t", 3)
        s, counts = kept(keeper=False, broker=broker, topic="t", buffer="8m",
                         sidecar_conf={
                             "spool.path": os.path.join(workdir, "spool"),
                             "spool.size": "256m", "drain.time": "300ms",
                             **options})
        return s, counts, broker
    return make


def pools(s):
    return sorted(os.listdir(os.path.join(s.sidecar.conf["spool.path"], "pools")))


@pytest.mark.parametrize("end", ["kill", "term"])
def test_the_pool_of_a_dead_worker_is_in_the_spool(spooling, end):
    s, counts, broker = spooling()
    c, big = Session(s), Session(s)
    c.request("POST", "/sent", body=b"1")
    big.request("POST", "/sent", body=b"1")
    s.wait_for_status(settled(2))
    broker.stop()
    for i in range(40):   # more than the memory: blocks are in the spool already
        big.request("POST", f"/big/{i}", body=pattern(300_000, i))
    for i in range(5):
        c.request("POST", f"/{i}", body=pattern(3000, i))
    publish(s)
    kill_worker(s)
    if end == "kill":
        wait_until(lambda: [len(n) for n in pools(s)] == [36],
                   what="a pool in the spool, under its own name")
        s.sidecar.kill9()
        s.sidecar.start()
        s.sidecar.kill9()
    else:
        start = time.monotonic()
        assert s.sidecar.stop() == 3
        assert time.monotonic() - start < 8
    assert len(pools(s)) == 1
    damaged = os.path.join(s.sidecar.conf["spool.path"], "pools", "0" * 36)
    with open(damaged, "wb") as f:
        f.write(os.urandom(100_000))
    os.chmod(damaged, 0o600)
    s.sidecar.start()
    broker.start()
    s.wait_linked()
    assert all_settled(counts, 47).captured == 47
    wait_until(lambda: pools(s) == ["0" * 36 + ".damaged"], what="no pool")
    assert "is set aside" in s.sidecar.log_text()
    assert_captured(without_barriers(s.drain()), [c, big])


# ---- between any two stores ----

def die_at(s, step):
    s.sidecar.env = {"CAPTURE_KILL_POINT": f"{step}:1"}
    s.sidecar.start(wait=False)
    wait_until(lambda: not s.sidecar.running(), 20, f"a death at {step}")
    assert s.sidecar.process.wait() == -9, s.sidecar.log_text()
    s.sidecar.env = {}


def deaths(kept, workdir, steps):
    """The worker's pool has a record in doubt and more, and both are dead; each
    owner of it dies at the same step, but the last."""
    binary = mortal()
    if not binary:
        pytest.skip("the sanitizers' build has no kill points")
    s, counts = kept(sidecar_conf={"spool.path": os.path.join(workdir, "spool"),
                                   "settle.time": "1500ms"})
    s.sidecar.binary = binary
    sessions, n = [], 0
    for step in steps:
        s.sidecar.kill9()
        c = Session(s)
        sessions.append(c)
        for i in range(4):
            c.request("POST", f"/{step}/{i}", body=pattern(100_000, i))
        n += 4
        publish(s)
        die_at(s, "PRODUCED")
        kill_worker(s)
        die_at(s, step)
        s.sidecar.start()
        s.wait_linked()
        total = all_settled(counts, n)
        assert (total.seen, total.captured) == (n, n), (step, total)
        wait_until(lambda: pools(s) == [], what="no pool in the spool")
    assert_captured(without_barriers(s.drain()), sessions)
    assert s.sidecar.keeper.names() == []


def test_death_at_a_pools_end(kept, workdir):
    steps = random.sample(ORPHANS, 2)
    print(steps)
    deaths(kept, workdir, steps)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_death_between_all_stores_at_a_pools_end(kept, workdir):
    deaths(kept, workdir, ORPHANS)
