"""capturectl http with filters, stats, help, man pages and completion."""

import json
import os
import pty
import random
import shutil
import subprocess

import pytest

from capturectl import CAPTURECTL, ENVIRONMENT, capturectl, lines_of
from refconsumer import build, pb
from rig.process import SANITIZED

SECOND = 1_000_000_000
TS = 1_700_000_000 * SECOND


def exchange(name, method="GET", uri="/", status=200, start=0, body=b"", answer=b"ok",
             latency_ms=1):
    request = b"%s %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (
        method.encode(), uri.encode(), len(body), body)
    response = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (
        status, len(answer), answer)
    p = build.Producer(name, start_ns=TS + start * SECOND).read(request)
    at = p.now_ns - build.STEP_NS
    p.eom().at(at + latency_ms * 1_000_000)
    return p.write(response).close().values


TRAFFIC = [
    exchange("a", "GET", "/orders/_search?q=1", 200, 0),
    exchange("b", "PUT", "/orders/_doc/1", 201, 10, b'{"name":"Ada"}'),
    exchange("c", "POST", "/orders/_bulk", 429, 20, b"\xff\xfe", b"slow down"),
    exchange("d", "DELETE", "/users/_doc/7", 404, 30),
    exchange("e", "PUT", "/users/_doc/8", 503, 40),
    build.Producer("f", start_ns=TS + 50 * SECOND).read(
        b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").eom().close().values,
]
STREAM = lines_of(v for values in TRAFFIC for v in values)


@pytest.mark.parametrize("arguments, shown", [
    ([], "abcdef"),
    (["--method", "PUT"], "be"),
    (["--method", "PUT,POST", "--method", "HEAD"], "bcef"),
    (["--method", "put"], ""),
    (["--path", "/orders/*"], "abc"),
    (["--path", "/*/_doc/[17]"], "bd"),
    (["--path", "/orders/_search"], "a"),
    (["--path", "~^/users/"], "de"),
    (["--path", r"~\?q=\d$"], "a"),
    (["--status", "404"], "d"),
    (["--status", "2xx,503"], "abe"),
    (["--status", "none"], "f"),
    (["--status", "xxx"], "abcde"),
    (["--body", "Ada"], "b"),
    (["--body", r"^\xff\xfe$"], "c"),
    (["--body", "down|Ada"], "bc"),
    (["--body", "Host"], ""),
    (["--since", "2023-11-14T22:13:50Z"], "def"),
    (["--since", "1700000010", "--until", "1700000030"], "bc"),
    (["--until", "2023-11-14T22:13:20.000000001Z"], "a"),
    (["--until", "2023-11-14"], ""),
    (["--since", "-1h"], ""),
    (["--method", "PUT", "--status", "5xx", "--path", "/users/*"], "e"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_filters_choose_exchanges(arguments, shown):
    answer = capturectl("http", "--json", *arguments, "-", stdin=STREAM)
    assert answer.status == 0
    assert "".join(x["connectionId"] for x in answer.json) == shown
    assert ("exchanges shown" in answer.err) == bool(arguments)
    counted = capturectl("stats", "--json", *arguments, "-", stdin=STREAM)
    assert counted.json[0]["exchanges"] == len(shown)


@pytest.mark.parametrize("arguments, why", [
    (["--path", "~("], "--path (: missing closing parenthesis, at character 1"),
    (["--body", "[z-a]"], "--body [z-a]: range out of order"),
    (["--status", "20"], "--status 20: such as"),
    (["--since", "yesterday"], "yesterday: not a time"),
    (["--until", "-5x"], "-5x: not a time"),
    (["--sort", "size"], "--sort size: completion or time"),
    (["-f"], "-f follows a topic"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_a_filter_that_makes_no_sense_is_refused(arguments, why):
    answer = capturectl("http", *arguments, "-", stdin=STREAM)
    assert (answer.status, answer.out) == (2, b"")
    assert answer.err.startswith("% " + why)


def test_exchanges_come_as_they_complete_or_by_the_requests_time():
    slow = build.Producer("slow", start_ns=TS).read(b"GET / HTTP/1.1\r\n\r\n").eom().flush()
    slow.at(TS + 9 * SECOND).write(b"HTTP/1.1 200 OK\r\n\r\n").close()
    fast = exchange("fast", start=3)
    stream = lines_of([slow.values[0], *fast, slow.values[1]])
    for order, ids in (("completion", ["fast", "slow"]), ("time", ["slow", "fast"])):
        answer = capturectl("http", "--json", "--sort", order, "-", stdin=stream)
        assert [x["connectionId"] for x in answer.json] == ids
    default = capturectl("http", "--json", "-", stdin=stream)
    assert [x["connectionId"] for x in default.json] == ["fast", "slow"]


@pytest.mark.parametrize("segments", [False, True])
def test_bodies_that_are_not_shown_are_counted_and_not_kept(segments):
    """An endless response takes no memory, and keeps its size."""
    p = build.Producer().read(b"GET / HTTP/1.1\r\n\r\n").eom()
    size = 0
    for n in range(60):
        data = bytes([n]) * 1_000_000 if n else b"HTTP/1.1 200 OK\r\n\r\n"
        size += len(data)
        (p.write_segment if segments else p.write)(data)
        if segments and n % 3 == 2:
            p.segment_end()
        p.flush()
    stream = lines_of(p.close().values)
    run = subprocess.Popen([CAPTURECTL, "http", "--json", "-"], env=ENVIRONMENT,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    run.stdin.write(stream)
    run.stdin.flush()
    with open(f"/proc/{run.pid}/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    out, _ = run.communicate()
    shown = json.loads(out)
    assert (shown["response"]["size"], shown["response"]["status"]) == (size, 200)
    if not SANITIZED:
        assert int(peak.split()[1]) < 30_000


# stats

def test_stats_counts_what_is_there():
    (s,) = capturectl("stats", "--json", "-", stdin=STREAM).json
    assert (s["records"], s["exchanges"], s["noResponse"]) == (6, 6, 1)
    assert s["first"] == "2023-11-14T22:13:20.000000000Z"
    assert 50 <= s["seconds"] < 50.1
    assert s["recordBytes"] == sum(len(v) for values in TRAFFIC for v in values)
    assert {m["key"]: m["count"] for m in s["methods"]} == {
        "GET": 1, "PUT": 2, "POST": 1, "DELETE": 1, "HEAD": 1}
    assert {m["key"]: m["count"] for m in s["statuses"]} == {
        "200": 1, "201": 1, "429": 1, "404": 1, "503": 1, "none": 1}
    assert {m["key"] for m in s["paths"]} == {
        "/orders/_search", "/orders/_doc/1", "/orders/_bulk", "/users/_doc/7",
        "/users/_doc/8", "/"}
    text = capturectl("stats", "-", stdin=STREAM).text
    assert "exchanges  6, " in text and "         2  PUT\n" in text
    assert capturectl("stats", "-").status == 0


def test_latencies_are_right_to_a_sixteenth():
    rng = random.Random(3)
    spread = [rng.randrange(1, 5000) for _ in range(400)]
    stream = lines_of(v for n, ms in enumerate(spread)
                      for v in exchange(f"c{n}", latency_ms=ms, start=n))
    (s,) = capturectl("stats", "--json", "-", stdin=stream).json
    spread.sort()
    for name, at in (("p50", 200), ("p90", 360), ("p99", 396)):
        assert s["latencyMs"][name] == pytest.approx(spread[at], rel=1 / 16)
    assert s["latencyMs"]["max"] == spread[-1]
    assert s["latencyMs"]["sum"] == pytest.approx(sum(spread))


def test_frequent_paths_are_found_among_any_number():
    """More than the table holds appear once each, some often; one of these
    begins when the table is full."""
    rng = random.Random(5)
    uris = [f"/once/{n}" for n in range(15_000)] + [
        f"/often/{n}" for n in range(5) for _ in range(200 * (n + 1))]
    later = [f"/later/{n}" for n in range(5_000)] + ["/late"] * 700
    rng.shuffle(uris)
    rng.shuffle(later)
    p = build.Producer()
    for n, uri in enumerate(uris + later):
        p.exchange(f"GET {uri}?{n} HTTP/1.1\r\n\r\n".encode(), b"HTTP/1.1 200 OK\r\n\r\n")
        if n % 100 == 99:
            p.flush()
    (s,) = capturectl("stats", "--json", "--top", "6", "-",
                      stdin=lines_of(p.close().values)).json
    expected = {f"/often/{n}": 200 * (n + 1) for n in range(5)} | {"/late": 700}
    assert [x["key"] for x in s["paths"]] == sorted(expected, key=expected.get)[::-1]
    for x in s["paths"]:
        assert x["count"] - x["error"] <= expected[x["key"]] <= x["count"]


def test_the_plan_is_of_what_was_seen():
    """1 MB in each of ten minutes, and 10 MB in one more."""
    body = b"x" * 100_000
    values = [v for minute in range(11) for n in range(100 if minute == 5 else 10)
              for v in exchange(f"c{minute}.{n}", "POST", "/", 200, minute * 60 + n % 40,
                                body)]
    (s,) = capturectl("stats", "--json", "--plan", "--days", "3", "-",
                      stdin=lines_of(values)).json
    plan, size = s["plan"], sum(map(len, values))
    assert plan["peakBytesPerSecond"] == pytest.approx(10e6 / 60, rel=0.01)
    assert plan["bytesPerDay"] == pytest.approx(size / s["seconds"] * 86400, rel=0.01)
    assert plan["retention.ms"] == 3 * 86_400_000
    assert plan["partitions"] == 1
    assert plan["retention.bytes"] == pytest.approx(plan["bytesPerDay"] * 3 * 1.2, rel=0.01)
    text = capturectl("stats", "--plan", "-", stdin=lines_of(values)).text
    assert "retention.ms     604800000  (7 days)" in text


# help, man pages, completion

SUBCOMMANDS = capturectl("man", "names").text.split()


def test_every_subcommand_has_help_with_an_example_that_it_would_take():
    assert {"decode", "http", "gaps", "stats", "topic", "status", "check", "export",
            "import", "completion"} == set(SUBCOMMANDS)
    for name in SUBCOMMANDS:
        answer = capturectl(name, "--help")
        assert (answer.status, answer.err) == (0, "")
        assert "\nExample:\n" in answer.text and "\nExit status: " in answer.text
        assert f"capturectl {name}" in answer.text.split("\nExample:\n")[1]


@pytest.mark.parametrize("name", [n for n in SUBCOMMANDS if n != "completion"])
def test_what_shows_something_has_it_as_json_too(name):
    assert "--json " in capturectl(name, "--help").text


@pytest.mark.parametrize("name", ["capturectl", *SUBCOMMANDS])
def test_man_pages_are_roff_without_a_fault(name):
    page = capturectl("man", name)
    assert page.status == 0
    assert page.text.startswith('.\\" made from')
    if shutil.which("groff"):
        run = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-z"], input=page.out,
                             capture_output=True)
        assert (run.returncode, run.stderr) == (0, b"")
    if name != "capturectl":
        for word in capturectl(name, "--help").text.split():
            if word.startswith("--") and word.strip("-").isalpha():
                assert word.replace("-", "\\-") in page.text


def complete(*words):
    """What bash offers for the last of the words."""
    script = capturectl("completion", "bash").text
    run = subprocess.run(
        ["bash", "-c", script + 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
         '_capturectl; printf "%s\\n" "${COMPREPLY[@]}"', "-", "capturectl", *words],
        capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return set(run.stdout.split())


def test_bash_completes_subcommands_options_and_files(tmp_path, monkeypatch):
    assert complete("") == set(SUBCOMMANDS) | set()
    assert complete("st") == {"stats", "status"}
    assert complete("--") == {"--help"}
    assert complete("gaps", "--i") == {"--ignore"}
    assert complete("topic", "--rea") == set()
    assert complete("completion", "z") >= {"zsh"}
    (tmp_path / "traffic.proto.gz").touch()
    assert complete("http", str(tmp_path) + "/t") == {f"{tmp_path}/traffic.proto.gz"}
    assert complete("http", "-F", str(tmp_path) + "/t") == {f"{tmp_path}/traffic.proto.gz"}
    assert complete("http", "-t", "") == set()


def test_the_zsh_script_names_every_option():
    script = capturectl("completion", "zsh")
    assert script.text.startswith("#compdef capturectl\n")
    for name in SUBCOMMANDS:
        assert f"        '{name}:" in script.text
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=script.out, check=True)
    assert capturectl("completion", "fish").status == 1


# progress

def test_progress_is_shown_on_a_terminal_and_wiped(tmp_path):
    file = tmp_path / "many"
    value = build.stream([build.observation(pb.CLOSE, TS)], last=True)
    file.write_bytes(lines_of([value]) * 300_000)
    master, slave = pty.openpty()
    with subprocess.Popen([CAPTURECTL, "gaps", str(file)], env=ENVIRONMENT,
                          stdout=subprocess.DEVNULL, stderr=slave) as run:
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:  # the other end is closed
            pass
        assert run.wait(60) == 1
    os.close(master)
    assert b"\r\x1b[K% " in shown and b" lines" in shown
    assert shown.rstrip().endswith(b"299999 duplicate")
    assert b" lines" not in shown.split(b"\r\x1b[K")[-1]
    assert b"\r" not in capturectl("gaps", file).err.encode()
