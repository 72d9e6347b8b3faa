"""The image, started as deployments start it: script/test-image builds it and
says in IMAGE_RUN how to run something in it."""

import base64
import json
import os

import pytest

from path.session import Session, assert_captured, settled
from rig.kafka import KafkaBroker
from rig.source import Source

RUN = os.environ.get("IMAGE_RUN", "").split()
PAIR = "/usr/share/captureProxy/config"

pytestmark = [pytest.mark.skipif(not RUN, reason="script/test-image runs this"),
              pytest.mark.timeout(300)]


STATUS = 9280      # CAPTURE_PROXY_STATUS_LISTEN of the container, for the test
FILES = os.environ.get("IMAGE_FILES")     # /etc/proxy-tls and /etc/client in it


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """It makes topics on demand, as Amazon's do."""
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), auto_create=True)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


def session(l, broker, topic):
    l.status_port = STATUS
    l.wait_linked()
    with Session(l) as c:
        c.request("GET", "/")
        c.request("POST", "/_bulk", body=b'{"index":{}}\n{"b":2}\n')
        c.request("PUT", "/x", body=b"y" * 300000)
        l.wait_for_status(settled(3))
    for pid in (l.pid, l.nginx_pid(), l.sidecar_pid()):
        with open(f"/proc/{pid}/status") as f:
            assert "Uid:\t1000\t1000\t1000\t1000" in f.read()
    assert l.stop() == 0, l.log_text()
    assert_captured(broker.read_topic(topic), [c])


def own_pair(workdir):
    """The image's public certificate, which the client is to trust."""
    import subprocess
    text = subprocess.run([*RUN, "cat", f"{PAIR}/pub.pem"], check=True,
                          capture_output=True).stdout
    with open(f"{workdir}/pub.pem", "wb") as f:
        f.write(text)
    return f"{workdir}/pub.pem"


def test_the_command_of_ecs(launcher, kafka, certificate, workdir):
    """Word for word; script/test-image gives it a network of its own."""
    source = Source(tls=certificate)
    source.start()
    command = (
        "/runJavaWithClasspath.sh "
        "org.opensearch.migrations.trafficcapture.proxyserver.CaptureProxy "
        f"--destinationUri https://127.0.0.1:{source.port} "
        "--insecureDestination --listenPort 9200 "
        f"--sslCertChainFile {PAIR}/pub.pem --sslKeyFile {PAIR}/key.pem "
        f"--kafkaConnection {kafka.bootstrap} "
        "--otelTraceCollectorEndpoint http://localhost:4317 "
        "--otelMetricsCollectorEndpoint http://localhost:4317")
    l = launcher("-c", command, prefix=RUN, binary="/bin/sh", own=False,
                 port=9200, tls=own_pair(workdir))
    session(l, kafka, "logging-traffic-topic")
    source.close()


def test_the_arguments_of_the_kubernetes_workflow(launcher, source, kafka,
                                                  certificate):
    """All keys that it has; the secret and the properties are mounted."""
    for name, text in (("tls.crt", open(certificate[0]).read()),
                       ("tls.key", open(certificate[1]).read()),
                       ("client.properties",
                        "ssl.truststore.type=PEM\nssl.truststore.location="
                        "/etc/proxy-tls/tls.crt\n")):
        where = "client" if name == "client.properties" else "proxy-tls"
        path = os.path.join(FILES, where, name)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, 0o644)
    document = {
        "destinationUri": f"http://localhost:{source.port}",
        "insecureDestination": False, "listenPort": 9200, "numThreads": 1,
        "kafkaConnection": kafka.bootstrap, "kafkaTopic": "capture-proxy",
        "kafkaAuthType": "none", "kafkaUserName": "", "kafkaListenerName": "tls",
        "kafkaPropertyFile": "/etc/client/client.properties",
        "kafkaSecretName": "secret",
        "sslCertChainFile": "/etc/proxy-tls/tls.crt",
        "sslKeyFile": "/etc/proxy-tls/tls.key",
        "maxTrafficBufferSize": 1048576, "destinationConnectionPoolSize": 0,
        "destinationConnectionPoolTimeout": "PT30S",
        "setHeader": ["X-Added: yes"], "suppressCaptureForHeaderMatch": []}
    text = base64.b64encode(json.dumps(document).encode()).decode()
    l = launcher("---INLINE-JSON", text, prefix=RUN, binary="capture-proxy",
                 own=False, port=9200, tls=certificate[0])
    session(l, kafka, "capture-proxy")
    assert {r.header("x-added") for r in source.requests} == {"yes"}
