"""capturectl on files and standard input.

People and scripts judge a capture by what this tool prints, so it must read
everything that the Migration Assistant writes (the golden streams, named by
CAPTURE_GOLDEN; committed streams hold the same cases), show exactly what the
Replayer would make of it, and never fail in silence.
"""

import base64
import gzip
import os
import pathlib
import random
import subprocess

import pytest

from capturectl import (
    CAPTURECTL, ENVIRONMENT, bytes_of, capturectl, line_of, lines_of, remarks)
from refconsumer import build, pb
from refconsumer.accumulate import accumulate
from refconsumer.cases import CASES, STREAMS

GOLDEN = os.environ.get("CAPTURE_GOLDEN")
SECOND = 1_000_000_000
TS = 1_700_000_000 * SECOND + 5
TIME = "2023-11-14T22:13:20.000000005Z"

GET = b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

ALL_KINDS = [
    ("bind", {}, {}),
    ("connect", {}, {}),
    (pb.READ, {"data": b"GET"}, {"size": 3, "data": "R0VU", "text": "GET"}),
    (pb.READ_SEGMENT, {"data": b"\xff"}, {"size": 1, "data": "/w=="}),
    ("requestReleasedDownstream", {}, {"timedOut": False}),
    (pb.WRITE, {"data": b""}, {"size": 0, "data": "", "text": ""}),
    (pb.WRITE_SEGMENT, {"data": b"a\x1b"}, {"size": 2, "data": "YRs="}),
    ("disconnect", {}, {}),
    (pb.SEGMENT_END, {}, {}),
    (pb.EOM, {"lengths": (-1, 0)},
     {"firstLineByteLength": -1, "headersByteLength": 0}),
    (pb.DROPPED, {}, {}),
    (pb.EXCEPTION, {"message": "gone"}, {"message": "gone"}),
    (pb.CLOSE, {}, {}),
]


def one(kind=pb.CLOSE, **options):
    """A record of one observation."""
    return build.stream([build.observation(kind, TS)], last=True, **options)


def exchange_record(connection_id="conn", start_ns=TS):
    return build.Producer(connection_id, start_ns=start_ns).exchange(
        GET, OK).close().values


# input

def test_decode_prints_each_kind_as_json():
    value = build.stream(
        [build.observation(kind, TS, **parts) for kind, parts, _ in ALL_KINDS]
        + [build.observation(None, TS), build.observation(pb.CLOSE, None)],
        number=7, last=True, prior=3, unterminated=True)
    answer = capturectl("decode", "-", stdin=line_of(value))
    assert (answer.status, answer.err) == (0, "")
    assert answer.json == [{
        "connectionId": "conn",
        "nodeId": "node",
        "priorRequestsReceived": 3,
        "lastObservationWasUnterminatedRead": True,
        "subStream": [{"ts": TIME, kind: shown} for kind, _, shown in ALL_KINDS]
        + [{"ts": TIME}, {"close": {}}],
        "numberOfThisLastChunk": 7,
    }]


def test_decode_readable_is_one_line_a_record_with_runs_coalesced():
    seen = build.observation
    values = [
        build.stream([
            seen(pb.READ, TS, data=b"GET / HTTP/1.1\r\nHost: host.example\r\n"),
            seen(pb.READ_SEGMENT, TS, data=b"X: "),
            seen(pb.READ_SEGMENT, TS, data=b"y\r\n\r\n"),
            seen(pb.SEGMENT_END, TS),
            seen(pb.EOM, TS, lengths=(1, 2)),
            seen(pb.WRITE, TS + 2 * SECOND, data=b"abc\xff"),
            seen(pb.WRITE, TS + 2 * SECOND, data=b"")]),
        build.stream([
            seen(pb.READ, TS + 65 * SECOND, data=b""),
            seen(pb.DROPPED, TS), seen("bind", TS), seen("disconnect", TS),
            seen(pb.SEGMENT_END, TS), seen("requestReleasedDownstream", TS),
            seen(pb.EXCEPTION, TS, message="x"), seen(None, TS),
            seen(pb.CLOSE, TS)], number=12, last=True)]
    answer = capturectl("decode", "--readable", "-", stdin=lines_of(values))
    assert (answer.status, answer.err) == (0, "")
    assert answer.lines == [
        "[1700000000-1700000002]      0.0s   2.0s ncs:node.conn.1: "
        "R[44]: GET / HTTP/1.1..Host: ho... EOM W[4]: abc.",
        "[1700000000-1700000065]      0.0s  65.0s ncs:node.conn.12: "
        "R[0] DROPPED OPEN DISCONNECT SEGMENT_END REQUEST_RELEASED EXCEPTION "
        "UNKNOWN CLOSE"]


def test_decode_preview_is_as_long_as_told():
    stream = lines_of(exchange_record())
    for size, shown in ((0, " R[32] EOM"), (3, " R[32]: GET... EOM"),
                        (32, " R[32]: GET /a?x=1 HTTP/1.1..Host: h.... EOM")):
        answer = capturectl("decode", "--readable", "--preview", size, "-", stdin=stream)
        assert shown in answer.text


def test_lines_with_and_without_keys_crlf_blanks_and_no_last_newline(tmp_path):
    a, b, c = (one(connection_id=name) for name in "abc")
    file = tmp_path / "export.txt"
    file.write_bytes(b"\n" + line_of(a) + b"b|" + line_of(b)[:-1] + b"\r\n\r\n"
                     + b"c|" + line_of(c)[:-1])
    answer = capturectl("decode", file)
    assert (answer.status, answer.err) == (0, "")
    assert [(r["connectionId"], r.get("key")) for r in answer.json] == [
        ("a", None), ("b", "b"), ("c", "c")]


def test_a_key_that_is_not_the_connection_id_is_remarked():
    answer = capturectl("decode", "-", stdin=b"other|" + line_of(one()))
    assert answer.status == 0
    assert remarks(answer) == ["standard input:1: its key is not its connectionId"]
    assert answer.json[0]["key"] == "other"


def test_a_raw_record_is_read_from_a_file_and_from_standard_input(tmp_path):
    value = one()
    for name in ("conn_1.protocap", "any-name"):
        file = tmp_path / name
        file.write_bytes(value)
        assert capturectl("decode", file).json[0]["connectionId"] == "conn"
    assert capturectl("decode", "-", stdin=value).json[0]["connectionId"] == "conn"


def test_several_files_and_lines_longer_than_a_buffer(tmp_path):
    body = random.Random(1).randbytes(3_000_000)
    values = build.Producer().read(GET + body).eom().flush().close().values
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_bytes(line_of(values[0]))
    second.write_bytes(line_of(values[1]))
    answer = capturectl("http", "--json", "--full", first, second)
    assert answer.status == 0
    assert bytes_of(answer.json[0]["request"]) == GET + body


def test_many_records_come_in_their_order():
    values = [one(connection_id=f"c{i}") for i in range(20_000)]
    answer = capturectl("decode", "-", stdin=lines_of(values))
    assert [r["connectionId"] for r in answer.json] == [f"c{i}" for i in range(20_000)]


@pytest.mark.parametrize("line, why", [
    (b"====\n", "not base64"),
    (b"AA=A\n", "not base64"),
    (b"AAAAA\n", "not base64"),
    (b"A===\n", "not base64"),
    (b"Zm9v YmFy\n", "not base64"),
    (b"key|\n", "not base64"),
    (b"a|b|" + line_of(one()), "not base64"),
    (line_of(one()[:-1]), "not a record: a number is cut off, at byte {end}"),
    (line_of(b"\x0a\x01\xff"), "not a record: the connectionId is not UTF-8, at byte 2"),
    (line_of(build.stream([])), "not a record: it has no observation"),
    (line_of(one(connection_id="")), "not a record: it has no connectionId"),
    (line_of(build.stream([build.observation(pb.CLOSE, TS)], number=None)),
     "not a record: it has no index"),
], ids=range(12))
@pytest.mark.parametrize("command", ["decode", "http"])
def test_a_broken_record_is_reported_with_its_place_and_work_goes_on(command, line, why):
    good = lines_of(exchange_record())
    answer = capturectl(command, "-", stdin=good + line + good)
    assert answer.status == 1
    assert remarks(answer) == [
        "standard input:2: " + why.format(end=len(one()) - 1)]
    assert len(answer.lines) == 2


def test_what_cannot_be_opened_is_reported_and_the_next_file_is_read(tmp_path):
    good = tmp_path / "good"
    good.write_bytes(line_of(one()))
    answer = capturectl("decode", tmp_path / "none", tmp_path, good)
    assert answer.status == 1
    assert len(answer.json) == 1
    none, directory = remarks(answer)
    assert none.endswith("none: No such file or directory")
    assert "Is a directory" in directory


def test_gzip_is_read_from_a_file_and_from_standard_input(tmp_path):
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(lines_of([one()] * 3)))
    assert len(capturectl("decode", packed).json) == 3
    assert len(capturectl("decode", "-", stdin=packed.read_bytes()).json) == 3


def test_gzip_that_is_cut_off_is_an_error(tmp_path):
    packed = tmp_path / "packed.gz"
    text = lines_of(one(connection_id=random.Random(n).randbytes(30).hex())
                    for n in range(1000))
    packed.write_bytes(gzip.compress(text)[:-2000])
    answer = capturectl("decode", packed)
    assert answer.status == 1
    assert "reading failed: " in answer.err


def test_empty_input_is_no_error():
    answer = capturectl("decode", "-")
    assert (answer.status, answer.out, answer.err) == (0, b"", "")


# output

def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    file = tmp_path / "many"
    file.write_bytes(line_of(one()) * 50_000)
    with subprocess.Popen([CAPTURECTL, "decode", str(file)], env=ENVIRONMENT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait(60) == 0


def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb") as full:
        run = subprocess.run([CAPTURECTL, "decode", "-"], input=line_of(one()),
                             stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert run.returncode == 1
    assert run.stderr == b"% writing failed: No space left on device\n"


# http

def _streams():
    folders = [STREAMS]
    if GOLDEN:
        folders.append(pathlib.Path(GOLDEN))
    return [pytest.param(file, id=f"{file.parent.name}/{file.stem}")
            for folder in folders for file in sorted(folder.glob("*.b64"))]


def test_the_golden_folder_holds_streams():
    assert not GOLDEN or list(pathlib.Path(GOLDEN).glob("*.b64"))


@pytest.mark.parametrize("file", _streams())
def test_every_stream_yields_the_exchanges_that_the_replayer_sees(file):
    answer = capturectl("http", "--json", "--full", file)
    assert answer.status == 0
    assert [(bytes_of(x["request"]), bytes_of(x["response"]) if "response" in x else b"")
            for x in answer.json] == CASES[file.stem].exchanges
    assert [x["index"] for x in answer.json] == list(range(len(answer.json)))
    assert {x["state"] for x in answer.json} <= {"complete"}


@pytest.mark.parametrize("file", _streams())
def test_every_stream_can_be_decoded(file):
    values = [base64.b64decode(line) for line in file.read_text().split()]
    answer = capturectl("decode", file)
    assert (answer.status, answer.err) == (0, "")
    assert len(answer.json) == len(values)
    for shown, value in zip(answer.json, values):
        expected = pb.decode(value)
        assert shown["connectionId"] == expected.connection_id
        assert [[k for k in o if k != "ts"] for o in shown["subStream"]] == [
            [o.kind] for o in expected.observations]
        assert [base64.b64decode(next(iter(o.values()), {}).get("data", ""))
                for o in ({k: v for k, v in o.items() if k != "ts"}
                          for o in shown["subStream"])] == [
            o.data for o in expected.observations]
    assert capturectl("decode", "--readable", file).status == 0


def test_an_exchange_is_a_readable_line():
    stream = build.Producer().at(TS).read(GET[:5]).read(GET[5:]).eom()
    stream.at(TS + 12 * 1_000_000).write(OK[:10]).write(OK[10:]).close()
    answer = capturectl("http", "-", stdin=lines_of(stream.values))
    assert answer.status == 0
    assert answer.text == (
        f'{TIME} node.conn.0 "GET /a?x=1 HTTP/1.1" 32 -> 200 40 12.000ms\n')
    assert answer.err == (
        "% 1 records, 1 exchanges; requests: 0 dropped, 0 without an end; "
        "connections: 0 expired, 0 open\n")
    assert capturectl("http", "-q", "-", stdin=lines_of(stream.values)).err == ""


def test_an_exchange_is_a_json_object():
    stream = build.Producer().at(TS).read(GET[:5]).read(GET[5:]).eom()
    stream.at(TS + 2_500_000).write(OK).close()
    answer = capturectl("http", "--json", "-", stdin=lines_of(stream.values))
    assert answer.json == [{
        "nodeId": "node", "connectionId": "conn", "index": 0, "state": "complete",
        "request": {
            "first": TIME, "last": "2023-11-14T22:13:20.001000005Z",
            "packets": 2, "size": 32,
            "method": "GET", "uri": "/a?x=1", "version": "HTTP/1.1"},
        "response": {
            "first": "2023-11-14T22:13:20.002500005Z",
            "last": "2023-11-14T22:13:20.002500005Z",
            "packets": 1, "size": 40, "status": 200},
        "latency_ms": 1.5}]


def test_full_shows_heads_and_bodies_and_no_control_characters():
    request = b"PUT /\x1b[31m HTTP/1.1\r\nX: caf\xe9\r\n\r\nhello\nworld"
    response = b"HTTP/1.1 200 OK\r\n\r\n\x1b[2J"
    stream = build.Producer(start_ns=TS).exchange(request, response).close()
    answer = capturectl("http", "--full", "-", stdin=lines_of(stream.values))
    assert answer.lines[1:] == [
        "> PUT /\\x1b[31m HTTP/1.1", "> X: caf\\xe9", "> ", "hello", "world",
        "< HTTP/1.1 200 OK", "< ", "[4 bytes that are not text]", ""]
    assert b"\x1b" not in answer.out
    (shown,) = capturectl("http", "--full", "--json", "-",
                          stdin=lines_of(stream.values)).json
    assert "text" not in shown["response"]["body"]
    assert shown["request"]["body"]["text"] == "hello\nworld"
    assert "uri" not in shown["request"]


@pytest.mark.parametrize("body", [b"\x9b2J", b"\xc2\x9b2J", b"a\0b", b"\x7f", b"\xed\xa0\x80"])
def test_a_body_that_could_move_a_terminal_is_not_shown_as_text(body):
    stream = build.Producer().exchange(GET + body, OK + "é\t\r\n".encode()).close()
    answer = capturectl("http", "--full", "-", stdin=lines_of(stream.values))
    assert f"[{len(body)} bytes that are not text]\n" in answer.text
    assert "oké\t" in answer.text
    (shown,) = capturectl("http", "--full", "--json", "-",
                          stdin=lines_of(stream.values)).json
    assert list(shown["request"]["body"]) == ["data"]
    assert base64.b64decode(shown["request"]["body"]["data"]) == body


def test_connections_are_told_apart_by_node_and_id():
    nodes = [build.Producer("conn", node).read(GET).eom().flush().write(OK).close()
             for node in ("n1", "n2")]
    values = [value for pair in zip(*(n.values for n in nodes)) for value in pair]
    answer = capturectl("http", "--json", "-", stdin=lines_of(values))
    assert [(x["nodeId"], x["response"]["size"]) for x in answer.json] == [
        ("n1", 40), ("n2", 40)]


def test_what_the_input_leaves_open_is_shown_as_open():
    values = build.Producer().exchange(GET, OK[:9]).flush().values
    values += build.Producer("other").exchange(GET, OK).read(b"half").flush().values
    answer = capturectl("http", "--json", "-", stdin=lines_of(values))
    assert answer.status == 0
    assert [(x["connectionId"], x["state"]) for x in answer.json] == [
        ("other", "complete"), ("conn", "open")]
    assert "1 without an end" in answer.err and "2 open" in answer.err
    readable = capturectl("http", "-", stdin=lines_of(values)).lines
    assert readable[1].endswith(" (open)")


@pytest.mark.parametrize("idle, states", [
    (360, ["complete"]), (362, ["expired"])])
def test_a_silent_connection_expires_by_the_time_of_the_records(idle, states):
    """What comes after the expiry begins anew, and is no part of the exchange."""
    slow = build.Producer("slow", start_ns=TS).read(GET).eom().write(OK[:9]).flush()
    slow.at(TS + idle * SECOND).write(OK[9:]).close()
    other = one(connection_id="other").replace(
        build.timestamp(TS), build.timestamp(TS + idle * SECOND))
    values = [slow.values[0], other, slow.values[1]]
    answer = capturectl("http", "--json", "-", stdin=lines_of(values))
    assert [x["state"] for x in answer.json if x["connectionId"] == "slow"] == states
    answer = capturectl("http", "--json", "--packet-timeout", "1000", "-",
                        stdin=lines_of(values))
    assert answer.json[0]["response"]["size"] == len(OK)


@pytest.mark.parametrize("prior, unterminated, index", [
    (None, None, 0), (5, None, 5), (5, True, 6), (None, False, 1)])
def test_a_connection_that_is_met_late_counts_from_its_record(prior, unterminated, index):
    """An explicit false shifts the index: the Replayer asks for presence."""
    seen = [build.observation(pb.READ, TS, data=b"tail of an unknown request"),
            build.observation(pb.EOM, TS)] if unterminated else []
    seen += [build.observation(pb.READ, TS, data=GET), build.observation(pb.EOM, TS),
             build.observation(pb.CLOSE, TS)]
    value = build.stream(seen, last=True, prior=prior, unterminated=unterminated)
    (shown,) = capturectl("http", "--json", "--full", "-", stdin=line_of(value)).json
    assert shown["index"] == index
    assert bytes_of(shown["request"]) == GET
    assert "response" not in shown


@pytest.mark.parametrize("kinds, what", [
    ([pb.READ, pb.SEGMENT_END, pb.EOM], "a segmentEnd without segments"),
    ([pb.READ, pb.EOM, pb.SEGMENT_END], "a segmentEnd without segments"),
    ([pb.READ, pb.READ_SEGMENT, pb.EOM], "a request ends within segments"),
    ([pb.READ_SEGMENT, pb.READ, pb.SEGMENT_END, pb.EOM], "a read within segments"),
    ([pb.READ, pb.EOM, pb.WRITE_SEGMENT], "a response ends within segments"),
    ([pb.READ, pb.EOM, pb.WRITE_SEGMENT, pb.WRITE, pb.SEGMENT_END],
     "a write within segments"),
    ([pb.READ, pb.EOM, pb.CLOSE, pb.READ], "observations after close"),
], ids=range(7))
def test_what_harms_the_replayer_is_an_error(kinds, what):
    value = build.stream(
        [build.observation(kind, TS) for kind in [*kinds, pb.CLOSE]], last=True)
    answer = capturectl("http", "-", stdin=line_of(value))
    assert answer.status == 1
    (said,) = remarks(answer)
    assert said.startswith(f"standard input:1: {what}")
    assert len(answer.lines) == 1


def test_what_the_replayer_passes_over_is_remarked():
    stream = build.Producer().read(GET).write(OK).eom().eom().close()
    answer = capturectl("http", "-", stdin=lines_of(stream.values))
    assert answer.status == 0
    assert remarks(answer) == [
        "standard input:1: write within a request is ignored",
        "standard input:1: endOfMessageIndicator within a response is ignored"]


def _random_values(rng):
    """Records of three connections at random: most of them break the grammar."""
    kinds = [pb.READ] * 6 + [pb.EOM] * 4 + [pb.WRITE] * 6 + [
        pb.READ_SEGMENT, pb.WRITE_SEGMENT, pb.SEGMENT_END, pb.DROPPED, "bind", None]
    kinds += [pb.CLOSE] if rng.random() < 0.5 else []
    values, now = [], TS
    for _ in range(rng.randrange(1, 12)):
        seen = []
        for _ in range(rng.randrange(1, 8)):
            kind = rng.choice(kinds)
            now += rng.choice([0, 1, 1000, SECOND])
            data = rng.randbytes(rng.randrange(20)) if kind in (
                pb.READ, pb.WRITE, pb.READ_SEGMENT, pb.WRITE_SEGMENT) else None
            seen.append(build.observation(kind, now, data=data))
        values.append(build.stream(
            seen, connection_id=rng.choice("abc"), prior=rng.choice([None, 2]),
            unterminated=rng.choice([None, None, False, True])))
    return values


def _summary(exchanges):
    return sorted((x.connection_id, x.index, x.request, x.response,
                   len(x.request_packets), len(x.response_packets),
                   x.status == "COMPLETE") for x in exchanges)


@pytest.mark.parametrize("seed", range(60))
def test_random_streams_accumulate_as_the_reference_consumer_says(seed):
    values = _random_values(random.Random(seed))
    expected = accumulate(map(pb.decode, values))
    answer = capturectl("http", "--json", "--full", "-", stdin=lines_of(values))
    got = [(x["connectionId"], x["index"], bytes_of(x["request"]),
            bytes_of(x["response"]) if "response" in x else b"",
            x["request"]["packets"], x.get("response", {"packets": 0})["packets"],
            x["state"] == "complete") for x in answer.json]
    assert sorted(got) == _summary(expected.exchanges)


# command line

@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["decode"], ["http", "--nonsense", "-"], ["topic", "--readable"],
    ["decode", "-b", "h:1"], ["decode", "-t", "t"], ["decode", "-b", "h:1", "-t", "t", "-"],
    ["topic", "-"], ["topic"], ["decode", "-p", "x", "-"], ["decode", "-p", "-1", "-"],
    ["decode", "--preview", "9" * 30, "-"], ["decode", "-X", "noequals", "-"],
    ["decode", "-X", "sasl.password=hunter2", "-b", "h:1", "-t", "t"],
    ["decode", "-X", "ssl.key.pem=hunter2", "-b", "h:1", "-t", "t"],
], ids=" ".join)
def test_a_wrong_command_line_is_status_2_and_says_why(arguments):
    answer = capturectl(*arguments)
    assert answer.status == 2
    assert answer.out == b"" and answer.err
    assert "hunter2" not in answer.err


def test_help_goes_to_standard_output_and_names_every_option():
    overview = capturectl("--help")
    assert (overview.status, overview.err) == (0, "")
    for command, options in (
            ("decode", "--brokers --readable --preview --offset"),
            ("http", "--topic --json --full --packet-timeout --quiet"),
            ("topic", "--brokers --topic --partition --properties")):
        assert f"  {command} " in overview.text
        answer = capturectl(command, "--help")
        assert (answer.status, answer.err) == (0, "")
        for option in options.split():
            assert f"{option} " in answer.text
    assert "--readable" not in capturectl("topic", "--help").text


def test_properties_come_from_a_file_where_secrets_may_be(tmp_path):
    file = tmp_path / "kafka.properties"
    file.write_text("# ours\n\n  sasl.password=hunter2\nno.such.property=1\n")
    answer = capturectl("decode", "-b", "127.0.0.1:1", "-t", "t", "-F", file)
    assert answer.status == 1
    assert "no.such.property" in answer.err and "hunter2" not in answer.err
    assert capturectl("decode", "-b", "h:1", "-t", "t", "-F", tmp_path / "none").status == 1


def test_a_broker_that_is_away_is_an_error_within_the_timeout():
    answer = capturectl("decode", "-b", "127.0.0.1:1", "-t", "t", "-m", "1", timeout=20)
    assert answer.status == 1
    assert "% no answer about topic t: " in answer.err
