"""What the rehearsals share: a source cluster that tells by which way a request has
come, capture-proxy as the deployments start it, and load balancers."""

import os
import shutil
import ssl

import pytest

from fault.counts import Counts, of_status
from fault.judge import judge
from fault.load import ANSWERED, Executions, Load
from rig.haproxy import BINARY, HaProxy
from rig.security import Authority
from rig.source import Response, Source
from rig.status import wait_until

from rehearsal.balancers import EXTRA

NAME = "source.test"


def pytest_collection_modifyitems(items):
    if BINARY and shutil.which("curl"):
        return
    for item in items:
        if "rehearsal" in str(item.path):
            item.add_marker(pytest.mark.skip(
                reason="needs haproxy and curl: script/bootstrap --test"))


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """The one that clients trust."""
    return Authority(str(tmp_path_factory.mktemp("authority")))


@pytest.fixture(scope="session")
def pair(authority):
    """(certificate, key) for source.test, of the authority."""
    return authority.issue("balancer", f"DNS:{NAME},DNS:localhost,IP:127.0.0.1")


@pytest.fixture(scope="session")
def pem(pair, tmp_path_factory):
    """Both in one file, as HAProxy takes them."""
    path = tmp_path_factory.mktemp("pem") / "pair.pem"
    path.write_text("".join(open(p).read() for p in pair))
    return str(path)


@pytest.fixture(scope="session")
def trusting(authority):
    """An SSLContext of a client that verifies."""
    return ssl.create_default_context(cafile=authority.crt)


@pytest.fixture
def haproxy(workdir):
    """A factory of started HaProxys."""
    started = []

    def make(sections, listeners=None):
        h = HaProxy(os.path.join(workdir, f"h{len(started)}"), sections,
                    {"listeners": listeners or {}}, EXTRA)
        started.append(h)
        h.start()
        return h
    yield make
    for h in reversed(started):
        h.close()


class Node(Source):
    """Of a cluster: `served` are the ids of what it has executed; what has no id is
    a health check, and answered with `health`."""

    def __init__(self, executions, tls):
        self.served = set()
        self.health = 200
        self.checked = 0

        def answer(request):
            id = request.header("X-Id")
            if id is None:
                self.checked += 1
                return Response(self.health, "Checked")
            self.served.add(id)
            return executions(request)
        super().__init__(answer, tls=tls)


@pytest.fixture
def executions():
    """Of all nodes of the test together."""
    return Executions()


@pytest.fixture
def node(executions, certificate):
    """A factory of nodes; without `tls` their certificate is one that nobody
    trusts."""
    nodes = []

    def make(tls=certificate):
        n = Node(executions, tls)
        nodes.append(n)
        n.start()
        return n
    yield make
    for n in nodes:
        n.close()


@pytest.fixture
def proxy(launcher, broker, topic, pair):
    """A factory of capturing proxies with the arguments of ECS."""
    def make(destination, *args, tls=pair, suppress=True, **options):
        broker.start()
        l = launcher(
            "--destinationUri", f"https://127.0.0.1:{destination}",
            "--insecureDestination",
            *(["--sslCertChainFile", tls[0], "--sslKeyFile", tls[1]] if tls
              else []),
            "--kafkaConnection", broker.bootstrap, "--kafkaTopic", topic,
            *(["--suppressCaptureForHeaderMatch", "user-agent",
               ".*ELB-HealthChecker.*"] if suppress else []), *args, **options)
        l.wait_linked()
        return l
    return make


@pytest.fixture
def target_proxy(launcher, pair):
    """The same image in the place of the target proxy: it captures nothing."""
    def make(destination):
        return launcher(
            "--destinationUri", f"https://127.0.0.1:{destination}",
            "--insecureDestination", "--sslCertChainFile", pair[0],
            "--sslKeyFile", pair[1], "--noCapture")
    return make


@pytest.fixture
def load(trusting):
    """A factory of loads whose clients verify the certificate; connections are
    short enough to be drained within seconds."""
    def make(port, **options):
        return Load(port, connections=30, rate=200, life=12, most=5000,
                    tls=trusting, **options)
    return make


class Judged:
    """Those of a load's requests that have one of these ids. `insert`: what a
    balancer has added to their heads."""

    def __init__(self, load, ids, insert):
        self.asked = [a for a in load.asked if a.id in ids]
        for a in self.asked:
            head, _, body = a.raw.partition(b"\r\n\r\n")
            a.raw = head + b"\r\n" + insert + b"\r\n" + body


def settled_counts(l, least=0):
    """What a proxy has counted, without health checks, once nothing is pending."""
    def settled():
        counts = of_status(l.status())
        assert counts.pending == 0 and counts.balanced(), counts
        counts.seen -= counts.filtered.pop("bypass")
        assert counts.seen >= least, counts
        return counts
    return wait_until(settled, 30, "an end of what is pending", l.process.dead)


def added(one, other):
    """The counts of two proxies together."""
    return Counts(one.seen + other.seen, one.captured + other.captured,
                  truncated=one.truncated + other.truncated,
                  filtered={k: v + other.filtered[k]
                            for k, v in one.filtered.items()},
                  lost={k: v + other.lost[k] for k, v in one.lost.items()})


def finish(l, broker, topic, loads, executions, captured, insert=b"", allowed=(),
           before=None):
    """Ends the proxy. No client has had an error, each request was executed once,
    and the topic has those of `captured` (ids), whole, once, in order, and no
    other. `insert`: what a balancer adds to a head; `before`: the counts of a proxy
    that has ended."""
    counts = settled_counts(l, len(captured) - (before.seen if before else 0))
    if before:
        counts = added(counts, before)
    assert l.stop() == 0, l.log_text()
    asked = [a for load in loads for a in load.asked]
    assert not [load.refused for load in loads if load.refused]
    assert not [a for a in asked if a.end != ANSWERED]
    assert set(executions) == {a.id for a in asked}
    verdict = judge(broker.read_topic(topic),
                    [Judged(load, captured, insert) for load in loads],
                    {id: executions[id] for id in captured}, counts)
    verdict.reexecuted = [id for id, at in executions.items() if len(at) > 1]
    print(f"verdict: {verdict}; {len(asked) - len(captured)} went other ways")
    verdict.assert_clean(*allowed)
    assert verdict.whole == len(captured)
    return verdict
