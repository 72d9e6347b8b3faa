"""The image, started as deployments start it: script/test-image builds it and
says in IMAGE_RUN how to run something in it."""

import base64
import json
import os

import pytest

from path.session import Session, assert_captured, settled
from rig.source import Source

RUN = os.environ.get("IMAGE_RUN", "").split()
PAIR = "/usr/share/captureProxy/config"

pytestmark = [pytest.mark.skipif(not RUN, reason="script/test-image runs this"),
              pytest.mark.timeout(300)]


def session(l, broker, topic):
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


def test_the_command_of_ecs(launcher, broker, topic, certificate, workdir):
    source = Source(tls=certificate)
    source.start()
    broker.start()
    probe = launcher(start=False)
    command = (
        "/runJavaWithClasspath.sh "
        "org.opensearch.migrations.trafficcapture.proxyserver.CaptureProxy "
        f"--destinationUri https://127.0.0.1:{source.port} "
        f"--insecureDestination --listenPort {probe.port} "
        f"--sslCertChainFile {PAIR}/pub.pem --sslKeyFile {PAIR}/key.pem "
        f"--kafkaConnection {broker.bootstrap} "
        "--otelTraceCollectorEndpoint http://localhost:4317 "
        "--otelMetricsCollectorEndpoint http://localhost:4317 "
        f"--kafkaTopic {topic} --status-listen 127.0.0.1:{probe.status_port}")
    l = launcher("-c", command, prefix=RUN, binary="/bin/sh", own=False,
                 port=probe.port, tls=own_pair(workdir))
    l.status_port = probe.status_port
    session(l, broker, topic)
    source.close()


def test_the_arguments_of_the_kubernetes_workflow(launcher, source, broker,
                                                  topic):
    broker.start()
    probe = launcher(start=False)
    document = {
        "destinationUri": f"http://127.0.0.1:{source.port}",
        "listenPort": probe.port, "numThreads": 1,
        "kafkaConnection": broker.bootstrap, "kafkaTopic": topic,
        "kafkaAuthType": "none", "setHeader": ["X-Added: yes"],
        "status-listen": f"127.0.0.1:{probe.status_port}"}
    text = base64.b64encode(json.dumps(document).encode()).decode()
    l = launcher("---INLINE-JSON", text, prefix=RUN, binary="capture-proxy",
                 own=False, port=probe.port)
    l.status_port = probe.status_port
    session(l, broker, topic)
    assert {r.header("x-added") for r in source.requests} == {"yes"}
