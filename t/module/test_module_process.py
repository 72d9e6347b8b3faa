"""Workers that begin, end, are replaced and die: nothing is left open, nothing is
counted twice, and each captures under ids of its own."""

import os
import signal
import threading

import pytest

from capture_rig import flat
from rig.client import build_request
from path.fidelity import row
from rig.source import Response, pattern
from rig.prometheus import scrape
from rig.status import wait_until

HOST = ("Host", "source.test")


class Load:
    """Clients that send one request after another until the block ends."""

    def __init__(self, r, n=3, body=pattern(2000), reconnect=True):
        self.r, self.body = r, body
        self.count = [0] * n
        self.errors = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,))
                        for i in range(n)]

    def run(self, i):
        client = self.r.client()
        while not self.stop.is_set():
            try:
                client.send(build_request("POST", f"/{i}", [HOST], self.body))
                answer = client.receive("POST")
            except OSError:
                answer = None
            if answer is None:   # an idle connection of a worker that ends
                client.close()
                client = self.r.client()
            elif answer.status != 200 or not answer.complete:
                self.errors.append(answer)
            else:
                self.count[i] += 1
        client.close()

    def more(self, n=10):
        at = list(self.count)
        wait_until(lambda: all(b >= a + n for a, b in zip(at, self.count)), 20)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors


def reloaded(r, **snippets):
    """Reloads and waits until the old workers have gone."""
    r.nginx.reload(**snippets)
    wait_until(lambda: len(r.nginx.workers()) == r.nginx.snippets["workers"], 15)


def test_a_sidecar_that_comes_later_is_found(rig):
    """NGINX starts and serves without it."""
    r = rig(sidecar=False)
    for _ in range(3):
        assert r.get().status == 200
    r.total(seen=3, unlinked=3)
    r.sidecar.start()
    r.linked()
    r.get()
    r.exchanges(1)
    r.total(seen=4, unlinked=3, captured=1)
    assert r.nginx.error_log().count("connect() to capture_sidecar") == 1
    r.sidecar.stop()
    r.nginx.wait_for_log("closed the link")
    wait_until(lambda: r.nginx.error_log().count("connect() to capture_sidecar") == 2)
    r.get()
    r.total(seen=5, unlinked=4, captured=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_reloads_under_load_lose_nothing(rig, workers):
    """Old workers end their exchanges and close their ids; their counts stay."""
    r = rig(workers=workers, buffer="64m")
    with Load(r) as load:
        for i in range(5):
            load.more(10)
            r.nginx.reload(http=r.nginx.snippets["http"] + f"# {i}\n")
            wait_until(lambda: len(r.sidecar.links) == workers * (i + 2), 15)
            wait_until(lambda: len(r.nginx.workers()) == workers, 15)
        load.more(10)
    wait_until(lambda: len(r.sidecar.up) == workers, 10, "the old links' end")
    r.caught_up()
    wait_until(lambda: all(c.end == "CLOSE" for c in r.sidecar.connections))
    seen = len(r.sidecar.exchanges)
    assert seen == sum(load.count)
    assert all(x.complete for x in r.sidecar.exchanges)
    # what the sidecar had not reported when a worker ended is left to it
    wait_until(lambda: r.status()["total"]["seen"] + r.status()["total"]["left"]
               == seen, what=f"{seen} exchanges")
    document = r.status()
    assert set(flat(document["total"])) == {"seen", "captured"}
    assert len(document["workers"]) == workers
    assert document["exited"]["seen"] > 50
    assert len({link.node_id for link in r.sidecar.links}) == 6 * workers
    assert r.nginx.error_log().count("open socket") == 0


def test_what_an_ended_worker_had_pending_is_left_to_the_sidecar(rig):
    """pending is 0 after a drain; the worker cannot know what became of it."""
    r = rig(options={"consume": False})
    assert r.get().status == 200
    r.total(seen=1, pending=1)
    reloaded(r)
    r.total()
    document = r.status()
    assert document["exited"]["left"] == document["total"]["left"] == 1
    # where a number that falls would be taken for a restart, it is still there
    found = scrape(f"http://127.0.0.1:{r.port}/capture_status?format=prometheus")
    assert found["capture_nginx_exchanges_seen_total"] == 1
    assert found["capture_nginx_exchanges_left_total"] == 1
    assert found["capture_nginx_exchanges_pending"] == 0


@pytest.mark.parametrize("graceful", [True, False])
def test_an_end_of_nginx_closes_the_link(rig, graceful):
    """QUIT closes idle connections, so their ids end with a CLOSE."""
    r = rig(workers=2)
    clients = [r.client() for _ in range(20)]
    for client in clients:
        assert client.request("GET", "/").status == 200
    r.exchanges(20)
    assert r.nginx.stop(graceful=graceful) == 0
    wait_until(lambda: all(link.ended for link in r.sidecar.links))
    ends = {c.end for c in r.sidecar.connections}
    assert ends == ({"CLOSE"} if graceful else {None})


def test_quit_waits_for_the_exchange_in_flight(rig, source):
    release = threading.Event()
    source.answer = lambda q: Response(hold=release, body=pattern(100_000))
    r = rig()
    client = r.client()
    client.send(build_request("GET", "/", [HOST]))
    wait_until(lambda: source.requests)
    r.nginx.process.send(signal.SIGQUIT)
    r.nginx.wait_for_log("gracefully shutting down")
    release.set()
    assert client.receive().body == pattern(100_000)
    assert client.ended()
    assert r.nginx.process.wait() == 0
    x, = r.exchanges(1)
    assert x.complete
    connection, = r.closed(1)
    assert connection.end == "CLOSE"


@row("`worker_shutdown_timeout`", section="Clients and sources that go away",
     ends="truncated")
def test_worker_shutdown_timeout_ends_exchanges_in_order(rig, source):
    """It calls every connection's handler, the link's too: what it closes must
    still be told."""
    release = threading.Event()
    source.answer = lambda q: Response(hold=release)
    r = rig(main="worker_shutdown_timeout 1s;")
    clients = [r.client() for _ in range(3)]
    clients[0].send(build_request("GET", "/response", [HOST]))
    clients[1].send(build_request("POST", "/body", [HOST], b"x" * 9)[:-4])
    wait_until(lambda: len(source.requests) == 1 and len(r.sidecar.exchanges) == 2)
    r.nginx.process.send(signal.SIGQUIT)
    assert r.nginx.process.wait() == 0
    release.set()
    by_target = {x.request.split()[1]: x for x in r.exchanges(2)}
    assert by_target[b"/response"].truncated
    assert by_target[b"/body"].reason == "client_abort"
    assert {c.end for c in r.sidecar.connections} == {"END", "CLOSE"}
    for client in clients:
        client.close()


def test_a_worker_that_is_killed_is_replaced_and_its_counts_stay(rig):
    r = rig(workers=2)
    r.nginx.allowed.append("exited on signal 9")
    for _ in range(20):
        r.get()
    r.total(seen=20, captured=20)
    wait_until(lambda: sum(row["captured"] for row in r.status()["workers"]) == 20)
    with Load(r, 2) as load:
        load.more()
        os.kill(r.nginx.workers()[0], signal.SIGKILL)
        wait_until(lambda: len(r.sidecar.links) == 3)
        wait_until(lambda: len(r.sidecar.up) == 2)
        load.more()
    document = r.status()
    assert len(document["workers"]) == 2
    assert document["exited"]["captured"] > 0
    r.closed(2)


def test_a_worker_killed_in_an_exchange_leaves_it_cut(rig, source):
    """Nothing of it may look like an end."""
    r = rig()
    r.nginx.allowed.append("exited on signal 9")
    client = r.client()
    client.send(build_request("POST", "/", [HOST], pattern(100_000))[:50_000])
    wait_until(lambda: r.sidecar.exchanges)
    os.kill(r.nginx.workers()[0], signal.SIGKILL)
    wait_until(lambda: len(r.sidecar.links) == 2)
    r.linked()
    x = r.sidecar.exchanges[0]
    assert (x.end, x.eom) == ("CUT", None)
    r.get()
    wait_until(lambda: len(r.sidecar.exchanges) == 2 and r.link.exchanges[0].end)
    client.close()


def test_reload_moves_to_another_socket_buffer_and_off(rig, source):
    r = rig()
    assert r.get().status == 200
    r.exchanges(1)
    http = r.nginx.snippets["http"]
    server = r.nginx.snippets["server"]
    reloaded(r, http=http.replace("capture_buffer 8m", "capture_buffer 2m"))
    wait_until(lambda: len(r.sidecar.links) == 2 and r.link.up)
    r.linked()
    assert r.link.size <= 2 << 20
    r.get()
    r.exchanges(2)
    reloaded(r, http=http, server=server.replace("capture on", "capture off"))
    wait_until(lambda: not r.sidecar.up, what="no link")
    assert r.get().status == 200
    reloaded(r, http=http, server=server)
    wait_until(lambda: r.sidecar.up)
    r.linked()
    r.get()
    r.exchanges(3)


def test_without_a_master_process_it_works(rig):
    r = rig(main="master_process off;")
    with r.client() as client:
        for i in range(5):
            assert client.request("POST", "/", body=pattern(50_000)).status == 200
    r.exchanges(5)
    r.closed(1)
    document = r.status()
    assert [row["pid"] for row in document["workers"]] == [r.nginx.pid]
    r.sidecar.stop()
    r.get()
    r.total(seen=6, captured=5, unlinked=1)
    r.sidecar.start()
    wait_until(lambda: r.sidecar.up)
    r.linked()
    r.get()
    r.total(seen=7, captured=6, unlinked=1)


def test_helper_processes_of_a_cache_have_no_link(rig):
    """Cache manager and loader run init_process too."""
    r = rig(http="proxy_cache_path cache keys_zone=c:1m;", workers=2)
    wait_until(lambda: len(r.nginx.workers()) >= 3)
    r.get()
    r.exchanges(1)
    assert len(r.sidecar.links) == 2
    assert len(r.status()["workers"]) == 2


def test_idle_connections_that_nginx_closes_end_their_ids(rig):
    """keepalive_timeout, keepalive_requests and Connection: close."""
    r = rig(server="location /k { keepalive_timeout 1s; proxy_pass http://source; }"
                   "location /n { keepalive_timeout 0; proxy_pass http://source; }")
    for target, headers in (("/k", []), ("/n", []), ("/", [("Connection", "close")])):
        with r.client() as client:
            client.request("GET", target, [HOST, *headers])
            assert client.ended()
    r.exchanges(3)
    assert {c.end for c in r.closed(3)} == {"CLOSE"}
