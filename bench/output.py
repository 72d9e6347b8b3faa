"""What takes the captured bytes: a reader that keeps nothing, or the sidecar
with one of its outputs."""

import json
import os
import struct
import subprocess

from rig.process import BUILD, TOP, Process
from rig.shim import Shim
from rig.status import wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
SIDECAR = os.path.join(BUILD, "capture-sidecar")
PYTHON = os.path.join(TOP, "build", "venv", "bin", "python")
TOPIC = "bench"


def has_broker():
    """Has script/bootstrap --test brought what Broker needs?"""
    return (os.path.exists(PYTHON)
            and os.path.isdir(os.path.join(BUILD, "kafka")))


def build_drain():
    """Compiles drain.c where it is not built or old; the program's path."""
    program = os.path.join(BUILD, "bench-drain")
    sources = [os.path.join(TOP, s) for s in
               ("bench/drain.c", "sidecar/pool.c", "sidecar/pool_adopt.c",
                "sidecar/pool_count.c", "sidecar/pool_read.c", "sidecar/spool.c",
                "sidecar/boot.c", "sidecar/metrics.c", "sidecar/log.c",
                "sidecar/step.c", "wire/layout.c", "wire/counters.c")]
    subprocess.run(
        ["cc", "-std=gnu11", "-D_GNU_SOURCE=", "-O2", "-g", "-I", TOP,
         "-o", program] + sources + ["-lz"], check=True, timeout=60)
    return program


class Drain:
    """drain.c on a socket."""

    name = "a reader that keeps nothing"

    def __init__(self, directory, prefix=()):
        self.socket = os.path.join(directory, "d")
        self.log = os.path.join(directory, "drain.log")
        self.argv = list(prefix) + [build_drain(), self.socket]
        self.process = None

    def start(self):
        self.process = Process(self.argv, self.log)
        wait_until(lambda: os.path.exists(self.socket), 10, "the drain's socket",
                   self.process.dead)

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        if self.process and self.process.running():
            self.process.stop()


class Broker:
    """A Kafka broker of t/rig, in a process of its own: it needs the tests'
    Python environment, and must end when we do."""

    def __init__(self, directory, prefix=()):
        if not os.path.exists(PYTHON):
            raise RuntimeError("no broker: run script/bootstrap --test")
        with open(os.path.join(directory, "broker.log"), "ab") as log:
            self.child = subprocess.Popen(
                list(prefix) + [PYTHON, os.path.join(HERE, "broker.py"),
                                os.path.join(directory, "kafka"), TOPIC],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True)
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the broker did not start: {log.name}")
        self.bootstrap, self.pid = json.loads(line)

    def stop(self):
        self.child.stdin.close()
        try:
            self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()


class Syncs:
    """How long each fdatasync() of a sidecar took (syncs.c)."""

    KEPT = 65536

    def __init__(self, directory):
        shim = Shim(directory, "syncs", 8 + 4 * self.KEPT, sources="bench")
        self.env, self._memory = shim.env, shim.memory

    def count(self):
        return struct.unpack_from("=Q", self._memory)[0]

    def since(self, count):
        """In us, those since there were `count`."""
        now = self.count()
        if now - count > self.KEPT:
            raise RuntimeError(f"{now - count} syncs, {self.KEPT} are kept")
        return [struct.unpack_from("=I", self._memory, 8 + 4 * (n % self.KEPT))[0]
                / 1000 for n in range(count, now)]


class Sidecar:
    """capture-sidecar, in a directory of its own. kafka: "mock" (librdkafka's
    mock cluster, which lives in the sidecar and costs it time), "start" (a
    broker is started) or HOST:PORT (a broker that is there)."""

    def __init__(self, directory, program, kafka, placement, disk=False):
        os.mkdir(directory)
        self.directory = directory
        self.broker = None
        self.socket = os.path.join(directory, "s")
        self.log = os.path.join(directory, "sidecar.log")
        if kafka == "start":
            self.broker = Broker(directory, placement.prefix("broker"))
            servers = self.broker.bootstrap
            self.name = "the sidecar to Apache Kafka, one broker, 4 partitions"
        elif kafka == "mock":
            servers = "127.0.0.1:9\nkafka.test.mock.num.brokers = 1"
            self.name = ("the sidecar to librdkafka's mock cluster, which "
                         "runs in the sidecar and is in its CPU time")
        else:
            servers = kafka
            self.name = f"the sidecar to the Kafka at {kafka}"
        self.bootstrap = servers
        conf = os.path.join(directory, "sidecar.conf")
        with open(conf, "w") as f:
            f.write(f"listen = unix:{self.socket}\ntopic = {TOPIC}\n"
                    f"kafka.bootstrap.servers = {servers}\n")
            if disk:
                f.write(f"durability = disk\nspool.path = {directory}/spool\n")
        self.argv = placement.prefix("sidecar") + [program, "-c", conf]
        self.process = None
        self.syncs = Syncs(directory) if disk else None

    def start(self):
        self.process = Process(self.argv, self.log,
                               env=self.syncs and self.syncs.env)
        # the topic is, not just the socket
        self.process.wait_for_log(f"topic {TOPIC} is ready", 30)

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        try:
            if self.process and self.process.running():
                self.process.stop(timeout=30)
        finally:
            if self.broker:
                self.broker.stop()
