"""What conf/ shows to users is what NGINX and the sidecar accept: an example
that does not start is worse than none."""

import base64
import functools
import json
import os
import re
import ssl
import subprocess
import urllib.request

import pytest

from path.session import (Session, assert_balanced, assert_captured, settled,
                          without_barriers)
from rig import status
from rig.client import Client
from rig.nginx import MODULE, Nginx, check_config
from rig.process import SANITIZED, TOP, free_port
from rig.sidecar import BINARY, Sidecar, check
from rig.source import Response, Source, pattern

EXAMPLES = ["nginx-minimal.conf", "nginx-fleet.conf", "nginx-elastic-cloud.conf",
            "nginx-wait-and-refuse.conf", "nginx-spool.conf",
            "nginx-many-clusters.conf"]
SIDECARS = ["capture-sidecar.conf", "capture-sidecar-spool.conf",
            "capture-sidecar-many-clusters.conf"]
CLOUD = "my-cluster.es.eu-central-1.aws.found.io"

MIB = 1 << 20
CONF = os.path.join(TOP, "conf")


def read(name):
    with open(os.path.join(CONF, name)) as f:
        return f.read()


def put_in_place(text, workdir):
    """Only what this machine cannot have: the module where it was built, a
    directory for logs, and the files that a fleet has anyway."""
    text = text.replace("modules/ngx_http_capture_module.so", MODULE)
    text = text.replace("/var/log/nginx/", f"{workdir}/")
    text = text.replace("/etc/nginx/tls/", f"{workdir}/")
    text = text.replace("/etc/nginx/search.passwd", f"{workdir}/passwd")
    # what an unprivileged `nginx -t` would not be allowed to open
    extra = f"pid {workdir}/nginx.pid;\nerror_log stderr;\n"
    temp = "".join(f"    {m}_temp_path {workdir}/temp/{m};\n"
                   for m in ["client_body", "proxy", "fastcgi"]
                   + ([] if SANITIZED else ["uwsgi", "scgi"]))
    return extra + text.replace("http {\n", "http {\n" + temp, 1)


def make_tls_files(workdir, name="search.example"):
    pem, key = f"{workdir}/{name}.pem", f"{workdir}/{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-out", pem, "-keyout", key], check=True, capture_output=True)
    return pem, key


@pytest.mark.parametrize("name", EXAMPLES)
def test_nginx_accepts_the_example(workdir, name):
    make_tls_files(workdir)
    # nobody resolves it here
    text = read(name).replace(f"server {CLOUD}:443", "server 127.0.0.1:443")
    rc, err = check_config(workdir, put_in_place(text, workdir))
    assert rc == 0, err
    assert "[warn]" not in err, err


def keys_of(text):
    return dict(re.findall(r"^([a-z_.]+) = (.+)$", text, re.M))


class Example(Nginx):
    """An example, and a sidecar, that run; `places` are what it has instead of
    what it says: each must be in it. As path.session.Session's stack."""

    def __init__(self, workdir, name, listen, broker, topic, places,
                 sidecar=None):
        super().__init__(os.path.join(workdir, "n"))
        self.broker, self.topic = broker, topic
        socket = f"{workdir}/sock"
        self.text = read(name)
        for old, new in {"unix:/run/capture/sidecar.sock": f"unix:{socket}",
                         f"listen {listen}": f"listen 127.0.0.1:{self.port}",
                         **places}.items():
            assert old in self.text, old
            self.text = self.text.replace(old, new)
        ours = {"listen": f"unix:{socket}", "topic": topic,
                "kafka.bootstrap.servers": broker.bootstrap}
        if sidecar:             # (an example, {key: what it has instead})
            said, here = keys_of(read(sidecar[0])), {**ours, **sidecar[1]}
            assert set(here) <= set(said), said
            ours = {**said, **here}
        self.sidecar = Sidecar(workdir, ours)

    def write_config(self, **_):
        user = "user root;\n" if os.geteuid() == 0 else ""
        with open(self._path("nginx.conf"), "w") as f:
            f.write("daemon off;\n" + user
                    + put_in_place(self.text, self.directory))

    def start(self):
        self.sidecar.start()
        super().start()
        self.wait_for_status(lambda s: s["workers"] and all(
            w["linked"] for w in s["workers"]))

    def client(self, **options):
        return Client(self.port, **options)

    def status(self):
        return status.capture_status(self.port)

    def wait_for_status(self, good, timeout=30):
        last = {}
        status.wait_until(
            lambda: good(last.setdefault(len(last), self.status())), timeout,
            "capture_status")
        return last[max(last)]

    def records(self):
        """The topic, after the end of both."""
        assert self.stop(graceful=True) == 0
        assert self.sidecar.stop() == 0, self.sidecar.log_text()
        return self.broker.read_topic(self.topic)

    def close(self):
        try:
            super().close()
        finally:
            self.sidecar.close()


class TlsExample(Example):
    """With a listener that speaks TLS by this certificate."""

    def __init__(self, *args, certificate, **options):
        super().__init__(*args, **options)
        self.context = ssl.create_default_context(cafile=certificate)
        self.context.check_hostname = False

    def client(self, port=None, **options):
        c = Client(port or self.port, **options)
        c.sock = self.context.wrap_socket(c.sock, server_hostname="search.example")
        return c

    def status(self):
        with urllib.request.urlopen(
                f"https://127.0.0.1:{self.port}/capture_status", timeout=5,
                context=self.context) as r:
            return json.load(r)


@pytest.fixture
def example(workdir, broker, topic):
    """example(name, listen, {what it says: what it has instead})"""
    running = []

    def make(name, listen, places, kind=Example, **options):
        options = {"broker": broker, "topic": topic, **options}
        running.append(kind(workdir, name, listen, places=places, **options))
        running[-1].start()
        return running[-1]
    broker.start()
    yield make
    for e in running:
        e.close()


def test_the_minimal_example_captures(example, source):
    e = example("nginx-minimal.conf", "127.0.0.1:8080",
                {"server 127.0.0.1:9200": f"server 127.0.0.1:{source.port}"})
    with Session(e) as c:
        assert c.request("GET", "/").status == 200
        assert c.request("POST", "/_bulk", body=b"x" * 2000000).status == 200
        assert_balanced(e.wait_for_status(settled(2)))
    assert_captured(e.records(), [c])


def test_the_fleets_example_captures_what_reaches_the_cluster(
        workdir, example, source):
    """And nothing else of what it serves: what its password keeps out, health checks,
    the other server."""
    certificate, _ = make_tls_files(workdir)
    with open(f"{workdir}/passwd", "w") as f:
        f.write("me:{PLAIN}geheim\n")
    os.chmod(f"{workdir}/passwd", 0o644)
    dashboards, port = Source(), free_port()
    dashboards.start()
    try:
        e = example("nginx-fleet.conf", "127.0.0.1:8443", {
            **{f"server 127.0.0.1:{n}": f"server 127.0.0.1:{source.port}"
               for n in (9201, 9202, 9203)},
            "server 127.0.0.1:5601": f"server 127.0.0.1:{dashboards.port}",
            "listen 127.0.0.1:8444": f"listen 127.0.0.1:{port}",
            "/etc/nginx/tls/": f"{workdir}/",
            "/etc/nginx/search.passwd": f"{workdir}/passwd"},
            kind=functools.partial(TlsExample, certificate=certificate))
        host = ("Host", "search.example")
        me = ("Authorization",
              f"Basic {base64.b64encode(b'me:geheim').decode()}")
        with Session(e) as c:
            assert c.request("GET", "/", [me]).status == 200
            assert c.request("POST", "/_bulk", [me], body=pattern(MIB)).status == 200
            with e.client() as other:
                assert other.request("PUT", "/x", [host], b"{}").status == 401
                assert other.request("GET", "/_cluster/health",
                                     [host, me]).status == 200
            with e.client(port) as other:
                assert other.request(
                    "GET", "/app", [("Host", "dashboards.example")]).status == 200
            s = assert_balanced(e.wait_for_status(settled(3)))
        assert s["total"]["captured"] == 2, s["total"]
        assert s["total"]["filtered"]["not_forwarded"] == 1, s["total"]
        assert [r.target for r in source.requests] == ["/", "/_bulk",
                                                       "/_cluster/health"]
        assert [r.target for r in dashboards.requests] == ["/app"]
        # the source gets the name that NGINX gives it, the topic has the client's
        assert_captured(e.records(), [c])
    finally:
        dashboards.close()


def test_the_elastic_cloud_example_is_what_the_service_wants(
        workdir, example):
    """One that answers nobody else: by Host, and by the name in TLS."""
    def answer(request):
        if request.header("host") != CLOUD:
            return Response(404, body=json.dumps(
                {"ok": False, "message": "Unknown resource."}).encode())
        return Response(body=b"you know, for search")
    tls = make_tls_files(workdir, CLOUD)
    source = Source(answer, tls=tls)
    source.start()
    try:
        e = example("nginx-elastic-cloud.conf", "127.0.0.1:9200", {
            f"        server {CLOUD}:443;":
                f"        server 127.0.0.1:{source.port};",
            "/etc/ssl/certs/ca-certificates.crt": tls[0]})
        with Session(e) as c:                       # with a Host of its own
            assert c.request("GET", "/").body == b"you know, for search"
            assert c.request("POST", "/a", body=b"x").status == 200
            assert_balanced(e.wait_for_status(settled(2)))
        assert set(source.names) == {CLOUD}
        assert_captured(e.records(), [c])
    finally:
        source.close()


def test_the_waiting_example_refuses_what_is_not_durable(example, source):
    e = example("nginx-wait-and-refuse.conf", "127.0.0.1:9200",
                {"server 127.0.0.1:9201": f"server 127.0.0.1:{source.port}"})
    with Session(e) as c:
        assert c.request("PUT", "/i/_doc/1", body=b"{}").status == 200
        assert c.request("POST", "/i/_search", body=b"{}").status == 200
        s = e.wait_for_status(settled(2))
        assert s["total"]["waits"]["held"] == 1, s
    e.sidecar.pause()
    try:
        with e.client() as c:
            refused = c.request("PUT", "/i/_doc/2", [("Host", "a")], b"{}")
            assert refused.status == 503
            assert refused.header("retry-after")
        with e.client() as c:
            for method, uri in (("GET", "/i/_doc/1"), ("POST", "/i/_search"),
                                ("HEAD", "/")):
                assert c.request(method, uri, [("Host", "a")]).status == 200
    finally:
        e.sidecar.resume()
    s = assert_balanced(e.wait_for_status(settled(6)))
    assert s["total"]["filtered"]["refused"] == 1, s
    # nor when nobody is there at all
    e.sidecar.kill9()
    with e.client() as c:
        assert c.request("PUT", "/i/_doc/2", [("Host", "a")], b"{}").status == 503
    with e.client() as c:
        assert c.request("GET", "/i/_doc/1", [("Host", "a")]).status == 200
    assert e.stop(graceful=True) == 0
    Nginx.start(e)
    with e.client() as c:
        assert c.request("PUT", "/i/_doc/2", [("Host", "a")], b"{}").status == 503
    assert "/i/_doc/2" not in [r.target for r in source.requests]


@pytest.mark.timeout(300)
def test_the_spool_example_outlasts_its_memory(example, own_broker, source, workdir):
    """Kafka is away for half as long again as the workers' memory would do."""
    broker = own_broker()
    broker.create_topic("t", 3)
    e = example("nginx-spool.conf", "127.0.0.1:9200",
                {"server 127.0.0.1:9201": f"server 127.0.0.1:{source.port}"},
                broker=broker, topic="t",
                sidecar=("capture-sidecar-spool.conf", {
                    "spool.path": f"{workdir}/spool", "spool.size": "256m",
                    "metrics.listen": f"127.0.0.1:{free_port()}"}))
    with Session(e) as c:
        assert c.request("PUT", "/0", body=b"{}").status == 200
        e.wait_for_status(settled(1))
        broker.stop()
        for i in range(48):
            # a search: it does not wait
            assert c.request("GET", f"/{i}", body=pattern(MIB, i)).status == 200
        assert c.request("PUT", "/1", body=b"{}").status == 200
        assert os.stat(f"{workdir}/spool/blocks").st_blocks * 512 > 32 * MIB
        broker.start()
        s = assert_balanced(e.wait_for_status(settled(50), 90))
        assert s["total"]["captured"] == 50, s["total"]
    assert_captured(without_barriers(e.records()), [c])


def test_the_example_of_many_clusters_goes_to_each(
        example, source, broker, new_topic, own_broker):
    """Both files: the sidecar's has other addresses and topics, and no more."""
    other, orders, logs = own_broker(), Source(), new_topic(2)
    other.create_topic("logging-traffic-topic", 2)
    orders.start()
    port = free_port()
    try:
        e = example("nginx-many-clusters.conf", "127.0.0.1:8080", {
            "server 127.0.0.1:9200": f"server 127.0.0.1:{source.port}",
            "server 127.0.0.1:9201": f"server 127.0.0.1:{orders.port}",
            "listen 127.0.0.1:8081": f"listen 127.0.0.1:{port}"},
            sidecar=("capture-sidecar-many-clusters.conf", {
                "topic.logs": logs,
                "topic.orders.kafka.bootstrap.servers": other.bootstrap}))
        plain, log, order = Session(e), Session(e), Session(e)
        order.client.close()
        order.client = Client(port)
        with plain, log, order:
            for n in range(3):
                assert plain.request("POST", "/products/_doc", body=b"1").status \
                    == 200
                assert log.request("POST", f"/logs-{n}/_doc", body=b"2").status \
                    == 200
                assert order.request("POST", "/o/_doc", body=b"3").status == 200
            assert_balanced(e.wait_for_status(settled(9)))
        assert_captured(e.records(), [plain])
        assert_captured(broker.read_topic(logs), [log])
        assert_captured(other.read_topic("logging-traffic-topic"), [order])
        assert [r.target for r in orders.requests] == ["/o/_doc"] * 3
    finally:
        orders.close()


def test_the_sidecar_accepts_the_example_of_many_clusters(workdir):
    text = read("capture-sidecar-many-clusters.conf")
    rc, err = check(workdir, text)
    assert rc == 0, err
    assert "warning" not in err, err
    names = set(re.findall(r"^topic\.(\w+) =", text, re.M))
    used = set(re.findall(r"capture_topic (\w+);|^ +~\S+ +(\w+);$",
                          read("nginx-many-clusters.conf"), re.M))
    assert names == {a or b for a, b in used}
    # what stands commented out is accepted, too
    rc, err = check(workdir, re.sub(
        r"\$\{file:\S+\}", "x", re.sub(r"^#(?=[\w.]+ = )", "", text, flags=re.M)))
    assert rc == 0, err


def test_four_lines_are_all_that_the_fleet_needs(workdir):
    """Without the marked lines it is a configuration as it was before."""
    make_tls_files(workdir)
    lines = read("nginx-fleet.conf").splitlines(keepends=True)
    marked = [line for line in lines if re.search(r"# +\([1-4]\)$", line)]
    assert len(marked) == 4
    rest = "".join(line for line in lines if line not in marked)
    code = "\n".join(line.split("#")[0] for line in rest.splitlines())
    left = [line.strip() for line in code.splitlines() if "capture" in line]
    # switching it off where it is not wanted is for whoever wants that
    assert left == ["capture off;"]
    code = code.replace("capture off;", "")
    rc, err = check_config(workdir, put_in_place(code, workdir))
    assert rc == 0, err


@pytest.mark.parametrize("name", SIDECARS)
def test_the_sidecar_accepts_the_example(workdir, name):
    rc, err = check(workdir, read(name))
    assert rc == 0, err
    assert "warning" not in err, err


def test_the_sidecars_example_has_every_key_with_its_default():
    """And none that is not there: else people set what does nothing."""
    text = read("capture-sidecar.conf")
    shown = dict(re.findall(r"^#?([a-z_.]+) = (.+)$", text, re.M))
    text = subprocess.run([BINARY, "--help-config"], check=True,
                          capture_output=True, text=True).stdout
    known = {}
    for key, rest in re.findall(r"^([a-z_.]+) = (.+)$", text, re.M):
        default = re.search(r"\(default (.+)\)", rest)
        known[key] = default and default[1]
    assert len(known) > 15, text
    assert {k for k in shown if not k.startswith("kafka.")} == set(known)
    assert {k: shown[k] for k, d in known.items() if d} \
        == {k: d for k, d in known.items() if d}


def test_all_examples_name_the_same_socket():
    sockets = set()
    for name in [*EXAMPLES, *SIDECARS]:
        sockets |= set(re.findall(r"unix:[\w./-]+", read(name)))
    assert len(sockets) == 1, sockets
