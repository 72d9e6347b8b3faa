"""The sidecar's image beside an NGINX image that got the module: two containers
with users and PID name spaces of their own, which share a directory and a group.
script/test-image builds them and says how to run something in them."""

import base64
import os
import shutil
import signal

import pytest

from path.session import Session, assert_balanced, assert_captured, settled
from rig import status
from rig.client import Client
from rig.container import Container
from rig.process import TOP, Process, accepts, free_port
from rig.status import wait_until

SIDECAR = os.environ.get("SIDECAR_RUN", "").split()
NGINX = os.environ.get("NGINX_RUN", "").split()
SOCKETS = os.environ.get("SOCKET_DIRECTORY", "")
CONF = os.path.join(TOP, "deploy", "kubernetes", "sidecar", "nginx.conf")

pytestmark = [pytest.mark.skipif(not NGINX, reason="script/test-image runs this"),
              pytest.mark.timeout(300)]


class Pod:
    """Both containers; as path.session.Session's stack."""

    def __init__(self, workdir, source, broker, topic, nginx=NGINX):
        self.port, self.metrics = free_port(), free_port()
        self.running = []
        self.sidecar_log = f"{workdir}/sidecar.log"
        self.nginx_log = f"{workdir}/nginx.log"
        with open(CONF) as f:
            conf = f.read()
        for old, new in {"server source:9200;": f"server 127.0.0.1:{source.port};",
                         "listen 9200;": f"listen 127.0.0.1:{self.port};"}.items():
            assert old in conf
            conf = conf.replace(old, new)
        conf = base64.b64encode(conf.encode()).decode()
        # the image's own configuration, and what a test needs
        self.sidecar = self._start("capture-sidecar", [
            *SIDECAR, "env", f"KAFKA_BROKERS={broker.bootstrap}", "bash", "-c",
            "sed 's/:9145$/:%d/' /etc/capture/capture-sidecar.conf >/tmp/conf &&"
            "echo topic = %s >>/tmp/conf && exec capture-sidecar -c /tmp/conf"
            % (self.metrics, topic)], self.sidecar_log)
        self.nginx = self._start("nginx", [
            *nginx, "bash", "-c",
            f"base64 -d >/tmp/nginx.conf <<<{conf} &&"
            "exec nginx -c /tmp/nginx.conf -g 'daemon off;'"], self.nginx_log)
        wait_until(lambda: accepts(self.port), 30, "NGINX's port",
                   self.nginx.process.dead)

    def _start(self, name, argv, log):
        self.running.append(Container(name, argv, log))
        return self.running[-1]

    def client(self, **options):
        return Client(self.port, **options)

    def wait_for_status(self, good):
        return wait_until(lambda: (lambda s: s if good(s) else None)(
            status.capture_status(self.port)), 30, "capture_status")

    def end(self):
        """NGINX first, as both kinds of platform do."""
        assert self.nginx.stop(signal.SIGQUIT) == 0
        assert self.sidecar.stop(signal.SIGTERM) == 0

    def close(self):
        for container in self.running:
            container.kill()


@pytest.fixture
def pod(workdir, source, broker, topic):
    pods = []

    def make(mode, owner, **options):
        shutil.rmtree(SOCKETS)
        os.mkdir(SOCKETS)
        os.chown(SOCKETS, *owner)
        os.chmod(SOCKETS, mode)
        pods.append(Pod(workdir, source, broker, topic, **options))
        return pods[-1]
    broker.start()
    yield make
    for p in pods:
        p.close()


@pytest.mark.parametrize("mode,owner", [
    pytest.param(0o2770, (1000, 1000), id="a volume made from the image"),
    pytest.param(0o2777, (0, 1000), id="an emptyDir with fsGroup")])
def test_two_containers_share_the_socket(pod, broker, topic, mode, owner):
    p = pod(mode, owner)
    p.wait_for_status(lambda s: len(s["workers"]) == 2 and all(
        w["linked"] for w in s["workers"]))
    nginx, sidecar = p.nginx.ids(), p.sidecar.ids()
    assert nginx[:2] == (101, 1000) and sidecar[:2] == (1000, 1000)
    assert nginx[2] != sidecar[2] and nginx[3] != sidecar[3]
    with Session(p) as c:
        assert c.request("GET", "/").status == 200
        assert c.request("POST", "/_bulk", body=b"x" * 300000).status == 200
        assert_balanced(p.wait_for_status(settled(2)))
    for args, ok in (([p.metrics, "/live"], True), ([p.metrics, "/ready"], True),
                     ([p.metrics, "/none"], False), ([free_port(), "/live"], False)):
        check = Process([*SIDECAR, "healthy", *map(str, args)], "/dev/null")
        assert (check.wait(60) == 0) == ok, args
    p.end()
    assert_captured(broker.read_topic(topic), [c])


def test_without_the_group_nginx_serves_and_says_why(pod):
    p = pod(0o2770, (1000, 1000),
            nginx=[w.replace("101:1000", "101:2000") for w in NGINX])
    p.nginx.process.wait_for_log("Permission denied", 30)
    with Session(p) as c:
        assert c.request("GET", "/").status == 200
    s = p.wait_for_status(settled(1))
    assert s["total"]["lost"]["unlinked"] == 1, s
    p.end()
