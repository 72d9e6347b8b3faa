"""Each entry of docs/rerouting.md's Troubleshooting: the trouble is made, the user's
command says what the page says, and so do the commands that find the cause."""

import json
import subprocess

import pytest

from path.session import Session, assert_captured, settled
from rig.pages import Page
from rig.process import free_port
from rig.security import self_signed
from rig.source import Response, Source

from rehearsal import page
from rehearsal.balancers import listener, target_group

CLUSTER = "my-cluster.es.example"
UNKNOWN = b'{"ok":false,"message":"Unknown resource."}'

SCENES = {}


def scene(heading, *marks):
    """Makes the trouble of this entry, and returns the variables."""
    def add(function):
        SCENES[heading] = pytest.param(heading, function, id=heading, marks=marks)
        return function
    return add


class Elastic(Source):
    """Many clusters behind one address: by Host."""

    def __init__(self, tls):
        def answer(request):
            if request.header("Host") != CLUSTER:
                return Response(404, "Not Found", body=UNKNOWN)
            return Response(body=json.dumps({"cluster_name": "mine"}).encode())
        super().__init__(answer, tls=tls)


@pytest.fixture
def hosted(authority):
    """Elastic, with a certificate for its name; or for localhost, in its place."""
    s = Elastic(authority.issue("hosted", f"DNS:localhost,DNS:{CLUSTER}"))
    s.start()
    yield s
    s.close()


class Kit:
    """What scenes are made with; and the variables of the page."""

    def __init__(self, **fixtures):
        self.__dict__.update(fixtures)

    def env(self, l, **more):
        return {"PROXY": f"https://localhost:{l.port}",
                "PLAIN": f"http://localhost:{l.port}",
                "ADDRESS": f"localhost:{l.port}", "CA": self.authority.crt,
                "LOG": l.log, "STATUS": f"127.0.0.1:{l.status_port}",
                "BROKERS": self.broker.bootstrap, "TOPIC": self.topic,
                "ARGUMENTS": " ".join(a for a in l.argv[1:] if "*" not in a),
                **more}


@pytest.fixture
def kit(authority, broker, topic, node, proxy, launcher, hosted, pair, workdir,
        haproxy, pem, source):
    return Kit(authority=authority, broker=broker, topic=topic, node=node,
               proxy=proxy, launcher=launcher, hosted=hosted, pair=pair,
               workdir=workdir, haproxy=haproxy, pem=pem, source=source)


def without_kafka(kit, *args, tls=None):
    crt, key = tls or kit.pair
    return kit.launcher(*args, "--sslCertChainFile", crt, "--sslKeyFile", key,
                        "--noCapture")


@scene("Unknown resource")
def unknown_resource(kit):
    l = kit.launcher("--destinationUri", f"https://localhost:{kit.hosted.port}",
                     "--noCapture", "--sslCertChainFile", kit.pair[0],
                     "--sslKeyFile", kit.pair[1],
                     env={"SSL_CERT_FILE": kit.authority.crt})
    return kit.env(l, NAME=CLUSTER)


@scene("The certificate is not trusted")
def not_trusted(kit):
    return kit.env(without_kafka(
        kit, "--destinationUri", f"http://127.0.0.1:{kit.source.port}",
        tls=self_signed(kit.workdir, "source.test", "DNS:localhost")))


@scene("The certificate is for another name")
def another_name(kit):
    return kit.env(without_kafka(
        kit, "--destinationUri", f"http://127.0.0.1:{kit.source.port}",
        tls=kit.authority.issue("search", "DNS:search.example.com")))


@scene("Plain HTTP to an HTTPS port")
def plain_to_https(kit):
    l = without_kafka(kit, "--destinationUri",
                      f"http://127.0.0.1:{kit.source.port}")
    nlb = free_port()
    # TLS ends at the listener, and the target group goes on without
    h = kit.haproxy(target_group("proxies", l.port, tls=False)
                    + listener("nlb", nlb, kit.pem), {"nlb": "proxies"})
    # its health checks do not see it
    h.wait_health("proxies", "target", "UP", 200)
    return kit.env(l, BALANCER=f"https://localhost:{nlb}")


@scene("Wrong version number")
def wrong_version(kit):
    return kit.env(kit.launcher(
        "--destinationUri", f"http://127.0.0.1:{kit.source.port}", "--noCapture"))


@scene("502 Bad Gateway")
def refused(kit):
    return kit.env(without_kafka(kit, "--destinationUri",
                                 f"https://127.0.0.1:{free_port()}"))


@scene("502 and the source's certificate")
def unverified(kit):
    s = kit.node()
    return kit.env(without_kafka(kit, "--destinationUri",
                                 f"https://localhost:{s.port}"))


@scene("502 and the source's name")
def unresolved(kit):
    return kit.env(without_kafka(kit, "--destinationUri",
                                 "https://cluster.invalid:9200"))


@scene("A target is unhealthy: 401")
def wants_a_password(kit):
    s = kit.node()
    s.health = 401
    l = kit.proxy(s.port)
    h = kit.haproxy(target_group("proxies", l.port) + listener("nlb", free_port()),
                    {"nlb": "proxies"})
    h.wait_health("proxies", "target", "DOWN", 401)
    return kit.env(l)


@scene("The number of records does not grow: no requests")
def no_requests(kit):
    return kit.env(kit.proxy(kit.node().port))


@scene("The number of records does not grow: suppressed")
def suppressed(kit):
    l = kit.proxy(kit.node().port)
    page.Command("curl -sk -A ELB-HealthChecker/2.0 $PROXY/").run(kit.env(l))
    l.wait_for_status(settled(1))
    return kit.env(l)


def no_kafka(kit):
    metrics = f"127.0.0.1:{free_port()}"
    l = kit.launcher("--destinationUri", f"http://127.0.0.1:{kit.source.port}",
                     "--sslCertChainFile", kit.pair[0], "--sslKeyFile",
                     kit.pair[1], "--kafkaConnection", f"127.0.0.1:{free_port()}",
                     "--metrics-listen", metrics, "--shutdown-timeout", "2s")
    l.wait_linked()
    return l, kit.env(l, METRICS=metrics)


@scene("The number of records does not grow: Kafka")
def kafka_away(kit):
    l, env = no_kafka(kit)
    page.Command("curl -sk $PROXY/").run(env)
    l.wait_for_status(lambda s: s["total"]["pending"] == 1)
    l.wait_for_log("Connection refused")
    return env


@scene("Writes take ten seconds", pytest.mark.long)
def slow_writes(kit):
    return no_kafka(kit)[1]


@scene("More records than requests")
def more_records(kit):
    l = kit.proxy(kit.node().port)
    page.Command("curl -sk $PROXY/").run(kit.env(l))
    l.wait_for_status(settled(1))
    return kit.env(l)


def test_every_entry_has_its_scene():
    assert page.entries() == list(SCENES)


def test_every_block_is_run():
    blocks = Page("docs/rerouting.md", not_run={
        "clients -->": "a picture", "at least": "a formula",
        '"captureProxyExtraArgs"': "two words of it are in the test of Host"})
    for heading in (*SCENES, "The record check", "Sources that choose by Host"):
        assert all(b.text.startswith("$ ") for b in blocks.take_under(heading))
    blocks.finish()


@pytest.mark.parametrize("heading, make", SCENES.values())
def test_the_commands_find_the_cause(heading, make, kit):
    env = make(kit)
    commands = page.commands(heading)
    assert commands
    for command in commands:
        command.check(env)


@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"],
                                   capture_output=True).returncode != 0,
                    reason="needs the right to make namespaces")
@pytest.mark.parametrize("extra", [[], ["--setHeader", "Host", CLUSTER]])
def test_a_source_that_chooses_by_host(extra, kit, workdir):
    """https with SNI, from the URI; Host from --setHeader. The topic has the
    client's."""
    kit.broker.start()
    with open(f"{workdir}/hosts", "w") as f:
        f.write(f"127.0.0.1 localhost {CLUSTER}\n")
    hosts = ["unshare", "-m", "sh", "-c",
             f'mount --bind {workdir}/hosts /etc/hosts && exec "$0" "$@"']
    l = kit.launcher("--destinationUri", f"https://{CLUSTER}:{kit.hosted.port}",
                     *extra, "--sslCertChainFile", kit.pair[0], "--sslKeyFile",
                     kit.pair[1], "--kafkaConnection", kit.broker.bootstrap,
                     "--kafkaTopic", kit.topic, tls=kit.authority.crt, prefix=hosts,
                     env={"SSL_CERT_FILE": kit.authority.crt})
    l.wait_linked()
    with Session(l) as c:
        answers = [c.request("GET", "/"), c.request("PUT", "/a", body=b"{}")]
        l.wait_for_status(settled(2))
    if extra:
        # the page's own way to validate
        (validate,) = page.commands("Sources that choose by Host")
        validate.check(kit.env(l))
        l.wait_for_status(settled(3))
    assert [a.status for a in answers] == ([200, 200] if extra else [404, 404])
    assert {a.body for a in answers} == (
        {b'{"cluster_name": "mine"}'} if extra else {UNKNOWN})
    assert set(kit.hosted.names) == {CLUSTER}
    assert l.stop() == 0, l.log_text()
    records = kit.broker.read_topic(kit.topic)
    curls = {r.key for r in records if b"User-Agent: curl" in r.value}
    assert len(curls) == len(extra[:1])
    assert_captured([r for r in records if r.key not in curls], [c])
    assert all(b"Host: source.test" in s.raw for s in c.exchanges)


def test_the_record_checks_command(kit):
    (check,) = page.commands("The record check")
    kit.broker.start()
    check.check({"BROKERS": kit.broker.bootstrap, "TOPIC": kit.topic})
