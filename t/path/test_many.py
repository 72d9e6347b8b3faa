"""Many clients at once, and the worth of the whole: none lost, none doubled."""

import random
import threading

import pytest
from rig.source import Response, pattern

from path.session import (Session, assert_balanced, assert_captured, settled)

CONNECTIONS = 50
EXCHANGES = 20  # of each connection


def answer(request):
    seed = len(request.body) + len(request.target)
    size = (0, 10, 1000, 70000)[seed % 4]
    if request.method == "DELETE":
        return Response(status=204)
    if seed % 3 == 0:
        return Response(body=pattern(size, seed), chunked=(1000, 9000))
    return Response(body=pattern(size, seed))


def converse(session, seed):
    """A mix of exchanges, the same for the same seed."""
    r = random.Random(seed)
    for i in range(EXCHANGES):
        kind = r.choice(("GET", "GET", "HEAD", "DELETE", "POST", "PUT", "chunked"))
        target = f"/{seed}/{i}?" + "q" * r.randrange(50)
        body = pattern(r.choice((0, 1, 100, 5000, 120000)), r.randrange(1000))
        if kind in ("POST", "PUT"):
            session.request(kind, target, body=body)
        elif kind == "chunked":
            session.request("POST", target, chunks=[body[:1000], body[1000:]])
        else:
            session.request(kind, target)


@pytest.mark.partitions(6)
def test_a_thousand_exchanges_over_fifty_connections(stack, source):
    """1,000 mixed exchanges, 2 workers, 6 partitions."""
    source.answer = answer
    s = stack(workers=2)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    sessions = [Session(s) for _ in range(CONNECTIONS)]
    threads = [threading.Thread(target=converse, args=(c, seed + i))
               for i, c in enumerate(sessions)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert all(len(c.exchanges) == EXCHANGES for c in sessions)

    status = assert_balanced(s.wait_for_status(
        settled(CONNECTIONS * EXCHANGES)))
    assert status["total"]["captured"] == CONNECTIONS * EXCHANGES
    assert sum(w["seen"] > 0 for w in status["workers"]) == 2

    for c in sessions:
        c.client.close()
    result = assert_captured(s.drain(), sessions)
    assert len(result.connections) == CONNECTIONS
