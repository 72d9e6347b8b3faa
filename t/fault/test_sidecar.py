"""The sidecar is stopped, or its disk fails, under the load of 200 connections."""

import errno
import os
import re
import time

import pytest
from rig.disk import Disk
from rig.status import wait_until

from fault.counts import of_metrics, of_status


def slowest(load, start_ns, end_ns):
    """Seconds of the slowest requests (each 200th) that were asked in between."""
    took = sorted(a.took for a in load.asked
                  if a.end_ns and start_ns <= a.sent_ns < end_ns)
    return took[-1 - len(took) // 200]


@pytest.mark.partitions(6)
def test_a_stopped_sidecar_slows_nobody_and_what_has_no_room_is_counted(scene):
    """SIGSTOP for longer than the pool lasts: what does not wait is as fast as
    ever, and the losses are those that the counters name, one by one."""
    s = scene(workers=2, buffer="1m")
    with s.load() as load:
        load.more(200)
        start = time.monotonic_ns()
        load.more(400)
        paused = time.monotonic_ns()
        s.sidecar.pause()
        load.more(1500)
        wait_until(lambda: of_status(s.stack.status()).absent() > 100, 30,
                   "losses")
        resumed = time.monotonic_ns()
        s.sidecar.resume()
        load.more(300)
    usual, hung = (slowest(load, start, paused), slowest(load, paused, resumed))
    print(f"slow request: {usual * 1000:.1f} ms, {hung * 1000:.1f} ms while the "
          "sidecar is stopped")
    counts = s.counts()
    assert set(k for k, v in counts.lost.items() if v) <= {"pool_full", "response"}
    verdict = s.assert_clean(counts, "lost", "cut")
    assert len(verdict.lost) == counts.lost["pool_full"] > 100
    assert len(verdict.cut) == counts.lost["response"]
    assert hung < max(10 * usual, 0.25)


def test_term_without_kafka_under_load_is_bounded_and_the_next_one_has_it_all(
        scene, shaky, shaky_topic):
    s = scene(broker=shaky, topic=shaky_topic, workers=2,
              sidecar_conf={"drain.time": "500ms", "settle.time": "500ms"})
    with s.load() as load:
        load.more(200)
        wait_until(lambda: of_metrics(s.metrics).captured > 100, what="captured")
        shaky.kill()
        load.more(200)
        start = time.monotonic()
        assert s.sidecar.stop(timeout=15) == 3
        took = time.monotonic() - start
        assert s.sidecar.check_totals()["pending"] > 200
        load.more(100)
        shaky.start()
        s.sidecar.start()
        load.more(100)
    assert 0.4 < took < 5, took
    counts = s.status_counts(120)
    assert counts.total("lost") == 0, counts
    s.assert_clean(counts)


def own_memory(s):
    """MiB of the sidecar that are not the workers' pools or a file."""
    with open(f"/proc/{s.sidecar.process.pid}/status") as f:
        return int(re.search(r"^RssAnon:\s+(\d+) kB", f.read(), re.M)[1]) / 1024


def on_a_disk(scene, directory, broker, topic):
    disk = Disk(directory)
    s = scene(broker=broker, topic=topic, workers=2, buffer="1m", start_sidecar=False,
              sidecar_conf={"spool.path": os.path.join(directory, "spool"),
                            "settle.time": "500ms", "pinned.time": "60s",
                            "kafka.reconnect.backoff.max.ms": "500"})
    s.sidecar.env = disk.env
    s.sidecar.start()
    s.stack.wait_linked()
    return s, disk


@pytest.mark.parametrize("error", [
    errno.ENOSPC, pytest.param(errno.EROFS, marks=pytest.mark.long)])
def test_an_outage_with_a_disk_that_takes_nothing_is_counted_exactly(
        scene, shaky, shaky_topic, workdir, error):
    """And takes no memory for what it cannot keep; requests go on."""
    s, disk = on_a_disk(scene, workdir, shaky, shaky_topic)
    with s.load(rate=600) as load:
        load.more(100)
        disk.fails(error)
        shaky.kill()
        wait_until(lambda: of_status(s.stack.status()).absent() > 100, 60, "losses")
        before = own_memory(s)
        load.more(1500)
        assert own_memory(s) < before + 8
        disk.fails(0)
        shaky.start()
        load.more(100)
    assert os.strerror(error) in s.sidecar.log_text()
    counts = s.counts(90)
    verdict = s.assert_clean(counts, "lost", "cut")
    assert len(verdict.lost) == counts.absent() == counts.lost["pool_full"] > 100
    assert len(verdict.cut) == counts.lost["response"]


def test_an_outage_with_a_slow_disk_slows_nobody(scene, shaky, shaky_topic, workdir):
    """The file grows by steps of which each takes a quarter of a second."""
    s, disk = on_a_disk(scene, workdir, shaky, shaky_topic)
    with s.load(rate=200) as load:
        start = time.monotonic_ns()
        load.more(300)
        shaky.kill()
        disk.slow(0.25)
        out = time.monotonic_ns()
        wait_until(lambda: s.metric("spool_bytes") > 0, 60, "something in the spool")
        load.more(300)
        end = time.monotonic_ns()
        disk.slow(0)
        shaky.start()
        load.more(100)
    usual, slow = slowest(load, start, out), slowest(load, out, end)
    print(f"slow request: {usual * 1000:.1f} ms, {slow * 1000:.1f} ms on the slow disk")
    counts = s.counts(90)
    verdict = s.assert_clean(counts, "lost", "cut")
    assert len(verdict.lost) == counts.absent()
    assert slow < max(10 * usual, 0.25)
