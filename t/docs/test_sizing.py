"""docs/sizing.md: its commands run, and its figures are those of what it speaks
of."""

import os
import re

import pytest

from rig.pages import Page, Shell
from rig.process import SANITIZED, TOP, free_port
from rig.source import Response

PAGE = "docs/sizing.md"


def page():
    return Page("docs/sizing.md", not_run={
        "bytes = requests": "a sum, no command",
        "held = MB/s": "a sum, no command",
        "spool.size = MB/s": "a sum, no command"})


def figure(words):
    """The number in the second column of the row that begins with these words."""
    with open(os.path.join(TOP, PAGE)) as f:
        row, = re.findall(rf"^\| {words}[^|]*\| [^|\d]*([\d.]+)", f.read(), re.M)
    return float(row)


def test_its_commands_run(stack, topic, workdir):
    metrics = free_port()
    s = stack(topic=topic, sidecar_conf={"metrics.listen": f"127.0.0.1:{metrics}"})
    with s.client() as client:
        assert client.request("POST", "/_bulk", body=b"{}\n").status == 200
    s.wait_for_status(lambda now: now["total"]["captured"] == 1)
    p = page()
    shell = Shell(f"{workdir}/shell", stand_ins={
        "nginx1:8080 nginx2:8080": f"127.0.0.1:{s.port}",
        "nginx1:9145 nginx2:9145": f"127.0.0.1:{metrics}",
        "broker1:9092": s.broker.bootstrap, "logging-traffic-topic": topic})
    shell.run(p.take("export NODES"))
    assert "retention.ms     604800000" in shell.run(p.take("capturectl stats"))
    said = shell.run(p.take("capturectl status"))
    assert " yes " in said
    for name in ("pool_blocks_used", "pool_time_to_full_seconds", "spool_bytes",
                 "spool_time_to_full_seconds", "inflight_bytes"):
        assert f"capture_{name} " in said
    p.finish()
    shell.finish()


@pytest.mark.parametrize("connections, each", [(1, 60), (60, 1)])
@pytest.mark.parametrize("wait", ["off", "mutating"])
def test_what_records_add(stack, source, topic, connections, each, wait):
    answer, body = b"y" * 200, b"x" * 1000
    source.answer = lambda request: Response(body=answer)
    s = stack(topic=topic, wait=wait)
    raw = 0
    for _ in range(connections):
        with s.client() as client:
            for _ in range(each):
                request = (b"POST /i/_bulk HTTP/1.1\r\nHost: source\r\n"
                           b"Content-Length: 1000\r\n\r\n" + body)
                client.send(request)
                got = client.receive("POST")
                assert got.status == 200
                raw += len(request) + len(got.head) + len(answer)
    exchanges = connections * each
    s.wait_for_status(lambda now: now["total"]["captured"] == exchanges)
    records = s.drain()
    size = sum(len(r.key) + len(r.value) for r in records)
    wanted = (exchanges * figure("exchange") + len(records) * figure("record, ")
              + connections * figure("connectionId"))
    # an exchange whose bytes are all in one record has a few less
    assert 0.8 < (size - raw) / wanted < 1.1, (size - raw, wanted, len(records))
    if wait == "mutating":
        rows = {1: "that waits, on a connection", 60: "that waits \\("}
        assert len(records) / exchanges == pytest.approx(figure(rows[each]), abs=0.1)


def private_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return int(re.search(r"Private_Dirty: +(\d+)", f.read())[1])


@pytest.mark.skipif(SANITIZED, reason="sanitizers have memory of their own")
def test_what_an_idle_connection_costs(stack, topic):
    n = 500
    s = stack(topic=topic)
    pids = s.sidecar.process.pid, *s.nginx.workers()
    clients = []

    def exchanges(wanted):
        while len(clients) < wanted:
            clients.append(s.client())
            assert clients[-1].request("GET", "/", [("Host", "a")]).status == 200
        s.wait_for_status(lambda now: now["total"]["captured"] == wanted)
        return [private_kib(pid) for pid in pids]
    try:
        before = exchanges(1)
        after = exchanges(n + 1)
    finally:
        for client in clients:
            client.close()
    sidecar, worker = [(b - a) / n for a, b in zip(before, after)]
    assert before[0] < figure("the sidecar itself") * 1000
    with open(os.path.join(TOP, PAGE)) as f:
        said = float(re.search(r"MB, and up to ([\d.]+) KiB", f.read())[1])
    assert 0.1 * said < sidecar < 1.5 * said, sidecar
    assert worker < 1.5 * figure("a worker"), worker
