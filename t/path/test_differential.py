"""Random exchanges: what the reference consumer reads in the topic is what the
clients and the source have recorded, without a difference.

    CAPTURE_SEED=N CAPTURE_COUNT=N    the exchanges of a run that failed, again
"""

import os
import queue
import random
import threading

import pytest

from refconsumer import http
from refconsumer.verify import verify_topic
from rig.nginx import has_http3

from path.generate import SERVER, Generator
from path.session import assert_balanced, mark_of
from path.speak import PROTOCOLS

GATE, LONG, BATCH = 200, 2000, 250
CLIENTS = 8                      # at once

protocols = pytest.mark.parametrize("protocol", [
    pytest.param(name, marks=pytest.mark.skipif(
        name == "http3" and not has_http3(),
        reason="this NGINX has no HTTP/3: script/test-versions"))
    for name in PROTOCOLS])


@pytest.mark.timeout(300)
@protocols
def test_random_exchanges_are_captured_as_they_were(run, protocol):
    run(protocol, int(os.environ.get("CAPTURE_COUNT", GATE)))


@pytest.mark.long
@pytest.mark.timeout(1200)
@protocols
def test_many_random_exchanges_are_captured_as_they_were(run, protocol):
    run(protocol, int(os.environ.get("CAPTURE_COUNT", LONG)))


@pytest.fixture
def run(stack, source, certificate, new_topic):
    def run_all(protocol, count):
        """In batches, each of a seed and a stack of its own: the memory of one
        batch, and one batch to repeat."""
        seed = os.environ.get("CAPTURE_SEED")
        seed = random.randrange(1 << 30) if seed is None else int(seed)
        while count > 0:
            batch = Batch(PROTOCOLS[protocol], seed, min(count, BATCH))
            print(f"{batch.where} {protocol}")
            batch.run(stack, source, certificate, new_topic(4))
            print(f"  {batch.summary}")
            count -= BATCH
            seed += 1
    return run_all


class Batch:
    """Exchanges of one seed."""

    def __init__(self, protocol, seed, count):
        self.protocol = protocol
        self.where = f"CAPTURE_SEED={seed} CAPTURE_COUNT={count}"
        self.conversations = Generator(seed, protocol.streams).conversations(count)
        self.specs = {s.mark: s for c in self.conversations for s in c}
        self.seen = {}
        self.summary = ""

    def run(self, stack, source, certificate, topic):
        options, listen = self.protocol.listen(certificate)
        begin = len(source.requests)
        source.answer = lambda q: self.specs[q.header("x-mark")].response()
        s = stack(topic=topic, workers=2, server=SERVER.format(server=listen),
                  buffer="128m")
        self._speak(options, s.port)
        status = assert_balanced(s.wait_for_status(
            lambda st: st["total"]["pending"] == 0
            and st["total"]["seen"] >= sum(x.whole for x in self.seen.values()),
            60))
        records = s.drain()
        self._judge(records, source.requests[begin:], status["total"],
                    s.sidecar.check_totals())

    def _speak(self, options, port):
        todo, errors = queue.Queue(), []
        for conversation in self.conversations:
            todo.put(conversation)

        def work():
            speaker = self.protocol(options)
            while True:
                try:
                    conversation = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    for seen in speaker.converse(conversation, port):
                        self.seen[seen.spec.mark] = seen
                except BaseException as e:
                    at = min(len(speaker.seen), len(conversation) - 1)
                    errors.append(f"{e!r}\n  {conversation[at]}")
        threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, "\n".join([self.where, *errors[:3]])
        assert self.seen.keys() == self.specs.keys(), self.where

    # what must hold

    def _judge(self, records, requests, status, totals):
        result = verify_topic(records)
        result.assert_clean(all_closed=True)
        self.found = {}
        for exchange in result.exchanges:
            mark = mark_of(exchange.request).decode()
            assert mark not in self.found, f"{self.where} {mark}: twice"
            self.found[mark] = exchange
        self.result = result
        self.at_source = {}
        for request in requests:
            self.at_source.setdefault(request.header("x-mark"), []).append(request)

        problems = []
        counts = dict.fromkeys(("whole", "cut", "left", "unreplayable"), 0)
        for seen in self.seen.values():
            kind = self._kind(seen)
            counts[kind] += 1
            problem = getattr(self, f"_{kind}_problem")(seen)
            if problem:
                problems.append(f"{self.where} exchange {seen.spec.index} "
                                f"({kind}): {problem}\n  {seen.spec}")
        if self.protocol.ordered:
            problems += self._order_problems()
        assert not problems, "\n".join(
            [f"{len(problems)} of {len(self.seen)} differ", *problems[:5]])
        self._check_counts(counts, status, totals)
        self.summary = f"{counts}, topic {len(self.found)}, filtered " + str(
            {k: v for k, v in status["filtered"].items() if v})

    def _kind(self, seen):
        first, headers = http.head_lengths(http.canonical_request(seen.raw))
        if first > http.MAX_REQUEST_LINE or headers > http.MAX_HEADERS:
            return "unreplayable"
        if seen.spec.leaves and not seen.whole:
            return "left"
        answered = seen.answer is not None and (
            seen.answer.status == seen.spec.answer.status)
        return "cut" if seen.spec.source_cuts and answered else "whole"

    def _whole_problem(self, seen):
        """Nobody gave up: all of it is there."""
        spec, exchange = seen.spec, self.found.get(seen.spec.mark)
        if not seen.whole:
            return f"not answered: {seen.answer}"
        if exchange is None:
            return "not in the topic"
        return (self._request_problem(seen, exchange)
                or http.same_response(exchange.response, seen.answer.head,
                                      seen.answer.body, spec.method.encode())
                or self._source_problem(seen))

    def _cut_problem(self, seen):
        """The source gave up: what the client got, and an end that says so."""
        exchange = self.found.get(seen.spec.mark)
        if exchange is None:
            return "not in the topic"
        problem = self._request_problem(seen, exchange)
        if problem:
            return problem
        if not self.result.connections[exchange.key].exceptions:
            return "no exception says that the response is cut"
        body, got = part_of_body(exchange.response), seen.answer.body
        if body != got and (self.protocol.cut_in_order
                            or not body.startswith(bytes(got))):
            return (f"{len(body)} bytes of a response of which the client got "
                    f"{len(seen.answer.body)}")
        return None

    def _left_problem(self, seen):
        """The client gave up. A request that it has not ended is never there;
        one that it has may be, with a beginning of the answer."""
        exchange = self.found.get(seen.spec.mark)
        if exchange is None:
            return None
        if not seen.said:
            return "in the topic, and was not complete"
        problem = self._request_problem(seen, exchange)
        if problem or not exchange.response:
            return problem
        if b" %d " % seen.spec.answer.status in exchange.response[:13]:
            body = part_of_body(exchange.response)
            if not seen.spec.answer_body.startswith(body):
                return f"{len(body)} bytes that are no beginning of the answer"
        return None

    def _request_problem(self, seen, exchange):
        """What was sent; where NGINX could take it in two ways, it is captured in
        the way that the source got it."""
        problem = http.same_request(exchange.request, seen.raw)
        spec = seen.spec
        if not (problem and self.protocol.end_alone and spec.size == 0
                and spec.chunks):
            return problem
        if any(q.header("content-length") or q.header("transfer-encoding")
               for q in self.at_source.get(spec.mark, ())):
            return problem + "; the source got it as a body"
        return http.same_request(exchange.request, without_body(seen.raw))

    def _unreplayable_problem(self, seen):
        return "in the topic" if seen.spec.mark in self.found else None

    def _source_problem(self, seen):
        """The source must have got the request, and the client its answer."""
        spec = seen.spec
        got = [q for q in self.at_source.get(spec.mark, ()) if q.complete]
        if not got:
            return f"the source has not got it; the answer: {seen.answer.head}"
        for request in got:
            if (request.method, request.target, bytes(request.body)) != (
                    spec.method, spec.target, spec.body or b""):
                return (f"the source got {request.method} {request.target} with "
                        f"{len(request.body)} bytes")
        if spec.answer.cut is None and seen.answer.status != spec.answer.status:
            return f"the client got {seen.answer.status}: {seen.answer.head}"
        return None

    def _order_problems(self):
        """What came on one connection is on one connectionId, in its order."""
        connections = {}
        for seen in sorted(self.seen.values(), key=lambda x: x.spec.index):
            if seen.spec.mark in self.found:
                connections.setdefault(seen.connection, []).append(seen.spec.mark)
        for marks in connections.values():
            exchanges = [self.found[m] for m in marks]
            if len({e.connection_id for e in exchanges}) != 1:
                yield f"{self.where} {marks}: not one connectionId"
            times = [e.eom_ns for e in exchanges]
            if times != sorted(times):
                yield f"{self.where} {marks}: not in order"

    def _check_counts(self, counts, status, totals):
        """Each exchange in one class, and that many in the topic."""
        filtered = {k: v for k, v in status["filtered"].items() if v}
        where = f"{self.where}: {counts} {status} {totals}"
        assert totals["captured"] == len(self.found), where
        assert totals["lost"] == totals["pending"] == 0, where
        # of a client that left, one cannot tell here how long its head became
        assert filtered.get("unreplayable", 0) <= (
            counts["unreplayable"] + counts["left"]), where
        assert sum(filtered.values()) <= (
            counts["unreplayable"] + counts["left"]), where
        assert set(filtered) <= {"unreplayable", "client_abort"}, where


def without_body(raw):
    """A request whose body is no byte in chunks, as one that has none."""
    framing, end = b"\r\ntransfer-encoding: chunked", b"0\r\n\r\n"
    assert raw.count(framing) == 1 and raw.endswith(b"\r\n\r\n" + end)
    return raw.removesuffix(end).replace(framing, b"")


def part_of_body(response):
    """The body of a response that may end anywhere, without chunked coding."""
    head, _, rest = response.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" not in head.lower():
        return rest
    body = bytearray()
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line, 16)
        body += rest[:size]
        rest = rest[size + 2:]
    return bytes(body)
