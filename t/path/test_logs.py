"""What is logged, and how loudly: a line an event, at a level that means something.

error   somebody must act, or something is lost
warn    capture is, or will be, worse off if this goes on
info    what an operator wants to find afterwards: beginnings and ends
debug   for who looks for a mistake

On a real path: whatever the sidecar and the module say there has a row in these
tables; a line without one, or at another level, fails.
"""

import json
import re
import signal
import socket

from rig.source import Response
from rig.status import wait_until

SECRET = "marker-7bD3-of-a-client"

SIDECAR = [
    # level, whole message, times: at least, and at most ("many": limited ones)
    ("info", r"capture-sidecar \S+, librdkafka \S+", 2, 2),
    ("info", r"topic \S+, records to \d+ bytes, in flight to \d+ MiB, pools to "
     r"\d+ MiB", 2, 2),
    ("info", r"metrics at http://127\.0\.0\.1:\d+/metrics", 2, 2),
    ("info", r"capture-sidecar ready: listening on unix:\S+", 2, 2),
    ("warn", r"waiting for Kafka: .*\S+.*", 1, 3),
    ("info", r"topic \S+ did not exist: it has been created, with \d+ "
     r"partitions?", 1, 1),
    ("warn", r"topic \S+ has min\.insync\.replicas = 1: .*", 2, 2),
    ("info", r"topic \S+ is ready: \d+ partitions?, records of at most \d+ bytes", 2, 2),
    ("info", r"worker \d+ \(uid \d+\) linked: \d+ blocks of 64 KiB, \d+ "
     r"connections", 2, 2),
    ("warn", r"refused a peer \(uid \d+, pid \d+\): it hung up before its HELLO"
     r"( \(\d+ more like it\))?", 1, "many"),
    ("info", r"HUP: 0 values have changed", 1, 1),
    ("info", r"a worker's pool is taken over: \d+ blocks hold frames", 1, 1),
    # the sidecar has died with a record under way, or not
    ("info", r"topic \S+, partition \d+ is settled", 0, 8),
    ("info", r"worker \d+ has gone", 1, 1),
    ("info", r"worker \d+: the last of its pool is settled: taken \d+ captured "
     r"\d+", 1, 1),
    ("info", r"TERM: draining, for at most 10000 ms", 1, 1),
    ("info", r"seen \d+ captured \d+ filtered 0 lost 0 pending 0", 1, 1),
    # librdkafka's, where a machine is busy
    ("warn", r"kafka: .*", 0, 4),
]

MODULE = [
    ("notice", r"capture linked to unix:\S+, \d+ bytes in \d+ blocks, \d+ "
     r"connections", 2, 2),
    ("warn", r"capture_sidecar unix:\S+ closed the link", 1, 1),
    ("warn", r"connect\(\) to capture_sidecar unix:\S+ failed, exchanges are not "
     r"captured until it is there .*", 0, 2),
    ("warn", r"proxy_ignore_client_abort \(or its like\) is off in location .*",
     1, 1),
]

MORE_PEERS = 200  # that come within less than a second or two


def check(table, lines):
    """Each of the (level, message) in `lines` has one row, as often as it says."""
    counted = [0] * len(table)
    for level, message in lines:
        rows = [i for i, (_, pattern, *_) in enumerate(table)
                if re.fullmatch(pattern, message)]
        assert rows, f"a line that the table does not have: {level}: {message}"
        assert table[rows[0]][0] == level, f"it is {level}: {message}"
        counted[rows[0]] += 1
    for (level, pattern, least, most), n in zip(table, counted):
        most = MORE_PEERS // 4 if most == "many" else most
        assert least <= n <= most, f"{n} times: {level}: {pattern}"


def of_module(text):
    """(level, message) of what the module says in error.log."""
    for line in text.splitlines():
        m = re.match(r"\S+ \S+ \[(\w+)\] \d+#\d+: (?:\*\d+ )?(.*)", line)
        if m and re.search("capture[ _]|proxy_ignore_client_abort", m[2]):
            # the request belongs to NGINX's way to log it
            yield m[1], re.sub(r"( while | \(\d+: |, client: ).*", r"\1", m[2]
                               ).removesuffix(", client: ").removesuffix(
                                   " while ").replace(" (111: ", " (").replace(
                                       " (2: ", " (")


def knock(path):
    for _ in range(MORE_PEERS):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.connect(path)


def exchange(s):
    with s.client() as client:
        answer = client.request(
            "POST", f"/{SECRET}", body=f"{SECRET} body".encode(),
            headers=[("Host", "x"), ("Authorization", f"Basic {SECRET}")])
    assert SECRET.encode() in answer.body


def test_each_event_has_its_level(stack, source, broker):
    source.answer = lambda request: Response(body=SECRET.encode() * 100)
    broker.start()
    topic = f"logs-{broker.port}-{id(source)}"
    s = stack(topic=topic, start_sidecar=False, sidecar_conf={
        "log.format": "json", "metrics.listen": "127.0.0.1:0",
        "settle.time": "200ms"}, log_level="notice")
    s.nginx.stop(graceful=True)
    s.sidecar.start()
    s.sidecar.process.wait_for_log("waiting for Kafka", 60)
    broker.create_topic(topic, 4)
    s.sidecar.process.wait_for_log("is ready", 60)
    s.nginx.start()
    s.wait_linked()
    for _ in range(3):
        exchange(s)
    s.wait_for_status(lambda st: st["total"]["captured"] == 3)
    s.sidecar.process.send(signal.SIGHUP)
    s.sidecar.process.wait_for_log("HUP:")
    knock(s.socket)
    s.sidecar.process.wait_for_log("refused a peer")
    s.sidecar.kill9()
    s.sidecar.start()
    s.wait_linked()
    exchange(s)
    s.wait_for_status(lambda st: st["total"]["captured"] == 4)
    wait_until(lambda: s.sidecar.log_text().count("is ready") == 2, 60)
    s.drain()

    text = s.sidecar.log_text()
    lines = [json.loads(line) for line in text.splitlines()]
    check(SIDECAR, [(line["level"], line["message"]) for line in lines])
    errors = s.nginx.error_log()
    # what was before the sidecar began is another case
    begun = errors.index("capture linked to")
    start = errors.rindex("\n", 0, begun) + 1
    check(MODULE, list(of_module(errors[start:])))
    for log in (text, errors):
        assert SECRET not in "\n".join(
            line for line in log.splitlines()
            if "proxy_ignore_client_abort" not in line)


def test_a_level_leaves_out_what_is_below(stack):
    s = stack(sidecar_conf={"log.level": "error"}, start_sidecar=False)
    s.sidecar.start(wait=False)
    s.wait_linked()
    with s.client() as client:
        client.request("GET", "/")
    s.wait_for_status(lambda st: st["total"]["captured"] == 1)
    s.nginx.stop(graceful=True)
    assert s.sidecar.stop() == 0
    assert s.sidecar.log_text() == ""
