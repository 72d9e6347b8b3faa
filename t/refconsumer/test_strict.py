"""Every rule can fail, and fails alone: one crafted topic per violation.

A check that never fired would pass all path tests; so the table below must
hold every rule, and each topic in it is right but for the one thing.
"""

import itertools

import pytest

from refconsumer import pb
from refconsumer.build import START_NS, Producer, number_field, observation, stream
from refconsumer.cases import CASES, GET, HINTS, OK, POST, PREFACE, SWITCHING, UPGRADE
from refconsumer.cases import long_headers, long_line
from refconsumer.rules import RULES
from refconsumer.strict import ANCIENT_NS, FUTURE_NS, MAX_VALUE_BYTES
from refconsumer.verify import verify_topic

CONNECT = b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n"
NOW_NS = START_NS + 3600 * 1_000_000_000

READ = observation(pb.READ, data=GET)
EOM = observation(pb.EOM, lengths=(19, 13))
WRITE = observation(pb.WRITE, data=OK)
READ_SEGMENT = observation(pb.READ_SEGMENT, data=b"x")
WRITE_SEGMENT = observation(pb.WRITE_SEGMENT, data=b"x")
EXCEPTION = observation(pb.EXCEPTION, message="Connection reset by peer")
DROPPED = observation(pb.DROPPED)
SEGMENT_END = observation(pb.SEGMENT_END)
CLOSE = observation(pb.CLOSE)


def topic(*values, partition=0, key="conn", first_offset=0):
    """Values in the order of their offsets in one partition."""
    return [
        (partition, first_offset + at, key, value) for at, value in enumerate(values)
    ]


def made(producer):
    return topic(*producer.values)


def one(*observations, **fields):
    """A topic of one last record."""
    return topic(stream(observations, **{"last": True} | fields))


def exchange(request, response=OK):
    return made(Producer().exchange(request, response).close())


def close_only(connection_id):
    value = stream([CLOSE], last=True, connection_id=connection_id)
    return topic(value, key=connection_id)


def three_records():
    producer = Producer().exchange(GET, OK).flush().exchange(GET, OK).flush()
    return producer.exchange(GET, OK).close().values


def requests_over_records(prior):
    first = stream([READ, EOM, WRITE])
    return topic(first, stream([CLOSE], number=2, last=True, prior=prior))


def large(data_bytes):
    body = b"x" * data_bytes
    request = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    producer = Producer().read(request + body).flush()
    return made(producer.eom().write(OK).close())


def of_value_size(size):
    overhead = len(large(1_000_000)[0][3]) - 1_000_000
    return large(size - overhead)


def two_nodes():
    first = stream([READ, EOM, WRITE])
    second = stream([CLOSE], number=2, last=True, prior=1, node_id="other")
    return topic(first, second)


def two_partitions():
    first, second, third = three_records()
    return topic(first) + topic(second, third, partition=1)


def second_life():
    return topic(*Producer().close().values, *Producer().exchange(GET, OK).close().values)


def record_after_close():
    after = stream([CLOSE], number=2, last=True)
    return topic(*Producer().close().values, after)


def silent_exchange():
    """A response that is still open when 362 s of another connection passed."""
    silent = Producer("silent").read(GET).eom().write(OK[:9]).flush().values
    later = START_NS + 362 * 1_000_000_000
    other = Producer("other", start_ns=later).exchange(GET, OK).close().values
    return topic(*silent, key="silent") + topic(*other, key="other", first_offset=1)


def read_in_run():
    """Equal bytes change places, so the request itself stays whole."""
    request = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nkk"
    producer = Producer().read(request[:-2]).read_segment(b"k").read(b"k")
    return made(producer.segment_end().eom().write(OK).close())


def write_in_run():
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nkk"
    producer = Producer().exchange(GET, response[:-2]).write_segment(b"k").write(b"k")
    return made(producer.segment_end().close())


def interim_in_a_cut_response():
    return made(Producer().read(GET).eom().write(HINTS).exception().close())


# slug -> topics that break that rule and no other
VIOLATIONS = {
    "key": [
        topic(stream([CLOSE], last=True), key="other"),
        topic(stream([CLOSE], last=True), key=None),
        topic(stream([CLOSE], last=True), key=b"\xff"),
    ],
    "value_too_large": [of_value_size(MAX_VALUE_BYTES + 1)],
    "partition_changed": [two_partitions()],
    "value_null": [topic(None)],
    "value_empty": [topic(b"")],
    "unparsable": [topic(b"no protobuf"), topic(stream([CLOSE])[:-1])],
    "oddity": [one(CLOSE, extra=number_field(99, 1)), one(CLOSE + number_field(20, 1))],
    "connection_id": [close_only("a|b"), close_only("a\n"), close_only("")],
    "node_changed": [two_nodes()],
    "id_reused": [second_life()],
    "node_id": [one(CLOSE, node_id="")],
    "index_missing": [topic(stream([READ, EOM, WRITE], number=None))],
    "last_chunk": [
        topic(stream([CLOSE])),
        topic(stream([READ, EOM, WRITE], last=True)),
    ],
    "prior_wrong": [requests_over_records(None), requests_over_records(2)],
    "unterminated_wrong": [
        one(READ, EOM, WRITE, CLOSE, unterminated=True),
        topic(stream([READ]), stream([EOM, WRITE, CLOSE], number=2, last=True)),
    ],
    "prior_zero": [one(CLOSE, prior=0)],
    "unterminated_false": [one(CLOSE, unterminated=False)],
    "number_hole": [
        one(CLOSE, number=2),
        one(CLOSE, number=0),
        topic(stream([READ, EOM, WRITE]), stream([CLOSE], number=3, last=True, prior=1)),
    ],
    "number_order": [
        topic(
            stream([READ, EOM, WRITE], number=2),
            stream([READ, EOM, WRITE], number=1, prior=1),
        )
    ],
    "number_duplicate": [
        topic(stream([READ, EOM, WRITE]), stream([READ, EOM, WRITE], prior=1)),
    ],
    "after_close": [record_after_close(), one(CLOSE, READ), one(CLOSE, CLOSE)],
    "first_not_read": [
        made(Producer().read_segment(GET).segment_end().eom().write(OK).close())
    ],
    "no_observations": [topic(stream([]))],
    "foreign_capture": [
        one(READ, EOM, WRITE, observation("disconnect"), CLOSE),
        one(READ, EOM, WRITE, observation("requestReleasedDownstream"), CLOSE),
        one(READ, EOM, WRITE, observation(None), CLOSE),
    ],
    "eom_without_reads": [one(READ, EOM, EOM, WRITE, CLOSE)],
    "write_before_eom": [
        one(READ, WRITE, EOM, WRITE, CLOSE),
        one(READ, DROPPED, WRITE, CLOSE),
    ],
    "after_exception": [
        one(READ, EOM, WRITE, EXCEPTION, READ, CLOSE),
        one(READ, EOM, EXCEPTION, WRITE, CLOSE),
    ],
    "eom_lengths": [
        one(READ, observation(pb.EOM, lengths=(19, 15)), WRITE, CLOSE),
        one(READ, observation(pb.EOM, lengths=(21, 13)), WRITE, CLOSE),
        one(READ, observation(pb.EOM, lengths=(-1, -1)), WRITE, CLOSE),
        one(READ, observation(pb.EOM), WRITE, CLOSE),
    ],
    "empty_data": [
        one(READ, observation(pb.READ), EOM, WRITE, CLOSE),
        one(READ, EOM, WRITE, observation(pb.WRITE, data=b""), CLOSE),
    ],
    "segment_orphan_end": [
        one(READ, SEGMENT_END, EOM, WRITE, CLOSE),
        one(READ, EOM, WRITE, SEGMENT_END, CLOSE),
    ],
    "segment_unfinished": [
        one(READ, READ_SEGMENT, EOM, WRITE, CLOSE),
        one(READ, EOM, WRITE, WRITE_SEGMENT, CLOSE),
        one(READ, EOM, WRITE, WRITE_SEGMENT, READ, EOM, WRITE, CLOSE),
    ],
    "data_in_segments": [read_in_run(), write_in_run()],
    "drop_without_reads": [one(READ, EOM, DROPPED, WRITE, CLOSE)],
    "ts_missing": [one(observation(pb.CLOSE, ts_ns=None))],
    "ts_decreasing": [
        one(READ, EOM, WRITE, observation(pb.CLOSE, START_NS - 1)),
    ],
    "ts_future": [one(observation(pb.CLOSE, NOW_NS + FUTURE_NS + 1))],
    "ts_ancient": [
        one(observation(pb.CLOSE, ANCIENT_NS - 1)),
        one(observation(pb.CLOSE, 0)),
    ],
    "response_interim": [
        exchange(GET, HINTS + OK),
        exchange(UPGRADE, SWITCHING),
        interim_in_a_cut_response(),
    ],
    "request_leftover": [exchange(GET + GET)],
    "response_missing": [
        made(Producer().read(GET).eom().exchange(POST, OK).close()),
        made(Producer().read(GET).eom().close()),
    ],
    "response_leftover": [
        exchange(GET, OK + OK),
        made(Producer().exchange(GET, OK + OK).flush()),
    ],
    "tunnel": [exchange(CONNECT, b"HTTP/1.1 200 OK\r\n\r\n")],
    "http2_preface": [exchange(PREFACE)],
    "request_limits": [exchange(long_line(4097)), exchange(long_headers(8193))],
    "request_malformed": [exchange(GET.replace(b"\r\nX-A", b"\nX-A"))],
    "request_framing": [exchange(POST[:-1])],
    "response_malformed": [exchange(GET, b"HTTP/1.1 OK\r\n\r\n")],
    "response_framing": [exchange(GET, OK[:-1]), exchange(GET, b"HTTP/1.1 200 OK\r\n\r\n")],
    "expect": [exchange(GET.replace(b"X-A: 1", b"Expect: 100-continue"))],
    "expired_open": [silent_exchange()],
}

# A record that comes late was missing before.
COMPANIONS = {"number_order": ["number_hole"]}

CRAFTED = [
    pytest.param(slug, records, id=f"{slug}-{at}")
    for slug, topics in VIOLATIONS.items()
    for at, records in enumerate(topics)
]


def slugs_of(records):
    violations = verify_topic(records, now_ns=NOW_NS).violations
    return sorted(violation.slug for violation in violations)


@pytest.mark.parametrize("slug, records", CRAFTED)
def test_rule_is_violated_and_no_other(slug, records):
    assert slugs_of(records) == sorted([slug, *COMPANIONS.get(slug, [])])


def test_every_rule_has_a_topic_that_violates_it():
    assert VIOLATIONS.keys() == RULES.keys()


# ---- what must not be complained about

ABANDONED_AT_ONCE = one(EXCEPTION, CLOSE)

LEGAL = {
    "lone close": one(CLOSE),
    "lone exception and close": ABANDONED_AT_ONCE,
    "no close": topic(stream([READ, EOM, WRITE])),
    "half a request": topic(stream([READ])),
    "equal times": one(READ, EOM, WRITE, CLOSE),
    "cut response": one(READ, EOM, observation(pb.WRITE, data=OK[:-1]), EXCEPTION, CLOSE),
    "no response": one(READ, EOM, EXCEPTION, CLOSE),
    "cut run of writes": one(READ, EOM, WRITE_SEGMENT, EXCEPTION, CLOSE),
    "cut run of reads": one(READ, EOM, WRITE, READ_SEGMENT, CLOSE),
    "dropped request": one(READ, EOM, WRITE, READ, DROPPED, READ, EOM, WRITE, CLOSE),
    "value of the largest size": of_value_size(MAX_VALUE_BYTES),
    "dropped run of reads": one(READ, READ_SEGMENT, DROPPED, READ, EOM, WRITE, CLOSE),
    "the oldest time": one(observation(pb.CLOSE, ANCIENT_NS)),
    "now, nearly": one(observation(pb.CLOSE, NOW_NS + FUTURE_NS)),
    "key as bytes": topic(stream([CLOSE], last=True), key=b"conn"),
}


@pytest.mark.parametrize("records", LEGAL.values(), ids=LEGAL.keys())
def test_legal_topic_is_clean(records):
    assert slugs_of(records) == []


CLEAN_CASES = [name for name, case in CASES.items() if not case.violations]


@pytest.mark.parametrize("name", CLEAN_CASES)
def test_truncation_behind_any_record_is_legal(name):
    values = CASES[name].values
    for end in range(len(values) + 1):
        assert slugs_of(topic(*values[:end])) == []


@pytest.mark.parametrize("name", CLEAN_CASES)
def test_excision_duplication_and_reordering_are_not_legal(name):
    values = CASES[name].values
    for at in range(len(values) - 1):
        without = values[:at] + values[at + 1 :]
        assert "number_hole" in slugs_of(topic(*without))
    for at in range(len(values)):
        doubled = values[: at + 1] + values[at:]
        assert {"number_duplicate", "id_reused"} & set(slugs_of(topic(*doubled)))
    for order in itertools.permutations(values):
        if list(order) != values:
            assert "number_hole" in slugs_of(topic(*order))


def test_topic_that_begins_with_a_write_breaks_both_rules():
    assert slugs_of(one(WRITE, CLOSE)) == ["first_not_read", "write_before_eom"]


def test_violation_says_rule_place_and_detail():
    (violation,) = verify_topic(one(CLOSE, number=2), now_ns=NOW_NS).violations
    text = str(violation)
    assert text.startswith("rule 2.9 number_hole: ")
    assert "number 2, expected 1" in text
    assert "connection conn partition 0 offset 0" in text
