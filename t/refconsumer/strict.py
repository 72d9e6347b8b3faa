"""Strict mode: what a correct producer never writes, even if it is survived.

check_records looks at the records of a topic in the consumer's order,
check_exchanges at what the accumulator made of them. Both return Violations.
"""

import time

from . import http, pb
from .accumulate import COMPLETE, EXPIRED
from .grammar import Grammar
from .rules import Violation

MAX_VALUE_BYTES = 1_048_076

# Hosts disagree a little about the time; nothing was captured before 2020.
FUTURE_NS = 300 * 1_000_000_000
ANCIENT_NS = 1_577_836_800 * 1_000_000_000

# A response that was cut may lack its end; it can be no other message.
WRONG_EVEN_IF_CUT = ("response_interim", "response_leftover", "tunnel")


def check_records(records, now_ns=None) -> list[Violation]:
    """Checks Records (record.py) in the order in which they are consumed."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    violations: list[Violation] = []
    connections: dict[str, _Connection] = {}
    for record in records:
        report = _reporter(violations, record)
        if not _check_value(record, report):
            continue
        stream = record.stream
        _check_ids(record, report)
        connection = connections.setdefault(stream.connection_id, _Connection(now_ns))
        connection.check(record, report)
    return violations


def check_exchanges(exchanges) -> list[Violation]:
    """Checks that each exchange is one request and, when complete, one response."""
    violations = []
    for exchange in exchanges:
        where = f"connection {exchange.connection_id} exchange {exchange.index}"
        for slug, detail in _exchange_problems(exchange):
            violations.append(Violation(slug, where, detail))
    return violations


def response_problem(exchange) -> http.HttpError | None:
    """Why an exchange's response is not exactly one whole final response."""
    try:
        http.parse_response(exchange.response, _method(exchange.request))
    except http.HttpError as error:
        return error
    return None


def _exchange_problems(exchange):
    try:
        http.parse_request(exchange.request)
    except http.HttpError as error:
        yield error.rule, f"request: {error}"
    problem = response_problem(exchange)
    if problem is None:
        return
    if exchange.status == COMPLETE or problem.rule in WRONG_EVEN_IF_CUT:
        yield problem.rule, f"response: {problem}"
    elif exchange.status == EXPIRED:
        yield "expired_open", f"expired with: {problem}"


def _method(request: bytes) -> bytes:
    return request.lstrip(b"\r\n").split(b" ", 1)[0]


def _reporter(violations, record):
    def report(slug, detail):
        where = record.where
        if record.stream is not None:
            where = f"connection {record.stream.connection_id} {where}"
        violations.append(Violation(slug, where, detail))

    return report


def _check_value(record, report) -> bool:
    """Whether there is anything to look at, beside the value's own rules."""
    if record.value is None:
        report("value_null", "null value")
        return False
    if len(record.value) > MAX_VALUE_BYTES:
        report("value_too_large", f"{len(record.value)} bytes")
    if not record.value:
        report("value_empty", "empty value")
        return False
    if record.stream is None:
        report("unparsable", record.error)
        return False
    for oddity in record.stream.oddities:
        report("oddity", oddity)
    if not record.stream.observations:
        report("no_observations", "no observation")
    return True


def _check_ids(record, report):
    connection_id = record.stream.connection_id
    if record.key != connection_id:
        report("key", f"key {record.key!r}")
    if not connection_id or set(connection_id) & set("|\n\r"):
        report("connection_id", f"connectionId {connection_id!r}")
    if not record.stream.node_id:
        report("node_id", "nodeId is empty")


class _Connection:
    """What one connectionId's records have said so far."""

    def __init__(self, now_ns):
        self._now_ns = now_ns
        self._node_id = None
        self._partition = None
        self._expected = 1
        self._missing: set[int] = set()
        self._newest_ns = None
        self._grammar = Grammar()

    def check(self, record, report):
        stream = record.stream
        self._check_home(record, report)
        self._check_life(stream, report)
        self._check_number(stream, report)
        self._check_last_chunk(stream, report)
        self._check_resume_fields(stream, report)
        for observation in stream.observations:
            self._check_time(observation, report)
            for problem in self._grammar.step(observation):
                report(*problem)

    def _check_home(self, record, report):
        node_id = record.stream.node_id
        if self._node_id not in (None, node_id):
            report("node_changed", f"nodeId {node_id}, was {self._node_id}")
        if self._partition not in (None, record.partition):
            report("partition_changed", f"was on partition {self._partition}")
        self._node_id, self._partition = node_id, record.partition

    def _check_life(self, stream, report):
        if not self._grammar.closed or stream.number != 1:
            return
        report("id_reused", "begins again at number 1 after close")
        # A second life: judge its records as a connection of their own.
        self._expected = 1
        self._missing.clear()
        self._grammar = Grammar()

    def _check_number(self, stream, report):
        number = stream.number
        if number is None:
            report("index_missing", "neither number nor numberOfThisLastChunk")
        elif number > self._expected or number < 1:
            report("number_hole", f"number {number}, expected {self._expected}")
            self._missing.update(range(self._expected, number))
        elif number in self._missing:
            report("number_order", f"number {number} after {self._expected - 1}")
            self._missing.discard(number)
            return
        elif number < self._expected:
            report("number_duplicate", f"number {number} again")
            return
        self._expected = (self._expected if number is None else number) + 1

    def _check_last_chunk(self, stream, report):
        closes = any(one.kind == pb.CLOSE for one in stream.observations)
        if stream.is_last and not closes:
            report("last_chunk", "numberOfThisLastChunk without close")
        if closes and not stream.is_last:
            report("last_chunk", "close without numberOfThisLastChunk")

    def _check_resume_fields(self, stream, report):
        grammar = self._grammar
        if stream.prior_requests == 0:
            report("prior_zero", "priorRequestsReceived is present and 0")
        if (stream.prior_requests or 0) != grammar.eoms:
            report(
                "prior_wrong",
                f"priorRequestsReceived {stream.prior_requests}, must be {grammar.eoms}",
            )
        if stream.last_unterminated is False:
            report("unterminated_false", "present and false")
        if bool(stream.last_unterminated) != grammar.reads_open:
            report(
                "unterminated_wrong",
                f"is {stream.last_unterminated}, must be {grammar.reads_open}",
            )

    def _check_time(self, observation, report):
        ts_ns, kind = observation.ts_ns, observation.kind
        if ts_ns is None:
            report("ts_missing", f"{kind} without ts")
            return
        if self._newest_ns is not None and ts_ns < self._newest_ns:
            report("ts_decreasing", f"{kind} goes back by {self._newest_ns - ts_ns} ns")
        if ts_ns > self._now_ns + FUTURE_NS:
            report("ts_future", f"{kind} is {(ts_ns - self._now_ns) // 10**9} s ahead")
        if ts_ns < ANCIENT_NS:
            report("ts_ancient", f"{kind} at {ts_ns} ns")
        self._newest_ns = max(ts_ns, self._newest_ns or ts_ns)
