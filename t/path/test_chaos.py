"""The whole path while its parts are stopped, killed and reloaded under load, by
clients of which some leave when they like: nothing doubled, no hole, no request
changed, and every exchange that was answered either there or counted."""

import itertools
import random
import threading
import time

import pytest
from refconsumer import http
from refconsumer.verify import verify_topic
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import (Sent, Session, assert_balanced, assert_captured,
                          assert_order, assert_same, by_mark, lost, mark_of, marked,
                          settled, without_barriers)


def answer(request):
    seed = len(request.body) + len(request.target)
    return Response(body=pattern((0, 10, 1000, 70000)[seed % 4], seed),
                    chunked=(1000, 9000) if seed % 3 == 0 else None)


def one(r, most):
    """The arguments of a random request with a body of at most `most` bytes."""
    kind = r.choice(("GET", "GET", "HEAD", "POST", "PUT", "chunked"))
    target = "/" + "t" * r.randrange(60)
    body = pattern(r.choice((0, 1, 1000, 9000, most)), r.randrange(1000))
    if kind in ("POST", "PUT"):
        return {"method": kind, "target": target, "body": body}
    if kind == "chunked":
        return {"method": "POST", "target": target,
                "chunks": [body[:700], body[700:]]}
    return {"method": kind, "target": target}


class Crowd:
    """`size` clients, each a thread; the first `rude` of them leave in the middle.
    They go on until the block's end. `rest`: seconds between two requests of
    one, at most."""

    def __init__(self, stack, size, rude=0, rest=0, most=120_000):
        self.stack = stack
        self.rest = rest
        self.most = most
        self.sessions = []   # what these hold was answered
        self.others = {}     # mark: bytes of a request that may be in the topic
        self.errors = []
        self._end = threading.Event()
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        self._threads = [
            threading.Thread(target=self._live, args=(
                self._leave if i < rude else self._stay, random.Random(seed + i)))
            for i in range(size)]

    def __enter__(self):
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for t in self._threads:
            t.join(30)
        assert not any(t.is_alive() for t in self._threads)
        assert not self.errors, self.errors[0]

    def answered(self):
        return sum(len(s.exchanges) for s in list(self.sessions))

    def more(self, count, timeout=30):
        """Waits until so many more requests have been answered."""
        goal = self.answered() + count
        wait_until(lambda: self.answered() >= goal, timeout,
                   f"{count} more answers")

    def _live(self, visit, r):
        try:
            while not self._end.wait(self.rest * r.random()):
                visit(r)
        except Exception as e:
            self.errors.append(e)

    def _stay(self, r):
        """A connection with several exchanges; NGINX may end it between them."""
        with Session(self.stack) as c:
            self.sessions.append(c)
            for _ in range(r.choice((1, 5, 40))):
                if self._end.wait(self.rest * r.random()):
                    return
                what = one(r, self.most)
                raw, mark = marked(**what)
                try:
                    c.client.send(raw)
                    got = c.client.receive(what["method"])
                except (ConnectionError, BrokenPipeError):
                    got = None
                if got is None or not got.complete:
                    self.others[mark] = raw
                    return
                c.exchanges.append(
                    Sent(mark, what["method"].encode(), raw, got))

    def _leave(self, r):
        """A connection whose client goes at any moment."""
        c = self.stack.client()
        what = one(r, self.most)
        raw, mark = marked(**what)
        self.others[mark] = raw
        cut = r.choice((len(raw), r.randrange(len(raw))))
        try:
            c.send(raw[:cut])
            if cut == len(raw) and r.random() < .5:
                c.receive_some(r.choice((1, 20, 2000)))
            elif r.random() < .5:
                time.sleep(r.random() / 50)
        except ConnectionError:
            pass
        c.reset() if r.random() < .7 else c.close()


def judge(records, crowds, totals):
    """What a crowd's topic must be, where nothing was lost."""
    result = verify_topic(records)
    result.assert_clean(all_closed=True)
    found = by_mark(result)
    sessions = list(itertools.chain(*(c.sessions for c in crowds)))
    sent = {s.mark: s for session in sessions for s in session.exchanges}
    others = {m: raw for c in crowds for m, raw in c.others.items()}
    assert not set(sent) - set(found), "answered, and not captured"
    for mark, e in found.items():
        if mark in sent:
            assert_same(e, sent[mark])
        else:
            problem = http.same_request(e.request, others[mark])
            assert problem is None, f"{mark}: {problem}"
    for session in sessions:
        assert_order(result, [s.mark for s in session.exchanges], found)
    # the sidecar knows of old workers too, and its sums are of now
    assert len(found) == totals["captured"]
    assert totals["lost"] == 0


@pytest.mark.partitions(6)
def test_reloads_under_load_with_clients_that_leave(stack, source):
    source.answer = answer
    s = stack(workers=2)
    with Crowd(s, 24, rude=8) as crowd:
        for i in range(3):
            crowd.more(40)
            s.nginx.reload(http=s.nginx.snippets["http"] + f"# {i}\n")
        crowd.more(40)
    status = assert_balanced(s.wait_for_status(
        lambda st: st["total"]["pending"] == 0 and len(st["workers"]) == 2, 30))
    assert lost(status) == 0, status["total"]
    judge(s.drain(), [crowd], s.sidecar.check_totals())


def test_a_sidecar_that_hangs_slows_nobody_and_loses_nothing(stack, source):
    """SIGSTOP under load; what is captured meanwhile waits in the pool."""
    source.answer = lambda r: Response(body=pattern(2000, 1))
    s = stack()
    with Session(s) as c:
        usual = slowest(c, 100)
        s.wait_for_status(settled(100))
        s.sidecar.pause()
        hung = slowest(c, 200)
        status = assert_balanced(s.wait_for_status(
            lambda st: st["total"]["seen"] == 300))
        assert status["total"]["pending"] == 200 and lost(status) == 0
        s.sidecar.resume()
        assert_balanced(s.wait_for_status(settled(300)))
    print(f"slowest request: {usual * 1000:.1f} ms, {hung * 1000:.1f} ms while "
          "the sidecar hangs")
    assert hung < max(10 * usual, 0.25)
    assert_captured(s.drain(), [c])


def slowest(session, count):
    worst = 0
    for i in range(count):
        start = time.monotonic()
        session.request("GET", f"/{i}")
        worst = max(worst, time.monotonic() - start)
    return worst


def test_a_broker_that_dies_twice_under_load_leaves_no_hole(
        stack, source, own_broker):
    """Within the pool nothing is lost, and nothing is written twice."""
    source.answer = lambda r: Response(body=b"x" * len(r.target))
    broker = own_broker(properties={  # it comes back sooner after a kill
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500"})
    broker.create_topic("t", 3)
    s = stack(broker=broker, topic="t", workers=2)
    with Crowd(s, 6, rude=2, rest=0.1, most=20_000) as crowd:
        for _ in range(2):
            crowd.more(30)
            broker.kill()
            crowd.more(30)
            broker.start()
        crowd.more(30)
    status = assert_balanced(s.wait_for_status(
        lambda st: st["total"]["pending"] == 0, 60))
    assert lost(status) == 0, status["total"]
    judge(s.drain(), [crowd], s.sidecar.check_totals())


def test_large_bodies_at_once_through_a_small_pool(stack, source):
    """1 MB for what needs far more: all is served, and in the topic is what was
    captured, whole, and what is lost(response), ended."""
    source.answer = lambda r: Response(body=pattern(300_000, len(r.target)))
    s = stack(workers=2, buffer="1m", location="proxy_request_buffering off;")
    sessions = [Session(s) for _ in range(8)]

    def post(c, i):
        for n in range(6):
            big = n % 2 == 0
            body = pattern(1_500_000 if big else 20_000, i)
            assert c.request("POST", f"/{'b' * n}", body=body).complete
    threads = [threading.Thread(target=post, args=(c, i))
               for i, c in enumerate(sessions)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    status = assert_balanced(s.wait_for_status(settled(48), 60))["total"]
    for c in sessions:
        c.client.close()
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    sent = {x.mark: x for c in sessions for x in c.exchanges}
    assert len(sent) == 48
    whole = 0
    for e in result.exchanges:
        x = sent.pop(mark_of(e.request))  # fails for what is there twice
        assert http.same_request(e.request, x.raw) is None
        whole += http.same_response(e.response, x.answer.head, x.answer.body,
                                    x.method) is None
    print(f"{whole} whole, lost {status['lost']}")
    assert lost({"total": status}) > 0
    assert whole >= status["captured"]
    assert len(result.exchanges) == status["captured"] + status["lost"]["response"]


def test_term_with_kafka_away_ends_in_time_and_says_what_is_pending(
        stack, source, own_broker):
    broker = own_broker()
    broker.create_topic("t", 1)
    s = stack(broker=broker, topic="t", sidecar_conf={"drain.time": "500ms"})
    with Session(s) as c:
        c.request("GET", "/before")
        s.wait_for_status(settled(1))
        broker.kill()
        for i in range(5):
            c.request("GET", f"/{i}")
        s.wait_for_status(lambda st: st["total"]["pending"] == 5)
        start = time.monotonic()
        assert s.sidecar.stop() == 3
        took = time.monotonic() - start
        assert c.request("GET", "/after").status == 200
        assert s.status()["total"]["pending"] == 6
        assert 0.4 < took < 5, took
        assert "5 exchanges are pending" in s.sidecar.log_text()
        s.sidecar.check_totals()
        broker.start()
        s.sidecar.start()  # what was left in the pools goes now
        status = assert_balanced(s.wait_for_status(settled(7), 60))
    assert status["total"]["captured"] == 7
    assert_captured(without_barriers(s.drain()), [c])


def test_term_in_an_exchange_ends_at_once(stack, source):
    """A drain does not wait for the source: what is whole is captured."""
    gate = threading.Event()
    source.answer = lambda r: Response(
        body=b"z", hold=gate if r.target == "/held" else None)
    s = stack()
    with Session(s) as c:
        c.request("GET", "/done")
        held = s.client()
        held.send(marked("GET", "/held")[0])
        s.wait_for_status(lambda st: st["total"]["seen"] == 2)
        wait_until(lambda: len(source.requests) == 2)
        start = time.monotonic()
        assert s.sidecar.stop() == 3
        assert time.monotonic() - start < 5
        gate.set()
        assert held.receive().body == b"z"
        held.close()
    assert "1 exchanges are pending" in s.sidecar.log_text()
    s.sidecar.check_totals()
    s.sidecar.start()
    status = assert_balanced(s.wait_for_status(settled(2), 30))
    assert status["total"]["captured"] == 2
    result = verify_topic(s.drain())
    result.assert_clean()


def test_what_a_hung_sidecar_was_offered_has_one_class(stack, source):
    """A pool that a worker took back after 5 s is not read by the sidecar that
    finds it in its queue later: its exchanges are counted as lost(unlinked)."""
    s = stack()
    with Session(s) as c:
        c.request("GET", "/before")
        s.wait_for_status(settled(1))
    s.sidecar.pause()
    s.nginx.reload(http=s.nginx.snippets["http"] + "# again\n")
    wait_until(lambda: len(s.nginx.workers()) == 1, what="the old worker's end")
    with Session(s) as c:
        for i in range(3):
            c.request("GET", f"/{i}")
        s.nginx.wait_for_log("did not answer the handshake", 15)
        s.sidecar.resume()
        s.wait_for_status(lambda st: st["workers"][0]["linked"])
        c.request("GET", "/after")
        status = assert_balanced(s.wait_for_status(
            lambda st: st["total"]["captured"] == 2))["total"]
    assert status["seen"] == 5 and status["lost"]["unlinked"] == 3
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert len(result.exchanges) == 2
