"""The sidecar's program as its operator meets it: --check, a start that fails,
and what it must never show. (Each key's wrong values: t/unit/test_config.c.)"""

import os
import re
import socket
import subprocess
import time

import pytest
from rig.sidecar import BINARY, Sidecar, check
from rig.status import wait_until

GOOD = {"listen": "unix:/tmp/none", "kafka.bootstrap.servers": "127.0.0.1:1"}


def run(*arguments):
    return subprocess.run([BINARY, *arguments], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=10)


def test_check_says_nothing_of_a_good_file_and_starts_nothing(workdir):
    path = os.path.join(workdir, "sock")
    assert check(workdir, {**GOOD, "listen": f"unix:{path}"}) == (0, "")
    assert not os.path.exists(path)
    assert not os.path.exists(path + ".lock")


@pytest.mark.parametrize("key,value,says", [
    ("tpoic", "x", 'unknown key "tpoic": did you mean "topic"?'),
    ("kafka.acks", "1", "cannot be changed"),
    ("kafka.linger.ms", "5", "cannot be changed"),
    ("kafka.enable.idempotence", "false", "cannot be changed"),
    ("kafka.compresion.type", "lz4", "did you mean kafka.compression.codec?"),
    ("kafka.compression.type", "gzipp", "gzipp"),
    ("kafka.max.in.flight", "10", "max.in.flight"),
    ("kafka.security.protocol", "SASL_PLAINTEXT", "sasl.username")])
def test_a_wrong_key_is_named_with_its_file(workdir, key, value, says):
    extra = {"kafka.sasl.mechanism": "PLAIN"} if "security" in key else {}
    rc, err = check(workdir, {**GOOD, **extra, key: value})
    assert rc == 1
    assert "check.conf:" in err and says in err, err


def test_the_servers_name_is_suggested_too(workdir):
    rc, err = check(workdir, {**GOOD, "kafka.bootstrap.server": "127.0.0.1:1"})
    assert rc == 1
    assert "did you mean kafka.bootstrap.servers?" in err, err


def test_no_secret_is_shown_where_a_line_is_wrong(workdir):
    """A key that was pasted with its line breaks, a misspelt password's key."""
    rc, err = check(workdir, "".join(f"{k} = {v}\n" for k, v in GOOD.items()) +
                    "kafka.ssl.key.pem = -----BEGIN PRIVATE KEY-----\n"
                    "SECRETabcdefghijklmnopqrstuvwxyz0123456789\n"
                    "SECRETabc/def+ghi==\n"
                    "SECRETabc=\n"
                    "-----END PRIVATE KEY-----\n"
                    "kafka.sasl.pasword = SECRET\n"
                    "password = SECRET\n")
    assert rc == 1
    assert "SECRET" not in err, err
    assert err.count("check.conf:") >= 5, err


@pytest.mark.parametrize("name", ["none", "directory"])
def test_a_file_that_cannot_be_read_is_named(workdir, name):
    if name == "directory":
        os.mkdir(os.path.join(workdir, name))
    done = run("--check", "-c", os.path.join(workdir, name))
    assert done.returncode == 1
    assert os.path.join(workdir, name) in done.stderr


def test_what_is_no_text_is_refused_without_showing_it(workdir):
    file = os.path.join(workdir, "binary")
    with open(file, "wb") as f:
        f.write(bytes(range(256)) * 50 + b"\x1b[2J = \x1b[2J\n")
    done = subprocess.run([BINARY, "--check", "-c", file], capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=10)
    assert done.returncode == 1
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize("arguments", [
    (), ("-c",), ("-x",), ("-c", "a", "b"), ("--check",)])
def test_a_wrong_command_line_is_status_2_with_the_usage(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: capture-sidecar" in done.stderr


def fails(workdir, **conf):
    """What a sidecar that does not start has logged."""
    s = Sidecar(os.path.join(workdir, "s"), {
        **GOOD, "listen": f"unix:{workdir}/sock", **conf})
    s.start(wait=False)
    wait_until(lambda: not s.running(), 10, "its end")
    assert s.process.child.returncode == 1
    return s.log_text()


def test_a_socket_that_cannot_be_made_is_a_clear_error(workdir):
    with open(os.path.join(workdir, "sock"), "w") as f:
        f.write("mine")
    assert "exists and is no socket" in fails(workdir)
    with open(os.path.join(workdir, "sock")) as f:
        assert f.read() == "mine"
    missing = f"unix:{workdir}/no/such/sock"
    assert f"{workdir}/no/such/sock" in fails(workdir, listen=missing)


def test_an_address_of_metrics_that_is_taken_is_a_clear_error(workdir):
    with socket.create_server(("127.0.0.1", 0)) as other:
        at = f"127.0.0.1:{other.getsockname()[1]}"
        said = fails(workdir, **{"metrics.listen": at})
    assert at in said and "in use" in said


def test_a_stale_socket_is_taken_over(workdir):
    path = os.path.join(workdir, "sock")
    conf = {**GOOD, "listen": f"unix:{path}"}
    first = Sidecar(os.path.join(workdir, "a"), conf)
    first.start()
    first.kill9()
    assert os.path.exists(path)
    second = Sidecar(os.path.join(workdir, "b"), conf)
    second.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(path)
    assert second.stop() == 0
    assert not os.path.exists(path)


def threads(pid):
    """{thread: (ticks of CPU, times that it was woken)}"""
    result = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        with open(f"/proc/{pid}/task/{task}/status") as f:
            woken = int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)",
                                  f.read(), re.M)[1])
        result[task] = (int(fields[11]) + int(fields[12]), woken)
    return result


def over(seconds, pid):
    """(ticks, wake-ups of the first thread) of so many seconds."""
    before = threads(pid)
    time.sleep(seconds)
    after = threads(pid)
    ticks = sum(v[0] - before.get(t, (0, 0))[0] for t, v in after.items())
    return ticks, after[str(pid)][1] - before[str(pid)][1]


def test_an_idle_path_does_nothing(stack):
    """Neither the sidecar's loop nor a worker is woken without a reason."""
    s = stack()
    with s.client() as c:
        c.request("GET", "/")
        s.wait_for_status(lambda st: st["total"]["captured"] == 1)
        (worker,) = s.nginx.workers()
        wait_until(lambda: over(0.2, s.sidecar.process.pid)[1] == 0, 5,
                   "the sidecar to go to sleep")
        for pid in (s.sidecar.process.pid, worker):
            ticks, woken = over(1, pid)
            assert ticks <= 3 and woken <= 5, (ticks, woken)


@pytest.mark.long
def test_kafkas_absence_costs_no_cpu(workdir, own_broker):
    """Questions to a broker that is down must not be asked without a pause."""
    broker = own_broker()
    broker.create_topic("t", 1)
    s = Sidecar(os.path.join(workdir, "s"), {
        "listen": f"unix:{workdir}/sock", "topic": "t",
        "kafka.bootstrap.servers": broker.bootstrap})
    s.start()
    wait_until(lambda: "is ready" in s.log_text(), 30, "the topic")
    broker.kill()
    hertz = os.sysconf("SC_CLK_TCK")
    for _ in range(5):
        ticks, _ = over(10, s.process.pid)
        assert ticks < 0.3 * hertz, f"{ticks} ticks in 10 s"
    s.close()
