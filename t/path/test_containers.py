"""NGINX and the sidecar as two containers of one pod or task: other users, name spaces
of processes and of mounts of their own, and nothing in common but the network and the
directory of the socket, which is somewhere else in each. (script/test-image does the
same with images.)"""

import os
import signal

import pytest

from path.session import Session, assert_balanced, assert_captured, settled
from rig import launcher as rig_launcher
from rig import nginx as rig_nginx
from rig import status
from rig.client import Client
from rig.container import Container, own_spaces
from rig.process import accepts, free_port, sanitizer_env, sanitizer_reports
from rig.source import pattern
from rig.status import wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to make name spaces")

GROUP, NGINX, SIDECAR = 1000, 101, 1000
HTTP = """
    capture_sidecar unix:{run}/sock;
    upstream source {{ server 127.0.0.1:{source}; keepalive 8; }}
"""
SERVER = """
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location = /capture_status { capture_status; }
        location / { capture on; proxy_pass http://source; }
"""


class Pod:
    """As path.session.Session's stack."""

    def __init__(self, workdir, monkeypatch, source, broker, topic):
        self.port, self.workdir = free_port(), workdir
        os.chmod(workdir, 0o755)
        rig_launcher.install_for_others(f"{workdir}/bin")
        for name, owner in (("n", NGINX), ("s", SIDECAR), ("shared", SIDECAR)):
            os.makedirs(f"{workdir}/{name}/run")
            os.chown(f"{workdir}/{name}", owner, GROUP)
        os.mkdir(f"{workdir}/n/temp")
        os.chown(f"{workdir}/n/temp", NGINX, GROUP)
        # as the volume of an image's /run/capture
        os.chmod(f"{workdir}/shared", 0o2770)
        monkeypatch.setattr(rig_nginx, "MODULE",
                            f"{workdir}/bin/ngx_http_capture_module.so")
        with open(f"{workdir}/n/nginx.conf", "w") as f:
            f.write(rig_nginx.render(
                self.port, server=SERVER, workers=2,
                http=HTTP.format(run=f"{workdir}/n/run", source=source.port)
            ).replace("user root;", ""))
        with open(f"{workdir}/s/sidecar.conf", "w") as f:
            f.write(f"listen = unix:{workdir}/s/run/sock\nlisten.mode = 0660\n"
                    f"topic = {topic}\n"
                    f"kafka.bootstrap.servers = {broker.bootstrap}\n")
        self.running = []
        self.start_sidecar()
        self.nginx = self._start("nginx", "n", NGINX, "s", [
            f"{workdir}/bin/nginx", "-p", f"{workdir}/n/", "-c", "nginx.conf", "-e",
            "error.log"])
        wait_until(lambda: accepts(self.port), 30, "NGINX's port",
                   self.nginx.process.dead)

    def start_sidecar(self):
        self.sidecar = self._start("capture-sidecar", "s", SIDECAR, "n", [
            f"{self.workdir}/bin/capture-sidecar", "-c",
            f"{self.workdir}/s/sidecar.conf"])

    def _start(self, name, own, user, other, argv):
        at = f"{self.workdir}/{own}"
        container = Container(name, own_spaces(
            user, GROUP, {f"{self.workdir}/shared": f"{at}/run"},
            [f"{self.workdir}/{other}"]) + argv, f"{at}.log", sanitizer_env(at))
        self.running.append(container)
        return container

    def client(self, **options):
        return Client(self.port, **options)

    def wait_for_status(self, good):
        return wait_until(lambda: (lambda s: s if good(s) else None)(
            status.capture_status(self.port)), 30, "capture_status")

    def close(self):
        for container in self.running:
            container.kill()
        for own in "ns":
            report = sanitizer_reports(f"{self.workdir}/{own}")
            assert not report, report


@pytest.fixture
def pod(workdir, monkeypatch, source, broker, topic):
    broker.start()
    pod = Pod(workdir, monkeypatch, source, broker, topic)
    yield pod
    pod.close()


def linked(s):
    return len(s["workers"]) == 2 and all(w["linked"] for w in s["workers"])


def test_two_containers_share_a_socket_and_nothing_else(pod, broker, topic):
    pod.wait_for_status(linked)
    nginx, sidecar = pod.nginx.ids(), pod.sidecar.ids()
    assert nginx[:2] == (NGINX, GROUP) and sidecar[:2] == (SIDECAR, GROUP)
    assert nginx[2] != sidecar[2] and nginx[3] != sidecar[3]
    for container, other in ((pod.nginx, "s"), (pod.sidecar, "n")):
        assert os.listdir(f"/proc/{container.pid}/root{pod.workdir}/{other}") == []
    with Session(pod) as c:
        assert c.request("GET", "/").status == 200
        assert c.request("POST", "/_bulk", body=pattern(3_000_000)).status == 200
        pod.wait_for_status(settled(2))
        # the container is killed, another one comes in its place
        pod.sidecar.kill()
        pod.sidecar.process.wait(10)
        pod.start_sidecar()
        assert c.request("PUT", "/1", body=pattern(1000)).status == 200
        pod.wait_for_status(linked)
        assert c.request("PUT", "/2", body=pattern(1000)).status == 200
        s = assert_balanced(pod.wait_for_status(settled(4)))
    assert s["total"]["captured"] == 4, s["total"]
    # NGINX first, as both kinds of platform end them
    assert pod.nginx.stop(signal.SIGQUIT) == 0
    assert pod.sidecar.stop(signal.SIGTERM) == 0
    assert_captured(broker.read_topic(topic), [c])
    with open(f"{pod.workdir}/n/error.log") as f:
        log = f.read()
    assert "[alert]" not in log and "[emerg]" not in log, log
