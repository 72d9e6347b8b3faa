"""capturectl check and status on real NGINX nodes: whether a snapshot may be
taken is a matter of every worker of every node, and of requests in flight."""

import datetime
import json
import os
import pty
import re
import signal
import subprocess
import threading

from capturectl import CAPTURECTL, ENVIRONMENT, capturectl
from refconsumer.verify import verify_topic
from rig.nginx import BINARY
from rig.process import free_port, sanitizer_env
from rig.replay import replay
from rig.source import Response, Source
from rig.status import wait_until
from test_capturectl_kafka import Following

HOST = "Host: source.test\r\n"
SECURITY = ["-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN",
            "-X", "sasl.username=viewer"]


def check(*stacks, topic=True, arguments=()):
    kafka = ["-b", stacks[0].broker.bootstrap, "-t", stacks[0].topic] if topic else []
    return capturectl("check", "--json", *kafka, *arguments,
                      *(f"127.0.0.1:{s.port}" for s in stacks))


def reasons(*stacks, **options):
    """Why it is not safe; none if it is."""
    answer = check(*stacks, **options)
    (said,) = answer.json
    assert (answer.status, said["safe"]) in ((0, True), (1, False)), answer.err
    assert said["safe"] == (said["reasons"] == [])
    return [(int(r["address"].rsplit(":", 1)[1].split("/")[0]), r["reason"])
            for r in said["reasons"]]


def safe(*stacks, **options):
    """Waits: rows of other workers can be a quarter of a second old."""
    wait_until(lambda: reasons(*stacks, **options) == [], 30, "a safe state")
    return True


def everything(s):
    """The node's server with capture on, and nothing left out."""
    server = s.nginx.snippets["server"]
    return server.replace("capture off; proxy_pass", "proxy_pass").replace(
        "capture off;", "capture on;", 1 if server.lstrip().startswith("capture off;") else 0)


class open_post:
    """A POST of which the last byte has not been sent, on a connection that a worker
    has had an answer on: so it is that worker's."""

    def __init__(self, stack, uri="/_bulk"):
        self.stack, self.uri = stack, uri

    def __enter__(self):
        self.client = self.stack.client()
        assert self.client.request("GET", "/capture_status").status == 200
        self.client.send(f"POST {self.uri} HTTP/1.1\r\n{HOST}Content-Length: 6\r\n\r\nhalf.".encode())
        return self

    def end(self):
        self.client.send(b"!")
        assert self.client.receive().status == 200
        self.client.close()

    def __exit__(self, *_):
        self.client.close()


def in_flight(stack, gauge):
    """Waits until one such request is known."""
    stack.wait_for_status(lambda s: sum(w[gauge] for w in s["workers"]) == 1)


def test_a_good_fleet_of_two_nodes_is_safe(stack, topic):
    nodes = stack(topic=topic, workers=2), stack(topic=topic)
    for s in nodes:
        with s.client() as client:
            assert client.request("POST", "/_bulk", body=b"{}\n").status == 200
    before = datetime.datetime.now(datetime.timezone.utc)
    answer = check(*nodes)
    assert (answer.status, answer.err) == (0, "")
    (said,) = answer.json
    assert said["canaries"] == "read back from the topic"
    after = datetime.datetime.fromisoformat(said["after"][:26] + "+00:00")
    assert before < after < datetime.datetime.now(datetime.timezone.utc)
    canaries = [r for r in nodes[0].source.requests
                if r.header("X-Capture-Canary")]
    assert [(r.method, r.target, r.body) for r in canaries] == [("GET", "/", b"")] * 2
    shown = capturectl("check", "-b", nodes[0].broker.bootstrap, "-t", topic,
                       *(f"http://127.0.0.1:{s.port}/capture_status" for s in nodes))
    assert shown.status == 0
    assert "\nsafe: a snapshot may begin after 2" in shown.text


def test_a_canary_does_no_harm_when_it_is_replayed(stack, topic):
    """A reading request of its own connection, which the target answers at once;
    for the answer to a HEAD the Replayer may wait (docs/testing.md)."""
    s = stack(topic=topic)
    with s.client() as client:
        assert client.request("POST", "/i/_doc", [("Host", "a")], b"{}").status == 200
    assert safe(s)
    captured = verify_topic(s.drain())
    captured.assert_clean(all_closed=True)
    target = Source()
    target.start()
    try:
        assert all(r.same_status for r in replay(captured.exchanges, target.port))
    finally:
        target.close()
    sent, *canaries = [(r.method, r.target, bytes(r.body)) for r in target.requests]
    assert sent == ("POST", "/i/_doc", b"{}")
    assert canaries and set(canaries) == {("GET", "/", b"")}
    marked = [e.connection_id for e in captured.exchanges
              if b"X-Capture-Canary: " in e.request]
    assert len(marked) == len(canaries)
    assert len({e.connection_id for e in captured.exchanges}) == len(canaries) + 1


def test_while_it_waits_it_says_for_what(stack, topic):
    s = stack(topic=topic, start_sidecar=False)
    master, slave = pty.openpty()
    with subprocess.Popen(
            [CAPTURECTL, "check", "--no-canary", "--wait", "60",
             f"127.0.0.1:{s.port}"], env=ENVIRONMENT, stdout=subprocess.PIPE,
            stderr=slave) as run:
        os.close(slave)
        shown = b""
        while b"not linked" not in shown:
            shown += os.read(master, 65536)
        s.sidecar.start()
        said = run.stdout.read()
        assert run.wait(60) == 0
    os.close(master)
    assert re.search(rb"\r\x1b\[K% \d\d s left: 127.0.0.1:\d+: worker ",
                     shown), shown
    assert b"safe: a snapshot may begin after" in said


def test_without_a_topic_the_nodes_are_believed(stack, topic):
    s = stack(topic=topic)
    answer = check(s, topic=False)
    assert answer.status == 0
    assert answer.json[0]["canaries"].startswith("counted as captured")
    assert check(s, topic=False, arguments=["--no-canary"]).json[0]["canaries"] == "no canary was sent"


def test_an_old_worker_that_holds_an_open_post(stack, topic):
    """Its configuration captured nothing, so it has no link and no row."""
    s = stack(topic=topic, capture="off", start_sidecar=False)
    s.sidecar.start()
    (old,) = s.nginx.workers()
    with open_post(s) as post:
        s.nginx.reload(server=everything(s))
        s.wait_for_status(lambda now: now["workers"]
                          and all(w["linked"] for w in now["workers"]))
        assert reasons(s) == [(s.port, f"worker {old} is of before a reload and captures "
                               "nothing: it still serves connections")]
        assert check(s, arguments=["--no-canary"]).status == 1
        post.end()
    assert safe(s)


def test_an_old_worker_that_answers_names_itself(stack, topic):
    """Until the master has ended it, it can be who takes the question."""
    s = stack(topic=topic, capture="off", start_sidecar=False)
    s.sidecar.start()
    (old,) = s.nginx.workers()
    client, ask = s.client(), f"GET /capture_status HTTP/1.1\r\n{HOST}"
    client.send(f"{ask}\r\n{ask}".encode())     # one, and most of a second
    client.receive()
    s.nginx.reload(server=everything(s))
    s.wait_for_status(lambda now: now["workers"] and all(w["linked"] for w in now["workers"]))
    client.send(b"\r\n")
    assert json.loads(client.receive().body)["strangers"] == [old]
    client.close()


def test_an_old_worker_whose_configuration_left_the_request_out(stack, topic):
    """What the configuration of now leaves out is its own matter; what the one
    of before did is not."""
    out = "location /left_out { capture off; proxy_pass http://source; }"
    s = stack(topic=topic, server=out)
    with open_post(s, "/left_out") as post:
        in_flight(s, "excluded")
        assert safe(s)
        s.nginx.reload(server=everything(s))
        s.wait_for_status(lambda now: len(now["workers"]) == 2
                          and all(w["linked"] for w in now["workers"]))
        ((port, reason),) = reasons(s)
        assert port == s.port and "of an older configuration, has 1 requests" in reason
        post.end()
    assert safe(s)


def test_an_old_worker_whose_post_is_captured_is_safe(stack, topic):
    s = stack(topic=topic)
    with open_post(s) as post:
        s.wait_for_status(lambda now: now["total"]["seen"] == 1)
        s.nginx.reload()
        s.wait_for_status(lambda now: len(now["workers"]) == 2
                          and all(w["linked"] for w in now["workers"]))
        assert safe(s)
        post.end()


def test_one_node_of_two_unlinked(stack, topic):
    good, bad = stack(topic=topic), stack(topic=topic)
    bad.sidecar.stop()
    bad.wait_for_status(lambda now: not now["workers"][0]["linked"])
    ((port, reason),) = reasons(good, bad)
    assert port == bad.port and "is not linked to its sidecar" in reason
    assert safe(good)
    bad.sidecar.start()
    bad.wait_linked()
    assert safe(good, bad)


def test_a_request_that_was_lost_is_in_flight(stack, topic):
    """It began while no sidecar was there; that one is there now does not help."""
    s = stack(topic=topic, start_sidecar=False)
    hold = threading.Event()
    s.source.answer = lambda _: Response(hold=hold)
    with s.client() as reader, s.client() as writer:
        reader.send(f"GET / HTTP/1.1\r\n{HOST}\r\n".encode())
        writer.send(f"DELETE /x HTTP/1.1\r\n{HOST}\r\n".encode())
        in_flight(s, "uncaptured")
        s.sidecar.start()
        s.wait_linked()
        answer = check(s, arguments=["--no-canary"])
        assert answer.status == 1
        (reason,) = answer.json[0]["reasons"]
        assert "1 requests in flight that may change" in reason["reason"]
        hold.set()
        assert writer.receive().status == 200
    assert safe(s)


def test_requests_in_flight_outlive_the_sidecar(stack, topic):
    """The next sidecar goes on with them: they are as captured as ever."""
    hold = threading.Event()
    s = stack(topic=topic)
    s.source.answer = lambda _: Response(hold=hold)
    with s.client() as writer, open_post(s) as captured:
        writer.send(f"DELETE /x HTTP/1.1\r\n{HOST}\r\n".encode())
        s.wait_for_status(lambda now: now["total"]["seen"] == 2)
        assert safe(s, arguments=["--no-canary"])
        s.sidecar.kill9()
        s.wait_for_status(lambda now: not now["workers"][0]["linked"])
        assert reasons(s, arguments=["--no-canary"]) != []
        s.sidecar.start()
        s.wait_linked()
        assert s.status()["workers"][0]["uncaptured"] == 0
        assert safe(s, arguments=["--no-canary"])
        hold.set()
        assert writer.receive().status == 200
        captured.end()
    assert safe(s)


def test_wait_tries_until_it_is_safe(stack, topic):
    s = stack(topic=topic, start_sidecar=False)
    hold = threading.Event()
    s.source.answer = lambda _: Response(hold=hold)
    with s.client() as writer:
        writer.send(f"PUT /x HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\n".encode())
        in_flight(s, "uncaptured")
        s.sidecar.start()
        s.wait_linked()
        threading.Timer(1, hold.set).start()
        assert reasons(s, arguments=["--wait", "60"]) == []
        assert hold.is_set()


class Daemon:
    """One more NGINX of the stack's configuration, on a port of its own. Only
    one that its parent has left takes the signal to upgrade."""

    def __init__(self, stack):
        self.port, self.broker, self.topic = free_port(), stack.broker, stack.topic
        self.pid_file = os.path.join(stack.nginx.directory, "daemon.pid")
        with open(os.path.join(stack.nginx.directory, "nginx.conf")) as f:
            conf = f.read()
        for old, new in (("daemon off", "daemon on"), ("nginx.pid", "daemon.pid"),
                         (f"127.0.0.1:{stack.port}", f"127.0.0.1:{self.port}")):
            assert old in conf
            conf = conf.replace(old, new)
        with open(os.path.join(stack.nginx.directory, "daemon.conf"), "w") as f:
            f.write(conf)
        subprocess.run([BINARY, "-p", stack.nginx.directory + "/", "-c", "daemon.conf",
                        "-e", "error.log"], check=True, timeout=30,
                       env={**os.environ, **sanitizer_env(stack.nginx.directory)})
        self.master = self.pid_of(self.pid_file)

    @staticmethod
    def pid_of(file):
        def read():
            with open(file) as f:
                return int(f.read())
        return wait_until(read, 30)

    def upgrade(self):
        """The new master's pid."""
        os.kill(self.master, signal.SIGUSR2)
        wait_until(lambda: os.path.exists(self.pid_file + ".oldbin"), 30)
        return self.pid_of(self.pid_file)


def gone(pid):
    return not os.path.exists(f"/proc/{pid}")


def test_a_binary_upgrade_is_not_safe_until_the_old_one_has_gone(stack, topic):
    """The two share the port, and know nothing of each other's workers."""
    # NGINX hands on no more of its environment than it is told
    s = stack(topic=topic, main="env ASAN_OPTIONS; env UBSAN_OPTIONS;")
    d = Daemon(s)
    masters = [d.master]
    try:
        assert safe(d)
        masters.append(d.upgrade())
        wait_until(lambda: any(
            f"an older NGINX, master {d.master}, still runs" in reason
            for _, reason in reasons(d, arguments=["--no-canary"])), 60)
        os.kill(masters.pop(0), signal.SIGQUIT)
        wait_until(lambda: gone(d.master), 30)
        assert safe(d)
    finally:
        for pid in masters:
            os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: gone(masters[-1]), 30)


def test_nodes_that_do_not_answer_are_not_safe(stack, topic):
    s = stack(topic=topic, server="location = /other { return 200 '{}'; }")
    port = free_port()
    answer = capturectl("check", "--json", f"127.0.0.1:{s.port}", f"127.0.0.1:{port}",
                        f"127.0.0.1:{s.port}/nowhere", f"127.0.0.1:{s.port}/other")
    assert answer.status == 1
    away, nowhere, other = (r["reason"] for r in answer.json[0]["reasons"])
    assert f"http://127.0.0.1:{port}/capture_status: " in away and "onnect" in away
    assert "/nowhere: status " in nowhere or "not the capture_status" in nowhere
    assert other.endswith("/other: not the capture_status of this version")


def test_a_canary_that_is_not_captured_is_not_safe(stack, topic):
    """NGINX answers it itself: the way through it is not the captured one."""
    s = stack(topic=topic, server="location = /mine { return 200; }")
    answer = check(s, arguments=["--canary-path", "/mine", "-m", "2"])
    assert answer.status == 1
    (reason,) = answer.json[0]["reasons"]
    assert reason == {"address": f"http://127.0.0.1:{s.port}/mine",
                      "reason": "the canary was not captured within 2 s"}
    through = check(s, arguments=["--through", f"127.0.0.1:{free_port()}"])
    assert "could not be sent" in through.json[0]["reasons"][0]["reason"]


def test_where_the_topic_must_not_be_read_offsets_are_compared(stack, own_broker, tmp_path):
    broker = own_broker(users={"viewer": "secret"})
    broker.create_topic("captured", 2)
    broker.permit("viewer", "captured", "WRITE", "DESCRIBE")
    s = stack(broker=broker, topic="captured")
    file = tmp_path / "properties"
    file.write_text("sasl.password=secret\n")
    answer = capturectl("check", "--json", "-b", broker.sasl_bootstrap, "-t", "captured",
                        "-F", file, *SECURITY, f"127.0.0.1:{s.port}")
    assert answer.status == 0, (answer.text, answer.err)
    assert answer.json[0]["canaries"].endswith("its end offsets have grown")
    file.write_text("sasl.password=wrong\n")
    answer = capturectl("check", "-m", "3", "-b", broker.sasl_bootstrap, "-t", "captured",
                        "-F", file, *SECURITY, f"127.0.0.1:{s.port}")
    assert (answer.status, answer.out) == (2, b"")
    assert "wrong" not in answer.err


# status

def test_status_shows_nodes_and_sidecars(stack, topic):
    port = free_port()
    s = stack(topic=topic, workers=2, sidecar_conf={"metrics.listen": f"127.0.0.1:{port}"})
    with s.client() as client:
        for _ in range(5):
            assert client.request("GET", "/").status == 200
    s.wait_for_status(lambda now: now["total"]["captured"] == 5)
    addresses = f"127.0.0.1:{s.port}", f"127.0.0.1:{port}"
    answer = capturectl("status", *addresses)
    assert (answer.status, answer.err) == (0, "")
    head, first, second, total, sidecar = answer.lines
    assert head.split()[:5] == ["ADDRESS", "WORKER", "LINKED", "SEEN", "CAPTURED"]
    assert first.split()[0] == addresses[0] and " yes " in first and " yes " in second
    assert total.split()[:6] == ["total", "5", "5", "0", "0", "0"]
    assert sidecar.split()[:8] == [addresses[1], "sidecar", "2", "5", "5", "0", "0", "0"]
    nginx, metrics = capturectl("status", "--json", *addresses).json
    assert nginx["nginx"]["total"]["seen"] == 5
    assert metrics["sidecar"]["captured"] == 5
    assert metrics["sidecar"]["lost"]["pool_full"] == 0
    assert metrics["sidecar"]["kafka_ready"] == 1


def test_status_names_losses_and_who_does_not_answer(stack, topic):
    s = stack(topic=topic, start_sidecar=False)
    with s.client() as client:
        assert client.request("GET", "/").status == 200
    away = f"127.0.0.1:{free_port()}"
    answer = capturectl("status", f"127.0.0.1:{s.port}", away)
    assert answer.status == 1
    assert "  lost: unlinked 1" in answer.lines
    assert " NO " in answer.lines[1]
    assert f"% http://{away}/capture_status: " in answer.err
    assert capturectl("status").status == 2


def test_watch_goes_on_until_it_is_told_to_end(stack, topic):
    s = stack(topic=topic)
    watch = Following("status", "--watch", "--interval", "1", f"127.0.0.1:{s.port}")
    try:
        with s.client() as client:
            assert client.request("GET", "/").status == 200
        wait_until(lambda: any(b"exchanges/s" in line for line in watch.out), 30)
    finally:
        status, err = watch.end()
    assert (status, err) == (0, "")
    assert sum(line.startswith(b"ADDRESS") for line in watch.out) >= 2


# gaps, of what the product itself has written

def test_what_was_captured_has_no_gaps(stack, topic):
    """Whatever a client does in good order: nothing is found."""
    s = stack(topic=topic, workers=2)
    answers = {"/chunked": Response(body=b"x" * 70_000, chunked=(1000, 7)),
               "/close": Response(body=b"to the end", until_close=True),
               "/304": Response(status=304), "/204": Response(status=204),
               "/large": Response(body=bytes(3_000_000))}
    s.source.answer = lambda r: answers.get(r.target, Response(body=b"ok"))
    for _ in range(4):
        with s.client() as client:
            for uri in (*answers, "/"):
                assert client.request("GET", uri).complete
            assert client.request("HEAD", "/chunked").status == 200
            assert client.request("POST", "/", body=bytes(200_000)).status == 200
            assert client.request("PUT", "/", chunks=[b"a", b"bc" * 5000]).status == 200
    s.drain()
    answer = capturectl("gaps", "-b", s.broker.bootstrap, "-t", topic)
    assert (answer.status, answer.text) == (0, ""), answer.err
    assert " 36 requests: nothing found" in answer.err


def test_a_killed_worker_shows_as_what_it_cut(stack, topic):
    """And as nothing worse: no hole, no duplicate."""
    hold = threading.Event()
    s = stack(topic=topic)
    s.source.answer = lambda r: Response(body=b"x" * 1000, hold_body=hold) \
        if r.target == "/slow" else Response(body=b"ok")
    with s.client() as quick, s.client() as slow:
        assert quick.request("GET", "/").status == 200
        slow.send(f"GET /slow HTTP/1.1\r\n{HOST}\r\n".encode())
        s.wait_for_status(lambda now: now["total"]["seen"] == 2
                          and now["total"]["captured"] == 1)
        (worker,) = s.nginx.workers()
        s.nginx.allowed.append("exited on signal 9")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: s.nginx.workers() not in ([], [worker]), 30)
    hold.set()
    s.wait_linked()
    s.drain()
    answer = capturectl("gaps", "--json", "-b", s.broker.bootstrap, "-t", topic)
    assert answer.status == 1
    *found, summary = answer.json
    assert {f["kind"] for f in found} <= {"abandoned", "truncated", "doubt"}, found
    assert len({f["connectionId"] for f in found}) == 1
