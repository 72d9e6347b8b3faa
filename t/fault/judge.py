"""What became of every request of a Load: the topic, as the reference consumer reads
it, against what clients sent and got, what the source executed, and what the
product counted.

    verdict = judge(records, [load], executions, counts)
    verdict.assert_clean()                      nothing wrong at all
    verdict.assert_clean("lost", "cut")         these may be, and are counted
"""

from dataclasses import dataclass, field, fields

from refconsumer import http, response_problem
from refconsumer.verify import verify_topic

from fault.load import ANSWERED, CUT, UNSERVED

SHOWN = 5
MOMENT_NS = 500_000_000


@dataclass
class Verdict:
    """Each list says which requests, in words or by id."""
    violations: list = field(default_factory=list)    # of the record contract
    unclosed: list = field(default_factory=list)      # connectionIds without close
    lost: list = field(default_factory=list)          # answered or executed: not there
    cut: list = field(default_factory=list)           # there without a whole response
    doubled: list = field(default_factory=list)       # there twice
    corrupted: list = field(default_factory=list)     # its bytes are others
    unknown: list = field(default_factory=list)       # nobody sent it
    disordered: list = field(default_factory=list)    # against its client's order
    unexecuted: list = field(default_factory=list)    # there; the source never had it
    reexecuted: list = field(default_factory=list)    # by the source, more than once
    at_kill: list = field(default_factory=list)       # see judge()
    client_errors: list = field(default_factory=list)
    counters: list = field(default_factory=list)      # they say something else
    whole: int = 0       # exchanges that are in the topic with their responses
    vague: int = 0       # cut off, not executed, not there: perhaps never seen
    unserved: int = 0    # met the end of an idle connection: no error, as HTTP is
    refused: int = 0     # by capture_on_failure refuse: 503, and never executed

    def problems(self, *allowed):
        names = {f.name for f in fields(self)}
        assert set(allowed) <= names, f"no such class: {set(allowed) - names}"
        return {name: what for name, what in vars(self).items()
                if isinstance(what, list) and what and name not in allowed}

    def assert_clean(self, *allowed):
        problems = self.problems(*allowed)
        assert not problems, f"{self}\n" + "\n".join(
            f"{name}: {_some(what)}" for name, what in problems.items())

    def __str__(self):
        return ", ".join(
            f"{name} {len(what) if isinstance(what, list) else what}"
            for name, what in vars(self).items() if what or name == "whole")


def _some(what):
    more = f" ... and {len(what) - SHOWN} more" if len(what) > SHOWN else ""
    return "; ".join(str(w) for w in what[:SHOWN]) + more


def judge(records, loads, executions, counts=None, kills=()):
    """`counts`: a Counts of everything that the loads had sent, once the load has
    ended; None where nobody knows (no part lived to the end).
    `kills`: when workers were killed, as time.monotonic_ns(). What a worker has
    done in its last turn, and not yet published, nobody has seen: an exchange
    that ended in such a moment without a trace is at_kill instead of lost."""
    verdict = Verdict()
    asked = {a.id: a for load in loads for a in load.asked}
    assert len(asked) == sum(len(load.asked) for load in loads), "ids are reused"
    result = verify_topic(records)
    verdict.violations += result.violations
    verdict.unclosed += [c.connection_id for c in result.connections.values()
                         if not c.closed]
    there = _exchanges(verdict, result, asked)
    _absent(verdict, asked, there, executions, kills)
    _order(verdict, result, asked)
    _clients(verdict, asked, executions, kills)
    verdict.reexecuted += [id for id, stamps in executions.items()
                           if len(stamps) > 1]
    if counts is not None:
        verdict.counters += disagreements(verdict, counts, len(there))
    return verdict


def id_of(request):
    """The id of a captured request; None without one."""
    try:
        values = http.parse_request(request).values(b"x-id")
    except http.HttpError:
        return None
    return values[0].decode() if len(values) == 1 else None


def _exchanges(verdict, result, asked):
    """The ids that are in the topic as requests that will be replayed."""
    there = {}
    for e in result.exchanges:
        id = id_of(e.request)
        if id not in asked:
            verdict.unknown.append(f"{id}: {e.request[:80]!r}")
        else:
            there.setdefault(id, []).append(e)
    for id, copies in there.items():
        verdict.doubled += [id] * (len(copies) - 1)
        # of one that is there twice, one may have been cut off where it was in doubt
        copies.sort(key=lambda e: bool(response_problem(e)))
        _compare(verdict, copies[0], asked[id])
    return set(there)


def _compare(verdict, e, asked):
    problem = http.same_request(e.request, asked.raw)
    if problem:
        verdict.corrupted.append(f"{asked.id}, request: {problem}")
    if response_problem(e):
        verdict.cut.append(asked.id)
        return
    verdict.whole += 1
    if asked.end == ANSWERED:
        problem = http.same_response(e.response, asked.head, asked.body,
                                     asked.method.encode())
        if problem:
            verdict.corrupted.append(f"{asked.id}, response: {problem}")


def near(asked, kills):
    """Was it in work at one of these moments, as far as its client can tell? One
    that is busy sees an end a moment late."""
    return any(asked.sent_ns <= ns <= asked.end_ns
               or abs(asked.end_ns - ns) < MOMENT_NS for ns in kills)


def _absent(verdict, asked, there, executions, kills):
    for id, a in asked.items():
        if id in there:
            if id not in executions:
                verdict.unexecuted.append(id)
        elif _is_refusal(a) and id not in executions:
            verdict.refused += 1
        elif a.end == ANSWERED or id in executions:
            (verdict.at_kill if near(a, kills) else verdict.lost).append(id)
        elif a.end == CUT:
            verdict.vague += 1


def _is_refusal(asked):
    return asked.status == 503 and b"\r\nretry-after:" in asked.head.lower()


def _order(verdict, result, asked):
    """A connectionId has requests of one client connection, in their order; and
    where a client connection has had several, one comes after the other."""
    # a client asks one at a time, so the order of sending is that of asked
    place = {id: i for i, id in enumerate(asked)}
    spans = {}
    for connection, exchanges in result.by_connection().items():
        ids = [i for i in (id_of(e.request) for e in exchanges)
               if i in asked and i not in verdict.doubled]
        if not ids:
            continue
        clients = {(a.raw.split(b" ")[1].rsplit(b"/", 1)[0])
                   for a in (asked[i] for i in ids)}
        if len(clients) > 1:
            verdict.disordered.append(
                f"{connection} mixes the connections {sorted(clients)}")
            continue
        places = [place[i] for i in ids]
        if places != sorted(places):
            verdict.disordered.append(f"{connection}: {ids}")
        spans.setdefault(clients.pop(), []).append((min(places), max(places)))
    for client, list_ in spans.items():
        list_.sort()
        if any(a[1] > b[0] for a, b in zip(list_, list_[1:])):
            verdict.disordered.append(
                f"{client}: connectionIds overlap: {list_}")


def _clients(verdict, asked, executions, kills):
    for id, a in asked.items():
        if a.end == UNSERVED and id not in executions:
            # a worker that was killed may have read it
            if near(a, kills):
                verdict.vague += 1
            else:
                verdict.unserved += 1
        elif a.end != ANSWERED:
            verdict.client_errors.append(f"{id} {a.end} after {a.took:.3f} s"
                                         if a.end else f"{id} without an end")
        elif _is_refusal(a):
            if id in executions:
                verdict.client_errors.append(f"{id} was refused and executed")
        elif b"\r\nX-Id: %s\r\n" % id.encode() not in a.head:
            verdict.client_errors.append(f"{id} got {a.head[:60]!r}")


def disagreements(verdict, counts, there):
    """What the counters say that topic, clients and source do not bear out.
    `there` is the number of requests in the topic."""
    lost, cut = len(verdict.lost), len(verdict.cut)
    vague = verdict.vague + len(verdict.at_kill)
    refused = verdict.refused
    filtered, doubt = counts.total("filtered"), counts.doubt()
    response = counts.lost.get("response", 0)
    # What was cut off by a break may have been seen or not, have been given up
    # (filtered) or be in doubt; without breaks and doubts each is an equality.
    rules = [
        ("seen", there + lost + refused, counts.seen,
         there + lost + refused + vague),
        ("captured", counts.captured + response, there,
         counts.captured + response + doubt),
        ("lost without the request", lost + refused - doubt - filtered,
         counts.absent(), lost + vague),
        ("filtered", refused, filtered, refused + lost + vague),
        ("lost(response)", response, cut, response + counts.truncated + doubt),
        ("maybe_doubled", len(verdict.doubled), counts.maybe_doubled,
         counts.maybe_doubled),
    ]
    found = [f"{name}: {least} <= {value} <= {most} is false ({counts})"
             for name, least, value, most in rules
             if not least <= value <= most]
    if not counts.balanced():
        found.append(f"the sum is wrong: {counts}")
    return found
