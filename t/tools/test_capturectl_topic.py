"""capturectl on a real topic.

It reads from every partition up to the end of the moment, as nobody's group
member, and in one order: by the records' times.
"""

import pytest
from confluent_kafka import Producer

from capturectl import bytes_of, capturectl, remarks
from refconsumer import build, pb

TS = 1_700_000_000_000_000_000
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def close_record(connection_id):
    return build.stream([build.observation(pb.CLOSE, TS)], last=True,
                        connection_id=connection_id)


def produce(broker, topic, records):
    """records: (partition, CreateTime in ms, connectionId, value)"""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
    for partition, time, key, value in records:
        producer.produce(topic, value, key, partition, timestamp=time)
        producer.flush(30)


def from_topic(broker, command, topic, *arguments):
    return capturectl(command, "-b", broker.bootstrap, "-t", topic, *arguments)


def test_records_come_by_their_times_with_partition_offset_and_key(broker, new_topic):
    topic = new_topic(3)
    produce(broker, topic, [(i % 3, 1_700_000_000_000 + (i * 7919) % 1000, f"c{i}",
                             close_record(f"c{i}")) for i in range(60)])
    answer = from_topic(broker, "decode", topic)
    assert (answer.status, answer.err) == (0, "")
    shown = answer.json
    assert all(r["key"] == r["connectionId"] for r in shown)
    assert len(shown) == 60
    for partition in range(3):
        assert [(r["offset"], r["key"]) for r in shown if r["partition"] == partition] == [
            (n, f"c{n * 3 + partition}") for n in range(20)]
    assert answer.out == from_topic(broker, "decode", topic).out


def test_partitions_merge_by_time(broker, new_topic):
    topic = new_topic(2)
    produce(broker, topic, [(0, 3_000, "third", close_record("third")),
                            (1, 1_000, "first", close_record("first")),
                            (0, 4_000, "fourth", close_record("fourth")),
                            (1, 2_000, "second", close_record("second"))])
    assert [r["key"] for r in from_topic(broker, "decode", topic).json] == [
        "first", "second", "third", "fourth"]
    readable = from_topic(broker, "decode", topic, "--readable").lines
    assert " p:1 o:     1 ncs:node.second.1: CLOSE" in readable[1]


def test_exchanges_are_put_together_over_records_and_partitions(broker, new_topic):
    topic = new_topic(4)
    connections = [build.Producer(f"c{i}").read(GET + bytes([i])).eom().flush()
                   .write(OK).flush().close() for i in range(8)]
    produce(broker, topic, [
        (i % 4, 1_700_000_000_000 + n, c.connection_id, value)
        for i, c in enumerate(connections) for n, value in enumerate(c.values)])
    answer = from_topic(broker, "http", topic, "--json", "--full")
    assert answer.status == 0
    assert {x["connectionId"]: bytes_of(x["request"]) for x in answer.json} == {
        f"c{i}": GET + bytes([i]) for i in range(8)}
    assert all(bytes_of(x["response"]) == OK for x in answer.json)


def test_the_topic_table_is_the_consoles(broker, new_topic):
    topic = new_topic(3)
    produce(broker, topic, [(p, 1_000, "c", close_record("c"))
                            for p in (0, 0, 0, 2)])
    answer = from_topic(broker, "topic", topic)
    assert (answer.status, answer.err) == (0, "")
    row = "{:<30} {:<10} {:<10}\n".format
    assert broker.end_offsets(topic) == {0: 3, 1: 0, 2: 1}
    assert answer.text == row("TOPIC", "PARTITION", "RECORDS") + "".join(
        row(topic, p, end) for p, end in sorted(broker.end_offsets(topic).items()))


@pytest.mark.parametrize("arguments, keys", [
    (["-p", "1"], ["b0", "b1", "b2"]),
    (["-o", "2"], ["a2", "b2"]),
    (["-o", "-1"], ["a2", "b2"]),
    (["-o", "-99", "-p", "0"], ["a0", "a1", "a2"]),
    (["-o", "99"], []),
])
def test_partition_and_offset_choose(broker, new_topic, arguments, keys):
    topic = new_topic(2)
    produce(broker, topic, [(p, 1_000 * n + 1, f"{c}{n}", close_record(f"{c}{n}"))
                            for n in range(3) for p, c in enumerate("ab")])
    answer = from_topic(broker, "decode", topic, *arguments)
    assert (answer.status, answer.err) == (0, "")
    assert [r["key"] for r in answer.json] == keys


def test_an_empty_topic_has_nothing_to_show(broker, new_topic):
    topic = new_topic(2)
    answer = from_topic(broker, "decode", topic)
    assert (answer.status, answer.out, answer.err) == (0, b"", "")


def test_a_large_topic_is_read_whole(broker, new_topic):
    topic = new_topic(2)
    body = bytes(range(256)) * 3900
    values = [build.stream([build.observation(pb.READ, TS, data=body)], number=n + 1)
              for n in range(40)]
    produce(broker, topic, [(n % 2, n + 1, "conn", v) for n, v in enumerate(values)])
    answer = from_topic(broker, "decode", topic)
    assert answer.status == 0
    assert [r["number"] for r in answer.json] == list(range(1, 41))
    assert all(r["subStream"][0]["read"]["size"] == len(body) for r in answer.json)


def test_what_is_no_record_is_reported_with_its_offset(broker, new_topic):
    topic = new_topic(1)
    produce(broker, topic, [(0, 1, "c", close_record("c")), (0, 2, "c", None),
                            (0, 3, "c", b""), (0, 4, "c", b"\xff"),
                            (0, 5, "c", close_record("c"))])
    answer = from_topic(broker, "decode", topic)
    assert answer.status == 1
    assert [r["offset"] for r in answer.json] == [0, 4]
    assert remarks(answer) == [
        f"{topic} [0] at offset 1: it has no value, which stops the Replayer",
        f"{topic} [0] at offset 2: not a record: it has no observation",
        f"{topic} [0] at offset 3: not a record: a number is cut off, at byte 0"]


def test_a_missing_topic_is_an_error_and_is_not_made(broker):
    for command in ("decode", "http", "topic"):
        answer = from_topic(broker, command, "t-not-there")
        assert answer.status == 1
        assert "topic t-not-there: " in answer.err
    assert "t-not-there" not in broker.topics()


def test_a_missing_partition_is_an_error(broker, new_topic):
    topic = new_topic(1)
    answer = from_topic(broker, "decode", topic, "-p", "7")
    assert answer.status == 1
    assert remarks(answer) == [f"{topic}: it has no partition 7"]


def test_reading_joins_no_consumer_group(broker, new_topic):
    topic = new_topic(1)
    produce(broker, topic, [(0, 1, "c", close_record("c"))])
    before = _groups(broker)
    assert len(from_topic(broker, "decode", topic, "-X", "client.id=me").json) == 1
    assert _groups(broker) == before


def _groups(broker):
    listed = broker.admin.list_consumer_groups().result(30)
    return {group.group_id for group in listed.valid}


def test_a_password_from_a_file_opens_a_secured_topic(own_broker, tmp_path):
    broker = own_broker(users={"reader": "hunter2"})
    broker.create_topic("secured")
    broker.permit("reader", "secured", "READ", "DESCRIBE")
    produce(broker, "secured", [(0, 1, "c", close_record("c"))])
    file = tmp_path / "kafka.properties"
    arguments = ["decode", "-b", broker.sasl_bootstrap, "-t", "secured", "-F", file,
                 "-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN",
                 "-X", "sasl.username=reader", "-m", "5"]
    file.write_text("sasl.password=hunter2\n")
    assert [r["key"] for r in capturectl(*arguments).json] == ["c"]
    file.write_text("sasl.password=wrong\n")
    answer = capturectl(*arguments)
    assert answer.status == 1
    assert "uthentication" in answer.err and "wrong" not in answer.err
