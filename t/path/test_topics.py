"""Several topics and clusters by one sidecar: each request goes to the destination
that capture_topic names, once, and to no other; a connectionId never spans two."""

import random
import re
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from refconsumer.verify import verify_topic
from rig.process import SANITIZED, free_port
from rig.shim import Shim
from rig.sidecar import Sidecar
from rig.source import Response, pattern
from rig.status import wait_until

from path.session import (Session, assert_balanced, assert_captured,
                          settled, without_barriers)
from path.session2 import Session2, stack2  # noqa: F401 (a fixture)

HTTP = """
    map $http_x_tenant $tenant {
        default "";
        red     a;
        blue    b;
        ~^say-(?<said>.*)$ $said;
    }
"""

SERVER = """
    location /a/ { capture_topic a; proxy_pass http://source; }
    location /b/ { capture_topic b; proxy_pass http://source; }
    location /by/ { capture_topic $tenant; proxy_pass http://source; }
"""

PLACES = {"": "/", "a": "/a/", "b": "/b/"}
SETTLE = {"settle.time": "200ms"}


class Part:
    """A connection's exchanges of one destination: as a Session."""

    def __init__(self):
        self.exchanges = []


class Split:
    """A Session whose exchanges are kept by destination: to("a") is a client's
    connection as that topic is to have it."""

    def __init__(self, session):
        self.session = session
        self.parts = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.client.close()

    def to(self, destination):
        return self.parts.setdefault(destination, Part())

    def request(self, destination, method="GET", target=None, **options):
        answer = self.session.request(
            method, target or PLACES[destination] + "x", **options)
        self.to(destination).exchanges.append(self.session.exchanges[-1])
        return answer


def check(topics, splits, **options):
    """`topics` {destination: records}: each has just what went there; no
    connectionId is in two. Returns {destination: connectionIds}."""
    ids = {}
    for destination, records in topics.items():
        records = without_barriers(records)
        assert_captured(records, [s.to(destination) for s in splits], **options)
        ids[destination] = {r.key for r in records}
    assert len(set().union(*ids.values())) == sum(map(len, ids.values()))
    return ids


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) \
            as page:
        return {name: float(value) for name, value in re.findall(
            r"^(capture_\S+) (\S+)$", page.read().decode(), re.M)}


def of(name, **labels):
    inside = ",".join(f'{k}="{v}"' for k, v in labels.items())
    return f"capture_destination_{name}{{{inside}}}"


@pytest.fixture
def three(stack, new_topic, broker):
    """three(**options): a Stack of three topics of one broker; s.topics."""
    def make(**options):
        topics = {d: new_topic(3) for d in PLACES}
        conf = {"topic.a": topics["a"], "topic.b": topics["b"],
                **options.pop("sidecar_conf", {})}
        s = stack(topic=topics[""], http=HTTP + options.pop("http", ""),
                  server=SERVER + options.pop("server", ""), sidecar_conf=conf,
                  **options)
        s.topics = topics
        s.read = lambda: {d: broker.read_topic(t) for d, t in topics.items()}
        return s
    return make


def test_a_connection_whose_requests_go_to_three_topics(three, source):
    source.answer = lambda r: Response(body=pattern(len(r.body), 7))
    port = free_port()
    s = three(sidecar_conf={"metrics.listen": f"127.0.0.1:{port}"})
    n = 0
    with Split(Session(s)) as one, Split(Session(s)) as two:
        for i in range(6):
            for split in (one, two):
                for d in PLACES:
                    split.request(d, "POST", body=pattern(
                        [10, 3000, 200_000][i % 3], i))
                    n += 1
        for tenant, d in (("red", "a"), ("blue", "b"), ("none", ""),
                          ("say-a", "a"), ("say-default", "")):
            one.request(d, "POST", "/by/x", headers=[("X-Tenant", tenant)],
                        body=b"v")
            n += 1
        status = assert_balanced(s.wait_for_status(settled(n)))
        assert status["total"]["captured"] == n
        shown = metrics(port)
        for d, topic in s.topics.items():
            labels = {"destination": d or "default", "topic": topic}
            assert shown[of("ready", **labels)] == 1
            assert shown[of("reachable", **labels)] == 1
            assert shown[of("records_total", **labels)] > 1
        assert shown["capture_kafka_ready"] == shown["capture_kafka_reachable"] == 1
        assert shown["capture_records_total"] == sum(
            v for k, v in shown.items()
            if k.startswith("capture_destination_records_total"))
    s.drain()
    ids = check(s.read(), [one, two])
    assert {d: len(i) for d, i in ids.items()} == {"": 2, "a": 2, "b": 2}


def test_a_name_that_is_not_permitted_is_lost_and_nothing_else_is(three, source):
    s = three(wait="mutating")
    with Split(Session(s)) as c:
        for i in range(4):
            c.request("a", "POST", body=b"x")
            c.session.client.request("POST", "/by/x", headers=[
                ("Host", "h"), ("X-Mark", "no"), ("X-Tenant", "say-nobody")],
                body=b"1")
            c.request("", "GET")
            c.session.client.request("GET", "/by/x", headers=[
                ("Host", "h"), ("X-Mark", "no"), ("X-Tenant", "say-a/b")])
            c.request("b", "POST", body=b"y")
        status = assert_balanced(s.wait_for_status(settled(20)))
        assert status["total"]["captured"] == 12
        assert status["total"]["lost"]["no_topic"] == 8
        # of those that waited none did so until its timeout
        assert status["total"]["waits"]["timed_out"] == 0
        assert status["total"]["waits"]["lost"] == 4
    s.drain()
    ids = check(s.read(), [c])
    assert {d: len(i) for d, i in ids.items()} == {"": 1, "a": 1, "b": 1}
    log = s.sidecar.log_text()
    assert log.count('capture_topic says "nobody"') == 1
    assert "a/b" not in log


def test_what_is_not_permitted_is_refused_where_that_is_wanted(three, source):
    s = three(wait="mutating", http="capture_on_failure refuse;")
    with Split(Session(s)) as c:
        c.request("a", "POST", body=b"x")
    with s.client() as c2:
        assert c2.request("POST", "/by/x", headers=[
            ("Host", "h"), ("X-Tenant", "say-nobody")], body=b"1").status == 503
    assert [r.target for r in source.requests] == ["/a/x"]
    status = assert_balanced(s.wait_for_status(settled(2)))
    assert status["total"]["captured"] == 1
    s.drain()
    check(s.read(), [c])


@pytest.fixture
def two_clusters(stack, own_broker, broker, topic):
    """A Stack whose destination b is of another cluster: s.other."""
    def make(sidecar_conf=None, **options):
        other = own_broker()
        other.create_topic("t", 2)
        s = stack(http=HTTP, server=SERVER, sidecar_conf={
            "topic.b": "t", "topic.b.kafka.bootstrap.servers": other.bootstrap,
            **SETTLE, **(sidecar_conf or {})}, **options)
        s.other = other
        s.read = lambda: {"": broker.read_topic(topic), "b": other.read_topic("t")}
        return s
    return make


def test_a_cluster_that_is_away_costs_the_other_neither_time_nor_records(
        two_clusters, source):
    """Nor does the share of inflight.size that it has used up."""
    port = free_port()
    s = two_clusters(wait="mutating",
                     sidecar_conf={"inflight.size": "2m", "record.size": "100k",
                                   "metrics.listen": f"127.0.0.1:{port}"})
    n = 0
    with Split(Session(s)) as c:
        c.request("", "POST", body=b"1")
        c.request("b", "POST", body=b"1")
        s.wait_for_status(settled(2))
        s.other.stop()
        away = [Split(Session(s)) for _ in range(40)]
        for split in away:                  # 4 MB: more than both shares
            split.request("b", body=pattern(100_000, 1))
        for i in range(50):
            c.request("", "POST", body=pattern(50_000, i))  # it waits
            n += 1
        status = s.wait_for_status(
            lambda st: st["total"]["captured"] == 2 + n)
        assert status["total"]["pending"] == len(away)
        assert status["total"]["waits"]["timed_out"] == 0
        wait_until(lambda: metrics(port)["capture_kafka_reachable"] == 0, 30)
        shown = metrics(port)
        labels = {"destination": "default", "topic": s.topic}
        assert shown[of("reachable", **labels)] == 1
        labels = {"destination": "b", "topic": "t"}
        assert shown[of("reachable", **labels)] == 0
        assert 0 < shown[of("inflight_bytes", **labels)] <= 1.2e6
        assert shown[of("connections_due", **labels)] > 0
        s.other.start()
        s.wait_for_status(settled(2 + n + len(away)), 60)
        status = s.status()["total"]
        assert status["captured"] == status["seen"]
        for split in away:
            split.session.client.close()
    s.drain()
    check(s.read(), [c, *away])


def test_a_sidecar_that_dies_is_settled_in_each_cluster(two_clusters, source):
    """kill -9 while both have records on their way: once each, in order."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    s = two_clusters()
    splits = [Split(Session(s)) for _ in range(6)]
    stop = threading.Event()

    def traffic(split, seed):
        mine = random.Random(seed)
        while not stop.is_set():
            size = mine.choice([10, 1000, 100_000])
            assert split.request(mine.choice(["", "b"]), "POST",
                                 body=pattern(size, 1)).status == 200
            stop.wait(0.005)

    threads = [threading.Thread(target=traffic, args=(x, dice.random()))
               for x in splits]
    for t in threads:
        t.start()
    try:
        for _ in range(4):
            stop.wait(dice.uniform(0.05, 0.4))
            s.sidecar.kill9()
            s.sidecar.start()
    finally:
        stop.set()
        for t in threads:
            t.join()
    n = sum(len(x.session.exchanges) for x in splits)
    status = assert_balanced(s.wait_for_status(settled(n), 60))
    assert status["total"]["captured"] == n
    for x in splits:
        x.session.client.close()
    s.drain()
    ids = check(s.read(), splits)
    assert {d: len(i) for d, i in ids.items()} == {"": 6, "b": 6}


def test_a_destination_that_is_permitted_no_longer_is_lost_and_counted(
        three, source):
    s = three(sidecar_conf=SETTLE)
    with Split(Session(s)) as c:
        for d in PLACES:
            c.request(d, "POST", body=b"1")
        s.wait_for_status(settled(3))
        s.sidecar.kill9()
        for _ in range(2):
            c.session.client.request("POST", "/b/x", headers=[
                ("Host", "h"), ("X-Mark", "no")], body=b"2")
            c.request("", "POST", body=b"2")
        del s.sidecar.conf["topic.b"]
        s.sidecar.start()
        s.wait_for_status(settled(7), 30)
        c.session.client.request("POST", "/b/x", headers=[
            ("Host", "h"), ("X-Mark", "no")], body=b"3")
        c.request("a", "POST", body=b"3")
        total = assert_balanced(s.wait_for_status(settled(9)))["total"]
        assert total["captured"] == 6
        assert total["lost"]["no_topic"] + total["lost"]["maybe_lost"] == 3
        assert total["lost"]["no_topic"] >= 1
    s.drain()
    # of b there is what was there before; nobody has ended it
    check({d: r for d, r in s.read().items() if d != "b"}, [c])
    assert_captured(s.read()["b"], [c.to("b")], all_closed=False)


def test_a_name_that_stands_for_another_topic_now_takes_no_connection_there(
        three, source, new_topic, broker):
    """A connectionId never spans two topics, whatever becomes of their names."""
    s = three(sidecar_conf=SETTLE)
    old = s.sidecar.conf["topic.b"]
    headers = [("Host", "h")]
    with Split(Session(s)) as c:
        for d in PLACES:
            c.request(d, "POST", body=b"1")
        s.wait_for_status(settled(3))
        s.sidecar.kill9()
        c.session.client.request("POST", "/b/lost", headers=headers, body=b"2")
        s.sidecar.conf["topic.b"] = new_topic()
        s.sidecar.start()
        s.wait_for_status(settled(4), 30)
        c.session.client.request("POST", "/b/new", headers=headers, body=b"3")
        c.request("a", "POST", body=b"3")
        total = assert_balanced(s.wait_for_status(settled(6)))["total"]
        assert total["captured"] == 5
        assert total["lost"]["no_topic"] + total["lost"]["maybe_lost"] == 1
    s.drain()
    before = without_barriers(broker.read_topic(old))
    assert_captured(before, [c.to("b")], all_closed=False)
    after = verify_topic(broker.read_topic(s.sidecar.conf["topic.b"]))
    assert [e.request.split(b" ")[1] for e in after.exchanges] == [b"/b/new"]


def test_ready_is_all_of_them_and_each_says_why_it_is_not(
        three, source, new_topic, broker):
    port = free_port()
    s = three(sidecar_conf={"metrics.listen": f"127.0.0.1:{port}",
                            "topic.gone": "no-such-topic"})

    def ready():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready",
                                        timeout=10) as page:
                return page.read().decode()
        except urllib.error.HTTPError as e:
            return e.read().decode()
    wait_until(lambda: ready().startswith("gone: topic no-such-topic does not"),
               30, "the reason")
    assert "waiting for Kafka of gone: topic no-such-topic" in s.sidecar.log_text()
    with Split(Session(s)) as c:
        for d in PLACES:
            c.request(d, "POST", body=b"1")
        s.wait_for_status(settled(3))
    assert metrics(port)["capture_kafka_ready"] == 0
    broker.create_topic("no-such-topic", 1)
    try:
        wait_until(lambda: ready() == "ready\n", 60, "readiness")
        assert metrics(port)["capture_kafka_ready"] == 1
        s.drain()
        check(s.read(), [c])
    finally:
        broker.delete_topic("no-such-topic")


def test_hup_reads_what_a_destination_refers_to(three, source, workdir):
    secret = f"{workdir}/id"
    with open(secret, "w") as f:
        f.write("first\n")
    s = three(sidecar_conf={"topic.b.kafka.client.id": "${file:%s}" % secret})
    with Split(Session(s)) as c:
        c.request("b", "POST", body=b"1")
        s.wait_for_status(settled(1))
        with open(secret, "w") as f:
            f.write("second\n")
        s.sidecar.process.send(signal.SIGHUP)
        wait_until(lambda: "kafka of b: certificates or properties have changed"
                   in s.sidecar.log_text(), 15, "the line")
        for d in PLACES:
            c.request(d, "POST", body=b"2")
        s.wait_for_status(settled(4), 30)
    assert s.sidecar.log_text().count("properties have changed") == 1
    s.drain()
    check(s.read(), [c])


def test_streams_of_one_connection_to_three_topics(stack2, new_topic, broker,  # noqa: F811
                                                    source):
    topics = {d: new_topic(3) for d in PLACES}
    s = stack2(topic=topics[""], http=HTTP, server=SERVER, sidecar_conf={
        "topic.a": topics["a"], "topic.b": topics["b"]})
    parts = {d: Part() for d in PLACES}
    with Session2(s.port2) as c:
        for _ in range(4):
            started = [(d, c.start("POST", f"{p}{i}", body=pattern(20_000, i)))
                       for i in range(4) for d, p in PLACES.items()]
            for d, one in started:
                assert c.finish(one).status == 200
                parts[d].exchanges.append(c.exchanges[-1])
        s.wait_for_status(settled(48))
    s.drain()
    seen = set()
    for d, topic in topics.items():
        records = broker.read_topic(topic)
        assert_captured(records, [parts[d]], lanes=True, ignore=(
            b"date", b"server", b"connection"))
        ids = {r.key for r in records}
        assert 1 <= len(ids) <= 4 and not ids & seen
        seen |= ids


def test_check_says_what_does_not_fit(workdir):
    from rig.sidecar import check as check_conf
    rc, err = check_conf(workdir, {
        "listen": f"unix:{workdir}/s", "kafka.bootstrap.servers": "x:1",
        "topic.a": "t", "topic.a.kafka.acks": "1"})
    assert rc == 1
    assert ":4: topic.a.kafka.acks = 1: this cannot be changed" in err, err
    rc, err = check_conf(workdir, {
        "listen": f"unix:{workdir}/s", "kafka.bootstrap.servers": "x:1",
        "topic.a": "t", "topic.a.kafka.ssl.ca.location": "/nonexistent",
        "topic.a.kafka.security.protocol": "ssl"})
    assert rc == 1 and "kafka.* of a: " in err, err




@pytest.mark.skipif(SANITIZED, reason="what hangs at the end would be a leak")
def test_clusters_that_hang_end_side_by_side(workdir):
    """Looking up their names takes a minute: a thread cannot be ended in that."""
    names = Shim(workdir, "names", 8)
    conf = {"listen": f"unix:{workdir}/s", "topic": "t",
            "kafka.bootstrap.servers": "k.hangs:1"}
    for i in range(16):
        conf[f"topic.n{i}"] = f"t{i}"
        conf[f"topic.n{i}.kafka.bootstrap.servers"] = f"k{i}.hangs:1"
    sidecar = Sidecar(workdir, conf, env=names.env)
    sidecar.start()
    wait_until(lambda: names.memory[0] == 17, what="17 look-ups")
    begun = time.monotonic()
    assert sidecar.stop(60) == 0
    assert time.monotonic() - begun < 12   # one takes 2 s, all in turn 34
