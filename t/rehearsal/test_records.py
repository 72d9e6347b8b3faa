"""The user's check that capture works: the number of records, in the console's own
table, before and after some requests. How many there may be follows from the rules
of flushing; docs/rerouting.md says both."""

import re
import threading
import time
from types import SimpleNamespace

import pytest

from path.session import settled
from rig.process import free_port
from rig.prometheus import scrape
from rig.status import wait_until
from tools.capturectl import capturectl

from rehearsal import page
from rehearsal.balancers import listener, target_group

RECORD = 1_048_076          # the most that a record has
ROW = "{:<30} {:<10} {:<10}\n".format


def table(broker, topic):
    """{partition: RECORDS} out of the table, which must be the console's."""
    text = capturectl("topic", "-b", broker.bootstrap, "-t", topic).text
    head, *rows = text.splitlines(keepends=True)
    assert head == ROW("TOPIC", "PARTITION", "RECORDS")
    ends = {int(row.split()[1]): int(row.split()[2]) for row in rows}
    assert rows == [ROW(topic, p, n) for p, n in sorted(ends.items())]
    return ends


class Watcher(threading.Thread):
    """Looks at the table all the time: no number in it may become smaller."""

    def __init__(self, broker, topic):
        super().__init__(daemon=True)
        self.look = lambda: table(broker, topic)
        self.seen, self.ended, self.failed = [], threading.Event(), None

    def run(self):
        try:
            while not self.ended.is_set():
                self.seen.append(self.look())
                self.ended.wait(0.1)
        except Exception as e:
            self.failed = e

    def end(self):
        self.ended.set()
        self.join(30)
        assert self.failed is None, self.failed
        self.seen.append(self.look())
        for before, after in zip(self.seen, self.seen[1:]):
            assert all(after[p] >= n for p, n in before.items()), self.seen


def bounds(command, big):
    """(least, most) records of a curl command within a second, by the rules of
    flushing; `big` is the size of $BIG."""
    least = most = 0
    for connection in command.split("&&"):
        waited = reads = records = 0
        for request in connection.split("--next"):
            method = re.search(r"-X (\w+)", request)
            method = method[1] if method else "POST" if "--data" in request \
                else "GET"
            count = 5 if "[1-5]" in request else 1
            if method != "GET":
                waited += count
            elif not waited:
                reads += count
            records += big // RECORD if "$BIG" in request else 0
        least += waited + 1 + records if waited else 1
        most += waited + reads + 1 + 2 * records
    return least, most


@pytest.fixture
def check(node, proxy, broker, topic, workdir):
    """A capturing proxy; run(command, requests) -> records that came of it."""
    def make(suppress=True):
        metrics = f"127.0.0.1:{free_port()}"
        url = f"http://{metrics}/metrics"
        source = node()
        l = proxy(source.port, "--metrics-listen", metrics, suppress=suppress)
        with open(f"{workdir}/big", "wb") as f:
            f.write(b"x" * 3_000_000)
        env = {"PROXY": f"https://localhost:{l.port}", "BIG": f"{workdir}/big"}
        c = SimpleNamespace(launcher=l, source=source, seen=0)

        def all_closed(seen):
            """All is acknowledged, also the connections' ends; seen() requests."""
            l.wait_for_status(lambda status: settled(seen())(status), 30)
            wait_until(lambda: scrape(url)["capture_connections"] == 0, 30,
                       "the connections' ends in the topic")

        def run(command, requests):
            before, start = sum(table(broker, topic).values()), time.monotonic()
            out = page.Command(command).run(env)
            c.seen += requests
            all_closed(lambda: c.seen)
            took = time.monotonic() - start
            return sum(table(broker, topic).values()) - before, int(took), out
        c.run, c.all_closed = run, all_closed
        return c
    return make


@pytest.mark.parametrize("suppressed", [True, False],
                         ids=["suppressed", "not suppressed"])
def test_records_of_each_command(suppressed, check, broker, topic):
    """Each row of the page's table is what the rules say, and what comes."""
    c = check(suppressed)
    watcher = Watcher(broker, topic)
    watcher.start()
    rows = [row for row in page.record_table()
            if row[1] == ("suppressed" if suppressed else "not suppressed")
            or (suppressed and not row[1])]
    assert len(rows) == (11 if suppressed else 1)
    for command, remark, requests, least, most in rows:
        ruled = (0, 0) if remark == "suppressed" else bounds(command, 3_000_000)
        assert (least, most) == ruled, command
        records, seconds, out = c.run(command, requests)
        # one more for each second that a connection was open
        most += seconds * len(command.split("&&")) if most else 0
        assert least <= records <= most, f"{command}: {records} records\n{out}"
    watcher.end()


@pytest.mark.parametrize("suppressed", [True, False],
                         ids=["suppressed", "not suppressed"])
def test_health_checks_are_1_to_3_records_or_none(suppressed, check, haproxy,
                                                  broker, topic):
    """Of a load balancer, and nothing else: the topic grows only if they are
    captured."""
    c = check(suppressed)
    watcher = Watcher(broker, topic)
    watcher.start()
    h = haproxy(target_group("proxies", c.launcher.port, often="inter 100ms")
                + listener("nlb", free_port()), {"nlb": "proxies"})
    wait_until(lambda: c.source.checked >= 10, 30, "ten health checks")
    h.close()
    c.all_closed(lambda: c.source.checked)
    watcher.end()
    records = sum(table(broker, topic).values())
    if suppressed:
        assert records == 0
    else:
        assert c.source.checked <= records <= 3 * c.source.checked
