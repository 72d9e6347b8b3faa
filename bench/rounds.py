"""Rounds: each load on each case once, in an order that is shuffled anew for
every round, so that what drifts on the machine hits all cases alike."""

import random
import time
from typing import NamedTuple, Optional

import load
import machine

SETTLE_SECONDS = 10  # at most, for what a case's run has left unacknowledged


class Subject(NamedTuple):
    """A case's processes; reader (Drain or Sidecar) where it captures."""
    proxy: object
    reader: Optional[object] = None

    def pids(self):
        pids = {"worker": self.proxy.worker}
        if self.reader:
            pids["sidecar"] = self.reader.pid
            broker = getattr(self.reader, "broker", None)
            if broker:
                pids["broker"] = broker.pid
        return pids


def _counts(status):
    return {"seen": status["seen"], "captured": status["captured"],
            "filtered": sum(status["filtered"].values()),
            "lost": sum(status["lost"].values()),
            **{f"lost({k})": v for k, v in status["lost"].items()}}


def sample(subject, what, seconds, prefix, paced=False):
    """One load on one case. CPU is per request in us; the sidecar's and the
    broker's cover the time until all is acknowledged."""
    proxy = subject.proxy
    pids = subject.pids()
    before = proxy.status()["total"] if proxy.captures else None
    cpu = {role: machine.cpu_ns(pid) for role, pid in pids.items()}
    result = load.run(what, proxy.port, seconds, prefix, paced)
    worker_ns = machine.cpu_ns(pids["worker"]) - cpu["worker"]
    start = time.monotonic()
    after = proxy.settle(SETTLE_SECONDS) if proxy.captures else None
    settled = time.monotonic() - start
    n = max(result["requests"], 1)
    s = {"rps": result["requests"] * 1e6 / result["us"],
         "requests": result["requests"], "errors": result["errors"],
         "p50_us": result["p50_us"], "p99_us": result["p99_us"],
         "worker_us": worker_ns / 1e3 / n,
         "worker_busy": worker_ns / 1e3 / result["us"]}
    for role in pids:
        if role != "worker":
            s[f"{role}_us"] = (machine.cpu_ns(pids[role]) - cpu[role]) / 1e3 / n
    if after:
        a, b = _counts(after), _counts(before)
        s |= {k: a[k] - b[k] for k in a}
        s["pending"] = after["pending"]
        s["settle_s"] = settled
    return s


def run(start, loads, modes, rounds, seconds, seed, prefix, progress):
    """[{"round", "load", "mode", "case", and what sample() says}], and the
    memory at the last round's end: [(case, process, machine.memory())]

    start()  a context manager with fresh {case: Subject}, one for each round:
             where a worker's memory lies makes some percent, for good or bad,
             as long as it lives
    modes    "full" (as fast as it goes) and "paced"

    The cases of one load and mode follow each other, so that both sides of a
    ratio are near in time.
    """
    order = random.Random(seed)
    samples = []
    for number in range(1, rounds + 1):
        plan = [(key, mode) for key in loads for mode in modes]
        order.shuffle(plan)
        with start() as subjects:
            cases = list(subjects)
            for case in cases:
                sample(subjects[case], load.LOADS[loads[0]], 1, prefix)  # warm
            for key, mode in plan:
                order.shuffle(cases)
                for case in cases:
                    s = sample(subjects[case], load.LOADS[key], seconds,
                               prefix, mode == "paced")
                    samples.append({"round": number, "load": key, "mode": mode,
                                    "case": case, **s})
                    progress(f"round {number}: {len(samples)} of "
                             f"{rounds * len(plan) * len(cases)}")
            memory = [(case, role, machine.memory(pid))
                      for case, subject in subjects.items()
                      for role, pid in subject.pids().items()]
    return samples, memory
