"""Neither side trusts the other with its memory: whatever a sidecar does, requests
are served, nothing is [alert], and capture comes back when the sidecar is good
again."""

import contextlib
import os
import socket
import threading

import pytest

from capture_rig import flat
from fake_sidecar import (ASLEEP, AWAKE, NAPPING, RETURN_BLOCK, RETURN_SLOT,
                          RETURN_TAIL, VERSION, refuse, welcome)
from rig.client import build_request
from rig.source import Response, pattern
from rig.status import wait_until

HOST = ("Host", "source.test")


def serves(r, n=3, body=b"x" * 500):
    with r.client(timeout=5) as client:
        for _ in range(n):
            assert client.request("POST", "/", body=body).status == 200


def recovers(r, sidecar_links):
    """The worker has given up its link, has a new one, and captures."""
    wait_until(lambda: len(r.sidecar.links) > sidecar_links, 15, "a new link")
    r.linked(1)
    before = len(r.link.exchanges)
    serves(r, 1)
    wait_until(lambda: len(r.link.exchanges) > before and r.link.exchanges[-1].end)
    assert r.link.exchanges[-1].complete


# the handshake

@pytest.mark.parametrize("code, text", [
    (1, b"version 2 is wanted"), (3, b"uid 33 may not"), (99, b"t" * 160), (4, b"")],
    ids=["version", "user", "long", "empty"])
def test_a_refusal_is_logged_with_its_text_and_tried_again(rig, code, text):
    r = rig(options={"answer": lambda link: refuse(code, text)}, sidecar=False)
    r.sidecar.start()
    r.nginx.wait_for_log(f"refused the link ({code}): {text[:159].decode()}")
    assert r.nginx.error_log().count("refused the link") <= 2, "too eager"
    serves(r)
    r.total(seen=3, unlinked=3)
    r.sidecar.answer = lambda link: welcome()
    recovers(r, 0)


@pytest.mark.parametrize("answer, log", [
    (welcome(version=VERSION + 1),
     f"speaks version {VERSION + 1} of the link, this module {VERSION}"),
    (welcome(magic=0x12345678), "is no capture-sidecar"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no capture-sidecar"),
    (welcome()[:-1], "is no capture-sidecar"),
    (b"x" * 100_000, "is no capture-sidecar")],
    ids=["version", "magic", "http", "short", "long"])
def test_another_answer_is_named_and_tried_again(rig, answer, log):
    sent = [answer]
    r = rig(options={"answer": lambda link: sent and sent.pop() or welcome()},
            sidecar=False)
    r.sidecar.start()
    r.nginx.wait_for_log(log)
    recovers(r, 0)


def test_a_sidecar_that_does_not_answer_is_given_up_after_five_seconds(rig):
    silent = [True]
    r = rig(options={"answer": lambda link: None if silent[0] else welcome()})
    serves(r)
    r.total(seen=3, unlinked=3)
    r.nginx.wait_for_log("did not answer the handshake", 8)
    silent[0] = False
    recovers(r, 0)


def test_a_sidecar_that_hangs_up_at_once_is_not_asked_in_a_hurry(rig):
    r = rig(options={"answer": lambda link: b""}, sidecar=False)

    def answer(link):
        link.sock.shutdown(2)
        return None
    r.sidecar.answer = answer
    r.sidecar.start()
    wait_until(lambda: r.sidecar.refused >= 4, 15)
    assert r.sidecar.refused < 8
    r.sidecar.answer = lambda link: welcome()
    recovers(r, 0)


@pytest.mark.parametrize("message", [
    lambda: welcome(), lambda: welcome(kind=77), lambda: refuse(4, b"go"),
    lambda: welcome() + b"x" * 4000], ids=["welcome", "unknown", "refuse", "long"])
def test_a_message_after_the_welcome_ends_that_link_alone(rig, message):
    r = rig()
    r.link.send(message())
    r.nginx.wait_for_log("is no capture-sidecar")
    recovers(r, 1)


def test_what_a_refusal_says_is_one_line_in_the_log(rig):
    r = rig(sidecar=False)
    r.sidecar.answer = lambda link: refuse(4, b"no\n[crit] \x1b[31mred")
    r.sidecar.start()
    r.nginx.wait_for_log("no?[crit] ?[31mred")
    r.sidecar.answer = lambda link: welcome()
    recovers(r, 0)


def test_a_flood_of_messages_does_not_keep_the_worker(rig):
    """The worker reads them in one go as long as there are any."""
    r = rig()
    stop = threading.Event()

    def flood():
        try:
            while not stop.is_set():
                r.link.send(welcome())
        except OSError:
            pass
    threads = [threading.Thread(target=flood) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        for _ in range(5):
            serves(r)
    finally:
        stop.set()
        for t in threads:
            t.join()


# the return ring

def lent(r):
    return r.link.returnable[0]


def _double(r):
    index, generation = lent(r)
    r.link.push_return(RETURN_BLOCK, generation, index)
    r.link.push_return(RETURN_BLOCK, generation, index)


def _free(r):
    r.link.push_return(RETURN_BLOCK, 0, r.link.nblocks - 1)


BREAKS = {
    "a block twice": _double,
    "a block that is free": _free,
    "a free block with an odd generation":
        lambda r: r.link.push_return(RETURN_BLOCK, 1, r.link.nblocks - 1),
    "an unknown block":
        lambda r: r.link.push_return(RETURN_BLOCK, 1, r.link.nblocks),
    "the largest index": lambda r: r.link.push_return(RETURN_BLOCK, 1, 0xFFFFFFFF),
    "a block of another generation":
        lambda r: r.link.push_return(RETURN_BLOCK, lent(r)[1] + 2, lent(r)[0]),
    "the block in work": lambda r: r.link.push_return(
        RETURN_BLOCK, r.link.current[1], r.link.current[0]),
    "an unknown kind": lambda r: r.link.push_return(3, 1, 0),
    "nothing": lambda r: r.link.push_return(0, 0, 0),
    "an unknown slot": lambda r: r.link.push_return(RETURN_SLOT, 1, r.link.nslots),
    "a free slot": lambda r: r.link.push_return(RETURN_SLOT, 1, r.link.nslots - 1),
    "a slot of another generation":
        lambda r: r.link.push_return(RETURN_SLOT, 5, 0),
    "a tail far ahead": lambda r: r.link.set_return_tail(1 << 31),
    "a tail just too far":
        lambda r: r.link.set_return_tail(r.link.return_size + 1 + r.link.u32[33]),
    "a tail that goes back":
        lambda r: r.link.set_return_tail(r.link.u32[33] - 1),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_wrong_return_ends_the_link_and_not_the_worker(rig, what):
    r = rig(buffer="2m", options={"hold_blocks": True})
    r.sidecar.read_after_end = False
    serves(r, 3, pattern(70_000))
    r.caught_up()
    worker, = r.nginx.workers()
    r.link.consume = False       # what comes now is the worker's to count
    link = r.link
    BREAKS[what](r)
    for _ in range(20):
        serves(r, 3, pattern(70_000))
        if not link.up:
            break
    r.nginx.wait_for_log("broke the link's rules")
    recovers(r, 1)
    assert r.nginx.workers() == [worker]
    # what had been captured is still counted so
    assert r.status()["total"]["captured"] >= 3


def test_a_connection_id_that_the_sidecar_gives_up_is_not_used_again(rig, source):
    """By its slot's return: as for a record that the broker refuses."""
    r = rig()
    with r.client() as client:
        client.request("GET", "/1")
        first, = r.exchanges(1)
        r.link.abandon(first.connection)
        client.request("GET", "/2")
        client.request("GET", "/3")
    _, second, third = r.exchanges(3)
    assert first.connection.id != second.connection.id == third.connection.id
    assert second.complete and third.complete
    r.closed(2)
    r.total(seen=3, captured=3)


def test_a_connection_id_that_is_given_up_in_an_exchange_is_left(rig, source):
    release = threading.Event()
    source.answer = lambda q: Response(hold=release if q.target == "/1" else None,
                                       body=pattern(300_000))
    r = rig()
    with r.client() as client:
        client.send(build_request("GET", "/1", [HOST]))
        wait_until(lambda: r.sidecar.exchanges and r.sidecar.exchanges[0].eom)
        x, = r.sidecar.exchanges
        r.link.abandon(x.connection)
        release.set()
        assert client.receive().body == pattern(300_000)
        client.request("GET", "/2")
    second = r.exchanges(2)[-1]
    assert second.complete and second.connection.id != x.connection.id
    assert r.log(2)[0].split("[")[1].startswith("lost(")
    r.total(seen=2, captured=1, internal=1)


def test_all_slots_returned_while_open(rig, source):
    """Many at once, in the middle of bodies, again and again."""
    r = rig()
    stop = threading.Event()

    def load():
        with r.client() as client:
            while not stop.is_set():
                assert client.request("POST", "/", body=pattern(100_000)).status == 200
    threads = [threading.Thread(target=load) for _ in range(4)]
    for t in threads:
        t.start()
    try:
        for turn in range(15):
            seen = len(r.sidecar.exchanges)
            wait_until(lambda: len(r.sidecar.exchanges) > seen + 4)
            with r.link.lock:
                for c in list(r.link.connections.values()):
                    if not c.end:
                        r.link.abandon(c)
    finally:
        stop.set()
        for t in threads:
            t.join()
    r.caught_up()
    wait_until(lambda: not flat(r.status()["total"]).get("pending"))
    assert len(r.sidecar.links) == 1


# the link's end

def test_a_hang_up_in_an_exchange_loses_it_and_no_other(rig, source):
    release = threading.Event()
    source.answer = lambda q: Response(hold=release if q.target == "/2" else None,
                                       body=pattern(300_000))
    r = rig()
    with r.client() as client:
        client.request("GET", "/1")
        r.exchanges(1)
        client.send(build_request("POST", "/2", [HOST], b"abc"))
        wait_until(lambda: len(r.sidecar.exchanges) == 2 and
                   r.sidecar.exchanges[1].eom)
        first = r.link
        first.hang_up()
        r.nginx.wait_for_log("closed the link")
        wait_until(lambda: len(r.sidecar.links) == 2)
        r.linked()
        release.set()
        assert client.receive("POST").body == pattern(300_000)
        client.request("GET", "/3")
        client.request("GET", "/4")
    wait_until(lambda: len(r.link.exchanges) == 2 and r.link.exchanges[1].end)
    assert r.link.node_id != first.node_id
    assert all(x.complete for x in r.link.exchanges)
    r.total(seen=4, captured=3, link_lost=1)
    assert "1 exchanges were not reported" in r.nginx.error_log()
    assert r.log(4)[1].split("[")[1].startswith("lost(link_lost)")


def test_a_hang_up_in_a_request_body(rig, source):
    r = rig()
    body = pattern(500_000)
    raw = build_request("POST", "/", [HOST], body)
    with r.client() as client:
        client.send(raw[:200_000])
        wait_until(lambda: r.sidecar.exchanges)
        r.link.hang_up()
        wait_until(lambda: len(r.sidecar.links) == 2)
        r.linked()
        client.send(raw[200_000:])
        assert client.receive("POST").status == 200
        assert bytes(source.requests[0].body) == body
        client.request("GET", "/")
    r.total(seen=2, captured=1, link_lost=1)


def test_a_sidecar_that_goes_and_comes_under_load_breaks_nothing(rig, source):
    """Hang-ups at all places of an exchange."""
    r = rig(workers=2, buffer="1m")
    stop = threading.Event()
    count = [0] * 4

    def load(i):
        with r.client() as client:
            while not stop.is_set():
                body = pattern(100 + 40_000 * (count[i] % 3), i)
                assert client.request("POST", f"/{i}", body=body).status == 200
                count[i] += 1
    threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    try:
        for turn in range(12):
            n = len(r.sidecar.links)
            at = sum(count)
            wait_until(lambda: sum(count) > at + 10, 15)
            for link in r.sidecar.up:
                link.hang_up()
            wait_until(lambda: len(r.sidecar.links) >= n + 1, 15)
    finally:
        stop.set()
        for t in threads:
            t.join()
    # the other worker's row is up to date after a quarter of a second
    wait_until(lambda: r.status()["total"]["seen"] == sum(count)
               and not r.status()["total"]["pending"])


def test_descriptors_and_memory_of_ended_links_are_given_back(rig):
    r = rig()

    def held():
        worker, = r.nginx.workers()
        with open(f"/proc/{worker}/maps") as f:
            maps = f.read().count("memfd:nginx-capture")
        fds = f"/proc/{worker}/fd/"
        names = []
        for fd in os.listdir(fds):
            with contextlib.suppress(FileNotFoundError):    # a client's, by now
                names.append(os.readlink(fds + fd))
        return maps, sum("memfd" in n or "eventfd" in n for n in names)
    serves(r)
    before = held()
    assert before[:1] == (1,)
    for turn in range(5):
        n = len(r.sidecar.links)
        r.link.hang_up()
        wait_until(lambda: len(r.sidecar.links) > n)
        r.linked()
        serves(r)
    wait_until(lambda: held() == before, what=f"{before}, as before")


# the doorbell

def test_the_doorbell_rings_for_a_sleeping_reader_alone(rig):
    r = rig(options={"sleeps": False})
    for state, rings in ((AWAKE, 0), (NAPPING, 0), (ASLEEP, 1)):
        r.link.set_reader_state(state)
        before = r.link.worker("doorbells")
        serves(r, 4)
        r.caught_up()
        assert r.link.worker("doorbells") - before == rings
        # whoever was woken is awake until it says otherwise
        assert r.link.reader_state() == (AWAKE if rings else state)
    r.link.set_reader_state(0xFFFFFFFF)
    serves(r)
    r.caught_up()


def test_a_napping_reader_is_woken_when_room_gets_short(rig):
    r = rig(buffer="1m", options={"sleeps": False, "consume": False})
    r.link.set_reader_state(NAPPING)
    serves(r, 12, pattern(70_000))
    wait_until(lambda: r.link.worker("doorbells") >= 1)
    r.link.consume = True
    r.caught_up()


@pytest.mark.parametrize("blocking", [False, True])
def test_a_doorbell_that_is_full_does_not_hold_the_worker(rig, blocking):
    """Nobody reads it; O_NONBLOCK of the descriptor is the sidecar's to clear."""
    r = rig(options={"sleeps": False, "deaf": True})
    link = r.link
    if blocking:
        os.set_blocking(link.doorbell, True)
    for _ in range(2000):
        link.set_reader_state(ASLEEP)
        serves(r)
    assert len(r.sidecar.links) == 1
    link.deaf = False


def test_a_doorbell_that_is_closed_does_not_hold_the_worker(rig):
    r = rig(options={"sleeps": False, "deaf": True})
    link = r.link
    socket.socket(fileno=os.dup(link.doorbell)).shutdown(socket.SHUT_RDWR)
    link.set_reader_state(ASLEEP)
    serves(r)
    assert len(r.sidecar.links) == 1


# the worker's own fields

def test_a_sidecar_that_scribbles_over_the_pool_cannot_harm_the_worker(rig, source):
    """Frames that are still growing are in shared memory too: their sizes must
    not be read back from there."""
    r = rig(buffer="1m", http="sub_filter_types *; sub_filter ' ' '_';"
                              "sub_filter_once off;",
            options={"consume": False, "count": False})
    r.sidecar.read_after_end = False
    source.answer = lambda q: Response(body=pattern(60_000), chunked=(5000,))
    link = r.link
    stop = threading.Event()
    start = link.blocks_at
    junk = b"\xf0\xff\xff\x7f" * 2048

    def scribble():
        at = start
        while not stop.is_set():
            link.bytes[at:at + len(junk)] = junk
            at = start + (at - start + len(junk)) % (link.nblocks * 65536)
    threads = [threading.Thread(target=scribble)]
    worker, = r.nginx.workers()
    for t in threads:
        t.start()
    try:
        for _ in range(40):
            with r.client() as client:
                answer = client.request("POST", "/", body=pattern(30_000))
                assert answer.body == pattern(60_000).replace(b" ", b"_")
            with link.lock:      # gives all back, without having read any
                tail, head = link.u32[32], link.u32[48]
                for i in range(head, tail - 1):
                    entry = link.u64[(link.ring_at >> 3) + i % link.ring_size]
                    link.return_block(entry & 0xFFFFFFFF, entry >> 32)
                link.u32[48] = max(head, tail - 1)
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert r.nginx.workers() == [worker]


def test_a_sidecar_that_scribbles_over_header_and_slots(rig):
    """Counters, geometry, ids, ring: nothing of it leads the worker astray."""
    r = rig(options={"consume": False, "count": False},
            location="add_header X-Id $capture_connection_id;")
    r.sidecar.read_after_end = False
    link = r.link
    worker, = r.nginx.workers()
    tail = link.u32[RETURN_TAIL >> 2]
    for junk in (b"\xff", b"\x00", b"\x7f\xfe"):
        for at, end in ((0, RETURN_TAIL), (RETURN_TAIL + 4, 4096),
                        (link.slots_at, link.ring_at),
                        (link.ring_at, link.returns_at)):
            n = end - at
            link.bytes[at:end] = (junk * n)[:n]
            with r.client(timeout=5) as client:
                for _ in range(3):
                    answer = client.request("POST", "/", body=pattern(90_000))
                    assert answer.status == 200
                    assert len(answer.header("x-id") or "") <= 52
            r.port and r.nginx.running()
    assert link.u32[RETURN_TAIL >> 2] == tail
    assert r.nginx.workers() == [worker]
