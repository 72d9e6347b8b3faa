"""The worker's memory is bounded; what finds no room is lost, counted, and never
slows or breaks a request."""

import os
import threading

from capture_rig import flat, same_request, same_response
from rig.client import build_request
from rig.source import Response, pattern
from rig.status import wait_until

HOST = ("Host", "source.test")
HOLD = {"hold_blocks": True}


def fill(r, size=30_000):
    """Sends requests on connections of their own until one is lost."""
    for i in range(200):
        with r.client() as client:
            assert client.request("POST", f"/fill{i}", body=pattern(size)).status == 200
        r.caught_up()
        if r.status()["total"]["lost"]["pool_full"]:
            return
    raise AssertionError("the pool is never full")


def test_memory_stays_within_capture_buffer_and_losses_are_counted(rig, source):
    """A sidecar that gives nothing back: requests go on as if there was none."""
    r = rig(buffer="1m", options=HOLD)
    link = r.link
    assert link.size <= 1 << 20
    bodies = [pattern(20_000, i) for i in range(100)]
    with r.client() as client:
        for body in bodies:
            answer = client.request("POST", "/", body=body)
            assert (answer.status, answer.body) == (200, b"ok\n")
    assert [bytes(q.body) for q in source.requests] == bodies
    r.caught_up()
    row, = r.status()["workers"]
    assert 0 < row["blocks_used"] <= row["blocks"] == link.nblocks < 16
    counts = flat(row)
    assert counts["captured"] >= 30
    assert counts["pool_full"] >= 50
    assert counts["seen"] == 100
    assert os.fstat(link.memory_fd).st_blocks * 512 <= 1 << 20
    for x in link.exchanges:
        assert x.complete or (x.end, x.reason) in (("ABANDON", "pool_full"),
                                                   ("ABANDON", "response"))


def test_a_connection_that_lost_is_abandoned_and_goes_on_under_a_new_id(rig, source):
    """A hole in a connectionId merges two requests in the replay."""
    r = rig(buffer="1m", options=HOLD)
    with r.client() as client:
        client.request("GET", "/first")
        client.send(build_request("POST", "/huge", [HOST], pattern(2_000_000)))
        assert client.receive("POST").status == 200
        first, huge = r.exchanges(2)
        assert first.complete and first.connection is huge.connection
        assert (huge.end, huge.reason, huge.eom) == ("ABANDON", "pool_full", None)
        assert huge.connection.end == "ABANDON"
        # nothing is given back yet: not even a small one begins
        assert client.request("GET", "/none").status == 200
        assert len(r.sidecar.exchanges) == 2
        r.link.hold_blocks = False
        r.link.return_all()
        raw = build_request("PUT", "/again", [HOST], pattern(1000))
        client.send(raw)
        answer = client.receive()
    again = r.exchanges(3)[-1]
    same_request(again, raw)
    same_response(again, answer)
    assert again.connection.id != first.connection.id
    r.total(seen=4, captured=2, pool_full=2)


def test_a_lost_response_leaves_its_request_whole(rig, source):
    """It is replayed all the same: endOfMessage was recorded. lost(response)."""
    r = rig(buffer="1m", options=HOLD)
    source.answer = lambda q: Response(body=pattern(3_000_000))
    raw = build_request("POST", "/", [HOST], b"small")
    with r.client() as client:
        client.send(raw)
        answer = client.receive()
        assert answer.body == pattern(3_000_000)
    x, = r.exchanges(1)
    assert (x.end, x.reason) == ("ABANDON", "response")
    same_request(x, raw)
    assert answer.body.startswith(x.response.partition(b"\r\n\r\n")[2])
    r.total(seen=1, response=1)


def test_the_most_recently_returned_block_is_taken_first(rig):
    """Few blocks are in use, and stay in the cache: what the pool is for."""
    r = rig(buffer="8m")
    with r.client() as client:
        for i in range(60):
            assert client.request("POST", "/", body=pattern(60_000)).status == 200
            r.caught_up()
    assert len(r.link.blocks) >= 50
    assert len({index for index, _ in r.link.blocks}) <= 4


def test_ends_always_find_room_with_many_exchanges_open(rig, source):
    """Room for the frames that end an exchange is reserved at its start; when the
    pool is full in the middle of many, none may be left without an end."""
    r = rig(buffer="1m", options=HOLD)
    release = threading.Event()
    source.answer = lambda q: Response(hold=release, body=pattern(40_000))
    clients = [r.client() for _ in range(150)]
    for i, client in enumerate(clients):
        client.send(build_request("POST", f"/{i}", [HOST], pattern(3000)))
    wait_until(lambda: len(source.requests) == len(clients), 30)
    release.set()
    for client in clients:
        answer = client.receive("POST")
        assert (answer.status, answer.body) == (200, pattern(40_000))
    for client in clients:
        client.close()
    r.caught_up()
    wait_until(lambda: all(x.end for x in r.sidecar.exchanges))
    counts = flat(r.status()["total"])
    assert counts["seen"] == 150
    assert counts["response"] > 50
    assert "link_lost" not in counts and "pending" not in counts
    assert len(r.sidecar.links) == 1, "the link was given up"


def test_ends_take_the_last_block_and_data_does_not(rig, source):
    """An end that begins the last block must leave its room to other ends."""
    r = rig(buffer="1m", options=HOLD)
    release = threading.Event()
    source.answer = lambda q: Response(
        hold=release if "/open" in q.target else None, body=pattern(70_000))
    clients = [r.client() for _ in range(40)]
    for i, client in enumerate(clients):
        client.send(build_request("GET", f"/open{i}", [HOST]))
    wait_until(lambda: len(source.requests) == len(clients))
    # single small steps to the pool's end: every place of a block's end is met
    for size in (60_000, 9000, 1000, 100, 1):
        for _ in range(60):
            with r.client() as client:
                before = len(r.sidecar.exchanges)
                client.request("POST", "/", body=pattern(size))
            r.caught_up()
            if len(r.sidecar.exchanges) == before:
                break
    release.set()
    for client in clients:
        assert client.receive().body == pattern(70_000)
        client.send(build_request("GET", "/after", [HOST]))
        assert client.receive().body == pattern(70_000)
        client.close()
    r.caught_up()
    wait_until(lambda: all(x.end for x in r.sidecar.exchanges))
    assert len(r.sidecar.links) == 1, "the link was given up"
    assert "link_lost" not in flat(r.status()["total"])


def test_without_a_free_slot_exchanges_are_counted_and_served(rig):
    """Slots come back only after the acknowledged close."""
    r = rig(buffer="1m", options={"hold_slots": True})
    slots = r.link.nslots
    for i in range(slots + 5):
        with r.client() as client:
            assert client.request("GET", "/").status == 200
    r.total(seen=slots + 5, captured=slots, no_slot=5)
    # the sidecar gives back one: exactly one more finds room
    r.closed(slots)
    r.link.return_slot(r.link.finished.pop())
    r.get()
    r.get()
    r.total(seen=slots + 7, captured=slots + 1, no_slot=6)


def test_connections_without_room_do_not_use_up_what_is_reserved(rig):
    """A connectionId is taken only for an exchange that has room."""
    r = rig(buffer="1m", options=HOLD)
    fill(r)
    before = len(r.sidecar.connections)
    clients = [r.client() for _ in range(400)]
    for client in clients:
        assert client.request("POST", "/", body=pattern(3000)).status == 200
    for client in clients:
        client.close()
    r.caught_up()
    assert len(r.sidecar.links) == 1
    assert len(r.sidecar.connections) - before <= 25
    r.link.hold_blocks = False
    r.link.return_all()
    got = len(r.sidecar.exchanges)
    assert r.get("/again").status == 200
    assert r.exchanges(got + 1)[-1].complete


def test_a_full_pool_costs_no_time(rig, source):
    """A dead, hung or slow sidecar never slows a request: the answers come while
    the sidecar does not read at all."""
    r = rig(buffer="1m", options={"consume": False})
    source.answer = lambda q: Response(body=pattern(100_000))
    with r.client(timeout=5) as client:
        for i in range(100):
            assert client.request("POST", "/", body=pattern(100_000)).complete
    total = r.status()["total"]
    assert total["pending"] and total["lost"]["pool_full"]
    r.link.consume = True
    wait_until(lambda: not r.status()["total"]["pending"])


def test_a_chunked_response_that_is_lost_stops_at_once(rig, source):
    """No frame may follow the ABANDON, also not the framing of chunks."""
    r = rig(buffer="1m", options=HOLD)
    source.answer = lambda q: Response(body=pattern(3_000_000), chunked=(1000, 50_000))
    with r.client() as client:
        assert client.request("GET", "/").body == pattern(3_000_000)
        client.send(build_request("POST", "/", [HOST], chunks=[pattern(500)] * 9))
        client.receive("POST")
    r.exchanges(1)
    r.total(seen=2, response=1, pool_full=1)
