"""Exchanges out of records, by the rules of the Replayer's accumulator.

    WAITING   read, readSegment -> READS; all else is ignored
    IGNORING  write, writeSegment, endOfMessage, requestDropped -> WAITING;
              the rest of a request whose beginning nobody has
    READS     read, readSegment, segmentEnd gather; endOfMessage -> WRITES (the
              request is sent now); requestDropped forgets it -> WAITING
    WRITES    write, writeSegment, segmentEnd gather; read, readSegment
              complete the exchange -> READS
    any       close completes a pending response or forgets a pending request
              and removes the connection; connectionException does the same
              and the connection stays, WAITING

A connection is (nodeId, connectionId). This module forgives as the consumer
does; strict.py is what complains.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from . import pb

COMPLETE = "COMPLETE"
EXPIRED = "EXPIRED"
CLOSED_PREMATURELY = "CLOSED_PREMATURELY"
EXCEPTION = "EXCEPTION"

WAITING, IGNORING, READS, WRITES = "WAITING", "IGNORING", "READS", "WRITES"

# The consumer's --packet-timeout-seconds, and the granularity of its queue.
PACKET_TIMEOUT_NS = 360 * 1_000_000_000
EXPIRY_GRANULARITY_NS = 1_000_000_000


@dataclass
class Exchange:
    """One request that was sent to the target, and what the source answered.

    EXCEPTION is COMPLETE for the consumer; told apart here, because such a
    response may be cut.
    """

    node_id: str
    connection_id: str
    index: int
    request_packets: list[bytes]
    request_first_ns: int | None
    request_last_ns: int | None
    eom_ns: int | None
    response_packets: list[bytes] = field(default_factory=list)
    response_first_ns: int | None = None
    response_last_ns: int | None = None
    status: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.node_id, self.connection_id

    @property
    def request(self) -> bytes:
        return b"".join(self.request_packets)

    @property
    def response(self) -> bytes:
        return b"".join(self.response_packets)


@dataclass
class Connection:
    """What is left of a connection when the topic is read."""

    node_id: str
    connection_id: str
    records: int = 0
    exchanges: int = 0
    closed: bool = False
    expired: bool = False
    exceptions: list[str] = field(default_factory=list)
    forgotten: list[tuple[str, bytes]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass
class Accumulated:
    exchanges: list[Exchange] = field(default_factory=list)
    connections: dict[tuple[str, str], Connection] = field(default_factory=dict)


class _Message:
    """The packets of one message; a segment run becomes one packet at its end."""

    def __init__(self):
        self.packets: list[bytes] = []
        self.first_ns = None
        self.last_ns = None
        self._run: list[bytes] | None = None

    def add(self, observation):
        self._stamp(observation)
        self.packets.append(observation.data)

    def add_segment(self, observation):
        self._stamp(observation)
        if self._run is None:
            self._run = []
        self._run.append(observation.data)

    def end_segments(self):
        # Without a run the consumer dies; here the observation is void.
        if self._run is not None:
            self.packets.append(b"".join(self._run))
            self._run = None

    def _stamp(self, observation):
        if self.first_ns is None:
            self.first_ns = observation.ts_ns
        self.last_ns = observation.ts_ns


class _Accumulation:
    """One live connection: the state machine drawn at the top of this file."""

    def __init__(self, stream, connection, exchanges):
        self.connection = connection
        self.newest_ns = 0
        self._exchanges = exchanges
        # Presence counts, not value: an explicit false shifts the index too.
        resumed = stream.last_unterminated is not None
        self._index = (stream.prior_requests or 0) + int(resumed)
        self._state = IGNORING if stream.last_unterminated else WAITING
        self._request = _Message()
        self._response = _Message()
        self._exchange: Exchange | None = None

    def step(self, observation) -> bool:
        """Takes one observation; False when the connection is gone."""
        if observation.kind == pb.CLOSE:
            self._settle(COMPLETE, "close")
            self.connection.closed = True
            return False
        if observation.kind == pb.EXCEPTION:
            self.connection.exceptions.append(observation.message)
            self._settle(EXCEPTION, "connectionException")
            return True
        self._HANDLERS[self._state](self, observation)
        return True

    def end(self, status):
        """The consumer gives up: the source ended, or the connection expired."""
        self._settle(status, status)
        self.connection.expired = status == EXPIRED

    def _waiting(self, observation):
        if observation.kind in (pb.READ, pb.READ_SEGMENT):
            self._state = READS
            self._reads(observation)
        else:
            self._ignore(observation)

    def _ignoring(self, observation):
        if observation.kind in (pb.WRITE, pb.WRITE_SEGMENT, pb.EOM):
            self._state = WAITING
        elif observation.kind == pb.DROPPED:
            self._forget_unseen()
        self._ignore(observation)

    def _reads(self, observation):
        if observation.kind == pb.READ:
            self._request.add(observation)
        elif observation.kind == pb.READ_SEGMENT:
            self._request.add_segment(observation)
        elif observation.kind == pb.SEGMENT_END:
            self._request.end_segments()
        elif observation.kind == pb.EOM:
            self._request_received(observation)
        elif observation.kind == pb.DROPPED:
            self._forget("requestDropped")
        else:
            self._ignore(observation)

    def _writes(self, observation):
        if observation.kind == pb.WRITE:
            self._response.add(observation)
        elif observation.kind == pb.WRITE_SEGMENT:
            self._response.add_segment(observation)
        elif observation.kind == pb.SEGMENT_END:
            self._response.end_segments()
        elif observation.kind in (pb.READ, pb.READ_SEGMENT):
            self._response_received(COMPLETE)
            self._waiting(observation)
        else:
            self._ignore(observation)

    _HANDLERS = {WAITING: _waiting, IGNORING: _ignoring, READS: _reads, WRITES: _writes}

    def _request_received(self, eom):
        request = self._request
        self._exchange = Exchange(
            self.connection.node_id,
            self.connection.connection_id,
            self._index,
            request.packets,
            request.first_ns,
            request.last_ns,
            eom.ts_ns,
        )
        # In the order of requests: this is the moment at which it is replayed.
        self._exchanges.append(self._exchange)
        self.connection.exchanges += 1
        self._request = _Message()
        self._state = WRITES

    def _response_received(self, status):
        exchange, response = self._exchange, self._response
        exchange.response_packets = response.packets
        exchange.response_first_ns = response.first_ns
        exchange.response_last_ns = response.last_ns
        exchange.status = status
        self._exchange = None
        self._response = _Message()
        self._index += 1
        self._state = WAITING

    def _settle(self, status, why):
        if self._state == WRITES:
            self._response_received(status)
        elif self._state == READS:
            self._forget(why)
        elif self._state == IGNORING:
            self._forget_unseen()

    def _forget(self, why):
        # Unfinished segments count: the bytes were captured, and are lost.
        self._request.end_segments()
        self.connection.forgotten.append((why, b"".join(self._request.packets)))
        self._request = _Message()
        self._state = WAITING

    def _forget_unseen(self):
        # The request counted in advance never happened.
        self._index -= 1
        self._state = WAITING

    def _ignore(self, observation):
        self.connection.ignored.append(f"{observation.kind} in {self._state}")


class _Accumulator:
    def __init__(self, packet_timeout_ns):
        self.result = Accumulated()
        # Oldest first: every observation moves its connection to the end.
        self._live: OrderedDict[tuple[str, str], _Accumulation] = OrderedDict()
        self._newest_ns = 0
        self._lifetime_ns = packet_timeout_ns + EXPIRY_GRANULARITY_NS

    def accept(self, stream):
        key = stream.node_id, stream.connection_id
        connection = self.result.connections.setdefault(key, Connection(*key))
        connection.records += 1
        if not stream.observations:
            return
        if key not in self._live:
            self._live[key] = _Accumulation(stream, connection, self.result.exchanges)
        accumulation = self._live[key]
        for observation in stream.observations:
            self._advance(key, accumulation, observation)
            if not accumulation.step(observation):
                # What follows close in the record is never looked at.
                del self._live[key]
                return

    def finish(self) -> Accumulated:
        for accumulation in self._live.values():
            accumulation.end(CLOSED_PREMATURELY)
        self._live.clear()
        return self.result

    def _advance(self, key, accumulation, observation):
        # Stream time is the newest seen by any connection, and only that.
        self._newest_ns = max(self._newest_ns, observation.ts_ns or 0)
        accumulation.newest_ns = self._newest_ns
        self._live.move_to_end(key)
        while True:
            oldest_key, oldest = next(iter(self._live.items()))
            if self._newest_ns - oldest.newest_ns <= self._lifetime_ns:
                return
            oldest.end(EXPIRED)
            del self._live[oldest_key]


def accumulate(streams, packet_timeout_ns=PACKET_TIMEOUT_NS) -> Accumulated:
    """Feeds decoded TrafficStreams, in consumption order, to the accumulator."""
    accumulator = _Accumulator(packet_timeout_ns)
    for stream in streams:
        accumulator.accept(stream)
    return accumulator.finish()
