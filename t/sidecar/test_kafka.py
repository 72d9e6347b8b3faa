"""sidecar/kafka.c alone on real brokers, by t/tools/kafka_probe.c: what a mock
cluster cannot show (permissions, topic configuration, a broker that dies)."""

import time

from rig.status import wait_until


def keys(broker, topic):
    return [r.key for r in broker.read_topic(topic)]


def test_records_go_to_javas_partition_and_are_acknowledged(
        broker, new_topic, probe):
    topic = new_topic(partitions=3)
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic=topic)
    p.wait("ready 1048076")
    assert p.produce(1000, 1000)["acked"] == 1000
    records = broker.read_topic(topic)
    assert len(records) == len({r.key for r in records}) == 1000
    p.say("partition foobar")  # murmur2: -790332482
    line = p.wait("partition ")
    assert line.startswith(f"partition {(-790332482 & 0x7fffffff) % 3} ")


def test_a_missing_topic_is_named_and_waited_for(broker, probe):
    topic = f"late-{time.time_ns()}"
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic=topic)
    p.wait_log(f"topic {topic} does not exist: create it")
    broker.create_topic(topic, 2)
    p.wait("ready ")
    assert f"topic {topic} is ready: 2 partitions" in p.log()


def test_brokers_that_create_topics_do_so(own_broker, probe):
    broker = own_broker(auto_create=True)
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic="made")
    p.wait("ready ")
    assert "topic made did not exist: it has been created" in p.log()
    assert "does not exist: create it" not in p.log()


def test_batches_fit_the_topics_limit(broker, new_topic, probe):
    topic = new_topic(config={"max.message.bytes": "20000"})
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic=topic)
    assert p.wait("ready ") == "ready 19800"
    assert p.produce(3000, 1000)["acked"] == 3000
    assert p.produce(10, 19800)["acked"] == 10
    assert p.produce(1, 19801)["rejected"] == 1


def test_a_compacted_topic_is_refused(broker, new_topic, probe):
    topic = new_topic(config={"cleanup.policy": "compact"})
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic=topic)
    p.wait_log("cleanup.policy = compact: compaction would remove records")
    assert not any(x.startswith("ready") for x in p.lines)


def test_permission_is_asked_for_and_waited_for(own_broker, probe):
    broker = own_broker(users={"app": "app-secret"})
    broker.create_topic("t", 2)
    p = probe(kafka__bootstrap__servers=broker.sasl_bootstrap, topic="t",
              kafka__security__protocol="sasl_plaintext",
              kafka__sasl__mechanisms="PLAIN", kafka__sasl__username="app",
              kafka__sasl__password="app-secret")
    p.wait_log("topic t is not permitted to this principal: allow it Describe")
    broker.permit("app", "t")
    p.wait("ready ")
    assert "the configuration of topic t cannot be read" in p.log()
    assert p.produce(100, 100)["acked"] == 100
    assert "app-secret" not in p.log()


def test_a_wrong_password_is_told_without_it(own_broker, probe):
    broker = own_broker(users={"app": "app-secret"})
    p = probe(kafka__bootstrap__servers=broker.sasl_bootstrap, topic="t",
              kafka__security__protocol="sasl_plaintext",
              kafka__sasl__mechanisms="PLAIN", kafka__sasl__username="app",
              kafka__sasl__password="wrong-secret")
    p.wait_log("Kafka's brokers refuse us")
    assert "wrong-secret" not in p.log()


def test_a_broker_killed_in_the_middle_loses_and_doubles_nothing(
        own_broker, probe):
    broker = own_broker()
    broker.create_topic("t", 3)
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic="t")
    p.wait("ready ")
    start = len(p.lines)
    p.say("closed 200000 1000 5000")
    wait_until(lambda: sum(broker.end_offsets("t").values()) > 5000, 30,
               "some records")
    broker.kill()
    time.sleep(5)
    broker.start()
    done = p.done(start, 120)
    assert done["acked"] == 200000 and done["in_doubt"] == 0
    found = keys(broker, "t")
    assert len(found) == len(set(found)) == 200000


def test_a_topic_deleted_while_running_gives_its_records_back(
        broker, new_topic, probe):
    topic = new_topic()
    p = probe(kafka__bootstrap__servers=broker.bootstrap, topic=topic,
              kafka__topic__metadata__propagation__max__ms="1000")
    p.wait("ready ")
    assert p.produce(10, 100)["acked"] == 10
    broker.delete_topic(topic)
    start = len(p.lines)
    p.say("produce 100 100")
    p.wait("not-ready ", 60, start)
    broker.create_topic(topic, 1)
    assert p.done(start)["acked"] == 100
    assert len(set(keys(broker, topic))) == 100
    # what a record holds must not be taken for the reason why it failed
    assert "xxxx" not in p.log()
