"""docs/operations.md, walked through as a new user would: two nodes that serve
without capture at first, and every command of the page as it stands there."""

import contextlib
import grp
import os
import threading

import pytest

from path.session import Session, assert_same, mark_of
from refconsumer.verify import verify_topic
from rig.client import Client
from rig.nginx import BINARY, MODULE, Nginx
from rig.pages import Page, Shell
from rig.process import SANITIZED, free_port, sanitizer_env
from rig.sidecar import check
from rig.status import capture_status, wait_until

SUDO = 'exec "$@"'

# what systemd does with deploy/systemd/capture-sidecar.service
SYSTEMCTL = """
case "$*" in
"start capture-sidecar")
    capture-sidecar -c {conf} 2>>{log} </dev/null & echo $! >{pid} ;;
"stop capture-sidecar")
    kill -TERM $(cat {pid}) && while kill -0 $(cat {pid}); do sleep 0.1; done 2>{null} ;;
*) echo "systemctl $*: not here"; exit 1 ;;
esac
"""

# its words are those of the page: others it does not know
JOURNALCTL = """
[ "$*" = "-u capture-sidecar -n 1 -o cat" ] || exit 1
tail -n 1 {log}
"""

# what was in nginx.conf before, in the places where the page has "..."
MAIN = "events {{ }}\ndaemon off;\npid nginx.pid;\n{user}{env}"
HTTP = """
    access_log access.log;
    client_body_temp_path temp/client;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
"""
SERVER = """
            listen 127.0.0.1:{port};
            location / {{ proxy_pass http://127.0.0.1:{source}; }}
"""


class Node:
    """A host with NGINX, which does not capture yet, and a shell on it."""

    def __init__(self, directory, broker, topic, source):
        os.makedirs(f"{directory}/temp")
        self.directory = directory
        self.port, self.metrics = free_port(), free_port()
        self.conf = f"{directory}/capture-sidecar.conf"
        self.nginx_conf = f"{directory}/nginx.conf"
        self.log = f"{directory}/sidecar.log"
        user = "user root;\n" if os.geteuid() == 0 else ""
        env = "env ASAN_OPTIONS; env UBSAN_OPTIONS;\n" if SANITIZED else ""
        more = "" if SANITIZED else "".join(
            f"    {m}_temp_path temp/{m};\n" for m in ("uwsgi", "scgi"))
        self.before = [MAIN.format(user=user, env=env), HTTP + more,
                       SERVER.format(port=self.port, source=source.port)]
        main, http, server = self.before
        self.write_nginx(f"{main}http {{{http}server {{{server}}}}}\n")
        argv = f"{BINARY} -p {directory}/ -c nginx.conf -e error.log"
        places = {"conf": self.conf, "log": self.log, "null": os.devnull,
                  "pid": f"{directory}/sidecar.pid"}
        self.shell = Shell(
            f"{directory}/shell",
            stand_ins={
                # names of hosts, and what this machine has elsewhere
                "nginx1:9145": f"127.0.0.1:{self.metrics}",
                "broker1:9092": broker.bootstrap,
                "logging-traffic-topic": topic,
                "/etc/capture/capture-sidecar.conf": self.conf,
                "/etc/nginx/nginx.conf": self.nginx_conf,
                "/run/capture/sidecar.sock": f"{directory}/sock",
                "modules/ngx_http_capture_module.so": MODULE,
                "www-data": grp.getgrgid(os.getegid()).gr_name,
                "10.0.0.0/8": "127.0.0.0/8"},
            commands={"sudo": SUDO, "nginx": f'exec {argv} "$@"',
                      "systemctl": SYSTEMCTL.format(**places),
                      "journalctl": JOURNALCTL.format(**places)},
            env=sanitizer_env(directory, leaks=False))
        self.nginx = Nginx(directory)
        self.nginx.port = self.port
        self.nginx.write_config = lambda: None
        self.nginx.start()

    def write_nginx(self, text):
        with open(self.nginx_conf, "w") as f:
            f.write(text)

    def write_sidecar(self, block):
        with open(self.conf, "w") as f:
            f.write(self.shell.text(block))

    def add_to_nginx(self, block):
        """The page's lines around those that were there."""
        parts = self.shell.text(block).split("...\n")
        assert len(parts) == 4, block
        self.write_nginx(parts[0] + "".join(
            old + new for old, new in zip(self.before, parts[1:])))

    def client(self, **options):
        return Client(self.port, **options)

    def close(self):
        try:
            self.nginx.close()
        finally:
            self.shell.close()  # the sidecar is one of its group


@pytest.fixture
def nodes(workdir, broker, topic, source):
    broker.start()
    with contextlib.ExitStack() as stack:
        made = []
        for n in "12":
            made.append(Node(f"{workdir}/n{n}", broker, topic, source))
            stack.callback(made[-1].close)
        yield made


def seen(node):
    return capture_status(node.port)["total"]["captured"]


def test_a_migration_from_the_first_command_to_the_last(nodes, workdir, broker,
                                                        topic, source):
    page = Page("docs/operations.md", not_run={
        "capturectl status --watch": "it goes on until it is interrupted: "
        "t/tools/test_capturectl_check.py",
        "seen = captured": "a sum, no command",
        "split_clients": "below"})
    first, second = nodes
    # the operator's own shell: names of both nodes, and no systemctl
    desk = Shell(f"{workdir}/desk", stand_ins={
        "nginx1:8080": f"127.0.0.1:{first.port}",
        "nginx2:8080": f"127.0.0.1:{second.port}",
        "nginx1:9145": f"127.0.0.1:{first.metrics}",
        "nginx2:9145": f"127.0.0.1:{second.metrics}",
        "broker1:9092": broker.bootstrap, "logging-traffic-topic": topic})
    desk.run(page.take("export NODES"))

    # before capture: a connection that will go on with its old worker
    held = first.client()
    held.send(b"POST /before HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc")
    conf, start = page.take("listen ="), page.take("capture-sidecar --check")
    for node in nodes:
        node.write_sidecar(conf)
        rc, said = check(node.directory, node.shell.text(conf))
        assert (rc, said) == (0, "")
        assert "ready" in node.shell.run(start)
    lines, reload = page.take("load_module"), page.take("sudo nginx -t")
    for node in nodes:
        node.add_to_nginx(lines)
        assert "is successful" in node.shell.run(reload)
    for node in nodes:
        # until then the old worker may take a connection, and not capture it
        node.nginx.wait_for_log("gracefully shutting down", 30)
        wait_until(lambda: all(w["linked"] for w in capture_status(
            node.port)["workers"]) and capture_status(node.port)["workers"], 30,
            "the links")

    sent = [Session(node) for node in nodes]
    for s in sent:
        assert s.request("PUT", "/i/_doc/1", body=b"{}").status == 200
        assert s.request("GET", "/i/_doc/1").status == 200
    for node in nodes:
        wait_until(lambda: seen(node) == 2, 30, "what was captured")
    table = desk.run(page.take("capturectl status $NODES"))
    assert table.count(" yes ") == 2 and " NO " not in table
    found = desk.run(page.take("capturectl http"))
    assert found.count("PUT /i/_doc/1") == 2 and "a day" in found

    # the old worker's request is not captured: check waits until it has ended
    checks = page.take("capturectl check $NODES -b $BROKERS -t $TOPIC --wait")
    again = page.take("capturectl check $NODES -b $BROKERS -t $TOPIC\n")
    answers = []
    assert "of before a reload" in desk.run(again, status=1)
    waiting = threading.Thread(target=lambda: answers.append(desk.run(checks)))
    waiting.start()
    held.send(b"d")
    assert held.receive().status == 200
    held.close()
    waiting.join(60)
    assert "safe: a snapshot may begin after 2" in answers[0]
    assert "safe: a snapshot may begin after 2" in desk.run(again)

    assert desk.run(page.take("capturectl gaps -b $BROKERS -t $TOPIC --ignore unf"))
    shown = desk.run(page.take("curl -fsS http://nginx1:8080/capture_status"))
    assert '"lost": {' in shown

    for s in sent:
        s.client.close()
    end = page.take("sudo sed")
    for node in nodes:
        total = node.shell.run(end, timeout=90).splitlines()[-1]
        assert "pending 0" in total and "lost 0" in total, total
    desk.run(page.take("capturectl gaps"))
    page.finish()
    desk.finish()
    for node in nodes:
        node.shell.finish()
    result = verify_topic(broker.read_topic(topic))
    result.assert_clean(all_closed=True)
    found = {}
    for exchange in result.exchanges:
        if b"X-Capture-Canary" in exchange.request:
            assert exchange.request.startswith(b"GET / ")
        else:
            found[mark_of(exchange.request)] = exchange
    wanted = {e.mark: e for s in sent for e in s.exchanges}
    assert set(found) == set(wanted)
    for mark, exchange in found.items():
        assert_same(exchange, wanted[mark])


def test_the_sample_is_taken(workdir, check_config):
    (block,) = [b for b in Page("docs/operations.md").blocks
                if b.text.startswith("split_clients")]
    http, server = block.text.splitlines()
    rc, said = check_config(http=f"capture_sidecar unix:/tmp/none; {http}\n",
                            server=server + "\n")
    assert rc == 0, said
