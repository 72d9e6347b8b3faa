"""A real Apache Kafka broker in KRaft mode."""

import fcntl
import glob
import os
import signal
import subprocess
import tempfile

from .process import TOP, Process, accepts, free_port
from .status import wait_until
from .topics import Topics

JAVA = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

# of the classes that a broker loads, made once by the first: a JVM with it starts
# with half the CPU time. One that does not fit any more is ignored by the JVM.
ARCHIVE = os.path.join(TOP, "build", "kafka.jsa")

LOG4J = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class KafkaBroker(Topics):
    """One broker with its own data directory and ports, which stay the same
    over stop() and start().

    auto_create  the broker's auto.create.topics.enable
    users        {name: password}: adds a listener with SASL PLAIN (`sasl`) for
                 them and turns on the authorizer. They may do nothing until
                 permit() says so; the listener without SASL may do everything.
    properties   further broker properties
    listeners    {name: security protocol} of further listeners; their ports are
                 in `ports`
    scram        {(mechanism, user): password}
    classpath    a directory of further classes
    defines      {system property: value} of its JVM
    fault        a TcpFault (rig/tcp_fault.py): adds a listener that clients
                 reach, and are told of, through it alone (`fault.bootstrap`)
    node, quorum its number, and {number: controller's port} of all: see cluster.py
    jvm          options of its JVM; by default those that use ARCHIVE
    """

    def __init__(self, directory, auto_create=False, users=None,
                 properties=None, listeners=None, scram=None, classpath=None,
                 defines=None, fault=None, node=1, quorum=None, jvm=None):
        self.directory = str(directory)
        self.node = node
        self.quorum = quorum or {node: free_port()}
        self.port = free_port()
        self.fault = fault
        self.sasl_port = free_port() if users else None
        self.listeners = listeners or {}
        self.ports = {name: free_port() for name in self.listeners}
        self.scram = scram or {}
        self.process = None
        jars = os.path.join(TOP, "build", "kafka", "*.jar")
        if not glob.glob(jars):
            raise RuntimeError("no Kafka: run script/bootstrap --test")
        os.makedirs(self.directory, exist_ok=True)
        self._write("log4j2.properties", LOG4J)
        self.config = self._write(
            "server.properties",
            self._properties(auto_create, users or {}, properties or {}))
        self.java = JAVA + (_with_archive() if jvm is None else jvm) + [
            "-cp", os.path.dirname(jars) + "/*"
            + (f":{classpath}" if classpath else ""),
            "-Dlog4j2.configurationFile=" + self._path("log4j2.properties"),
            *(f"-D{key}={value}" for key, value in (defines or {}).items())]
        self._format()

    # life

    def start(self, timeout=60):
        """Starts it and waits until it answers; safe to call when it runs."""
        if self.running():
            return
        self.launch()
        self.wait_for_port(timeout)
        self.connect(timeout, self.process.dead)

    def launch(self):
        """Starts the process, and does not wait for it."""
        self.process = Process(self.java + ["kafka.Kafka", self.config],
                               self._path("broker.log"), cwd=self.directory)

    def wait_for_port(self, timeout=60):
        wait_until(lambda: accepts(self.port), timeout, "the Kafka broker's port",
                   self.process.dead)

    def running(self):
        return self.process is not None and self.process.running()

    def stop(self):
        """An orderly end; the data and the ports stay for the next start()."""
        if self.process:
            self.process.stop(timeout=60)

    def kill(self):
        if self.process:
            self.process.kill()

    def pause(self):
        """It accepts connections (the kernel does) and answers nothing, until
        resume()."""
        self.process.hang()

    def resume(self):
        self.process.send(signal.SIGCONT)

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def at(self, listener):
        """The address of one of the further listeners."""
        return f"127.0.0.1:{self.ports[listener]}"

    @property
    def sasl_bootstrap(self):
        return f"127.0.0.1:{self.sasl_port}"

    # inside

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _write(self, name, text):
        with open(self._path(name), "w") as f:
            f.write(text)
        return self._path(name)

    def _properties(self, auto_create, users, properties):
        listeners = {"PLAIN": self.port,
                     "CONTROLLER": self.quorum[self.node]}
        listeners |= self.ports
        protocols = ",".join(
            ["PLAIN:PLAINTEXT", "CONTROLLER:PLAINTEXT", "SASL:SASL_PLAINTEXT",
             "FAULT:PLAINTEXT"]
            + [f"{name}:{p}" for name, p in self.listeners.items()])
        p = {
            "process.roles": "broker,controller",
            "node.id": str(self.node),
            "controller.quorum.voters": ",".join(
                f"{node}@127.0.0.1:{port}" for node, port in self.quorum.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "listener.security.protocol.map": protocols,
            "log.dirs": self._path("data"),
            # records may have any time, also of long ago, and stay
            "log.retention.ms": -1,
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": str(auto_create).lower(),
        }
        if users:
            listeners["SASL"] = self.sasl_port
            logins = " ".join(f'user_{u}="{w}"' for u, w in users.items())
            p |= {
                "authorizer.class.name":
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl.plain.sasl.jaas.config":
                    "org.apache.kafka.common.security.plain.PlainLoginModule "
                    f"required {logins};",
            }
        if self.fault:
            listeners["FAULT"] = self.fault.target = free_port()
        p["listeners"] = _listeners(listeners)
        if self.fault:
            listeners["FAULT"] = self.fault.port
        del listeners["CONTROLLER"]
        p["advertised.listeners"] = _listeners(listeners)
        p |= properties
        return "".join(f"{key}={value}\n" for key, value in p.items())

    def _format(self):
        tool = self.java + ["kafka.tools.StorageTool"]
        cluster = "Y2FwdHVyZS10ZXN0LWlkMQ"  # any 16 bytes in base64
        with open(self._path("format.log"), "ab") as log:
            subprocess.run(
                tool + ["format", "-t", cluster, "-c", self.config] + [
                    word for (mechanism, user), password in self.scram.items()
                    for word in ("--add-scram",
                                 f"{mechanism}=[name={user},password={password}]")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)


def _with_archive():
    with open(ARCHIVE + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(ARCHIVE):
            _make_archive()
    return [f"-XX:SharedArchiveFile={ARCHIVE}", "-Xshare:auto"]


def _make_archive():
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=os.path.dirname(ARCHIVE)) as d:
        broker = KafkaBroker(d, jvm=[])
        made = os.path.join(d, "made")
        broker.java.insert(1, f"-XX:ArchiveClassesAtExit={made}")
        broker.start()
        broker.stop()
        os.rename(made, ARCHIVE)


def _listeners(ports):
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
