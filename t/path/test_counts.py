"""capture_status and the sidecar's /metrics: what they agree in, and what the counters
`left` and `untold` say of the rest (docs/operations.md)."""

import mmap
import os
import re
import struct

import pytest
from fault.counts import of_metrics
from rig.process import free_port
from rig.source import pattern
from rig.status import wait_until

from path.session import Session

RING_TAIL = 128   # its offset in the pool (wire/layout.h)


@pytest.fixture
def both(stack):
    """A stack with a keeper, so that both sides' sums outlive the sidecar."""
    address = f"127.0.0.1:{free_port()}"
    s = stack(keeper=True, sidecar_conf={"metrics.listen": address,
                                         "settle.time": "200ms"})
    return s, address


def settled(s, address, seen):
    """(the workers' total, the sidecar's), when each of `seen` has its class."""
    def good():
        status, metrics = s.status()["total"], of_metrics(address)
        assert status["pending"] == metrics.pending == 0, (status, metrics)
        assert status["seen"] + status["left"] >= seen, status
        assert metrics.balanced(), metrics
        assert metrics.seen == status["seen"] + status["left"] - status["untold"], (
            status, metrics)
        return status, metrics
    return wait_until(good, 60, f"{seen} exchanges on both sides")


def assert_same(status, metrics):
    """Without `left`, and where all that is untold is lost(unlinked)."""
    assert status["left"] == 0 and status["untold"] == status["lost"]["unlinked"]
    assert metrics.captured == status["captured"]
    assert metrics.filtered == {**metrics.filtered, **status["filtered"]}
    assert {**metrics.lost, "unlinked": 0} == {**status["lost"], "unlinked": 0}


def traffic(s, n):
    with Session(s) as c:
        for i in range(n):
            c.request("POST", f"/{i}", body=pattern(20_000, i))


def break_pool(worker):
    """Its ring's end is where it cannot be."""
    fds = f"/proc/{worker}/fd"
    name = next(n for n in os.listdir(fds)
                if "memfd:nginx-capture" in os.readlink(f"{fds}/{n}"))
    with open(f"{fds}/{name}", "r+b") as f, mmap.mmap(f.fileno(), 4096) as m:
        struct.pack_into("<I", m, RING_TAIL, 1 << 30)


def test_both_sides_say_the_same(both):
    s, address = both
    traffic(s, 5)
    with Session(s) as c:   # NGINX refuses it, before any phase
        c.client.send(b"GET / HTTP/1.1\r\nBad Header\r\n\r\n")
        c.client.receive("GET")
    status, metrics = settled(s, address, 6)
    assert_same(status, metrics)
    assert status["filtered"]["bad_request"] == metrics.filtered["bad_request"] == 1

    # it dies in the middle, and its worker goes on
    s.sidecar.kill9()
    traffic(s, 4)
    s.sidecar.start()
    s.wait_linked()
    assert_same(*settled(s, address, 10))

    # a worker ends without one: the keeper has its pool, and the socket its HELLO
    s.sidecar.kill9()
    old, = s.nginx.workers()
    s.nginx.reload()
    wait_until(lambda: old not in s.nginx.workers(), what="the old worker's end")
    traffic(s, 3)
    s.sidecar.start()
    s.wait_linked()
    status, metrics = settled(s, address, 13)
    assert metrics.seen == 13 and status["untold"] == 0
    assert_same(status, metrics)

    # one that hangs is waited for, and the pool taken back
    s.sidecar.pause()
    try:
        old, = s.nginx.workers()
        s.nginx.reload()
        wait_until(lambda: old not in s.nginx.workers(), what="a new worker")
        traffic(s, 2)
        wait_until(lambda: s.status()["total"]["lost"]["unlinked"] == 2, 30,
                   "the end of the handshake's time")
        traffic(s, 1)
    finally:
        s.sidecar.resume()
    s.wait_linked()
    traffic(s, 1)
    status, metrics = settled(s, address, 17)
    assert 2 <= status["untold"] <= 3
    assert_same(status, metrics)


def ended(total):
    return total["lost"]["link_lost"] + total["lost"]["bad_link"]


def test_a_link_that_the_sidecar_ends_is_told_apart(both):
    """The worker knows what the sidecar had said by then of what was handed over: the
    rest is link_lost there. The sidecar knows all: some is captured after that."""
    s, address = both
    s.nginx.allowed.append("were not reported by the sidecar")
    traffic(s, 3)
    settled(s, address, 3)
    s.sidecar.pause()
    with Session(s) as c:
        for i in range(4):
            c.request("POST", f"/{i}", body=pattern(20_000, i))
        s.status()
        break_pool(s.nginx.workers()[0])
        s.sidecar.resume()
        wait_until(lambda: ended(s.status()["total"]), what="a link's end")
    s.wait_linked()
    traffic(s, 2)
    status, metrics = settled(s, address, 9)
    assert status["untold"] == status["left"] == 0
    assert status["captured"] <= metrics.captured
    assert (metrics.captured + metrics.total("lost")
            == status["captured"] + sum(status["lost"].values()) == 9)
    assert ended(status) >= metrics.lost["bad_link"] > 0
    assert metrics.lost["link_lost"] == 0
    assert re.search(r"the ring's end is out of range", s.sidecar.log_text())
