"""Times of observations: CLOCK_REALTIME of the bytes' arrival, never decreasing
in a connection, whatever the clock does meanwhile."""

import threading
from dataclasses import dataclass

import pytest

from path.fidelity import row
from path.session import Session, assert_captured, by_mark, marked, settled
from path.session2 import Session2
from rig.clock import Clock
from rig.nginx import http2
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

FIDELITY = "Times"

# seconds. Forward never so far that the Replayer takes what is in flight for
# abandoned, nor, all in all, that the reference consumer finds them too new.
STEPS = (0, -7200, 300, -0.001, 200, -250, 3)


@dataclass
class Span:
    """An exchange, by NGINX's clock."""
    session: object
    mark: bytes
    sent: int
    arrived: int                 # it is at the source
    released: int                # which may answer
    answered: int


@row("the clock steps back and forth", captured="all of it; each observation has "
     "the time of day at which its bytes arrived", replayed="the request, at its time",
     limits="while the clock is behind a connection's newest time, that is what its "
     "observations have; after a step of more than its observation timeout (6 "
     "minutes) forward the Replayer takes exchanges in flight for ended")
@pytest.mark.parametrize("wait", ["off", "mutating"])
def test_times_are_those_of_the_arrival_and_never_decrease(stack, source, workdir,
                                                           wait):
    clock, port, release = Clock(workdir), free_port(), threading.Event()
    source.answer = lambda q: Response(body=pattern(3000, len(q.body)), hold=release)
    s = stack(env=clock.env, wait=wait, server=http2(port))
    spans = []

    def exchange(session, turn, step):
        """One, with a step of the clock before its response."""
        release.clear()
        n, sent = len(source.requests), clock.now()
        if isinstance(session, Session2):
            started = session.start("POST", f"/{turn}", body=b"abc" * turn)
            mark = started.mark
        else:
            raw, mark = marked("POST", f"/{turn}", body=b"abc" * turn)
            session.client.send(raw)
        wait_until(lambda: len(source.requests) == n + 1, 15)
        arrived = clock.now()
        clock.step(step)
        released = clock.now()
        release.set()
        if isinstance(session, Session2):
            session.finish(started)
        else:
            session.received("POST", raw, mark)
        spans.append(Span(session, mark, sent, arrived, released, clock.now()))

    kept = [Session(s), Session2(port)]
    sessions = list(kept)
    try:
        for turn, step in enumerate(STEPS):
            clock.step(step)
            sessions += [Session(s), Session2(port)]
            for session in (*kept, *sessions[-2:]):
                exchange(session, turn, (0, -30, 30)[turn % 3])
            s.wait_for_status(settled(len(spans)))
    finally:
        for session in sessions:
            session.client.close()
    result = assert_captured(s.drain(), sessions)

    found, newest = by_mark(result), {}
    clamped = 0
    for span in spans:
        x, before = found[span.mark], newest.get(span.session, 0)
        assert max(span.sent, before) <= x.request_first_ns, span
        assert x.request_first_ns <= x.request_last_ns <= x.eom_ns, span
        assert x.eom_ns <= max(span.arrived, before), span
        assert max(span.released, x.eom_ns) <= x.response_first_ns, span
        assert x.response_first_ns <= x.response_last_ns, span
        assert x.response_last_ns <= max(span.answered, x.eom_ns), span
        newest[span.session] = x.response_last_ns
        clamped += x.response_last_ns > span.answered
    assert 0 < clamped < len(spans)
