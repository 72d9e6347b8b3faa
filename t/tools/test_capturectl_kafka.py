"""capturectl on a real topic: following it, from a time on, gaps over
partitions, and records out to a file and in again."""

import gzip
import json
import signal
import subprocess
import threading

import pytest
from confluent_kafka import Producer

from capturectl import CAPTURECTL, ENVIRONMENT, capturectl, line_of
from refconsumer import build, pb
from rig.process import SANITIZED
from rig.status import wait_until
from test_capturectl_topic import TS, close_record, from_topic, produce

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Following:
    """capturectl -f in the background; lines() is what it has printed."""

    def __init__(self, *arguments):
        self.run = subprocess.Popen([CAPTURECTL, *arguments], env=ENVIRONMENT,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.out = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.run.stdout:
            self.out.append(line)

    def end(self):
        """(exit status, standard error)"""
        self.run.send_signal(signal.SIGINT)
        status = self.run.wait(30)
        self.thread.join(30)
        return status, self.run.stderr.read().decode()


def test_follow_prints_what_comes_until_it_is_told_to_end(broker, new_topic):
    topic = new_topic(3)
    produce(broker, topic, [(0, 1, "old", close_record("old"))])
    follow = Following("decode", "-f", "-b", broker.bootstrap, "-t", topic)
    try:
        wait_until(lambda: len(follow.out) == 1, 30)
        for n in range(6):
            produce(broker, topic, [(n % 3, 1, f"c{n}", close_record(f"c{n}"))])
            wait_until(lambda: len(follow.out) == n + 2, 30)
    finally:
        status, err = follow.end()
    assert (status, err) == (0, "")
    assert [json.loads(line)["key"] for line in follow.out] == [
        "old", *(f"c{n}" for n in range(6))]


def test_follow_from_now_on_shows_exchanges_as_they_complete(broker, new_topic):
    topic = new_topic(1)
    produce(broker, topic, [(0, 1, "old", v) for v in
                            build.Producer("old").exchange(GET, OK).close().values])
    follow = Following("http", "-f", "-o", "-0", "--json", "-b", broker.bootstrap,
                       "-t", topic)
    try:
        def appears():
            produce(broker, topic, [(0, 1, "n", v) for v in
                                    build.Producer("n").exchange(GET, OK).close().values])
            return follow.out
        wait_until(appears, 30)
    finally:
        status, err = follow.end()
    assert status == 0 and " records, " in err
    assert {json.loads(line)["connectionId"] for line in follow.out} == {"n"}


def test_since_begins_where_the_records_of_that_time_are(broker, new_topic):
    """Records of more than a minute before are not even read."""
    topic = new_topic(2)
    records = []
    for n in range(20):
        ns = TS + n * 60 * 1_000_000_000
        records += [(n % 2, ns // 1_000_000, f"c{n}", v) for v in build.Producer(
            f"c{n}", start_ns=ns).exchange(GET, OK).close().values]
    produce(broker, topic, records)
    answer = from_topic(broker, "http", topic, "--json", "--since",
                        str(TS // 1_000_000_000 + 600))
    assert [x["connectionId"] for x in answer.json] == [f"c{n}" for n in range(10, 20)]
    assert answer.err.startswith("% 11 records, ")
    assert from_topic(broker, "http", topic, "--json", "--since",
                      str(TS // 1_000_000_000 + 9999)).json == []


def test_gaps_of_a_topic_tells_partition_and_offset(broker, new_topic):
    topic = new_topic(2)
    p = build.Producer()
    for _ in range(4):
        p.exchange(GET, OK).flush()
    a, b, c, d, e = p.close().values
    produce(broker, topic, [(1, 1, "conn", a), (1, 2, "conn", c), (0, 3, "conn", d),
                            (0, 4, "conn", d), (0, 5, "conn", e), (0, 6, "x", None)])
    answer = from_topic(broker, "gaps", topic, "--json")
    assert answer.status == 1
    *found, summary = answer.json
    assert [(f["kind"], f["partition"], f["offset"]) for f in found] == [
        ("hole", 1, 1), ("moved", 0, 0), ("duplicate", 0, 1), ("unreadable", 0, 3)]
    assert summary["records"] == 6


def test_a_connection_that_began_before_what_is_read_has_no_gap(broker, new_topic):
    topic = new_topic(1)
    values = build.Producer().exchange(GET, OK).flush().exchange(GET, OK).close().values
    produce(broker, topic, [(0, n + 1, "conn", v) for n, v in enumerate(values)])
    answer = from_topic(broker, "gaps", topic, "-o", "1")
    assert (answer.status, answer.out) == (0, b"")
    assert "1 connections began before what was read" in answer.err
    assert from_topic(broker, "gaps", topic).status == 0


def test_the_topic_table_as_json(broker, new_topic):
    topic = new_topic(2)
    produce(broker, topic, [(1, 1, "c", close_record("c"))])
    assert from_topic(broker, "topic", topic, "--json").json == [
        {"topic": topic, "partition": 0, "records": 0},
        {"topic": topic, "partition": 1, "records": 1}]


# export and import

def records(n, size=100):
    return [(0, 1_000 + i, f"c{i}", build.stream(
        [build.observation(pb.READ, TS + i, data=bytes([i % 256]) * size),
         build.observation(pb.CLOSE, TS + i)], last=True, connection_id=f"c{i}"))
        for i in range(n)]


def test_an_export_is_what_the_console_writes(broker, new_topic, tmp_path):
    topic, file = new_topic(1), tmp_path / "traffic.proto.gz"
    sent = records(50)
    produce(broker, topic, sent)
    answer = from_topic(broker, "export", topic, "--to", file, "--json")
    assert (answer.status, remarks_of(answer)) == (
        0, [f"50 records of {sum(len(v) for *_, v in sent)} bytes to {file}; 0 left out"])
    assert answer.json[0]["records"] == 50
    assert gzip.decompress(file.read_bytes()) == b"".join(
        key.encode() + b"|" + line_of(value) for *_, key, value in sent)
    assert len(capturectl("decode", file).json) == 50
    plain = from_topic(broker, "export", topic, "--to", "-", "-q")
    assert (plain.status, plain.err) == (0, "")
    assert plain.out == gzip.decompress(file.read_bytes())


def remarks_of(answer):
    """Without librdkafka's own, of a broker that has just begun, say."""
    return [line[2:] for line in answer.err.splitlines()
            if not line.startswith("% kafka: ")]


def test_a_round_trip_is_byte_for_byte(broker, new_topic, tmp_path):
    first, second, file, again = new_topic(1), new_topic(1), tmp_path / "a.gz", tmp_path / "b.gz"
    produce(broker, first, records(300, 2000))
    assert from_topic(broker, "export", first, "--to", file).status == 0
    answer = from_topic(broker, "import", second, file)
    assert (answer.status, remarks_of(answer)) == (0, [f"300 records to {second}"])
    assert [r[2:] for r in broker.read_topic(second)] == [
        r[2:] for r in broker.read_topic(first)]
    assert from_topic(broker, "export", second, "--to", again).status == 0
    assert again.read_bytes() == file.read_bytes()


def test_import_takes_the_partition_that_the_producers_take(broker, new_topic, tmp_path):
    """As the sidecar and Java's producer: murmur2 of the key."""
    topic, file = new_topic(7), tmp_path / "traffic"
    sent = records(200)
    file.write_bytes(b"".join(k.encode() + b"|" + line_of(v) for *_, k, v in sent))
    assert from_topic(broker, "import", topic, file).status == 0
    got = broker.read_topic(topic)
    assert {(r.key.decode(), r.value) for r in got} == {(k, v) for *_, k, v in sent}
    assert {r.key.decode(): r.partition for r in got} == {
        k: (_murmur2(k.encode()) & 0x7FFFFFFF) % 7 for *_, k, _ in sent}
    assert from_topic(broker, "gaps", topic, "--ignore", "doubt").status == 0


def _murmur2(data):
    """Kafka's, of its own description: an independent reading."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    for i in range(0, len(data) - len(data) % 4, 4):
        k = int.from_bytes(data[i:i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    rest = data[len(data) - len(data) % 4:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


@pytest.mark.parametrize("line, why", [
    (line_of(close_record("c")), "it has no key: KEY|BASE64"),
    (b"other|" + line_of(close_record("c")), "its key is not its connectionId"),
    (b"c|" + line_of(b"\xff"), "not a record: "),
    (b"c|!!!\n", "not base64"),
], ids=range(4))
@pytest.mark.parametrize("from_file", [True, False])
def test_nothing_of_a_broken_file_is_sent(broker, new_topic, tmp_path, line, why, from_file):
    """Of standard input what comes before the broken line is, and that is said."""
    topic, file = new_topic(1), tmp_path / "traffic"
    good = b"".join(k.encode() + b"|" + line_of(v) for *_, k, v in records(3))
    file.write_bytes(good + line + b"d|" + line_of(close_record("d")))
    if from_file:
        answer = from_topic(broker, "import", topic, file)
        assert remarks_of(answer)[-1] == "nothing has been sent"
    else:
        answer = capturectl("import", "-b", broker.bootstrap, "-t", topic, "-",
                            stdin=file.read_bytes())
        assert "% 3 records to " in answer.err and "before the file's end" in answer.err
    assert answer.status == 1
    assert ":4: " + why in answer.err
    assert broker.end_offsets(topic) == {0: 0 if from_file else 3}


def test_import_does_not_double_a_topic(broker, new_topic, tmp_path):
    topic, file = new_topic(1), tmp_path / "traffic"
    file.write_bytes(b"c|" + line_of(close_record("c")))
    assert from_topic(broker, "import", topic, file).status == 0
    answer = from_topic(broker, "import", topic, file)
    assert answer.status == 1 and "holds 1 records" in answer.err
    assert broker.end_offsets(topic) == {0: 1}
    assert from_topic(broker, "import", topic, file, "--append").status == 0
    assert broker.end_offsets(topic) == {0: 2}


def test_an_export_says_what_it_cannot_hold(broker, new_topic, tmp_path):
    topic, file = new_topic(1), tmp_path / "traffic"
    produce(broker, topic, [(0, 1, "c", close_record("c")), (0, 2, "c", None),
                            (0, 3, None, close_record("c")),
                            (0, 4, "a|b", close_record("a|b")),
                            (0, 5, "d", b"\xff")])
    answer = from_topic(broker, "export", topic, "--to", file)
    assert answer.status == 1
    assert remarks_of(answer) == [
        f"{topic} [0] at offset 1: it has no value: not exported",
        f"{topic} [0] at offset 2: it has no key: not exported",
        f"{topic} [0] at offset 3: its key holds a | or a line end: not exported",
        f"2 records of {len(close_record('c')) + 1} bytes to {file}; 3 left out"]
    assert len(file.read_bytes().splitlines()) == 2


def test_an_export_replaces_no_file(broker, new_topic, tmp_path):
    file = tmp_path / "mine"
    file.write_text("precious")
    answer = from_topic(broker, "export", new_topic(1), "--to", file)
    assert answer.status == 1 and "File exists" in answer.err
    assert file.read_text() == "precious"
    assert from_topic(broker, "export", new_topic(1)).status == 2


def test_a_full_disk_ends_an_export(broker, new_topic):
    topic = new_topic(1)
    produce(broker, topic, records(100, 20_000))
    with open("/dev/full", "wb") as full:
        run = subprocess.run([CAPTURECTL, "export", "-b", broker.bootstrap, "-t", topic,
                              "--to", "-"], stdout=full, stderr=subprocess.PIPE,
                             env=ENVIRONMENT)
    assert run.returncode == 1
    assert b"writing failed: No space left" in run.stderr


@pytest.mark.skipif(SANITIZED, reason="its memory is the sanitizer's")
def test_reading_ahead_is_bounded(broker, new_topic):
    """librdkafka would hold up to 64 MiB of each partition."""
    topic = new_topic(8)
    produce_fast(broker, topic, 8, 24, 900_000)
    run = subprocess.Popen([CAPTURECTL, "decode", "-b", broker.bootstrap, "-t", topic],
                           env=ENVIRONMENT, stdout=subprocess.PIPE)
    run.stdout.read(1)  # it prints, into a pipe that nobody empties for now
    peaks = []

    def stands_still():
        with open(f"/proc/{run.pid}/status") as status:
            peaks.append(next(int(s.split()[1]) for s in status if s.startswith("VmHWM")))
        return len(peaks) > 50 and peaks[-1] == peaks[-50]
    wait_until(stands_still, 60)
    out, _ = run.communicate()
    assert run.returncode == 0 and out.count(b"\n") == 8 * 24
    assert peaks[-1] < 100_000, "KiB"


def produce_fast(broker, topic, partitions, count, size):
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for n in range(count):
        for p in range(partitions):
            producer.produce(topic, build.stream(
                [build.observation(pb.READ, TS, data=bytes(size))], number=n + 1,
                connection_id=f"c{p}"), f"c{p}", p, timestamp=n + 1)
        producer.flush(30)
