"""A real Apache Kafka broker in KRaft mode, and an independent look into it."""

import glob
import os
import subprocess
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding, AclOperation, AclPermissionType, AdminClient, NewTopic,
    ResourcePatternType, ResourceType)

from .process import TOP, Process, accepts, free_port
from .status import wait_until

JAVA = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

LOG4J = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class Record(NamedTuple):
    """One Kafka record as it is in the topic."""
    partition: int
    offset: int
    key: bytes
    value: bytes


class KafkaBroker:
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
    """

    def __init__(self, directory, auto_create=False, users=None,
                 properties=None, listeners=None, scram=None, classpath=None,
                 defines=None):
        self.directory = str(directory)
        self.port = free_port()
        self.controller_port = free_port()
        self.sasl_port = free_port() if users else None
        self.listeners = listeners or {}
        self.ports = {name: free_port() for name in self.listeners}
        self.scram = scram or {}
        self.process = None
        self.admin = None
        jars = os.path.join(TOP, "build", "kafka", "*.jar")
        if not glob.glob(jars):
            raise RuntimeError("no Kafka: run script/bootstrap --test")
        os.makedirs(self.directory, exist_ok=True)
        self._write("log4j2.properties", LOG4J)
        self.config = self._write(
            "server.properties",
            self._properties(auto_create, users or {}, properties or {}))
        self.java = JAVA + [
            "-cp", os.path.dirname(jars) + "/*"
            + (f":{classpath}" if classpath else ""),
            "-Dlog4j2.configurationFile=" + self._path("log4j2.properties"),
            *(f"-D{key}={value}" for key, value in (defines or {}).items())]
        self._format()

    # life

    def start(self, timeout=60):
        """Starts it and waits until it answers; safe to call when it runs."""
        if self.process and self.process.running():
            return
        self.process = Process(self.java + ["kafka.Kafka", self.config],
                               self._path("broker.log"), cwd=self.directory)
        wait_until(lambda: accepts(self.port), timeout, "the Kafka broker's port",
                   self.process.dead)
        self.admin = AdminClient(self._client())
        wait_until(lambda: self.admin.list_topics(timeout=5).brokers, timeout,
                   "the Kafka broker's metadata", self.process.dead)

    def stop(self):
        """An orderly end; the data and the ports stay for the next start()."""
        if self.process:
            self.process.stop(timeout=60)

    def kill(self):
        if self.process:
            self.process.kill()

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def at(self, listener):
        """The address of one of the further listeners."""
        return f"127.0.0.1:{self.ports[listener]}"

    @property
    def sasl_bootstrap(self):
        return f"127.0.0.1:{self.sasl_port}"

    # topics

    def create_topic(self, name, partitions=1, config=None):
        """Creates it and waits until each of its partitions has a leader."""
        new = NewTopic(name, partitions, 1, config=config or {})
        self.admin.create_topics([new])[name].result(30)

        def ready():
            topic = self.admin.list_topics(name, timeout=5).topics[name]
            return (len(topic.partitions) == partitions
                    and all(p.leader >= 0 for p in topic.partitions.values()))
        wait_until(ready, 30, f"leaders of topic {name}")

    def delete_topic(self, name):
        self.admin.delete_topics([name])[name].result(30)
        wait_until(lambda: name not in self.topics(), 30, f"topic {name} gone")

    def topics(self):
        """The names of all topics. (To ask for one by name could create it.)"""
        return set(self.admin.list_topics(timeout=10).topics)

    def permit(self, user, topic, *operations):
        """Lets a user of the SASL listener use a topic; by default to write."""
        acls = [AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL,
                           f"User:{user}", "*", AclOperation[operation],
                           AclPermissionType.ALLOW)
                for operation in operations or ("WRITE", "DESCRIBE")]
        for future in self.admin.create_acls(acls).values():
            future.result(30)

    # records

    def produce(self, topic, value, key=None, partition=None):
        """Writes one record and waits for its acknowledgement."""
        failure = []
        producer = Producer(self._client())
        where = {} if partition is None else {"partition": partition}
        producer.produce(topic, value, key, **where,
                         on_delivery=lambda error, _: failure.append(error))
        producer.flush(30)
        if failure != [None]:
            raise KafkaException(failure[0] if failure else "no report in 30 s")

    def end_offsets(self, topic):
        """{partition: the offset that its next record will get}"""
        return {p: high for p, (_, high) in self._watermarks(topic).items()}

    def read_topic(self, topic, timeout=60):
        """All records up to the end offsets of now, by partition and offset."""
        return sorted((Record(m.partition(), m.offset(), m.key(), m.value())
                       for m in self._messages(topic, timeout)),
                      key=lambda r: (r.partition, r.offset))

    def created(self, topic, timeout=60):
        """When they were produced: {(partition, offset): ns}"""
        return {(m.partition(), m.offset()): m.timestamp()[1] * 1_000_000
                for m in self._messages(topic, timeout)}

    # inside

    def _messages(self, topic, timeout):
        marks = self._watermarks(topic)
        consumer = self._consumer()
        consumer.assign([TopicPartition(topic, p, low)
                         for p, (low, _) in marks.items()])
        missing = {p for p, (low, high) in marks.items() if low < high}
        records = []

        def complete():
            if not missing:
                return True
            for m in consumer.consume(1000, timeout=0.5):
                if m.error():
                    raise KafkaException(m.error())
                p, high = m.partition(), marks[m.partition()][1]
                if m.offset() < high:
                    records.append(m)
                if m.offset() >= high - 1:
                    missing.discard(p)
            return not missing
        try:
            wait_until(complete, timeout, f"the records of topic {topic}")
        finally:
            consumer.close()
        return records

    def _watermarks(self, topic):
        partitions = self.admin.list_topics(timeout=10).topics[topic].partitions
        consumer = self._consumer()

        def marks():  # a broker that has just started may not lead them yet
            return {p: consumer.get_watermark_offsets(
                        TopicPartition(topic, p), timeout=10, cached=False)
                    for p in sorted(partitions)}
        try:
            return wait_until(marks, 30, f"the offsets of topic {topic}")
        finally:
            consumer.close()

    def _client(self):
        return {"bootstrap.servers": self.bootstrap, "log_level": 0,
                "allow.auto.create.topics": False}

    def _consumer(self):
        client = self._client()
        return Consumer({**client, "group.id": "rig", "enable.auto.commit": False,
                         "auto.offset.reset": "error",
                         "fetch.message.max.bytes": 8 << 20})

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _write(self, name, text):
        with open(self._path(name), "w") as f:
            f.write(text)
        return self._path(name)

    def _properties(self, auto_create, users, properties):
        listeners = {"PLAIN": self.port, "CONTROLLER": self.controller_port}
        listeners |= self.ports
        protocols = ",".join(
            ["PLAIN:PLAINTEXT", "CONTROLLER:PLAINTEXT", "SASL:SASL_PLAINTEXT"]
            + [f"{name}:{p}" for name, p in self.listeners.items()])
        p = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "listener.security.protocol.map": protocols,
            "log.dirs": self._path("data"),
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
        p["listeners"] = ",".join(
            f"{name}://127.0.0.1:{port}" for name, port in listeners.items())
        p["advertised.listeners"] = ",".join(
            f"{name}://127.0.0.1:{port}" for name, port in listeners.items()
            if name != "CONTROLLER")
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
