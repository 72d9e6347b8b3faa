"""NGINX and the sidecar as one unit: how it ends, who may die, what rotates, and
that nothing waits for whoever should read its logs."""

import os
import random
import select
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from path.session import (Session, assert_captured, marked, settled,
                          without_barriers)
from refconsumer.verify import verify_topic
from rig.client import build_request
from rig.launcher import install_for_others
from rig.process import SANITIZED, accepts, alive, free_port
from rig.source import Response, Source, pattern
from rig.status import wait_until

root_only = pytest.mark.skipif(os.geteuid() != 0,
                               reason="needs root, to be another user")


def _may_unshare():
    return subprocess.run(["unshare", "-m", "-p", "-f", "true"],
                          capture_output=True).returncode == 0


namespaces_only = pytest.mark.skipif(
    not _may_unshare(), reason="needs the right to make namespaces")


@pytest.fixture
def capturing(launcher, source, broker, topic):
    """A capturing unit between `source` and the topic, with a link."""
    def make(*args, **options):
        broker.start()
        l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                     "--kafkaConnection", broker.bootstrap, "--kafkaTopic",
                     topic, "--numThreads", "1", *args, **options)
        l.wait_linked()
        return l
    return make


# ---- starting ----

def test_the_first_request_is_captured(launcher, source, broker, topic):
    broker.start()
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--kafkaConnection", broker.bootstrap, "--kafkaTopic", topic)
    with Session(l) as c:
        assert c.request("POST", "/_bulk", body=b"{}\n").status == 200
        total = l.wait_for_status(settled(1))["total"]
    assert total["captured"] == 1, total
    assert l.stop() == 0, l.log_text()
    assert_captured(broker.read_topic(topic), [c])


# ---- ending ----

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_work_are_finished_and_captured(capturing, source, broker,
                                                    topic, number):
    """TERM: nothing more is accepted, NGINX finishes, then the sidecar drains."""
    hold = threading.Event()
    source.answer = lambda r: Response(body=b"late", hold=hold)
    l = capturing()
    with Session(l) as c:
        raw, mark = marked("POST", "/_bulk", body=b"{}\n")
        c.client.send(raw)
        wait_until(lambda: source.requests, 10, "the request at the source")
        os.kill(l.pid, number)
        wait_until(lambda: not accepts(l.port), 15, "the port to be closed")
        hold.set()
        assert c.received("POST", raw, mark).body == b"late"
    assert l.process.wait(30) == 0, l.log_text()
    log = l.log_text()
    assert log.index("NGINX finishes its requests") < log.index("draining")
    assert_captured(broker.read_topic(topic), [c])
    assert os.listdir(f"{l.directory}/r")   # its own is for the user to remove


def test_a_request_that_does_not_end_has_a_deadline(capturing, source):
    hold = threading.Event()
    source.answer = lambda r: Response(hold=hold)
    l = capturing("--shutdown-timeout", "3s")
    # what NGINX below 1.23 says when it gets TERM after QUIT
    l.allowed = ["open socket #", "aborting"]
    with l.client() as c:
        c.send(build_request("GET", "/", [("Host", "h")]))
        wait_until(lambda: source.requests, 10, "the request at the source")
        start = time.monotonic()
        assert l.stop() == 0, l.log_text()
        assert 1.5 < time.monotonic() - start < 15
        assert c.ended()
    hold.set()
    assert "requests are not finished in time" in l.log_text()


def test_a_second_signal_ends_nginx_at_once(capturing, source):
    hold = threading.Event()
    source.answer = lambda r: Response(hold=hold)
    l = capturing("--shutdown-timeout", "60s")
    # what NGINX below 1.23 says when it gets TERM after QUIT
    l.allowed = ["open socket #", "aborting"]
    with l.client() as c:
        c.send(build_request("GET", "/", [("Host", "h")]))
        wait_until(lambda: source.requests, 10, "the request at the source")
        start, nginx = time.monotonic(), l.nginx_pid()
        os.kill(l.pid, signal.SIGTERM)
        l.wait_for_log("NGINX finishes its requests")
        assert alive([nginx])
        assert l.stop() == 0, l.log_text()
        assert time.monotonic() - start < 30   # of 36 s that requests have
    hold.set()
    assert "TERM again: NGINX ends at once" in l.log_text()


def test_a_sidecar_that_cannot_drain_is_exit_3(launcher, source):
    """Nobody takes what it has: it says so by its status."""
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--kafkaConnection", f"127.0.0.1:{free_port()}",
                 "--shutdown-timeout", "2s")
    l.wait_linked()
    with l.client() as c:
        c.request("GET", "/")
    assert l.stop() == 3, l.log_text()
    assert "pending 1" in l.log_text()


def test_a_hung_sidecar_is_killed_in_time(capturing):
    l = capturing("--shutdown-timeout", "2s")
    os.kill(l.sidecar_pid(), signal.SIGSTOP)
    assert l.stop(timeout=20) == 3
    assert "has not ended in time: killed" in l.log_text()


# ---- deaths ----

def test_the_sidecars_death_costs_no_client_and_it_comes_back(
        capturing, source, broker, topic):
    l = capturing()
    with Session(l) as c:
        c.request("GET", "/before")
        l.wait_for_status(settled(1))
        old = l.sidecar_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: not l.status()["workers"][0]["linked"], 15,
                   "the link's end")
        with Session(l) as other:
            assert other.request("GET", "/between").status == 200
        l.wait_linked()
        assert l.sidecar_pid() != old
        c.request("GET", "/after")
        status = l.wait_for_status(settled(3), 30)
    assert "ended with signal 9" in l.log_text()
    assert l.stop() == 0, l.log_text()
    assert status["total"]["captured"] == 3
    assert_captured(without_barriers(broker.read_topic(topic)), [c, other])


def test_a_workers_memory_outlives_worker_and_sidecar(capturing, source, broker,
                                                      topic):
    l = capturing()
    l.allowed.append("exited on signal 9")
    c, after = Session(l), None
    c.request("GET", "/before")
    l.wait_for_status(settled(1))
    sidecar, worker = l.sidecar_pid(), l.status()["workers"][0]["pid"]
    os.kill(sidecar, signal.SIGSTOP)
    for i in range(5):
        c.request("POST", f"/{i}", body=pattern(50_000, i))
    l.status()
    os.kill(worker, signal.SIGKILL)
    os.kill(sidecar, signal.SIGKILL)
    wait_until(lambda: l.sidecar_pid() != sidecar, 15, "another sidecar")
    l.wait_for_log("is settled: taken 6 captured 6")
    l.wait_linked()
    with Session(l) as after:
        after.request("GET", "/after")
        l.wait_for_status(lambda s: s["total"]["pending"] == 0)
    assert l.stop() == 0, l.log_text()
    assert_captured(without_barriers(broker.read_topic(topic)), [c, after])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nginxs_death_ends_all_of_it_with_1(capturing, number):
    """No half proxy is left behind: whoever started it starts it again."""
    l = capturing()
    pids = l.family()
    assert len(pids) == 4
    os.kill(l.nginx_pid(), number)
    assert l.process.wait(30) == 1
    wait_until(lambda: not alive(pids), 15, "the end of all processes")
    assert not accepts(l.port)
    assert "NGINX has ended with" in l.log_text()


def test_children_do_not_outlive_a_killed_launcher(capturing):
    l = capturing()
    pids = l.family()
    os.kill(l.pid, signal.SIGKILL)
    l.process.wait(10)
    wait_until(lambda: not alive(pids), 30, "the end of all processes")


def test_a_configuration_that_is_refused_starts_nothing(launcher, workdir):
    """Both are asked before either is started; what they say is shown."""
    l = launcher("--destinationUri", "http://127.0.0.1:1", "--noCapture",
                 "--sslCertChainFile", f"{workdir}/none", "--sslKeyFile",
                 f"{workdir}/none", start=False)
    l.allowed = ["none"]
    l.start(wait=False)
    assert l.process.wait(30) == 1
    assert f"{workdir}/none" in l.log_text()
    l = launcher("--destinationUri", "http://127.0.0.1:1", "--kafkaConnection",
                 "127.0.0.1:1", "--kafkaTopic", "a topic", start=False)
    l.start(wait=False)
    assert l.process.wait(30) == 1
    assert "a topic" in l.log_text()
    assert not accepts(l.port)


def test_a_run_directory_of_its_own_is_removed(launcher, source, workdir):
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--noCapture", env={"CAPTURE_PROXY_RUN_DIRECTORY": ""})
    (name,) = [n for n in os.listdir(l.directory)
               if n.startswith("capture-proxy-")]
    assert l.stop() == 0
    assert not os.path.exists(os.path.join(l.directory, name))


# ---- users and secrets ----

@root_only
def test_it_runs_without_root(launcher, source, broker, topic, workdir):
    """uid 1000, no group, no capability, and nothing of its own to write to but
    TMPDIR."""
    broker.start()
    binary = install_for_others(f"{workdir}/bin")
    os.makedirs(f"{workdir}/tmp")
    os.chmod(f"{workdir}/tmp", 0o1777)
    l = launcher(
        "--destinationUri", f"http://127.0.0.1:{source.port}",
        "--kafkaConnection", broker.bootstrap, "--kafkaTopic", topic,
        binary=binary, env={"CAPTURE_PROXY_RUN_DIRECTORY": "",
                            "CAPTURE_PROXY_NGINX_BINARY": f"{workdir}/bin/nginx",
                            "TMPDIR": f"{workdir}/tmp"} | (
            # reports are files, which this user may not write
            {"ASAN_OPTIONS": "detect_odr_violation=0:detect_leaks=0"}
            if SANITIZED else {}),
        prefix=["setpriv", "--reuid", "1000", "--regid", "1000",
                "--clear-groups", "--inh-caps", "-all", "--bounding-set",
                "-all", "--no-new-privs"])
    l.wait_linked()
    with Session(l) as c:
        c.request("POST", "/_bulk", body=b"{}\n")
        l.wait_for_status(settled(1))
        for pid in l.family():
            with open(f"/proc/{pid}/status") as f:
                assert "Uid:\t1000\t1000\t1000\t1000" in f.read()
    assert l.stop() == 0, l.log_text()
    assert_captured(broker.read_topic(topic), [c])
    assert os.listdir(f"{workdir}/tmp") == []


def test_the_password_is_nowhere_but_in_a_private_file(launcher):
    l = launcher("--destinationUri", "http://127.0.0.1:1", "--kafkaConnection",
                 "127.0.0.1:1", "--kafkaAuthType", "scram-sha-512",
                 "--kafkaUserName", "u", "--shutdown-timeout", "2s",
                 env={"KAFKA_PASSWORD": "geheim", "CAPTURE_PROXY_KAFKA_PASSWORD":
                      "geheim"})
    nginx, sidecar = l.nginx_pid(), l.sidecar_pid()
    for pid in (nginx, sidecar):
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as f:
                assert b"geheim" not in f.read()
    run = f"{l.directory}/r"
    for name in os.listdir(run):
        path = f"{run}/{name}"
        if os.path.isfile(path):
            mode = os.stat(path).st_mode & 0o777
            with open(path, "rb") as f:
                secret = b"geheim" in f.read()
            assert secret == (name == "sidecar.conf"), name
            assert not secret or mode == 0o600
    assert "geheim" not in l.log_text()


# ---- logs ----

def flood(l, n, timeout=20):
    """Requests that NGINX writes an error line each about; the slowest."""
    slowest = 0
    with l.client(timeout=timeout) as c:
        for _ in range(n):
            start = time.monotonic()
            assert c.request("GET", "/" + "x" * 900).status == 502
            slowest = max(slowest, time.monotonic() - start)
    return slowest


def unread(launcher, fd, *output):
    """A proxy that writes its log there; its source is not."""
    return launcher("--destinationUri", f"http://127.0.0.1:{free_port()}",
                    *(output or ["--noCapture"]), "--numThreads", "1", stdout=fd)


def test_standard_output_that_nobody_reads_holds_nothing_up(launcher):
    """More than pipe and ring can hold: lines are dropped, and counted."""
    out, inn = os.pipe()
    l = unread(launcher, inn)
    os.close(inn)
    assert flood(l, 1500) < 10
    lines = []

    def told():
        while select.select([out], [], [], 0)[0]:
            piece = os.read(out, 1 << 16)
            if not piece:
                break
            lines.append(piece)
        if any(b"log lines were dropped" in p for p in lines):
            return True
        flood(l, 1)   # the count comes with what is said next
        return False
    wait_until(told, 30, "the count of dropped lines")
    text = b"".join(lines).decode()
    for line in text.splitlines()[1:-1]:
        assert line.startswith(("[ERROR] 20", "[WARN] 20", "[INFO] 20")), line
        assert line[line.index("]") + 2:][:10].count("-") == 2
    assert l.stop() == 0
    os.close(out)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_standard_output_that_is_not_read_for_60_s(launcher, broker, topic):
    """Beside another one whose output is read: neither is slower than the other,
    whatever else the machine has to do. Both capture all the while."""
    broker.start()
    to_topic = ["--kafkaConnection", broker.bootstrap, "--kafkaTopic", topic]
    out, inn = os.pipe()
    quiet, heard = unread(launcher, inn, *to_topic), unread(launcher, None, *to_topic)
    os.close(inn)
    for l in (quiet, heard):
        l.wait_linked()
    flood(quiet, 1500)          # the pipe and the ring are full
    took = {quiet: [], heard: []}
    end = time.monotonic() + 60
    with quiet.client() as one, heard.client() as two:
        both = [(quiet, one), (heard, two)]
        while time.monotonic() < end:
            both.reverse()         # the first one after a pause is slower
            for l, c in both:
                start = time.monotonic()
                assert c.request("GET", "/" + "x" * 900).status == 502
                took[l].append(time.monotonic() - start)
            time.sleep(0.003)      # each writes a line; they need not be millions
    for share, noise in ((0.5, 0.00005), (0.99, 0.0005)):
        mine, other = (sorted(took[l])[int(len(took[l]) * share)]
                       for l in (quiet, heard))
        print(f"p{share * 100:.0f}: {mine * 1e6:.0f} us, read {other * 1e6:.0f} us")
        assert mine < 1.25 * other + noise, (share, mine, other)
    total = quiet.wait_for_status(settled(1500 + len(took[quiet])))["total"]
    assert total["captured"] == total["seen"], total
    assert quiet.stop() == 0
    os.close(out)


@pytest.mark.parametrize("how", ["closed pipe", "full device"])
def test_standard_output_that_cannot_be_written_ends_nothing(launcher, how):
    if how == "closed pipe":
        out, inn = os.pipe()
        os.close(out)
    else:
        inn = os.open("/dev/full", os.O_WRONLY)
    l = unread(launcher, inn)
    os.close(inn)
    assert flood(l, 100) < 10
    assert l.stop() == 0


def test_a_launcher_that_hangs_holds_nothing_up(launcher, source):
    """Its pipe fills, and what NGINX then has to say is lost."""
    l = unread(launcher, subprocess.DEVNULL)
    nginx = l.nginx_pid()
    os.kill(l.pid, signal.SIGSTOP)
    try:
        assert flood(l, 1500) < 10
    finally:
        os.kill(l.pid, signal.SIGCONT)
    assert os.path.exists(f"/proc/{nginx}")
    assert l.stop() == 0


# ---- certificates ----

def make_certificate(directory, name):
    os.makedirs(directory)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3", "-subj",
         f"/CN={name}", "-keyout", f"{directory}/tls.key", "-out",
         f"{directory}/tls.crt"], check=True, capture_output=True)


def swap(mount, name):
    """As the kubelet does: ..data is renamed over, the files are links to it."""
    os.symlink(name, f"{mount}/..data_tmp")
    os.rename(f"{mount}/..data_tmp", f"{mount}/..data")


def served(port):
    """The certificate that a client gets."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


def content(path):
    with open(path) as f:
        return f.read()


def test_a_secret_that_rotates_by_symlink_is_served(launcher, source, workdir):
    """A request in work goes on; a wrong pair is refused and the old one stays."""
    mount = f"{workdir}/proxy-tls"
    for name in ("..one", "..two", "..wrong", "..three"):
        make_certificate(f"{mount}/{name}", name.strip("."))
    shutil.copy(f"{mount}/..one/tls.key", f"{mount}/..wrong/tls.key")
    os.symlink("..one", f"{mount}/..data")
    for name in ("tls.crt", "tls.key"):
        os.symlink(f"..data/{name}", f"{mount}/{name}")
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--noCapture", "--sslCertChainFile", f"{mount}/tls.crt",
                 "--sslKeyFile", f"{mount}/tls.key")
    l.allowed = [r"\[EMERG\].*SSL_CTX_use_PrivateKey"]
    assert served(l.port) == content(f"{mount}/..one/tls.crt")

    hold = threading.Event()
    source.answer = lambda r: Response(body=b"late", hold=hold)
    context = ssl._create_unverified_context()
    c = type(l).client(l)
    c.sock = context.wrap_socket(c.sock)
    c.send(build_request("GET", "/", [("Host", "h")]))
    wait_until(lambda: source.requests, 10, "the request at the source")

    swap(mount, "..two")
    wait_until(lambda: served(l.port) == content(f"{mount}/..two/tls.crt"), 30,
               "the new certificate", l.process.dead)
    hold.set()
    assert c.receive().body == b"late"
    c.close()

    swap(mount, "..wrong")
    l.wait_for_log("goes on with what it has")
    assert served(l.port) == content(f"{mount}/..two/tls.crt")
    swap(mount, "..three")
    wait_until(lambda: served(l.port) == content(f"{mount}/..three/tls.crt"), 30,
               "the third certificate", l.process.dead)
    assert l.stop() == 0


def test_the_sidecar_is_told_of_kafkas_new_certificates(launcher, workdir):
    mount = f"{workdir}/ca"
    for name in ("..one", "..two"):
        make_certificate(f"{mount}/{name}", name.strip("."))
    os.symlink("..one", f"{mount}/..data")
    os.symlink("..data/tls.crt", f"{mount}/ca.crt")
    with open(f"{workdir}/client.properties", "w") as f:
        f.write("ssl.truststore.type=PEM\nsecurity.protocol=SSL\n"
                f"ssl.truststore.location={mount}/ca.crt\n")
    l = launcher("--destinationUri", "http://127.0.0.1:1", "--kafkaConnection",
                 "127.0.0.1:1", "--kafkaConfigFile",
                 f"{workdir}/client.properties", "--shutdown-timeout", "2s")
    swap(mount, "..two")
    l.wait_for_log("Kafka's certificate files have changed")
    wait_until(lambda: " HUP: " in l.log_text(), 15, "the sidecar's word on HUP")


def test_hup_reloads(launcher, source):
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--noCapture", "--numThreads", "1")
    nginx = l.nginx_pid()
    # it listens before it has a worker
    before = wait_until(lambda: [p for p in l.family() if p not in (l.pid, nginx)],
                        20, "a worker")
    os.kill(l.pid, signal.SIGHUP)
    wait_until(lambda: not alive(before), 20, "the old worker's end")
    assert l.nginx_pid() == nginx
    with l.client() as c:
        assert c.request("GET", "/").status == 200


# ---- the source's address ----

class Dns:
    """Answers every A question with `addresses` (none: no such name), TTL 1."""

    def __init__(self, address):
        self.addresses = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((address, 53))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            try:
                query, peer = self.sock.recvfrom(2048)
            except OSError:
                return
            end = query.index(b"\0", 12) + 5
            question = query[12:end]
            known = list(self.addresses)
            answers = known if question[-4:-2] == b"\0\1" else []
            head = query[:2] + (b"\x81\x80" if known else b"\x81\x83") \
                + b"\0\1" + len(answers).to_bytes(2, "big") + b"\0\0\0\0"
            records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" +
                               socket.inet_aton(a) for a in answers)
            self.sock.sendto(head + question + records, peer)

    def close(self):
        self.sock.close()


@pytest.fixture
def dns(workdir):
    """(Dns, prefix of a command that resolves with it)"""
    # its port cannot be chosen: another run has another address
    address = f"127.{random.randrange(64, 127)}.{random.randrange(256)}.53"
    server = Dns(address)
    with open(f"{workdir}/resolv.conf", "w") as f:
        f.write(f"nameserver {address}\noptions timeout:1 attempts:1\n")
    yield server, ["unshare", "-m", "sh", "-c",
                   f'mount --bind {workdir}/resolv.conf /etc/resolv.conf && '
                   'exec "$0" "$@"']
    server.close()


@namespaces_only
def test_a_source_that_appears_late_and_moves_under_load(launcher, dns, broker,
                                                         topic):
    """502 until its name has an address; then each request reaches the address
    of its time. When it moves, none is lost: both serve for a while, and all is in
    the topic."""
    server, prefix = dns
    one = Source(lambda r: Response(body=b"one"), host="127.77.0.1")
    two = Source(lambda r: Response(body=b"two"), host="127.77.0.2",
                 port=one.port)
    one.start()
    two.start()
    seen, stop, failed = [], threading.Event(), []

    def load():
        try:
            while not stop.is_set():
                with l.client() as c:
                    answer = c.request("POST", "/_bulk", body=b"{}")
                    seen.append((answer.status, answer.body))
        except Exception as e:
            failed.append(e)
    try:
        broker.start()
        l = launcher("--destinationUri", f"http://cluster.test:{one.port}",
                     "--kafkaConnection", broker.bootstrap, "--kafkaTopic", topic,
                     "--resolve-interval", "200ms", prefix=prefix)
        l.wait_linked()
        with l.client() as c:
            assert c.request("GET", "/").status == 502
        assert "cluster.test cannot be resolved" in l.log_text()
        server.addresses = ["127.77.0.1"]

        def there():
            with l.client() as c:
                return c.request("GET", "/").body == b"one"
        wait_until(there, 30, "the source's address", l.process.dead)

        clients = [threading.Thread(target=load) for _ in range(4)]
        for t in clients:
            t.start()
        wait_until(lambda: len(seen) > 200, 30, "load", l.process.dead)
        server.addresses = ["127.77.0.2"]
        wait_until(lambda: seen[-1] == (200, b"two"), 30, "the new address",
                   l.process.dead)
        count = len(seen)
        wait_until(lambda: len(seen) > count + 200, 30, "more load")
        # no answer is no reason to forget it, also not for a reload
        server.addresses = []
        l.wait_for_log("its last addresses stay in use")
        os.kill(l.pid, signal.SIGHUP)
        l.wait_for_log("HUP: NGINX is reloaded")
        count = len(seen)
        wait_until(lambda: len(seen) > count + 200, 30, "more load")
        stop.set()
        for t in clients:
            t.join(20)
        assert not failed, failed
        assert {status for status, _ in seen} == {200}
        assert {body for _, body in seen[-100:]} == {b"two"}
        # connections to the source are kept, in spite of it all
        assert two.connections < len(two.requests) / 5
        assert l.stop() == 0, l.log_text()
        posts = [e for e in verify_topic(broker.read_topic(topic)).exchanges
                 if e.request.startswith(b"POST ")]
        assert len(posts) == len(seen)
        assert {e.response.partition(b"\r\n\r\n")[2] for e in posts} \
            == {b"one", b"two"}
    finally:
        stop.set()
        one.close()
        two.close()


# ---- PID 1 ----

@namespaces_only
def test_as_pid_1_it_reaps_and_obeys(launcher, source):
    """An orphan's parent is PID 1: whoever does not wait collects zombies. And
    signals without a handler are not delivered to it."""
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--noCapture", prefix=["unshare", "-p", "-f", "--mount-proc",
                                        "--kill-child"])
    pid = l.pid
    with open(f"/proc/{pid}/status") as f:
        assert "NSpid:\t%d\t1\n" % pid in f.read()
    # orphans of a process that has entered: their parent is PID 1 when they end
    subprocess.run(["nsenter", "-t", str(pid), "-p", "sh", "-c",
                    "for i in 1 2 3; do (sleep 0.2 &) ; done; sleep 1"],
                   check=True)

    def zombies():
        done = subprocess.run(
            ["nsenter", "-t", str(pid), "-p", "-m", "sh", "-c",
             "cat /proc/[0-9]*/stat"], capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if ") Z " in line]
    wait_until(lambda: not zombies(), 10, "no zombies")
    with l.client() as c:
        assert c.request("GET", "/").status == 200
    assert l.stop() == 0
