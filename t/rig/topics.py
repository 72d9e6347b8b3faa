"""What the tests do with topics, on one broker or a cluster: an independent look
into Kafka, with another client library than the sidecar's."""

from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding, AclOperation, AclPermissionType, AdminClient, NewPartitions,
    NewTopic, ResourcePatternType, ResourceType)

from .status import wait_until


class Record(NamedTuple):
    """One Kafka record as it is in the topic."""
    partition: int
    offset: int
    key: bytes
    value: bytes


class Topics:
    """Needs `bootstrap`; connect() makes `admin`."""

    admin = None

    def connect(self, timeout=60, dead=None):
        """Waits until the brokers answer."""
        self.admin = AdminClient(self._client())
        wait_until(lambda: self.admin.list_topics(timeout=5).brokers, timeout,
                   "Kafka's metadata", dead)

    # topics

    def create_topic(self, name, partitions=1, config=None, replicas=None):
        """Creates it and waits until each of its partitions has a leader.
        replicas: for each partition its brokers' numbers, the preferred leader
        first (then `partitions` does not count)."""
        where = ({"replica_assignment": replicas} if replicas
                 else {"replication_factor": 1})
        partitions = len(replicas) if replicas else partitions
        new = NewTopic(name, partitions, config=config or {}, **where)
        self.admin.create_topics([new])[name].result(30)
        self._wait_for_leaders(name, partitions)

    def add_partitions(self, name, total):
        self.admin.create_partitions([NewPartitions(name, total)])[name].result(30)
        self._wait_for_leaders(name, total)

    def leaders(self, name):
        """{partition: the number of its leader, -1 without one}"""
        topic = self.admin.list_topics(name, timeout=5).topics[name]
        return {p: about.leader for p, about in topic.partitions.items()}

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

    def end_offset(self, topic, partition):
        """Of one partition: the others may have no leader."""
        consumer = self._consumer()
        try:
            return consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=10, cached=False)[1]
        finally:
            consumer.close()

    def read_topic(self, topic, timeout=60):
        """All records up to the end offsets of now, by partition and offset."""
        return [record for record, _ in self.read_stamped(topic, timeout)]

    def read_stamped(self, topic, timeout=60):
        """The same as [(Record, its Kafka timestamp in ms)]. That is the leader's
        clock at the append, if the topic has message.timestamp.type =
        LogAppendTime."""
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
                    records.append((Record(p, m.offset(), m.key(), m.value()),
                                    m.timestamp()[1]))
                if m.offset() >= high - 1:
                    missing.discard(p)
            return not missing
        try:
            wait_until(complete, timeout, f"the records of topic {topic}")
        finally:
            consumer.close()
        return sorted(records, key=lambda r: (r[0].partition, r[0].offset))

    def created(self, topic, timeout=60):
        """When they were produced: {(partition, offset): ns}"""
        return {(r.partition, r.offset): ms * 1_000_000
                for r, ms in self.read_stamped(topic, timeout)}

    # inside

    def _wait_for_leaders(self, name, partitions):
        def ready():
            leaders = self.leaders(name)
            return (len(leaders) == partitions
                    and all(leader >= 0 for leader in leaders.values()))
        wait_until(ready, 30, f"leaders of topic {name}")

    def _watermarks(self, topic):
        """{partition: (first offset, end)}; waits for the leaders: a broker that
        has just come back may have none yet."""
        consumer = self._consumer()

        def marks():
            partitions = self.admin.list_topics(timeout=10).topics[topic].partitions
            return {p: consumer.get_watermark_offsets(
                        TopicPartition(topic, p), timeout=10, cached=False)
                    for p in sorted(partitions)}
        try:
            return wait_until(marks, 30, f"the ends of topic {topic}")
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
