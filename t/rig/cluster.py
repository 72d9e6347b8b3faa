"""Three Kafka brokers, each a controller too, that are stopped one at a time."""

import os
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import ElectionType, TopicPartition

from .kafka import KafkaBroker
from .process import free_port
from .status import wait_until
from .tcp_fault import TcpFault
from .topics import Topics

NODES = (1, 2, 3)
PROPERTIES = {
    "min.insync.replicas": "2",
    "auto.leader.rebalance.enable": "false",   # leaders() moves only if told to
    # a broker that was killed is missed, and its return is seen, soon
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


class KafkaCluster(Topics):
    """`brokers` is {number: KafkaBroker}, each behind a TcpFault of its own for
    who asks for `fault_bootstrap`."""

    def __init__(self, directory, properties=None):
        quorum = {node: free_port() for node in NODES}
        faults = {node: TcpFault() for node in NODES}

        def make(node):
            return KafkaBroker(os.path.join(str(directory), f"kafka{node}"),
                               properties=PROPERTIES | (properties or {}),
                               node=node, quorum=quorum, fault=faults[node])
        with ThreadPoolExecutor() as pool:       # a JVM each formats its storage
            self.brokers = dict(zip(NODES, pool.map(make, NODES)))
        for fault in faults.values():
            fault.start()

    @property
    def bootstrap(self):
        return ",".join(b.bootstrap for b in self.brokers.values())

    @property
    def fault_bootstrap(self):
        return ",".join(b.fault.bootstrap for b in self.brokers.values())

    # life

    def start(self, timeout=90):
        """Starts those that do not run; returns when all are in the cluster."""
        started = [b for b in self.brokers.values() if not b.running()]
        for broker in started:
            broker.launch()
        for broker in started:
            broker.wait_for_port(timeout)
        if self.admin is None:
            self.connect(timeout)
        wait_until(self.whole, timeout, "three brokers")

    def whole(self):
        return len(self.admin.list_topics(timeout=5).brokers) == len(NODES)

    def stop(self, node):
        """An orderly end: its leaders have moved when it returns."""
        self.brokers[node].stop()

    def kill9(self, node):
        self.brokers[node].kill()

    def close(self):
        for broker in self.brokers.values():
            broker.kill()
            broker.fault.close()

    # replicas

    def create_topic(self, name, partitions=1, config=None, replicas=None):
        """Three replicas each, the preferred leaders by turns."""
        super().create_topic(name, config=config, replicas=replicas or [
            [NODES[(p + i) % 3] for i in range(3)] for p in range(partitions)])

    def in_sync(self, name):
        """Has every partition all of its replicas in sync?"""
        topic = self.admin.list_topics(name, timeout=5).topics[name]
        return all(set(p.isrs) == set(p.replicas)
                   for p in topic.partitions.values())

    def elect_preferred(self, name):
        """Moves each partition's leader back to its preferred broker; returns
        how many leaders it moved."""
        before = self.leaders(name)
        parts = [TopicPartition(name, p) for p in before]
        self.admin.elect_leaders(ElectionType.PREFERRED, parts).result(30)
        topic = self.admin.list_topics(name, timeout=5).topics[name]
        wanted = {p: about.replicas[0] for p, about in topic.partitions.items()}
        wait_until(lambda: self.leaders(name) == wanted, 30, "preferred leaders")
        return sum(before[p] != wanted[p] for p in wanted)
