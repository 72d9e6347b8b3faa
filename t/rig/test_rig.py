"""The rig itself, without our own programs: when one of these fails, no other
test means anything."""

import os
import threading

import pytest

from rig.client import Client, build_request
from rig.source import Response, pattern
from rig.status import wait_until

PROXY_HTTP = "upstream source {{ server 127.0.0.1:{}; keepalive 8; }}"
PROXY = """
    location / {
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_pass http://source;
    }
"""


@pytest.fixture
def proxy(nginx, source):
    return nginx(http=PROXY_HTTP.format(source.port), server=PROXY, module=False)


def test_broker_returns_what_was_produced(broker, topic):
    values = [pattern(1000, i) for i in range(20)]
    for i, value in enumerate(values):
        broker.produce(topic, value, key=b"k%d" % (i % 5))
    records = broker.read_topic(topic)
    assert sorted(r.value for r in records) == sorted(values)
    assert sum(broker.end_offsets(topic).values()) == 20
    # the order within a key is the order of its production
    for k in range(5):
        got = [r.value for r in records if r.key == b"k%d" % k]
        assert got == values[k::5]


@pytest.mark.partitions(2)
def test_broker_keeps_data_and_port_over_a_restart(broker, topic):
    broker.produce(topic, b"before", partition=1)
    port = broker.port
    broker.stop()
    broker.start()
    assert broker.port == port
    broker.produce(topic, b"after", partition=1)
    assert [tuple(r) for r in broker.read_topic(topic)] == [
        (1, 0, None, b"before"), (1, 1, None, b"after")]


def test_authorizer_refuses_what_was_not_permitted(own_broker):
    from confluent_kafka import Producer
    broker = own_broker(users={"writer": "secret"})
    broker.create_topic("open")
    broker.create_topic("closed")
    broker.permit("writer", "open")
    reports = {}
    producer = Producer({
        "bootstrap.servers": broker.sasl_bootstrap, "log_level": 0,
        "security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN",
        "sasl.username": "writer", "sasl.password": "secret"})
    wait_until(lambda: producer.list_topics("open", timeout=5).topics["open"]
               .error is None, 30, "the permission to be in force")
    for name in ("open", "closed"):
        producer.produce(name, b"x", on_delivery=lambda e, _, name=name:
                         reports.__setitem__(name, e and e.name()))
    producer.flush(30)
    assert reports == {"open": None, "closed": "TOPIC_AUTHORIZATION_FAILED"}


def test_source_records_the_bytes_that_the_client_sent(source):
    raw = build_request("POST", "/a?b", [("Host", "x"), ("x-LOWER", "v")],
                        chunks=[b"one", b"two"])
    with Client(source.port) as client:
        client.send(raw)
        answer = client.receive("POST")
    assert (answer.status, answer.body) == (200, b"ok\n")
    request, = source.requests
    assert bytes(request.raw) == raw
    assert (bytes(request.body), request.complete) == (b"onetwo", True)
    assert request.headers[1] == ("x-LOWER", "v")


def test_client_separates_pipelined_answers(source):
    source.answer = lambda request: Response(
        body=request.target.encode() * 100,
        chunked=(7, 100) if request.target == "/2" else None,
        interim=b"HTTP/1.1 103 Early Hints\r\n\r\n"
        if request.target == "/3" else b"")
    with Client(source.port) as client:
        client.send(b"".join(build_request("GET", f"/{i}") for i in range(5)))
        answers = [client.receive() for i in range(5)]
    assert [a.body for a in answers] == [b"/%d" % i * 100 for i in range(5)]
    assert [len(a.interim) for a in answers] == [0, 0, 0, 1, 0]


def test_client_notices_a_body_that_is_cut(source):
    source.answer = lambda request: Response(body=pattern(5000), cut=1234)
    with Client(source.port) as client:
        answer = client.request("GET", "/")
        assert not answer.complete
        assert answer.body == pattern(1234)
        assert client.ended()


def test_source_answers_before_the_body_and_holds_answers(source):
    release = threading.Event()
    source.early = lambda request: True
    source.answer = lambda request: Response(body=b"early", hold_body=release)
    with Client(source.port) as client:
        client.send(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
        wait_until(lambda: source.requests, what="the request's head")
        assert not source.requests[0].complete
        release.set()
        assert client.receive("POST").body == b"early"
        client.send(b"12345")
        wait_until(lambda: source.requests[0].complete, what="the body")


def test_nginx_forwards_and_reloads(proxy, source):
    body = pattern(300_000, 7)
    source.answer = lambda request: Response(body=bytes(request.body))
    with Client(proxy.port) as client:
        assert client.request("POST", "/x", body=body).body == body
        old = proxy.workers()
        proxy.reload(workers=2)
        assert len(set(proxy.workers()) - set(old)) == 2
    with Client(proxy.port) as client:
        assert client.request("GET", "/x").status == 200
    # NGINX logs a request after its answer
    wait_until(lambda: "GET /x" in proxy.access_log(), what="the access log")


def test_nginx_is_upgraded(nginx, source):
    proxy = nginx(http=PROXY_HTTP.format(source.port), server=PROXY, module=False,
                  daemon=True)
    old, workers = proxy.pid, proxy.workers()
    proxy.upgrade()
    assert proxy.pid != old and not set(proxy.workers()) & set(workers)
    with Client(proxy.port) as client:
        assert client.request("GET", "/x").status == 200
    assert proxy.stop(graceful=True) == 0


def test_nginx_reports_a_bad_configuration(check_config):
    rc, stderr = check_config(server="no_such_directive on;", module=False)
    assert rc == 1
    assert 'unknown directive "no_such_directive"' in stderr
    assert check_config(module=False)[0] == 0


@pytest.mark.parametrize("file, text", [
    ("error.log", "2026/01/01 00:00:00 [alert] 1#1: planted\n"),
    ("sanitizer.1", "runtime error: planted\n")])
def test_an_alert_and_a_sanitizer_report_fail_a_test(nginx, file, text):
    """The checks at a test's end are worth nothing if they cannot fail."""
    n = nginx(module=False)
    with open(f"{n.directory}/{file}", "a") as f:
        f.write(text)
    with pytest.raises(AssertionError, match="planted"):
        n.close()
    # let the fixture's own check pass
    os.truncate(f"{n.directory}/{file}", 0)
    if file != "error.log":
        os.remove(f"{n.directory}/{file}")


def test_waiting_fails_with_the_reason():
    with pytest.raises(AssertionError, match="waiting for rain: not within"):
        wait_until(lambda: False, 0.05, "rain")
    with pytest.raises(AssertionError, match="it has ended"):
        wait_until(lambda: False, 60, "rain", dead=lambda: "it has ended")
