"""The sidecar dies under the load of 200 connections, and its successor goes on where
it was: no client sees it, nothing is lost, nothing is doubled."""

import os
import random
import re
import time

import pytest
from rig.process import BUILD, TOP
from rig.sidecar import Sidecar
from rig.status import wait_until

from fault.counts import of_status

SETTLE = 0.5
CONF = {"settle.time": "500ms"}
STEPS = re.findall(r"^    X\((\w+), ", open(
    os.path.join(TOP, "sidecar", "step.h")).read(), re.M)

# a pool whose worker has gone (t/path/test_keep.py)
ORPHANS = ("ORPHAN_RETURNS", "ORPHAN", "SPENT", "POOL_FILE", "POOL_FILED",
           "TOTALS", "FOLDED", "RETIRED")

# others need a record that is refused for good, or a topic that is not permitted
# (t/unit/test_death.c)
UNREACHED = ("REFUSE_ENDING", "REFUSE_SLOT", "REFUSE_COUNTED",
             "ABANDON_ENDING", "ABANDON_SLOT", "ABANDON_COUNTED", "TOTALS_NEW",
             *ORPHANS)
# and these a topic that cannot be read: test_unreadable.py
RENAMES = tuple(s for s in STEPS if s.startswith("RENAME"))
UNREACHED += RENAMES
# and this a spool: t/path/test_spool.py
UNREACHED += ("SPOOLED",)
# and these a journal: t/path/test_disk.py
UNREACHED += tuple(s for s in STEPS if s.startswith("JOURNAL"))

pytestmark = pytest.mark.partitions(6)


def seeded():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


def mortal():
    """The sidecar with the places of sidecar/step.h where it can die."""
    if "asan" in BUILD:
        return None
    path = os.path.join(BUILD, "kill-points", "capture-sidecar")
    if not os.path.exists(path):
        pytest.skip("needs `make kill-points`")
    return path


def assert_nothing_happened(s, waited_in_vain=False):
    """What has been sent is in the topic, once, and so say the counters.
    waited_in_vain: the sidecar may have been away for capture_wait_timeout."""
    counts = s.status_counts(120)
    assert counts.total("lost") == 0, counts
    # nor is one forgotten whose record was acknowledged at the last moment
    waits = s.stack.status()["total"]["waits"]
    print(f"waits: {waits}")
    assert waits["timed_out"] == 0 or waited_in_vain
    s.assert_clean(counts)


# ---- at any moment ----

def kills(scene, times, wait):
    r = seeded()
    s = scene(workers=2, wait=wait, sidecar_conf=CONF)
    with s.load(timeout=120) as load:
        for i in range(times):
            if i % 2:
                time.sleep(SETTLE + 2 + r.random())
            load.more(r.randrange(1, 200))
            s.sidecar.kill9()
            time.sleep(r.choice((0, 0.1, 0.5)))
            s.sidecar.start()
        load.more(200)
    assert_nothing_happened(s)


@pytest.mark.parametrize("times, wait", [(2, "off"), (3, "mutating")])
def test_nothing_is_lost_when_the_sidecar_is_killed(scene, times, wait):
    kills(scene, times, wait)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wait", ["off", "mutating"])
def test_nothing_is_lost_when_the_sidecar_is_killed_often(scene, wait):
    kills(scene, 100, wait)


# ---- between any two stores ----

def die_at(s, load, step, count):
    """It dies there, if it comes there; its successor may, too."""
    s.sidecar.env = {"CAPTURE_KILL_POINT": f"{step}:{count}"}
    s.sidecar.start(wait=False)
    try:
        wait_until(lambda: not s.sidecar.running(), 6, f"a death at {step}")
        died = True
    except AssertionError:
        died = False
        s.sidecar.kill9()
    assert s.sidecar.process.wait() == -9, s.sidecar.log_text()
    load.more(30)
    return died


def deaths(scene, steps, r):
    s = scene(workers=2, wait="mutating", sidecar_conf=CONF)
    binary = mortal()
    survived = []
    with s.load() as load:
        load.more(200)
        s.sidecar.kill9()
        s.sidecar.binary = binary or s.sidecar.binary
        for step in steps:
            count = r.choice((1, 2, 5, 20))
            if not die_at(s, load, step, count) and not die_at(
                    s, load, step, 1):
                survived.append(step)
        s.sidecar.env = {}
        s.sidecar.start()
        load.more(200)
    assert_nothing_happened(s, waited_in_vain=True)
    return survived


def test_death_between_any_two_stores(scene):
    """A few of them; t/unit/test_death.c has them all."""
    r = seeded()
    deaths(scene, r.sample([s for s in STEPS if s not in UNREACHED], 4), r)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_death_between_all_stores(scene):
    r = seeded()
    steps = [s for s in STEPS if s not in UNREACHED]
    r.shuffle(steps)
    survived = deaths(scene, steps, r)
    assert set(survived) <= {"MISSING_TOLD", "MISSING_LOST", "ROUND", "BARRIER",
                             "BARRIER_ACKED", "READ", "VERDICT", "DOUBT"}


# ---- two of them, and none ----

def test_a_sidecar_that_hangs_is_not_replaced_and_goes_on(scene):
    """The second is refused until the first is dead; then it takes over."""
    s = scene(workers=2, sidecar_conf=CONF)
    second = Sidecar(os.path.join(s.stack.directory, "second"), {
        k: v for k, v in s.sidecar.conf.items() if k != "metrics.listen"})
    with s.load() as load:
        load.more(200)
        s.sidecar.pause()
        load.more(100)
        second.start(wait=False)
        assert second.process.wait() != 0
        s.sidecar.resume()
        load.more(200)
        s.sidecar.pause()
        load.more(100)
        s.sidecar.kill9()
        s.sidecar.start()
        load.more(50)
        s.sidecar.pause()       # while it settles what it found
        load.more(100)
        s.sidecar.resume()
        load.more(100)
    assert s.stack.socket in second.log_text()
    assert_nothing_happened(s)


def test_kafka_away_and_the_sidecar_killed(scene, shaky, shaky_topic):
    """What is in doubt stays so until the topic can be read again."""
    s = scene(broker=shaky, topic=shaky_topic, workers=2, sidecar_conf=CONF)
    with s.load() as load:
        load.more(200)
        shaky.kill()
        load.more(100)
        s.sidecar.kill9()
        load.more(50)
        s.sidecar.start(wait=False)
        load.more(100)
        assert of_status(s.stack.status()).pending > 0
        shaky.start()
        load.more(100)
    assert_nothing_happened(s)


@pytest.mark.parametrize("how", ["reload", "upgrade", "kill"])
def test_workers_come_and_go_while_there_is_no_sidecar(scene, how):
    """A worker that ends takes its memory with it: what was in it is lost, and the
    connections that it had have no end. Nobody else loses anything."""
    r = seeded()
    s = scene(workers=2, sidecar_conf=CONF, daemon=how == "upgrade")
    s.nginx.allowed.append("exited on signal 9")
    with s.load(life=20) as load:
        load.more(200)
        s.sidecar.kill9()
        load.more(50)
        if how == "reload":
            s.nginx.reload(http=s.nginx.snippets["http"] + "# again\n")
        elif how == "upgrade":
            s.nginx.upgrade()
        else:
            s.kill_worker(r)
        load.more(50)
        s.sidecar.start()
        load.more(200)
    verdict = s.verdict()
    allowed = ["lost", "cut", "unclosed"]
    if how == "kill":
        allowed += ["client_errors", "at_kill", "unexecuted"]
    verdict.assert_clean(*allowed)
    assert verdict.whole > 100      # most of those since it is there again
