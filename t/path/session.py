"""What clients sent and received, to be found again in the topic.

A Session wraps one client connection and keeps each exchange's exact bytes.
`assert_captured` feeds the whole topic to the reference consumer and compares
every exchange with them, in order, byte for byte.
"""

import itertools
from dataclasses import dataclass

from refconsumer import http
from refconsumer.verify import verify_topic
from rig.client import build_request
from rig.status import unbalanced

_ids = itertools.count(1)


@dataclass
class Sent:
    """One exchange as its client saw it."""
    mark: bytes          # unique header value: finds it in the topic
    method: bytes
    raw: bytes           # the request as sent
    answer: object       # rig.client.Answer, or None


class Session:
    """A client connection whose exchanges are to be captured."""

    def __init__(self, stack, **options):
        self.client = stack.client(**options)
        self.exchanges = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def request(self, method, target, headers=(), body=None, chunks=None):
        raw, mark = marked(method, target, headers, body, chunks)
        self.client.send(raw)
        return self.received(method, raw, mark)

    def received(self, method, raw, mark):
        answer = self.client.receive(method)
        self.exchanges.append(Sent(mark, method.encode(), raw, answer))
        return answer


def marked(method, target, headers=(), body=None, chunks=None):
    """(bytes of a request with a header of its own, that header's value)"""
    mark = b"m%d" % next(_ids)
    headers = [("Host", "source.test"), ("X-Mark", mark.decode()), *headers]
    return build_request(method, target, headers, body, chunks), mark


def mark_of(request):
    """The mark of a captured request."""
    values = http.parse_request(request).values(b"x-mark")
    assert len(values) == 1, f"no mark in a captured request: {request[:200]!r}"
    return values[0]


def by_mark(result):
    """{mark: exchange} of a consumer's result, in which each is once."""
    found = {}
    for exchange in result.exchanges:
        mark = mark_of(exchange.request)
        assert mark not in found, f"{mark} is in the topic twice"
        found[mark] = exchange
    return found


def without_barriers(records):
    """What settling leaves in the topic beside: closes, each under an id of its
    own (docs/delivery.md)."""
    return [r for r in records if b"-barrier-" not in r.key]


def assert_captured(records, sessions, all_closed=True, ignore=(), lanes=False):
    """Every exchange of every session is in the topic once, as it was, in the
    order of its connection, and nothing else is. Returns the consumer's result.
    `lanes`: their exchanges were concurrent, on a connectionId each."""
    result = verify_topic(records)
    result.assert_clean(all_closed=all_closed)
    found = by_mark(result)
    sent = {s.mark: s for session in sessions for s in session.exchanges}
    assert set(found) == set(sent), (
        f"missing: {sorted(set(sent) - set(found))[:10]}, "
        f"unexpected: {sorted(set(found) - set(sent))[:10]}")
    for mark, exchange in found.items():
        assert_same(exchange, sent[mark], ignore)
    for session in [] if lanes else sessions:
        assert_order(result, [s.mark for s in session.exchanges], found)
    return result


def assert_same(exchange, sent, ignore=()):
    problem = http.same_request(exchange.request, sent.raw)
    assert problem is None, f"{sent.mark}: {problem}"
    problem = http.same_response(exchange.response, sent.answer.head,
                                 sent.answer.body, sent.method, ignore)
    assert problem is None, f"{sent.mark}: {problem}"


def assert_order(result, marks, found):
    """One client connection without a loss is one connectionId, in order."""
    if not marks:
        return
    ids = {found[m].connection_id for m in marks}
    assert len(ids) == 1, f"one connection's exchanges have {len(ids)} ids"
    order = [mark_of(e.request) for e in result.by_connection()[ids.pop()]]
    assert order == marks


def assert_balanced(status):
    """seen = captured + filtered + lost + pending, for each row and the sum."""
    assert unbalanced(status) == []
    return status


def settled(seen):
    """A condition: `seen` exchanges, none of them in flight, and the sums are
    right. (Other workers' rows are up to a quarter of a second old.) What a worker
    that has ended left to the sidecar, as Kafka had not acknowledged it yet, counts
    as well; what became of it the sidecar says (sidecar.check_totals())."""
    def check(status):
        total = status["total"]
        return (total["pending"] == 0 and total["seen"] + total["left"] == seen
                and total["seen"] == total["captured"]
                + sum(total["filtered"].values())
                + sum(total["lost"].values()))
    return check


def lost(status):
    return sum(status["total"]["lost"].values())
