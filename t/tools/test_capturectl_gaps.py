"""capturectl gaps: every damage that a topic can show is found, by its
connection, and a sound topic has none."""

import base64
import random
import subprocess

import pytest

from capturectl import CAPTURECTL, capturectl, lines_of
from refconsumer import build, pb
from refconsumer.cases import STREAMS
from rig.process import SANITIZED

SECOND = 1_000_000_000
TS = 1_700_000_000 * SECOND
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


def connection(name="conn", exchanges=4, start_ns=TS):
    """A record for each exchange, and one with close."""
    p = build.Producer(name, start_ns=start_ns)
    for _ in range(exchanges):
        p.exchange(GET, OK).flush()
    return p.close().values


def gaps(values, *arguments):
    """({kind: [finding, ...]}, summary, exit status)"""
    answer = capturectl("gaps", "--json", *arguments, "-", stdin=lines_of(values))
    *found, summary = answer.json
    assert summary["kind"] == "summary"
    assert {k: n for k, n in summary["found"].items() if n} == {
        k: sum(f["kind"] == k for f in found) for k in {f["kind"] for f in found}}
    assert answer.status == (1 if found else 0), answer.err
    kinds = {}
    for f in found:
        kinds.setdefault(f["kind"], []).append(f)
    return kinds, summary


def details(values, *arguments):
    kinds, _ = gaps(values, *arguments)
    return {kind: [f["detail"] for f in found] for kind, found in kinds.items()}


def test_a_sound_topic_has_none():
    values = [v for vs in zip(*(connection(f"c{i}") for i in range(20))) for v in vs]
    kinds, summary = gaps(values)
    assert kinds == {}
    assert (summary["records"], summary["connections"], summary["requests"]) == (100, 20, 80)
    answer = capturectl("gaps", "-", stdin=lines_of(values))
    assert (answer.status, answer.out) == (0, b"")
    assert answer.err == "% 100 records, 20 connections, 80 requests: nothing found\n"


@pytest.mark.parametrize("name", sorted(
    f.stem for f in STREAMS.glob("*.b64")))
def test_no_hole_is_seen_where_there_is_none(name):
    """Streams that the contract allows, with whatever cuts they have."""
    text = (STREAMS / f"{name}.b64").read_text().split()
    kinds, _ = gaps([base64.b64decode(line) for line in text])
    assert not kinds.keys() & {"hole", "headless", "late", "duplicate", "conflict",
                               "after_close", "moved", "unreadable"}


def test_a_hole_is_found_with_its_numbers():
    values = connection(exchanges=6)
    del values[2:4]
    kinds, _ = gaps(values)
    (hole,) = kinds.pop("hole")
    assert not kinds
    assert hole["detail"] == "records 3 to 4 are missing, of request 2 on"
    assert (hole["connectionId"], hole["nodeId"]) == ("conn", "node")
    assert hole["place"] == "standard input:3"
    assert hole["time"].startswith("2023-11-14T22:13:20.")


def test_what_follows_a_hole_is_not_judged_by_what_was_before():
    """The rest of a response whose beginning is missing is not one that is cut."""
    p = build.Producer().read(GET).eom().write(OK[:5]).flush().write(OK[5:]).flush()
    p.exchange(GET, OK).close()
    del p.values[1]
    assert list(details(p.values)) == ["hole"]


def test_a_missing_beginning():
    assert details(connection()[2:]) == {"headless": ["records 1 to 2 are missing"]}


@pytest.mark.parametrize("at", range(5))
def test_a_record_that_comes_twice(at):
    values = connection()
    values.insert(at + 1, values[at])
    assert details(values) == {
        "duplicate": [f"record {at + 1} again, with the same bytes"]}


@pytest.mark.parametrize("at", [0, 3, 4])
def test_a_record_that_comes_twice_with_other_bytes(at):
    values, others = connection(), connection(start_ns=TS + 1)
    values.insert(at + 1, others[at])
    assert details(values) == {
        "conflict": [f"record {at + 1} again, with other bytes"]}


def test_a_record_twice_long_after():
    values = connection(exchanges=30)
    values.insert(25, values[2])
    assert details(values) == {
        "duplicate": ["record 3 again, too late to compare its bytes"]}


def test_records_in_the_wrong_order():
    values = connection(exchanges=6)
    values[2:5] = [values[4], values[3], values[2]]
    assert details(values) == {
        "hole": ["records 3 to 4 are missing, of request 2 on"],
        "late": ["record 4 comes after record 5", "record 3 comes after record 5"]}


def test_a_record_after_the_close():
    values = connection()
    later = build.stream([build.observation(pb.READ, TS, data=GET)], number=6)
    assert details([*values, later]) == {
        "after_close": ["record 6 after the close in record 5"]}
    assert list(details([*values, values[1]])) == ["duplicate"]


def test_closed_connections_are_remembered_within_a_bound():
    """Half of --remember at least: a doubled close is found among so many."""
    one_record = [build.stream([build.observation(pb.CLOSE, TS)], last=True,
                               connection_id=f"c{i}") for i in range(40)]
    assert len(details(one_record * 2, "--remember", "200")["duplicate"]) == 40
    assert details(one_record * 2, "--remember", "4") == {}


@pytest.mark.parametrize("tail, found", [
    (lambda p: p.read(GET).close(), {"doubt": ["request 1 has no end: it is not replayed"]}),
    (lambda p: p.read(GET).eom().close(), {"doubt": ["request 1 has no response"]}),
    (lambda p: p.read(GET).drop().close(), {}),
    (lambda p: p.read(GET).eom().write(OK[:-1]).close(),
     {"truncated": ["the response to request 1 is cut after 39 bytes"]}),
    (lambda p: p.read(GET).eom().write(OK[:9]).exchange(GET, OK).close(),
     {"truncated": ["the response to request 1 is cut after 9 bytes"]}),
    (lambda p: p.read(GET).eom().write(CHUNKED[:-2]).close(),
     {"truncated": ["the response to request 1 is cut after 57 bytes"]}),
    (lambda p: p.read(GET).eom().write(OK + b"x").close(),
     {"truncated": ["the response to request 1 is not one HTTP/1.1 message, "
                    "after 41 bytes"]}),
    (lambda p: p.read(HEAD).eom().write(OK[:-2]).close(), {}),
    (lambda p: p.read(GET).eom().write(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n").close(), {}),
    (lambda p: p.read(GET).eom().write(b"HTTP/1.0 200 OK\r\n\r\nto the end").close(), {}),
    (lambda p: p.exception("gone").close(),
     {"abandoned": ["connectionException between requests: gone"]}),
    (lambda p: p.read(GET).exception("cut").close(),
     {"abandoned": ["connectionException within a request: cut"],
      "doubt": ["request 1 has no end: it is not replayed"]}),
    (lambda p: p.read(GET).eom().write(OK[:9]).exception("cut").close(),
     {"abandoned": ["connectionException within a response: cut"],
      "truncated": ["the response to request 1 is cut after 9 bytes"]}),
    (lambda p: p.flush(), {"unfinished": ["no close, between requests"]}),
    (lambda p: p.read(GET).flush(),
     {"unfinished": ["no close, within a request"],
      "doubt": ["request 1 has no end: it is not replayed"]}),
], ids=range(15))
def test_how_a_connection_ends(tail, found):
    p = build.Producer().exchange(GET, OK)
    tail(p)
    assert details(p.values) == found


@pytest.mark.parametrize("body", [CHUNKED, OK])
def test_a_response_may_come_in_any_pieces(body):
    p = build.Producer().read(GET).eom()
    for i in range(len(body)):
        p.write(body[i:i + 1])
        if i % 7 == 0:
            p.flush()
    assert details(p.close().values) == {}


def test_a_silent_connection_is_found_when_others_go_on():
    slow = build.Producer("slow", start_ns=TS).exchange(GET, OK[:9]).flush()
    other = connection("other", 1, TS + 361 * SECOND)
    kinds, _ = gaps([*slow.values, *other])
    assert [f["connectionId"] for f in kinds["silent"]] == ["slow"]
    assert kinds["silent"][0]["detail"].endswith("for 360 s, within a response")
    assert "place" not in kinds["silent"][0]
    assert list(kinds) == ["silent", "truncated"]


def test_a_silent_connection_that_comes_back_has_no_hole():
    slow = build.Producer("slow", start_ns=TS).exchange(GET, OK).flush()
    other = connection("other", 1, TS + 361 * SECOND)
    slow.at(TS + 362 * SECOND).exchange(GET, OK).close()
    kinds = details([slow.values[0], *other, slow.values[1]])
    assert list(kinds) == ["silent"]
    kinds = details([slow.values[0], *other, slow.values[0], slow.values[1]])
    assert sorted(kinds) == ["duplicate", "silent"]


def test_what_is_no_record_is_a_finding():
    answer = capturectl("gaps", "-", stdin=lines_of([b"\xff", *connection()]))
    assert answer.status == 1
    assert "- unreadable  - not a record: " in answer.text
    assert "(standard input:1)" in answer.text


def test_what_cannot_be_read_is_an_error_and_no_verdict(tmp_path):
    assert capturectl("gaps", tmp_path / "none").status == 2
    assert capturectl("gaps", "-b", "127.0.0.1:1", "-t", "t", "-m", "1").status == 2


def test_kinds_can_be_ignored():
    values = build.Producer().read(GET).exception("x").flush().values
    assert sorted(details(values)) == ["abandoned", "doubt", "unfinished"]
    assert details(values, "--ignore", "abandoned,doubt", "--ignore", "unfinished") == {}
    assert capturectl("gaps", "--ignore", "nonsense", "-").status == 2


def test_a_readable_line_has_no_control_characters():
    values = build.Producer("c\x1b[2J").read(GET).exception("\x1b[31m").flush().values
    answer = capturectl("gaps", "-", stdin=lines_of(values))
    assert b"\x1b" not in answer.out and "node.c\\x1b[2J" in answer.text


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_is_found_by_its_connection(seed):
    """What is dropped, doubled or swapped in some connections is found there,
    and in no other."""
    rng = random.Random(seed)
    queues, expected = {}, {}
    for i in range(12):
        name = f"c{i}"
        values = connection(name, rng.randrange(3, 12))
        damage = rng.choice(["none", "drop", "double", "swap"])
        at = rng.randrange(1, len(values) - 1)
        if damage == "drop":
            del values[at]
        elif damage == "double":
            values.insert(rng.randrange(at + 1, min(at + 4, len(values)) + 1), values[at])
        elif damage == "swap":
            values[at - 1], values[at] = values[at], values[at - 1]
        queues[name] = values
        expected[name] = {"none": set(), "drop": {"hole"}, "double": {"duplicate"},
                          "swap": {"late", "headless" if at == 1 else "hole"}}[damage]
    mixed = []
    while any(queues.values()):
        mixed.append(queues[rng.choice([n for n, q in queues.items() if q])].pop(0))
    kinds, _ = gaps(mixed)
    found = {name: {k for k, fs in kinds.items() if any(f["connectionId"] == name for f in fs)}
             for name in expected}
    assert found == expected


@pytest.mark.skipif(SANITIZED, reason="its memory is the sanitizer's")
def test_memory_is_that_of_open_connections():
    """About the same for ten times the connections."""
    few, many = (_peak_kib(n) for n in (3_000, 30_000))
    assert many < few + 4_000


def _peak_kib(connections):
    records = connection("conn0000", 1)
    stream = lines_of(record.replace(b"conn0000", b"%08d" % i)
                      for i in range(connections) for record in records)
    run = subprocess.Popen([CAPTURECTL, "gaps", "-q", "--remember", "2000", "-"],
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    run.stdin.write(stream)
    run.stdin.flush()
    with open(f"/proc/{run.pid}/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    assert run.communicate()[0] == b"" and run.returncode == 0
    return int(peak.split()[1])
