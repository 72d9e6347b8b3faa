"""`scene(**options)`: a stack under load, and its judge. `shaky`, `shaky_topic`: a
broker that may be stopped and killed, behind a TcpFault."""

import itertools
import os
import re
import signal
import time
import urllib.request

import pytest
from rig.kafka import KafkaBroker
from rig.process import free_port
from rig.status import wait_until
from rig.tcp_fault import TcpFault

from fault.counts import of_metrics, of_status
from fault.judge import judge
from fault.load import Executions, Load


@pytest.fixture(scope="session")
def shaky_broker(tmp_path_factory):
    fault = TcpFault()
    broker = KafkaBroker(tmp_path_factory.mktemp("shaky"), fault=fault, properties={
        # it comes back sooner after a kill
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500"})
    fault.start()
    try:
        yield broker
    finally:
        broker.kill()
        fault.close()


@pytest.fixture
def shaky(shaky_broker):
    """It runs, and its network (`shaky.fault`) does nothing yet."""
    shaky_broker.fault.heal()
    shaky_broker.start()
    return shaky_broker


@pytest.fixture
def shaky_topic(shaky):
    name = f"t{time.time_ns()}"
    shaky.create_topic(name, 6)
    return name


class Scene:
    """    s = scene(workers=2)              options of rig/stack.py's Stack
        with s.load() as load:            options of load.py's Load
            load.more(300)
        s.assert_clean(s.counts())        its verdict, from a drained stack
    """

    def __init__(self, stack, source, options):
        self._letters = itertools.count()
        self.executions = source.answer = Executions()
        self.metrics = f"127.0.0.1:{free_port()}"
        options["sidecar_conf"] = {"metrics.listen": self.metrics,
                                   **options.get("sidecar_conf", {})}
        self.stack = stack(**options)
        self.nginx = self.stack.nginx
        self.sidecar = self.stack.sidecar
        self.loads = []
        self.kills = []

    def load(self, **options):
        options.setdefault("port", self.stack.port)
        load = Load(ids=chr(ord("a") + next(self._letters)), **options)
        self.loads.append(load)
        return load

    def counts(self, timeout=60):
        """Of the sidecar, which knows of all workers that there were, when
        nothing is pending any more."""
        def settled():
            counts = of_metrics(self.metrics)
            assert counts.pending == 0 and counts.balanced(), counts
            assert counts.seen >= least, f"{least} were answered: {counts}"
            return counts
        least = sum(load.count() for load in self.loads)
        counts = wait_until(settled, timeout, "an end of what is pending")
        print(f"counters: {counts}")
        return counts

    def status_counts(self, timeout=60):
        """Of the workers, where the sidecar has not lived through it all."""
        def settled():
            counts = of_status(self.stack.status())
            assert counts.pending == 0 and counts.balanced(), counts
            return counts
        counts = wait_until(settled, timeout, "an end of what is pending")
        print(f"counters: {counts}")
        return counts

    def metric(self, name):
        """A number of the sidecar's /metrics."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as r:
            text = r.read().decode()
        return float(re.search(rf"^capture_{name} (\S+)$", text, re.M)[1])

    def kill_worker(self, r):
        """One of them, at once; returns when there is another."""
        before = self.nginx.workers()
        self.kills.append(time.monotonic_ns())
        os.kill(r.choice(before), signal.SIGKILL)
        wait_until(lambda: len(self.nginx.workers()) == len(before)
                   and self.nginx.workers() != before, what="a new worker")

    def verdict(self, counts=None):
        """Ends the stack, and reads the whole topic."""
        verdict = judge(self.stack.drain(), self.loads, self.executions, counts,
                        self.kills)
        print(f"verdict: {verdict}")
        return verdict

    def assert_clean(self, counts, *allowed):
        verdict = self.verdict(counts)
        verdict.assert_clean(*allowed)
        return verdict


@pytest.fixture
def scene(stack, source):
    return lambda **options: Scene(stack, source, options)
