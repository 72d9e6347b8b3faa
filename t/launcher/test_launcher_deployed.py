"""The argument lists of ECS and of the Kubernetes workflow, nothing added and nothing
left out, on the ports and paths that they have there: in a network and a file system
of the tests' own, which the first test here makes."""

import base64
import json
import os
import shutil
import subprocess

import pytest

from path.session import Session, assert_captured, settled
from refconsumer.verify import verify_topic
from rehearsal.balancers import application
from rig import own_network
from rig.haproxy import BINARY, HaProxy
from rig.kafka import KafkaBroker
from rig.source import Response, Source, pattern

PAIR = "/usr/share/captureProxy/config"
TLS = "/etc/proxy-tls"
PORT = 9200

inside = pytest.mark.skipif(not own_network.INSIDE,
                            reason="the test of this file runs it")


@pytest.mark.skipif(not own_network.available(),
                    reason="needs the right to make namespaces and overlays")
@pytest.mark.timeout(300)
def test_as_deployed():
    """The tests below, in there."""
    code, out = own_network.pytest(__file__)
    print(out)
    assert code == 0 and " passed" in out and "deselected" not in out
    skipped = 1 if BINARY else 2          # this test; the one with HAProxy
    assert f" {skipped} skipped" in out, "more was skipped than must be"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """It makes topics on demand, as Amazon's do."""
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), auto_create=True)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def tls_source(certificate):
    s = Source(lambda r: Response(body=r.target.encode()), tls=certificate)
    s.start()
    yield s
    s.close()


def place(certificate, directory, crt, key):
    """The pair that the image brings, or the secret, where it is deployed."""
    os.makedirs(directory)
    shutil.copy(certificate[0], f"{directory}/{crt}")
    shutil.copy(certificate[1], f"{directory}/{key}")
    os.chmod(f"{directory}/{key}", 0o600)


def session(l, broker, topic):
    """What clients do; and what is in Kafka then, in a topic that was not there."""
    with Session(l) as c:
        c.request("GET", "/")
        c.request("PUT", "/index/_doc/1?refresh=true", body=b'{"a":1}')
        c.request("POST", "/_bulk", body=b'{"index":{}}\n{"b":2}\n')
        c.request("POST", "/_bulk", chunks=[b"a", pattern(70000), b"def"])
        c.request("HEAD", "/index")
        c.request("DELETE", "/index/_doc/1")
        c.request("PUT", "/big", body=pattern(3 << 20))
    status = l.wait_for_status(settled(7), 30)
    assert status["total"]["waits"]["acked"] == 5, status
    assert l.stop() == 0, l.log_text()
    assert_captured(broker.read_topic(topic), [c])


@pytest.fixture
def ecs(launcher, tls_source, certificate, kafka):
    place(certificate, PAIR, "pub.pem", "key.pem")
    l = launcher(
        "--destinationUri", f"https://127.0.0.1:{tls_source.port}",
        "--insecureDestination",
        "--listenPort", "9200",
        "--sslCertChainFile", "/usr/share/captureProxy/config/pub.pem",
        "--sslKeyFile", "/usr/share/captureProxy/config/key.pem",
        "--kafkaConnection", kafka.bootstrap,
        "--otelTraceCollectorEndpoint", "http://localhost:4317",
        "--otelMetricsCollectorEndpoint", "http://localhost:4317",
        own=False, port=PORT, tls=certificate[0],
        env={"JDK_JAVA_OPTIONS": "-Xmx1g"})
    l.wait_linked()
    yield l
    shutil.rmtree(PAIR)


@inside
def test_ecs(ecs, kafka):
    session(ecs, kafka, "logging-traffic-topic")


@inside
@pytest.mark.skipif(not BINARY, reason="needs haproxy")
def test_the_albs_listeners_lead_to_the_containers_port(ecs, kafka, certificate,
                                                        workdir):
    """9201 and 443, and 9200 itself as the user's page asks it."""
    with open(f"{workdir}/pair.pem", "w") as f:
        for part in certificate:
            with open(part) as p:
                f.write(p.read())
    h = HaProxy(f"{workdir}/h", "".join(
        application(f"alb-{port}", port, f"{workdir}/pair.pem",
                    {"source": (PORT, 1)}) for port in (9201, 443)))
    h.start()
    try:
        for port in (9201, 443):
            h.wait_health(f"alb-{port}", "source", "UP", 200)
        for url in ("https://localhost:9200/a", "https://localhost:9201/b",
                    "https://localhost/c"):
            got = subprocess.run(["curl", "-sSk", "--noproxy", "*", url],
                                 capture_output=True, text=True)
            assert got.stdout == url[-2:], got
    finally:
        h.close()
    assert ecs.stop() == 0, ecs.log_text()
    found = {e.request.split(b" ")[1] for e in verify_topic(
        kafka.read_topic("logging-traffic-topic")).exchanges}
    assert {b"/a", b"/b", b"/c"} <= found


@inside
def test_the_kubernetes_workflow(launcher, source, certificate, kafka, workdir):
    place(certificate, TLS, "tls.crt", "tls.key")
    with open(f"{workdir}/client.properties", "w") as f:
        f.write("ssl.truststore.type=PEM\n"
                f"ssl.truststore.location={certificate[0]}\n")
    document = {
        "destinationUri": f"http://localhost:{source.port}",
        "insecureDestination": False, "listenPort": 9200, "numThreads": 1,
        "kafkaConnection": kafka.bootstrap, "kafkaTopic": "capture-proxy",
        "kafkaAuthType": "none", "kafkaUserName": "", "kafkaListenerName": "tls",
        "kafkaPropertyFile": f"{workdir}/client.properties",
        "kafkaSecretName": "secret",
        "sslCertChainFile": "/etc/proxy-tls/tls.crt",
        "sslKeyFile": "/etc/proxy-tls/tls.key",
        "maxTrafficBufferSize": 1048576, "destinationConnectionPoolSize": 0,
        "destinationConnectionPoolTimeout": "PT30S", "setHeader": [],
        "suppressCaptureForHeaderMatch": []}
    l = launcher("---INLINE-JSON",
                 base64.b64encode(json.dumps(document).encode()).decode(),
                 own=False, port=PORT, tls=certificate[0],
                 env={"CAPTURE_PROXY_KAFKA_PASSWORD": "unused"})
    l.wait_linked()
    session(l, kafka, "capture-proxy")
