"""The protobuf bytes of one TrafficStream, decoded by hand.

Written without a schema compiler on purpose: a producer whose schema file has
a wrong field number would agree with itself, and must not agree with this.
Parsers skip what they do not know; what they skip is kept in `oddities`, so
that strict mode can refuse what a correct producer never writes.
"""

from dataclasses import dataclass, field

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_FIELD_NUMBER = (1 << 29) - 1
MASK64 = (1 << 64) - 1

READ = "read"
READ_SEGMENT = "readSegment"
WRITE = "write"
WRITE_SEGMENT = "writeSegment"
SEGMENT_END = "segmentEnd"
EOM = "endOfMessageIndicator"
DROPPED = "requestDropped"
EXCEPTION = "connectionException"
CLOSE = "close"

CAPTURE_KINDS = {
    2: "bind",
    3: "connect",
    4: READ,
    5: READ_SEGMENT,
    6: "requestReleasedDownstream",
    8: WRITE,
    9: WRITE_SEGMENT,
    10: "disconnect",
    11: CLOSE,
    12: EXCEPTION,
    14: SEGMENT_END,
    15: EOM,
    16: DROPPED,
}

# Of each message, the fields that exist: number -> (name, wire type).
STREAM_FIELDS = {
    1: ("connectionId", LENGTH),
    2: ("subStream", LENGTH),
    3: ("number", VARINT),
    4: ("numberOfThisLastChunk", VARINT),
    5: ("nodeId", LENGTH),
    6: ("priorRequestsReceived", VARINT),
    7: ("lastObservationWasUnterminatedRead", VARINT),
}
OBSERVATION_FIELDS = {1: ("ts", LENGTH)} | {
    number: (kind, LENGTH) for number, kind in CAPTURE_KINDS.items()
}
TIMESTAMP_FIELDS = {1: ("seconds", VARINT), 2: ("nanos", VARINT)}
CAPTURE_FIELDS = {
    READ: {1: ("data", LENGTH)},
    WRITE: {1: ("data", LENGTH)},
    READ_SEGMENT: {2: ("data", LENGTH)},
    WRITE_SEGMENT: {2: ("data", LENGTH)},
    EXCEPTION: {1: ("message", LENGTH)},
    EOM: {1: ("firstLineByteLength", VARINT), 2: ("headersByteLength", VARINT)},
    "requestReleasedDownstream": {1: ("timedOut", VARINT)},
}


class DecodeError(ValueError):
    """The bytes are no TrafficStream."""


@dataclass
class Observation:
    kind: str | None = None
    ts_ns: int | None = None
    data: bytes = b""
    message: str | None = None
    first_line_length: int | None = None
    headers_length: int | None = None


@dataclass
class TrafficStream:
    """One record's value. None means: the field is not on the wire."""

    connection_id: str = ""
    node_id: str = ""
    number: int | None = None
    is_last: bool = False
    prior_requests: int | None = None
    last_unterminated: bool | None = None
    observations: list[Observation] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)


def decode(value: bytes) -> TrafficStream:
    """Decodes a record's value; DecodeError when a parser would refuse it."""
    stream = TrafficStream()
    seen: set[str] = set()
    for name, raw in _known_fields(
        memoryview(value), STREAM_FIELDS, "TrafficStream", stream.oddities
    ):
        if name == "subStream":
            stream.observations.append(_observation(raw, stream.oddities))
            continue
        if name in seen:
            stream.oddities.append(f"TrafficStream.{name} is there twice")
        seen.add(name)
        _set_stream_field(stream, name, raw)
    if {"number", "numberOfThisLastChunk"} <= seen:
        stream.oddities.append("number and numberOfThisLastChunk are both set")
    return stream


def _set_stream_field(stream, name, raw):
    if name == "connectionId":
        stream.connection_id = _text(raw, "connectionId")
    elif name == "nodeId":
        stream.node_id = _text(raw, "nodeId")
    elif name == "priorRequestsReceived":
        stream.prior_requests = _int32(raw)
    elif name == "lastObservationWasUnterminatedRead":
        stream.last_unterminated = raw != 0
    else:
        # A oneof: the member that comes last on the wire is the one that is set.
        stream.number = _int32(raw)
        stream.is_last = name == "numberOfThisLastChunk"


def _observation(raw, oddities) -> Observation:
    observation = Observation()
    parts = _merged(raw, OBSERVATION_FIELDS, "TrafficObservation", oddities)
    if "ts" in parts:
        observation.ts_ns = _timestamp(parts.pop("ts"), oddities)
    if len(parts) > 1:
        oddities.append(f"an observation has several captures: {', '.join(parts)}")
    if parts:
        observation.kind, body = parts.popitem()
        _fill(observation, body, oddities)
    return observation


def _fill(observation, body, oddities):
    known = CAPTURE_FIELDS.get(observation.kind, {})
    values = _merged(body, known, observation.kind, oddities)
    if "data" in values:
        observation.data = bytes(values["data"])
    if "message" in values:
        observation.message = _text(values["message"], "connectionException.message")
    elif observation.kind == EXCEPTION:
        observation.message = ""
    if "firstLineByteLength" in values:
        observation.first_line_length = _int32(values["firstLineByteLength"])
    if "headersByteLength" in values:
        observation.headers_length = _int32(values["headersByteLength"])


def _timestamp(raw, oddities) -> int:
    values = _merged(raw, TIMESTAMP_FIELDS, "Timestamp", oddities)
    nanos = _int32(values.get("nanos", 0))
    if not 0 <= nanos < 1_000_000_000:
        oddities.append(f"Timestamp.nanos is {nanos}")
    return _signed(values.get("seconds", 0), 64) * 1_000_000_000 + nanos


def _merged(raw, known, message, oddities) -> dict:
    """A message's singular fields; the last set member of a oneof comes last.

    Parsers merge a message field that comes twice, and merging two encodings
    is concatenating them; a scalar or bytes field takes the last one.
    """
    values: dict = {}
    for name, value in _known_fields(raw, known, message, oddities):
        if name in values:
            oddities.append(f"{message}.{name} is there twice")
            earlier = values.pop(name)
            if known is OBSERVATION_FIELDS:
                value = memoryview(bytes(earlier) + bytes(value))
        values[name] = value
    return values


def _known_fields(raw, known, message, oddities):
    for number, wire, value in _fields(raw):
        if number not in known:
            oddities.append(f"{message} has the unknown field {number}")
            continue
        name, expected = known[number]
        if wire != expected:
            # A lenient parser would skip it as unknown; either way the value
            # is not what the producer meant, so no record may carry it.
            raise DecodeError(
                f"{message}.{name} has wire type {wire}, must have {expected}"
            )
        yield name, value


def _fields(raw):
    at, end = 0, len(raw)
    while at < end:
        tag, at = _varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number <= MAX_FIELD_NUMBER:
            raise DecodeError(f"field number {number} at byte {at} is not possible")
        value, at = _value(raw, at, wire)
        yield number, wire, value


def _value(raw, at, wire):
    if wire == VARINT:
        return _varint(raw, at)
    if wire == LENGTH:
        size, at = _varint(raw, at)
    elif wire in (FIXED32, FIXED64):
        size = 4 if wire == FIXED32 else 8
    else:
        raise DecodeError(f"wire type {wire} at byte {at} is not used by proto3")
    if at + size > len(raw):
        raise DecodeError(
            f"a field of {size} bytes at byte {at} passes the end ({len(raw)})"
        )
    return raw[at : at + size], at + size


def _varint(raw, at):
    result = shift = 0
    while True:
        if at >= len(raw):
            raise DecodeError(f"a varint is cut short at byte {at}")
        if shift >= 70:
            raise DecodeError(f"a varint has more than ten bytes at byte {at}")
        byte = raw[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & MASK64, at
        shift += 7


def _text(raw, name) -> str:
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"{name} is not UTF-8: {error}") from None


def _int32(value: int) -> int:
    return _signed(value & 0xFFFFFFFF, 32)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
