"""NGINX's processes are reloaded, replaced and killed while 200 connections work."""

import os
import random
import signal

import pytest
from rig.status import wait_until


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


def kills(scene, times):
    seed = random.randrange(1 << 30)
    print(f"kills: seed {seed}")
    r = random.Random(seed)
    s = scene(workers=2)
    s.nginx.allowed.append("exited on signal 9")
    with s.load() as load:
        for _ in range(times):
            load.more(r.randrange(50, 300))
            before = s.nginx.workers()
            os.kill(r.choice(before), signal.SIGKILL)
            wait_until(lambda: len(s.nginx.workers()) == 2
                       and s.nginx.workers() != before, what="a new worker")
        load.more(100)
    # what such a worker had in work is cut, for its clients too; all else is whole
    verdict = s.assert_clean(s.counts(), "client_errors", "cut", "lost",
                             "unexecuted")
    asked = {a.id: a for a in load.asked}
    for what in ("cut", "lost", "unexecuted"):
        answered = [i for i in getattr(verdict, what)
                    if asked[i].end == "answered"]
        assert not answered, f"answered, and {what}: {answered}"


@pytest.mark.partitions(6)
def test_a_killed_worker_costs_what_it_had_in_work_and_no_more(scene):
    kills(scene, 4)


@pytest.mark.long
@pytest.mark.partitions(6)
@pytest.mark.timeout(600)
def test_workers_killed_fifty_times(scene):
    kills(scene, 50)
