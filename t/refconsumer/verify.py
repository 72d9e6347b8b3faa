"""A whole topic judged: what every path test ends with."""

from dataclasses import dataclass

from .accumulate import PACKET_TIMEOUT_NS, Connection, Exchange, accumulate
from .record import records_in_order
from .rules import Violation
from .strict import check_exchanges, check_records

SHOWN = 20


@dataclass
class Result:
    exchanges: list[Exchange]
    connections: dict[tuple[str, str], Connection]
    violations: list[Violation]

    def assert_clean(self, all_closed=False):
        """Fails with the violations, if any; all_closed wants every close, too."""
        problems = [str(violation) for violation in self.violations]
        if all_closed:
            problems += [
                f"connection {connection.connection_id} has no close"
                for connection in self.connections.values()
                if not connection.closed
            ]
        if problems:
            shown = problems[:SHOWN]
            if len(problems) > SHOWN:
                shown.append(f"... and {len(problems) - SHOWN} more")
            raise AssertionError(f"{len(problems)} violations:\n" + "\n".join(shown))

    def by_connection(self) -> dict[str, list[Exchange]]:
        """Each connectionId's exchanges, in order."""
        grouped: dict[str, list[Exchange]] = {}
        for exchange in self.exchanges:
            grouped.setdefault(exchange.connection_id, []).append(exchange)
        return grouped


def verify_topic(
    records, now_ns: int | None = None, packet_timeout_ns: int = PACKET_TIMEOUT_NS
) -> Result:
    """Judges (partition, offset, key, value) tuples; key str or bytes or None."""
    ordered = records_in_order(records)
    violations = check_records(ordered, now_ns)
    accumulated = accumulate(
        (record.stream for record in ordered if record.stream is not None),
        packet_timeout_ns,
    )
    violations += check_exchanges(accumulated.exchanges)
    return Result(accumulated.exchanges, accumulated.connections, violations)
