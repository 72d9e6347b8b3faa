"""The judge sees each kind of damage. Where one of these fails, a fault test that
passes means nothing."""

import pytest
from refconsumer.build import Producer
from rig.client import build_request

from fault.counts import Counts, parse_metrics
from fault.judge import judge
from fault.load import ANSWERED, CUT, UNSERVED, Asked


class Story:
    """Some requests on two connections, answered, executed and captured; a test
    spoils it. Connection c has the ids c0, c1 ..."""

    def __init__(self, sizes=(3, 2)):
        self.asked = []
        self.executions = {}
        self.producers = {}
        for c, size in enumerate(sizes):
            for n in range(size):
                self.add(c, n)
        self.ids = [a.id for a in self.asked]
        self.counts = Counts(seen=len(self.ids), captured=len(self.ids))

    def add(self, c, n):
        id = f"{c}{n}"
        raw = build_request("POST", f"/x/{c}/{id}",
                            [("Host", "h"), ("X-Id", id)], b"body " + id.encode())
        self.asked.append(Asked(
            id, c, "POST", raw, 1, ANSWERED, 200, self.head(id),
            id.encode(), 2))
        self.executions[id] = [(1, 1)]

    @staticmethod
    def head(id):
        return (f"HTTP/1.1 200 OK\r\nX-Id: {id}\r\n"
                f"Content-Length: {len(id)}\r\n\r\n").encode()

    def __getitem__(self, id):
        return next(a for a in self.asked if a.id == id)

    def capture(self, connection, *ids, **changes):
        """A connectionId with these exchanges."""
        p = Producer(f"id{connection}")
        for id in ids:
            raw = changes.get("raw", self[id].raw)
            p.read(raw).eom().write(self.head(id) + id.encode()).flush()
        self.producers[connection] = p
        return p

    def capture_all(self):
        for c in {a.connection for a in self.asked}:
            self.capture(c, *(i for i in self.ids if i[0] == str(c))).close()
        return self

    def verdict(self, **more):
        records = [(p, offset, producer.connection_id, value)
                   for p, producer in enumerate(self.producers.values())
                   for offset, value in enumerate(producer.values)]
        return judge(records, [self], self.executions, self.counts, **more)


def only(story, **wanted):
    """Exactly these problems."""
    problems = story.verdict().problems()
    assert {k: len(v) for k, v in problems.items()} == wanted, problems


def test_a_story_without_damage_is_clean():
    story = Story().capture_all()
    verdict = story.verdict()
    verdict.assert_clean()
    assert verdict.whole == 5


def test_a_loss_that_is_counted_and_one_that_is_not():
    story = Story()
    story.capture(0, "00").exception("gap").close()
    story.capture(2, "02").close()
    story.capture(1, "10", "11").close()
    only(story, lost=1, counters=2)       # seen is right; captured and lost are not
    story.counts = Counts(seen=5, captured=4, lost={"pool_full": 1})
    only(story, lost=1)
    story.counts = Counts(seen=5, captured=3, lost={"pool_full": 2})
    only(story, lost=1, counters=2)
    story.counts = Counts(seen=4, captured=4)
    only(story, lost=1, counters=2)       # an exchange that nobody has seen
    with pytest.raises(AssertionError, match="lost: 01"):
        story.verdict().assert_clean()


def test_doubt_may_be_there_or_not():
    story = Story()
    story.counts = Counts(seen=5, captured=3, lost={"maybe_lost": 2})
    story.capture_all()
    only(story)
    story.capture(1, "10").close()
    only(story, lost=1)
    story.capture(1).read(b"x").flush()
    story.capture(0, "00", "01").close()
    assert "counters" in story.verdict().problems()   # three are missing


def test_a_response_that_is_cut():
    story = Story().capture_all()
    p = story.capture(1, "10").read(story["11"].raw).eom()
    p.write(story.head("11")).exception("cut").close()
    problems = story.verdict().problems()
    assert problems["cut"] == ["11"]
    story.counts = Counts(seen=5, captured=4, lost={"response": 1})
    only(story, cut=1)
    story.counts = Counts(seen=5, captured=5, truncated=1)
    only(story, cut=1)


def test_a_doubled_request():
    story = Story().capture_all()
    story.capture(7, "11").close()
    problems = story.verdict().problems()
    assert problems["doubled"] == ["11"]


def test_a_doubled_record():
    story = Story().capture_all()
    values = story.producers[0].values
    values.insert(1, values[0])
    assert {"doubled", "violations"} <= set(story.verdict().problems())


def test_bytes_that_differ():
    story = Story().capture_all()
    story.capture(1, "10").close()
    story.capture(2, "11", raw=story["11"].raw.replace(b"body", b"BODY")).close()
    only(story, corrupted=1)
    story = Story().capture_all()
    story["11"].body = b"12"
    only(story, corrupted=1)


def test_what_nobody_sent_and_what_was_never_executed():
    story = Story().capture_all()
    del story.executions["11"]
    only(story, unexecuted=1)
    story = Story().capture_all()
    story.asked.pop()
    problems = story.verdict().problems()
    assert len(problems["unknown"]) == 1 and "counters" in problems


def test_order():
    story = Story().capture_all()
    story.capture(0, "01", "00", "02").close()
    only(story, disordered=1)
    story.capture(0, "00", "02").close()
    story.capture(2, "01").close()
    only(story, disordered=1)             # its connectionIds overlap
    story = Story()
    story.capture(0, "00", "10", "11").close()
    story.capture(1, "01", "02").close()
    assert len(story.verdict().disordered) == 1       # two clients in one


def test_what_clients_suffer():
    story = Story().capture_all()
    story["11"].end = CUT
    only(story, client_errors=1)
    story["11"].end = ANSWERED
    story["11"].head = b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
    assert len(story.verdict().client_errors) == 1
    story.executions["00"].append((2, 2))
    assert story.verdict().reexecuted == ["00"]


def test_an_idle_connection_s_end_is_no_error_unless_it_was_executed():
    story = Story()
    story.capture(0, "00", "01", "02").close()
    story.capture(1, "10").close()
    story.counts = Counts(seen=4, captured=4)
    story["11"].end = UNSERVED
    only(story, lost=1, client_errors=1, counters=2)
    del story.executions["11"]
    only(story)
    assert story.verdict().unserved == 1


def test_what_a_break_cut_off_may_have_been_seen_or_not():
    story = Story()
    story.capture(0, "00", "01", "02").close()
    story.capture(1, "10").close()
    story["11"].end = CUT
    del story.executions["11"]
    for counts in (Counts(seen=4, captured=4),
                   Counts(seen=5, captured=4, filtered={"client_abort": 1}),
                   Counts(seen=5, captured=4, lost={"unlinked": 1})):
        story.counts = counts
        only(story, client_errors=1)
    story.counts = Counts(seen=6, captured=4, lost={"unlinked": 2})
    only(story, client_errors=1, counters=2)


def test_what_was_refused():
    story = Story()
    story.capture(0, "00", "01", "02").close()
    story.capture(1, "10").close()
    story["11"].status = 503
    story["11"].head = b"HTTP/1.1 503 No\r\nRetry-After: 1\r\n\r\n"
    story.counts = Counts(seen=5, captured=4, filtered={"refused": 1})
    only(story, client_errors=1, lost=1)
    del story.executions["11"]
    only(story)
    assert story.verdict().refused == 1
    story.counts = Counts(seen=5, captured=5)
    only(story, counters=3)
    story.capture(1, "10", "11").close()      # it would be replayed
    assert story.verdict().unexecuted == ["11"]


def test_the_last_turn_of_a_killed_worker():
    story = Story()
    story.capture(0, "00", "01", "02").close()
    story.capture(1, "10").close()
    story.counts = Counts(seen=4, captured=4)
    only(story, lost=1, counters=2)
    assert story.verdict(kills=[100_000_000]).problems() == {"at_kill": ["11"]}
    assert story.verdict(kills=[10**9]).problems()["lost"] == ["11"]


def test_a_sum_that_is_wrong():
    story = Story().capture_all()
    story.counts.pending = 1
    assert any("the sum" in p for p in story.verdict().counters)


def test_a_connection_without_its_end():
    story = Story().capture_all()
    story.capture(1, "10", "11")
    only(story, unclosed=1)


def test_counters_are_read_from_metrics():
    counts = parse_metrics(
        "# HELP capture_exchanges_seen_total x\n"
        "capture_exchanges_seen_total 7\n"
        "capture_exchanges_captured_total 3\n"
        'capture_exchanges_lost_total{reason="pool_full"} 2\n'
        'capture_exchanges_filtered_total{reason="rule"} 1\n'
        "capture_exchanges_pending 1\n"
        "capture_links_total 9\n")
    assert str(counts) == ("seen 7 = captured 3 + filtered {'rule': 1} + lost "
                           "{'pool_full': 2} + pending 1")
    assert counts.balanced()
