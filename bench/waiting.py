"""What a request that waits (capture_wait) costs its client: the time until its
record is acknowledged, beside the round trip of a bare librdkafka producer to
the same broker in the same run."""

import json
import os
import random
import shlex
import subprocess
import time
from contextlib import contextmanager
from statistics import median

import load
import machine
from report import table
from rig.process import BUILD, TOP

HERE = os.path.dirname(os.path.abspath(__file__))
BODY = 1024
MANY = 200
STREAM = 20
MARGIN_US = 150       # the limits: README
SHARE = 0.8
CASES = ("plain", "notwait", "wait")
DISK = "disk"         # with durability = disk
ENTRY = 1400          # bytes that a request of BODY takes in its journal


def build_producer():
    """Compiles producer.c; the program's path."""
    program = os.path.join(BUILD, "bench-producer")
    flags = {}
    with open(os.path.join(BUILD, "deps", "librdkafka.mk")) as f:
        for line in f:
            name, sep, value = line.partition(":=")
            if sep:
                flags[name.strip()] = shlex.split(value)
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-g", "-pthread", *flags["RDKAFKA_CFLAGS"],
         "-o", program, os.path.join(HERE, "producer.c"),
         *flags["RDKAFKA_LIBS"]], check=True, timeout=60, cwd=TOP)
    return program


def produce(program, broker, topic, seconds, prefix, port=None, size=BODY):
    """port: of the proxy that gets a request between two records. Broker "sync":
    the topic is a file."""
    done = subprocess.run(
        prefix + [program, broker, topic, str(seconds), str(size)]
        + ([str(port)] if port else []),
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=seconds + 60)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


@contextmanager
def background(port, seconds, prefix):
    """A client that takes 1 MiB answers, some STREAM of them a second."""
    child = subprocess.Popen(
        prefix + ["wrk", "-t1", "-c1", f"-d{seconds + 2}s",
                  "-s", os.path.join(HERE, "load.lua"),
                  f"http://127.0.0.1:{port}/1m", "--", "GET", "0",
                  str(1000 // STREAM)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.2)
        yield
    finally:
        child.terminate()
        child.wait(10)


def _post(proxy, seconds, prefix, connections):
    result = load.run(load.LOADS["post-1k"], proxy.port, seconds, prefix,
                      connections=connections)
    if result["errors"]:
        raise RuntimeError(f"{proxy.case}: {result['errors']} errors")
    result["rps"] = result["requests"] * 1e6 / result["us"]
    return result


def run(start, broker, topic, file, syncs, rounds, seconds, seed, prefix,
        progress):
    """[{"round", "what", "case", ...}] and the sums of waits. start(): a context
    manager with fresh {case: Proxy} of CASES and DISK. `file`: on the disk of
    its journal; `syncs`: of its sidecar. The order is shuffled for every round;
    the figures of one round are put against each other."""
    program = build_producer()
    order = random.Random(seed)
    samples = []
    waits = {}
    for number in range(1, rounds + 1):
        plan = [("producer", "tight"), ("producer", "between"),
                ("sync", "tight"), ("sync", "between"), ("one", DISK),
                ("many", DISK)]
        plan += [(what, case) for what in ("one", "beside") for case in CASES]
        plan += [("many", case) for case in CASES]
        order.shuffle(plan)
        with start() as proxies:
            for proxy in proxies.values():
                _post(proxy, 1, prefix, load.CONNECTIONS)    # warm
            for what, case in plan:
                if what == "producer":
                    port = proxies["plain"].port if case == "between" else None
                    s = produce(program, broker, topic, seconds, prefix, port)
                elif what == "sync":
                    port = proxies["plain"].port if case == "between" else None
                    s = produce(program, "sync", file, seconds, prefix, port,
                                ENTRY)
                elif what == "beside":
                    with background(proxies[case].port, seconds, prefix):
                        s = _post(proxies[case], seconds, prefix, 1)
                else:
                    before = syncs.count()
                    s = _post(proxies[case], seconds, prefix,
                              MANY if what == "many" else 1)
                    if case == DISK:
                        s["sync_us"] = median(syncs.since(before))
                if case in ("wait", "notwait", DISK):
                    proxies[case].settle(10)
                samples.append({"round": number, "what": what, "case": case, **s})
                progress(f"waiting, round {number}: {len(samples)} of "
                         f"{rounds * len(plan)}")
            total = proxies["wait"].status()["total"]
            for name, n in [*total["waits"].items(),
                            ("lost exchanges", sum(total["lost"].values()))]:
                waits[name] = waits.get(name, 0) + n
    return samples, waits


def _values(samples, what, case, key):
    return {s["round"]: s[key] for s in samples
            if (s["what"], s["case"]) == (what, case)}


def _spread(values, form):
    return "{} ({}-{})".format(*(form.format(v) for v in (
        median(values), min(values), max(values))))


def _disk(samples):
    """durability = disk against the fdatasync()s of its sidecar in that time, and a
    bare one of as many bytes."""
    tight = _values(samples, "sync", "tight", "p50_us")
    bare = _values(samples, "sync", "between", "p50_us")
    plain = _values(samples, "one", "plain", "p50_us")
    wait = _values(samples, "one", DISK, "p50_us")
    own = _values(samples, "one", DISK, "sync_us")
    over = [wait[n] - plain[n] - own[n] for n in plain]
    return table([
        ["POST 1 KiB, one connection", "plain p50 us", "wait p50 us", "wait more",
         "its fdatasync p50 us", f"over that (<= {MARGIN_US})", "",
         "a bare fdatasync", "with requests between"],
        ["durability disk", _spread(plain.values(), "{:.0f}"),
         _spread(wait.values(), "{:.0f}"),
         _spread([wait[n] - plain[n] for n in plain], "{:.0f}"),
         _spread(own.values(), "{:.0f}"), _spread(over, "{:.0f}"),
         "kept" if median(over) <= MARGIN_US else "NOT KEPT",
         _spread(tight.values(), "{:.0f}"), _spread(bare.values(), "{:.0f}")]],
        words=True)


def report(samples, waits):
    """The tables, and whether the limits are kept (of the medians)."""
    tight = _values(samples, "producer", "tight", "p50_us")
    bare = _values(samples, "producer", "between", "p50_us")
    lines = [["POST 1 KiB, one connection", "plain p50 us", "wait p50 us",
              "wait more", "producer p50 us", "with requests between",
              f"over the latter (<= {MARGIN_US})", ""]]
    for what, words in (("one", "alone"), ("beside", f"beside {STREAM} MiB/s of answers")):
        plain = _values(samples, what, "plain", "p50_us")
        wait = _values(samples, what, "wait", "p50_us")
        more = [wait[n] - plain[n] for n in plain]
        over = [wait[n] - plain[n] - bare[n] for n in plain]
        lines.append([
            words, _spread(plain.values(), "{:.0f}"),
            _spread(wait.values(), "{:.0f}"), _spread(more, "{:.0f}"),
            _spread(tight.values(), "{:.0f}"),
            _spread(bare.values(), "{:.0f}"), _spread(over, "{:.0f}"),
            "kept" if median(over) <= MARGIN_US else "NOT KEPT"])
    text = table(lines, words=True) + "\n\n" + _disk(samples)
    plain, rest, wait = (_values(samples, "many", case, "rps") for case in CASES)
    ratio = [wait[n] / rest[n] for n in rest]
    lines = [[f"POST 1 KiB, {MANY} connections", "requests/s",
              f"wait to not waiting (>= {SHARE})", ""]]
    for words, values in (("plain proxy_pass", plain), ("capture", rest)):
        lines.append([words, _spread(values.values(), "{:.0f}"), "", ""])
    lines.append(["capture_wait", _spread(wait.values(), "{:.0f}"),
                  _spread(ratio, "{:.2f}"),
                  "kept" if median(ratio) >= SHARE else "NOT KEPT"])
    wait = _values(samples, "many", DISK, "rps")
    lines.append(["the same, durability disk",
                  _spread(wait.values(), "{:.0f}"),
                  _spread([wait[n] / rest[n] for n in rest], "{:.2f}"), ""])
    text += "\n\n" + table(lines, words=True)
    counts = ", ".join(f"{name} {n}" for name, n in waits.items())
    return (f"{text}\n\nwaits: {counts}\n"
            f"load average now {machine.load_average():.1f}")
