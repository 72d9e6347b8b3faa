"""durability = disk: what a request waits for is the sidecar's disk, and what was
released is in the topic once, whoever dies."""

import errno
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request

import pytest

from refconsumer.verify import verify_topic
from rig.client2 import Client2
from rig.disk import Disk, another_boot, rows
from rig.process import free_port
from rig.sidecar import check
from rig.source import Response, pattern
from rig.status import wait_until

from fault.test_resume import mortal
from path.session import Session, assert_captured, settled, without_barriers


@pytest.fixture
def hanging(broker):
    """The broker, which the test may pause."""
    yield broker
    broker.resume()


@pytest.fixture
def on_disk(stack, workdir, hanging):
    def make(sidecar_conf=None, **options):
        options.setdefault("wait", "mutating")
        spool = os.path.join(workdir, "spool")
        s = stack(sidecar_conf={
            "durability": "disk", "spool.path": spool, "settle.time": "200ms",
            "metrics.listen": f"127.0.0.1:{free_port()}",
            **(sidecar_conf or {})}, **options)
        s.spool = spool
        return s
    return make


@pytest.fixture
def on_slow_disk(on_disk, workdir):
    """(stack, Disk): as on_disk, of a disk that the test makes slow or full."""
    def make(**options):
        s, disk = on_disk(start_sidecar=False, **options), Disk(workdir)
        s.sidecar.env = disk.env
        s.sidecar.start()
        s.wait_linked()
        return s, disk
    return make


def waits(s):
    return s.status()["total"]["waits"]


def page(s, name):
    url = f"http://{s.sidecar.conf['metrics.listen']}/{name}"
    with urllib.request.urlopen(url, timeout=10) as f:
        return f.read().decode()


def ready(s):
    try:
        return page(s, "ready") is not None
    except urllib.error.HTTPError:
        return False


def metric(s, name):
    text = page(s, "metrics")
    return float(re.search(rf"^capture_{name} (\S+)$", text, re.M)[1])


def targets(records):
    """Of the requests in the topic, in no order."""
    result = verify_topic(records)
    result.assert_clean(all_closed=False)
    return sorted(x.request.split(b" ")[1].decode() for x in result.exchanges)


def test_a_wait_ends_by_the_disk_while_kafka_is_away(on_disk, hanging):
    """One after the other on a connection, large and small, HTTP/1 and 2; and
    all of it is captured when Kafka is back."""
    port = free_port()
    s = on_disk(server=f"listen 127.0.0.1:{port} http2; capture_wait_timeout 120s;"
                       "location /refuse { capture_on_failure refuse;"
                       "                   proxy_pass http://source; }")
    with Session(s) as c, Session(s) as other, Client2(port, timeout=60) as c2:
        assert c.request("POST", "/warm", body=b"x").status == 200
        hanging.pause()
        for i in range(5):
            for session in (c, other):
                assert session.request("POST", f"/{i}",
                                       body=pattern(3000 * i, i)).status == 200
            assert c.request("POST", f"/refuse/{i}", body=b"x").status == 200
        assert c.request("PUT", "/large", body=pattern(3_000_000, 1)).status == 200
        assert c.request("GET", "/between").status == 200
        assert c.request("DELETE", "/1").status == 200
        for i in range(5):
            assert c2.request("POST", f"/h2/{i}", body=b"x").status == 200
        row = waits(s)
        assert row["held"] == row["acked"] == 23, row
        assert metric(s, "journal_bytes") > 3_000_000
        assert metric(s, "records_total") <= 2
        hanging.resume()
        total = s.wait_for_status(settled(24), 30)["total"]
        assert total["captured"] == 24
    records = s.drain()
    assert len(targets(records)) == 24
    assert rows(s.spool) == (0, 0)


def test_the_source_sees_the_end_only_after_the_sync(on_slow_disk, source):
    """A disk whose sync takes long; requests that do not wait are not slower."""
    seen = []
    source.answer = lambda r: seen.append(time.monotonic()) or Response()
    s, disk = on_slow_disk()
    with Session(s) as c, Session(s) as plain:
        c.request("POST", "/first", body=b"x")
        disk.slow(0.4)
        for method in ("POST", "DELETE"):
            begun = time.monotonic()
            c.request(method, "/slow", **({"body": b"x"} if method == "POST" else {}))
            assert seen[-1] - begun > 0.39
        slow = threading.Thread(target=c.request, args=("POST", "/again"),
                                kwargs={"body": b"x"})
        slow.start()
        time.sleep(0.05)
        begun = time.monotonic()
        for i in range(20):
            plain.request("GET", f"/{i}")
        # they have gone to Kafka as well, or it would not be the disk's sake
        s.wait_for_status(lambda st: st["total"]["captured"] >= 20, 10)
        slow.join()
        disk.slow(0)
        s.wait_for_status(settled(24), 30)
    assert_captured(without_barriers(s.drain()), [c, plain])


@pytest.mark.parametrize("location", ["", "proxy_request_buffering off;"])
def test_over_http_2_and_unbuffered_too(on_slow_disk, source, location):
    """The end, not the head: an unbuffered body is on its way while it waits."""
    port = free_port()
    seen = []
    source.answer = lambda r: seen.append(time.monotonic()) or Response()
    s, disk = on_slow_disk(location=location,
                           server=f"listen 127.0.0.1:{port} http2;")
    with Session(s) as c, Client2(port) as c2:
        c.request("POST", "/first", body=b"x")
        disk.slow(0.4)
        for ask in (c.request, c2.request):
            for size in (1, 20_000, 200_000):
                begun = time.monotonic()
                assert ask("POST", f"/{size}", body=pattern(size, size)).status == 200
                assert seen[-1] - begun > 0.39
        disk.slow(0)
        s.wait_for_status(settled(7), 30)
    row = waits(s)
    assert row["held"] == row["acked"] == 7, row


def test_a_disk_of_seconds_does_not_hold_up_what_does_not_wait(
        on_slow_disk):
    s, disk = on_slow_disk()
    with Session(s) as c, Session(s) as plain:
        c.request("POST", "/first", body=b"x")
        disk.slow(6)
        slow = threading.Thread(target=c.request, args=("POST", "/slow"),
                                kwargs={"body": b"x"})
        slow.start()
        wait_until(lambda: waits(s)["held"] == 2, what="the hold")
        begun = time.monotonic()
        for i in range(20):
            assert plain.request("GET", f"/{i}").status == 200
        s.wait_for_status(lambda st: st["total"]["captured"] >= 20, 5)
        assert time.monotonic() - begun < 5
        assert waits(s)["acked"] == 1, "the disk was not slow"
        disk.slow(0)
        slow.join()
        s.wait_for_status(settled(22), 30)
    assert_captured(without_barriers(s.drain()), [c, plain])


@pytest.mark.parametrize("error", [
    errno.ENOSPC, pytest.param(errno.EROFS, marks=pytest.mark.long)])
def test_a_disk_that_takes_nothing_leaves_the_waits_to_kafka(
        on_slow_disk, hanging, error):
    s, disk = on_slow_disk(server="capture_wait_timeout 120s;")
    with Session(s) as c:
        assert c.request("POST", "/before", body=b"x").status == 200
        disk.fails(error)
        for i in range(3):
            assert c.request("POST", f"/{i}", body=b"x").status == 200
        assert metric(s, "journal_failed_total") == 1
        assert metric(s, "journal_skipped_total") >= 2
        assert ready(s)
        assert "requests wait for Kafka" in s.sidecar.log_text()
        disk.fails(0)
        s.sidecar.process.wait_for_log("the journal is open again", 20)
        hanging.pause()
        assert c.request("POST", "/after", body=b"x").status == 200
        hanging.resume()
        s.wait_for_status(settled(5), 30)
    assert_captured(without_barriers(s.drain()), [c])


def crash(s):
    """The host: both at once, and with them all memory."""
    s.nginx.kill9()
    s.sidecar.kill9()


def again(s):
    s.sidecar.start()
    s.nginx.start()
    s.wait_linked()


@pytest.mark.parametrize("boot", [
    "another", pytest.param("the same", marks=pytest.mark.long)])
def test_what_was_released_is_in_the_topic_after_the_host_has_died(
        on_disk, hanging, boot):
    """Kafka hangs, so that records are in doubt; some of them arrive."""
    port = free_port()
    s = on_disk(server=f"listen 127.0.0.1:{port} http2; capture_wait_timeout 120s;")
    released = ["/0"]
    with Session(s) as c:
        c.request("POST", "/0", body=b"x")
    s.wait_for_status(settled(1))
    hanging.pause()
    sessions = [Session(s) for _ in range(4)]
    c2 = Client2(port, timeout=60)
    for i in range(6):
        for k, x in enumerate(sessions):
            released.append(f"/{k}/{i}")
            assert x.request("POST", released[-1],
                             body=pattern(10_000 * k, i)).status == 200
        released.append(f"/h2/{i}")
        assert c2.request("POST", released[-1], body=b"x").status == 200
    crash(s)
    hanging.resume()
    if boot == "another":
        another_boot(s.spool)
    again(s)
    wait_until(lambda: metric(s, "recovered_exchanges_total") > 0, 60,
               what="the recovery")
    with Session(s) as c:
        c.request("POST", "/after", body=b"x")
    wait_until(lambda: metric(s, "journal_bytes") == 0, 60)
    records = s.drain()
    result = verify_topic(without_barriers(records))
    result.assert_clean(all_closed=True)
    assert sorted(targets(records)) == sorted(released + ["/after"])
    assert rows(s.spool) == (0, 0)
    for x in sessions:
        x.client.close()
    c2.close()


def test_a_pool_that_comes_back_is_right_and_the_journal_is_not(
        on_disk, hanging):
    """kill -9 of the sidecar alone."""
    s = on_disk(server="capture_wait_timeout 120s;")
    with Session(s) as c:
        assert c.request("POST", "/0", body=b"x").status == 200
        hanging.pause()
        for i in range(3):
            assert c.request("POST", f"/{i}", body=pattern(3000, i)).status == 200
            s.sidecar.kill9()
            s.sidecar.start()
            s.wait_linked()
        assert metric(s, "recovered_exchanges_total") == 0
        hanging.resume()
        s.wait_for_status(settled(4), 60)
    assert_captured(without_barriers(s.drain()), [c])
    assert rows(s.spool) == (0, 0)


def deaths(s, steps):
    """The worker's pool stays, and is right."""
    binary = mortal()
    if not binary:
        pytest.skip("the sanitizers' build has no kill points")
    s.sidecar.binary = binary
    sent = []
    with Session(s) as c:
        for step in steps:
            s.sidecar.kill9()
            s.sidecar.env = {"CAPTURE_KILL_POINT": f"{step}:1"}
            s.sidecar.start(wait=False)
            held = threading.Thread(target=c.request, args=("POST", f"/{step}"),
                                    kwargs={"body": pattern(3000, 1)})
            held.start()
            sent.append(f"/{step}")
            wait_until(lambda: not s.sidecar.running(), 20, f"a death at {step}")
            assert s.sidecar.process.wait() == -9, s.sidecar.log_text()
            s.sidecar.env = {}
            s.sidecar.start()
            s.wait_linked()
            held.join()
            assert c.request("POST", "/then", body=b"x").status == 200
            sent.append("/then")
            assert metric(s, "recovered_exchanges_total") == 0
        s.wait_for_status(settled(len(sent)), 60)
    assert_captured(without_barriers(s.drain()), [c])
    assert rows(s.spool) == (0, 0)


# others need a pool that is lost, or a disk that fails: t/unit/test_journal.c
REACHED = ("JOURNAL_OPENED", "JOURNAL_WRITTEN", "JOURNAL_COMMITTED",
           "JOURNAL_TIDIED", "JOURNAL_TOLD", "JOURNAL_SYNCED", "JOURNAL_ADOPTED")


def test_death_at_a_step_of_the_journal(on_disk):
    steps = random.sample(REACHED, 2)
    print(steps)
    deaths(on_disk(server="capture_wait_timeout 120s;"), steps)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_death_at_each_step_of_the_journal(on_disk):
    deaths(on_disk(server="capture_wait_timeout 120s;"), REACHED)


def test_a_damaged_journal_is_set_aside(on_disk):
    s = on_disk()
    with Session(s) as c:
        c.request("POST", "/0", body=b"x")
    s.wait_for_status(settled(1))
    s.sidecar.kill9()
    with open(os.path.join(s.spool, "journal", "journal.db"), "r+b") as f:
        f.write(b"no database" * 1000)
    s.sidecar.start()
    s.wait_linked()
    assert metric(s, "journal_damaged_total") == 1
    assert any("damaged" in name
               for name in os.listdir(os.path.join(s.spool, "journal")))
    with Session(s) as c:
        assert c.request("POST", "/1", body=b"x").status == 200
    s.wait_for_status(settled(2))
    s.drain()


def test_disk_without_a_directory_is_refused(workdir):
    rc, err = check(workdir, {"listen": "unix:/tmp/none",
                              "kafka.bootstrap.servers": "127.0.0.1:9092",
                              "durability": "disk"})
    assert rc != 0
    assert "spool.path" in err, err
