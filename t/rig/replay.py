"""A small replayer: sends captured requests to a target, as the Traffic Replayer
does but for its pace and its transformations.

Each connectionId is a connection of its own, whose next request waits for the
answer to the one before. Over all of them the requests go out one at a time, in
the order in which they were complete: what one depended on has been answered.
"""

from dataclasses import dataclass

from refconsumer import http

from .client import Client


@dataclass
class Replayed:
    """A captured exchange, and what the target answered."""
    exchange: object         # refconsumer's
    answer: object           # rig.client.Answer

    @property
    def same_status(self):
        captured = http.parse_response(self.exchange.response,
                                       self.exchange.request.split(b" ")[0])
        return captured.status == self.answer.status


def replay(exchanges, port, timeout=60):
    """Sends the request of each exchange, byte for byte; a list of Replayed."""
    clients, replayed = {}, []
    try:
        for exchange in sorted(exchanges, key=lambda e: e.eom_ns):
            replayed.append(_send(exchange, clients, port, timeout))
    finally:
        for client in clients.values():
            client.close()
    return replayed


def _send(exchange, clients, port, timeout):
    key = exchange.key
    if key not in clients:
        clients[key] = Client(port, timeout=timeout)
    clients[key].send(exchange.request)
    answer = clients[key].receive(exchange.request.split(b" ")[0].decode())
    assert answer is not None, f"no answer to {exchange.request[:200]!r}"
    if (answer.header("connection") or "").lower() == "close":
        clients.pop(key).close()
    return Replayed(exchange, answer)
