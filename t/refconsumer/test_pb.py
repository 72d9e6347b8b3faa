"""The decoder takes what a parser takes, and nothing else."""

import pytest

from refconsumer import build, pb
from refconsumer.build import bytes_field, number_field, observation, stream

CLOSE = observation(pb.CLOSE)


def test_every_field_comes_back():
    encoded = stream(
        [
            observation(pb.READ, 1_700_000_000_000_000_007, data=b"\x00\xff"),
            observation(pb.READ_SEGMENT, 5, data=b"segment"),
            observation(pb.EOM, 6, lengths=(19, 13)),
            observation(pb.EXCEPTION, 7, message="zurückgesetzt"),
            CLOSE,
        ],
        number=300,
        last=True,
        connection_id="c",
        node_id="n",
        prior=2,
        unterminated=True,
    )
    got = pb.decode(encoded)
    assert (got.connection_id, got.node_id) == ("c", "n")
    assert (got.number, got.is_last) == (300, True)
    assert (got.prior_requests, got.last_unterminated) == (2, True)
    read, segment, eom, exception, close = got.observations
    assert (read.kind, read.data) == (pb.READ, b"\x00\xff")
    assert read.ts_ns == 1_700_000_000_000_000_007
    assert (segment.kind, segment.data) == (pb.READ_SEGMENT, b"segment")
    assert (eom.first_line_length, eom.headers_length) == (19, 13)
    assert exception.message == "zurückgesetzt"
    assert close.kind == pb.CLOSE
    assert got.oddities == []


def test_absent_fields_are_none():
    got = pb.decode(stream([observation(None, ts_ns=None)], number=None))
    assert got.number is None
    assert got.prior_requests is None
    assert got.last_unterminated is None
    assert got.observations == [pb.Observation()]


def test_present_false_is_not_absent():
    assert pb.decode(stream([CLOSE], unterminated=False)).last_unterminated is False


def test_negative_lengths_come_back():
    (eom,) = pb.decode(stream([observation(pb.EOM, lengths=(-1, -1))])).observations
    assert (eom.first_line_length, eom.headers_length) == (-1, -1)


def test_order_of_fields_does_not_matter():
    encoded = (
        number_field(4, 1)
        + bytes_field(2, bytes_field(11, b"") + bytes_field(1, build.timestamp(5)))
        + bytes_field(5, b"n")
        + bytes_field(1, b"c")
    )
    got = pb.decode(encoded)
    assert (got.connection_id, got.node_id, got.number, got.is_last) == ("c", "n", 1, True)
    assert got.observations == [pb.Observation(pb.CLOSE, 5)]


def test_empty_value_is_a_stream_without_observations():
    assert pb.decode(b"") == pb.TrafficStream()


READ_DATA_IN_FIELD_2 = bytes_field(4, bytes_field(2, b"data"))

ODD = {
    "unknown varint": (stream([CLOSE], extra=number_field(99, 1)), "unknown field 99"),
    "unknown bytes": (stream([CLOSE], extra=bytes_field(98, b"x")), "unknown field 98"),
    "unknown fixed32": (stream([CLOSE], extra=b"\x45abcd"), "unknown field 8"),
    "unknown fixed64": (stream([CLOSE], extra=b"\x41abcdefgh"), "unknown field 8"),
    "unknown in observation": (stream([CLOSE + number_field(77, 1)]), "unknown field 77"),
    "data in a segment's field": (
        stream([READ_DATA_IN_FIELD_2]),
        "read has the unknown field 2",
    ),
    "two captures": (stream([CLOSE + bytes_field(4, b"")]), "several captures"),
    "capture twice": (stream([CLOSE + bytes_field(11, b"")]), "close is there twice"),
    "two ids": (stream([CLOSE], extra=bytes_field(1, b"x")), "connectionId is there twice"),
    "two indexes": (stream([CLOSE], extra=number_field(4, 2)), "are both set"),
    "nanos": (
        stream([bytes_field(1, number_field(2, 10**9)) + bytes_field(11, b"")]),
        "nanos",
    ),
}


@pytest.mark.parametrize("encoded, expected", ODD.values(), ids=ODD.keys())
def test_what_parsers_skip_is_recorded(encoded, expected):
    (oddity,) = pb.decode(encoded).oddities
    assert expected in oddity


def test_last_of_a_oneof_wins():
    got = pb.decode(stream([CLOSE + bytes_field(4, bytes_field(1, b"x"))]))
    assert got.observations[0].kind == pb.READ
    assert got.observations[0].data == b"x"


def test_message_that_comes_twice_is_merged():
    seconds = bytes_field(1, number_field(1, 3))
    nanos = bytes_field(1, number_field(2, 4))
    (got,) = pb.decode(stream([seconds + nanos + bytes_field(11, b"")])).observations
    assert got.ts_ns == 3_000_000_004


BAD = {
    "text": (b"no protobuf at all", "wire type"),
    "truncated tag": (b"\x80", "cut short"),
    "truncated varint": (stream([CLOSE], number=None) + b"\x18\x80", "cut short"),
    "varint of eleven bytes": (b"\x18" + b"\x80" * 10 + b"\x01", "more than ten"),
    "length past the end": (b"\x0a\x05conn", "passes the end"),
    "fixed64 past the end": (b"\x41abc", "passes the end"),
    "group": (stream([CLOSE], extra=b"\x4b\x4c"), "wire type 3"),
    "wire type 7": (b"\x4f", "wire type 7"),
    "field number 0": (b"\x02\x00", "field number 0"),
    "field number too large": (build.varint(1 << 33) + b"\x00", "not possible"),
    "connectionId as varint": (b"\x08\x05", "wire type 0, must have 2"),
    "number as bytes": (b"\x1a\x01a", "wire type 2, must have 0"),
    "connectionId not UTF-8": (bytes_field(1, b"\xff"), "connectionId is not UTF-8"),
    "nodeId a surrogate": (bytes_field(5, b"\xed\xa0\x80"), "nodeId is not UTF-8"),
    "message not UTF-8": (
        stream([bytes_field(12, bytes_field(1, b"\xc3"))]),
        "connectionException.message is not UTF-8",
    ),
    "observation cut": (bytes_field(2, b"\x5a\x05"), "passes the end"),
    "timestamp cut": (stream([bytes_field(1, b"\x08")]), "cut short"),
}


@pytest.mark.parametrize("encoded, expected", BAD.values(), ids=BAD.keys())
def test_what_is_no_stream_is_refused(encoded, expected):
    with pytest.raises(pb.DecodeError, match=expected):
        pb.decode(encoded)


def test_every_proper_prefix_is_refused_or_shorter():
    """A truncated value never decodes to the same stream by accident."""
    encoded = stream([observation(pb.READ, data=b"GET / HTTP/1.1\r\n\r\n"), CLOSE])
    whole = pb.decode(encoded)
    for end in range(len(encoded)):
        try:
            assert pb.decode(encoded[:end]) != whole
        except pb.DecodeError:
            pass
