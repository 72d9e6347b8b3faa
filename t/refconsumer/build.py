"""Encodes TrafficStreams, right ones and wrong ones, for tests only.

`Producer` is a correct producer in miniature; the functions below it write
whatever they are told, so that a test can break one rule at a time.
"""

from . import http, pb

START_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000

_FIELD_OF = {kind: number for number, kind in pb.CAPTURE_KINDS.items()}
_DATA_FIELD = {pb.READ: 1, pb.WRITE: 1, pb.READ_SEGMENT: 2, pb.WRITE_SEGMENT: 2}


def varint(value: int) -> bytes:
    value &= pb.MASK64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3 | pb.VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | pb.LENGTH) + varint(len(value)) + value


def timestamp(ts_ns: int) -> bytes:
    seconds, nanos = divmod(ts_ns, 1_000_000_000)
    encoded = number_field(1, seconds)
    return encoded + number_field(2, nanos) if nanos else encoded


def observation(kind, ts_ns=START_NS, data=None, message=None, lengths=None) -> bytes:
    """One TrafficObservation; ts_ns None leaves ts out, kind None the capture."""
    encoded = b"" if ts_ns is None else bytes_field(1, timestamp(ts_ns))
    if kind is None:
        return encoded
    body = b""
    if data is not None:
        body = bytes_field(_DATA_FIELD[kind], data)
    if message is not None:
        body = bytes_field(1, message.encode())
    if lengths is not None:
        body = number_field(1, lengths[0]) + number_field(2, lengths[1])
    return encoded + bytes_field(_FIELD_OF[kind], body)


def stream(
    observations,
    number=1,
    last=False,
    connection_id="conn",
    node_id="node",
    prior=None,
    unterminated=None,
    extra=b"",
) -> bytes:
    """One TrafficStream, field for field as told; None leaves a field out."""
    encoded = bytes_field(1, connection_id.encode())
    encoded += bytes_field(5, node_id.encode())
    if prior is not None:
        encoded += number_field(6, prior)
    if unterminated is not None:
        encoded += number_field(7, int(unterminated))
    encoded += b"".join(bytes_field(2, one) for one in observations)
    if number is not None:
        encoded += number_field(4 if last else 3, number)
    return encoded + extra


class Producer:
    """A correct producer of one connection: observations in, records out."""

    def __init__(self, connection_id="conn", node_id="node", start_ns=START_NS):
        self.connection_id = connection_id
        self.node_id = node_id
        self.now_ns = start_ns
        self.values: list[bytes] = []
        self._pending: list[bytes] = []
        self._request = b""
        self._eoms = 0
        self._prior = 0
        self._unterminated = False

    def at(self, ts_ns: int):
        self.now_ns = ts_ns
        return self

    def read(self, data: bytes):
        self._add(pb.READ, data=data)
        self._request += data
        return self

    def read_segment(self, data: bytes):
        self._add(pb.READ_SEGMENT, data=data)
        self._request += data
        return self

    def eom(self, lengths=None):
        self._add(pb.EOM, lengths=lengths or http.head_lengths(self._request) or (-1, -1))
        self._request = b""
        self._eoms += 1
        return self

    def write(self, data: bytes):
        return self._add(pb.WRITE, data=data)

    def write_segment(self, data: bytes):
        return self._add(pb.WRITE_SEGMENT, data=data)

    def segment_end(self):
        return self._add(pb.SEGMENT_END)

    def drop(self):
        self._request = b""
        return self._add(pb.DROPPED)

    def exception(self, message="Connection reset by peer"):
        return self._add(pb.EXCEPTION, message=message)

    def exchange(self, request: bytes, response: bytes):
        return self.read(request).eom().write(response)

    def close(self):
        self._add(pb.CLOSE)
        return self._flush(last=True)

    def flush(self):
        return self._flush(last=False)

    def _add(self, kind, **parts):
        if not self._pending:
            self._prior = self._eoms
            self._unterminated = bool(self._request)
        self._pending.append(observation(kind, self.now_ns, **parts))
        self.now_ns += STEP_NS
        return self

    def _flush(self, last):
        self.values.append(
            stream(
                self._pending,
                number=len(self.values) + 1,
                last=last,
                connection_id=self.connection_id,
                node_id=self.node_id,
                prior=self._prior or None,
                unterminated=self._unterminated or None,
            )
        )
        self._pending = []
        return self
