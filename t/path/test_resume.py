"""A sidecar that dies: the next one takes the workers' memory over and goes on
with the same connectionIds, in the middle of exchanges and of records."""

import random
import threading
import time

import pytest

from rig.source import Response, pattern
from rig.status import wait_until

from path.session import (Session, assert_balanced, assert_captured, settled,
                          without_barriers)

SETTLE = {"settle.time": "200ms"}


def test_what_one_sidecar_has_begun_the_next_one_ends(stack, source):
    s = stack(sidecar_conf=SETTLE)
    with Session(s) as idle, Session(s) as c, Session(s) as new:
        idle.request("GET", "/1")
        for i in range(5):
            c.request("POST", f"/before/{i}", body=pattern(3000, i))
        s.wait_for_status(settled(6))
        s.sidecar.kill9()
        for i in range(5):
            c.request("POST", f"/while/{i}", body=pattern(100_000, i))
        new.request("GET", "/while")
        s.sidecar.start()
        for i in range(5):
            c.request("POST", f"/after/{i}", body=pattern(3000, i))
        idle.request("GET", "/2")
        assert_balanced(s.wait_for_status(settled(18), 30))
    records = without_barriers(s.drain())
    assert_captured(records, [idle, c, new])
    assert len({r.key for r in records}) == 3  # each kept its connectionId


def test_workers_that_end_without_a_sidecar_hand_over_to_the_next(stack, source):
    s = stack(sidecar_conf=SETTLE)
    with Session(s) as c:
        c.request("POST", "/before", body=b"1")
        s.sidecar.kill9()
        c.request("POST", "/while", body=pattern(100_000, 2))
    old, = s.nginx.workers()
    reload = threading.Thread(target=s.nginx.reload)
    reload.start()
    s.sidecar.start()  # the old worker waits for it, for two seconds
    reload.join()
    wait_until(lambda: old not in s.nginx.workers(), what="the old worker's end")
    s.wait_linked()   # the new one found none, either
    with Session(s) as after:
        after.request("GET", "/after")
        s.wait_for_status(lambda st: st["total"]["captured"] > 0
                          and st["total"]["pending"] == 0)
    assert_captured(without_barriers(s.drain()), [c, after])


def test_workers_that_end_without_a_sidecar_do_so_in_time_and_count(
        stack, source):
    s = stack()
    with Session(s) as c:
        for i in range(3):
            c.request("GET", f"/{i}")
        s.wait_for_status(settled(3))
        s.sidecar.kill9()
        for i in range(4):
            c.request("GET", f"/lost/{i}")
    start = time.monotonic()
    old, = s.nginx.workers()
    s.nginx.reload()
    wait_until(lambda: old not in s.nginx.workers(), what="the old worker's end")
    assert time.monotonic() - start < 10
    total = assert_balanced(s.status())["total"]
    assert total["captured"] == 3 and total["lost"]["worker_exit"] == 4


@pytest.mark.parametrize("wait", ["off", "mutating"])
def test_a_sidecar_that_is_killed_often_loses_nothing_and_doubles_nothing(
        stack, source, wait):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    source.answer = lambda r: Response(body=pattern(len(r.body) // 2, 3))
    s = stack(sidecar_conf=SETTLE, wait=wait, workers=2)
    sessions = [Session(s) for _ in range(8)]
    stop = threading.Event()

    def traffic(session, seed):
        mine = random.Random(seed)
        n = 0
        while not stop.is_set():
            size = mine.choice([0, 10, 1000, 20_000, 300_000])
            if mine.random() < 0.5:
                answer = session.request("GET", f"/{n}")
            else:
                answer = session.request("POST", f"/{n}",
                                         body=pattern(size, n))
            assert answer.status == 200
            n += 1
            time.sleep(0.005)

    threads = [threading.Thread(target=traffic, args=(x, dice.random()))
               for x in sessions]
    for t in threads:
        t.start()
    try:
        for _ in range(8):
            time.sleep(dice.uniform(0.05, 0.6))
            s.sidecar.kill9()
            time.sleep(dice.uniform(0, 0.2))
            s.sidecar.start()
    finally:
        stop.set()
        for t in threads:
            t.join()
    total = sum(len(x.exchanges) for x in sessions)
    status = assert_balanced(s.wait_for_status(settled(total), 60))
    assert status["total"]["captured"] == total
    for x in sessions:
        x.client.close()
    assert_captured(without_barriers(s.drain()), sessions)
