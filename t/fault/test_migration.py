"""In the middle of a migration, under load: the Java proxy's place is taken and given
back, and capture is taken out of an NGINX and put in again."""

import os
import shlex
import time

import pytest
from path.session import Session, assert_captured
from rig.client import Client
from rig.java_proxy import CHANNEL_ID, JavaProxy, RealJavaProxy
from rig.sidecar import totals_in
from rig.source import Response, pattern
from rig.status import wait_until
from tools.capturectl import capturectl

from fault.counts import of_status
from fault.judge import judge
from fault.load import Executions, Load
from refconsumer.verify import verify_topic


@pytest.fixture
def java(broker, topic, source, workdir):
    """The stand-in for the Java proxy: it runs. With CAPTURE_JAVA_PROXY, a command,
    the Java proxy itself."""
    command = shlex.split(os.environ.get("CAPTURE_JAVA_PROXY", ""))
    proxy = (RealJavaProxy(command, workdir, broker, topic, source.port) if command
             else JavaProxy(broker, topic, source.port))
    broker.start()
    proxy.start()
    yield proxy
    proxy.close()


@pytest.fixture
def capture_proxy(launcher, broker, topic, source):
    """capture_proxy() is a started one, by the Java proxy's flags."""
    def start():
        l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                     "--kafkaConnection", broker.bootstrap,
                     "--kafkaTopic", topic, "--numThreads", "2")
        l.wait_linked()
        return l
    return start


def requests_of(records):
    """({each of the Java proxy's nodeIds: ...}, those of this product), as lists of
    when each request was complete, by its recorder's clock."""
    java, ours = {}, []
    for e in verify_topic(records).exchanges:
        (java.setdefault(e.node_id, []) if CHANNEL_ID.fullmatch(e.connection_id)
         else ours).append(e.eom_ns)
    return java, ours


@pytest.mark.partitions(6)
@pytest.mark.timeout(300)
def test_from_the_java_proxy_to_this_one_and_back(java, capture_proxy, fault, broker, topic,
                                                  source):
    """A balancer's target is moved: new connections go to the new one, old ones end
    where they are, so that both write to the topic at once. What a consumer makes of
    it is each request once, whole, in its client's order."""
    executions = source.answer = Executions()
    fault.target = java.port
    with Load(fault.port, life=6) as load:
        load.more(200)
        proxy = capture_proxy()
        fault.target = proxy.port
        load.more(150)
        wait_until(lambda: not java.connections, 60, "the Java proxy has no client")
        java.stop()
        load.more(200)

        java.start()
        fault.target = java.port
        load.more(150)
        counts = of_status(proxy.wait_for_status(
            lambda s: s["total"]["pending"] == 0, 30))
        assert proxy.stop() == 0, proxy.log_text()
        load.more(150)
    wait_until(lambda: not java.connections, 60, "the Java proxy has no client")
    java.stop()

    records = broker.read_topic(topic)
    verdict = judge(records, [load], executions)
    print(f"verdict: {verdict}")
    verdict.assert_clean()
    nodes, ours = requests_of(records)
    first, second = sorted(map(sorted, nodes.values()))
    assert min(map(len, (first, ours, second))) >= 150
    assert min(ours) < max(first) and min(second) < max(ours), "never both at once"
    # what it says of itself is what it has there, beside another's records
    assert counts.seen == counts.captured <= len(ours)
    totals = totals_in(proxy.log_text())
    assert totals["captured"] == totals["seen"] == len(ours), totals
    answer = capturectl("gaps", "-b", broker.bootstrap, "-t", topic)
    assert (answer.status, answer.lines) == (0, []), answer


def test_the_java_proxy_cuts_large_data_into_segments(java, broker, topic, source):
    """As the Java proxy does; the reference consumer puts them together."""
    source.answer = lambda request: Response(body=pattern(1_500_000, 2))

    class Direct:
        client = staticmethod(lambda **options: Client(java.port, **options))
    with Session(Direct) as c:
        assert c.request("GET", "/").status == 200
        assert c.request("POST", "/_bulk", body=pattern(3_000_000)).status == 200
    wait_until(lambda: not java.connections, 30, "the connection's end")
    records = broker.read_topic(topic)
    assert len(records) > 4
    assert_captured(records, [c])


def without_capture(snippets):
    """What an NGINX without the module can read."""
    def rest(text, *names):
        lines = text.splitlines(keepends=True)
        return "".join(line for line in lines
                       if not line.strip().startswith(names))
    return {"module": False, "http": rest(snippets["http"], "capture_"),
            "server": rest(snippets["server"], "capture")}


def has_module(pid):
    with open(f"/proc/{pid}/maps") as f:
        return "ngx_http_capture_module" in f.read()


@pytest.mark.partitions(6)
def test_capture_is_taken_out_and_put_in_again(scene):
    """As docs/migrating.md says: no client notices, and all that was captured before
    is in the topic."""
    s = scene(workers=2, wait="mutating")
    with_capture = {k: s.nginx.snippets[k] for k in ("http", "server")}
    with s.load() as load:
        load.more(200)
        assert all(map(has_module, s.nginx.workers()))
        off = time.monotonic_ns()
        s.nginx.reload(server=with_capture["server"].replace(
            "capture on;", "capture off;"))
        load.more(50)
        wait_until(lambda: len(s.nginx.workers()) == 2, 30, "the old workers' end")
        assert s.sidecar.stop() == 0, s.sidecar.log_text()
        before = s.sidecar.check_totals()
        load.more(50)

        s.nginx.reload(**without_capture(s.nginx.snippets))
        load.more(50)
        wait_until(lambda: len(s.nginx.workers()) == 2, 30, "the old workers' end")
        assert not any(map(has_module, [s.nginx.pid, *s.nginx.workers()]))

        s.sidecar.start()
        s.nginx.reload(module=True, **with_capture)
        s.stack.wait_linked()
        wait_until(lambda: len(s.nginx.workers()) == 2, 30, "the old workers' end")
        on = time.monotonic_ns()
        load.more(200)
    verdict = s.verdict()
    verdict.assert_clean("lost")
    asked = {a.id: a for a in load.asked}
    outside = [id for id in verdict.lost
               if asked[id].end_ns < off or asked[id].sent_ns > on]
    assert not outside, outside
    assert verdict.lost         # while it was out
    after = s.sidecar.check_totals()
    assert before["lost"] == after["lost"] == 0, (before, after)
    assert before["captured"] + after["captured"] == verdict.whole
