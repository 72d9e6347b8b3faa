"""Bodies larger than a record, a block, or what the acks sustain."""

import os
import re

from refconsumer.verify import verify_topic
from rig.client import parse_head
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import (Sent, Session, assert_balanced, assert_captured, lost,
                          marked, settled)

RECORD_LIMIT = 1_048_076
MB = 1 << 20


def pool_memory(pid):
    """Resident bytes of the capture pool in a process."""
    with open(f"/proc/{pid}/smaps") as f:
        text = f.read()
    total = 0
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        if "memfd:nginx-capture" in part.split("\n", 1)[0]:
            total += int(re.search(r"^Rss:\s+(\d+) kB", part, re.M)[1]) * 1024
    return total


def paced(client, total, pause):
    """Reads an answer of `total` body bytes in pieces, each when pause() is
    through. Returns (head, body)."""
    data = bytearray()
    while b"\r\n\r\n" not in data or len(data) < (
            data.index(b"\r\n\r\n") + 4 + total):
        piece = client.receive_some(256 * 1024)
        assert piece, "the answer ended early"
        data += piece
        pause()
    at = data.index(b"\r\n\r\n") + 4
    return bytes(data[:at]), bytes(data[at:])


def test_large_bodies_stay_whole_and_the_pool_within_its_bound(stack, source):
    """A 25 MB _bulk and a 50 MB answer through a pool of 16 MB, with a client
    that is paced by what the acks sustain."""
    source.answer = lambda r: Response(body=pattern(50 * MB, 7))
    s = stack(buffer="16m", location="proxy_request_buffering off;"
                                     "proxy_buffers 8 32k;")
    worker = s.nginx.workers()[0]
    peak = [0]

    def pause():
        peak[0] = max(peak[0], pool_memory(worker))
        wait_until(lambda: s.status()["workers"][0]["blocks_used"] < 64, 30,
                   "blocks to come back")

    with Session(s) as c:
        body = pattern(25 * MB, 3)
        raw, mark = marked("POST", "/_bulk", body=body)
        for at in range(0, len(raw), 512 * 1024):
            c.client.send(raw[at:at + 512 * 1024])
            pause()
        head, got = paced(c.client, 50 * MB, pause)
        assert got == pattern(50 * MB, 7)

        answer = parse_head(head)
        answer.body = got
        c.exchanges.append(Sent(mark, b"POST", raw, answer))
        status = assert_balanced(s.wait_for_status(settled(1), 60))
        assert lost(status) == 0, status

    records = s.drain()
    assert max(len(r.value) for r in records) <= RECORD_LIMIT
    assert_captured(records, [c])
    print(f"pool: {peak[0]} bytes of 16777216 at most; {len(records)} records")
    assert 0 < peak[0] <= 16 * MB


def test_above_what_the_acks_sustain_losses_are_counted(stack, source):
    """The same through a pool of 1 MB with nobody pacing: the client gets all
    of it, the record an end that says so, and the counters a loss."""
    source.answer = lambda r: Response(body=pattern(20 * MB, 5))
    s = stack(buffer="1m")
    with Session(s) as c:
        answer = c.request("GET", "/large")
        assert answer.body == pattern(20 * MB, 5)
        status = assert_balanced(s.wait_for_status(settled(1), 60))
        assert status["total"]["lost"]["response"] == 1
        small = c.request("GET", "/")  # the next goes on, under a new id
        assert small.complete
        s.wait_for_status(settled(2))
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert len(result.connections) == len(result.exchanges) == 2
    cut = next(x for x in result.connections.values() if x.exceptions)
    assert "response" in cut.exceptions[0]
