"""What the sidecar must never show, however much it is asked to say; and its
metrics and log as machines read them."""

import glob
import json
import os
import re
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from rig.process import BUILD, SANITIZED, TOP, free_port
from rig.security import (ACCESS_KEY, ASSUMERS, CLIENT_SECRET, PASSWORDS,
                          SECRET_KEY, SECRETS, SESSION_TOKEN, AwsEndpoints)
from rig.sidecar import BINARY, Sidecar, check, librdkafka
from rig.status import wait_until


@pytest.fixture
def sidecar(workdir, secure_broker):
    """A factory of sidecars at a listener of the secure broker."""
    made = []

    def make(listener, env=None, **conf):
        directory = os.path.join(workdir, f"s{len(made)}")
        conf = {"listen": f"unix:{directory}/sock",
                "topic": f"secrets{os.getpid()}",
                "kafka.bootstrap.servers": secure_broker.at(listener),
                "kafka.security.protocol": "sasl_ssl",
                "kafka.ssl.ca.location": secure_broker.authority.crt,
                "metrics.listen": f"127.0.0.1:{free_port()}",
                **{k.replace("__", "."): v for k, v in conf.items()}}
        made.append(Sidecar(directory, conf, "capture-sidecar ready", env))
        return made[-1]
    yield make
    for s in made:
        s.close()


def get(s, path):
    """(status, text)"""
    url = f"http://{s.conf['metrics.listen']}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def metric(s, name):
    return float(re.search(rf"^capture_{name} (.*)$", get(s, "/metrics")[1],
                           re.M)[1])


def secret_file(workdir, name, text):
    path = os.path.join(workdir, name)
    with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
        f.write(text + "\n")
    return path


def password(workdir, broker):
    file = secret_file(workdir, "password", PASSWORDS["scram512"])
    return "SCRAM", {}, {
        "kafka__sasl__mechanism": "SCRAM-SHA-512",
        "kafka__sasl__username": "scram512",
        "kafka__sasl__password": f"${{file:{file}}}"}


def plain_in_the_file(workdir, broker):
    return "SASLPLAIN", {}, {
        "kafka__sasl__mechanism": "PLAIN", "kafka__sasl__username": "plain",
        "kafka__sasl__password": PASSWORDS["plain"]}


def oidc(workdir, broker):
    return "OIDC", {"CLIENT_SECRET": CLIENT_SECRET}, {
        "kafka__sasl__mechanism": "OAUTHBEARER",
        "kafka__sasl__oauthbearer__method": "oidc",
        "kafka__sasl__oauthbearer__client__id": "capture",
        "kafka__sasl__oauthbearer__client__secret": "${env:CLIENT_SECRET}",
        "kafka__sasl__oauthbearer__token__endpoint__url":
            broker.issuer.url + "/token"}


def command(workdir, broker):
    file = secret_file(workdir, "token", broker.issuer.token())
    return "OIDC", {}, {"token__source": "command",
                        "token__command": f"/bin/cat {file}"}


def msk(workdir, broker):
    return "MSK", {"AWS_ACCESS_KEY_ID": ACCESS_KEY,
                   "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                   "AWS_SESSION_TOKEN": SESSION_TOKEN}, {
        "token__source": "aws-msk-iam", "aws__region": "eu-west-1"}


def role(workdir, broker):
    """Keys in a file, which assume a role."""
    file = secret_file(workdir, "credentials", (
        "[capture]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = capture\n"
        f"aws_access_key_id = AKIABASE\naws_secret_access_key = "
        f"{ASSUMERS['AKIABASE'][0]}"))
    aws = AwsEndpoints()
    return "MSK", {"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "capture",
                   "AWS_ACCESS_KEY_ID": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "",
                   "AWS_ENDPOINT_URL_STS": aws.url}, {
        "token__source": "aws-msk-iam", "aws__region": "eu-west-1"}


def secrets_of(workdir):
    """Those of the rig, and each file that a test has made."""
    files = [os.path.join(workdir, n) for n in ("password", "token")]
    more = [open(f).read().strip() for f in files if os.path.exists(f)]
    return {*SECRETS, *more, *(m.split(".")[1] for m in more if "." in m)}


@pytest.mark.parametrize("way", [password, plain_in_the_file, oidc, command, msk,
                                 role])
def test_no_secret_is_ever_shown(sidecar, secure_broker, workdir, way):
    if way is oidc and SANITIZED and librdkafka() < (2, 14):
        pytest.skip("this librdkafka's OIDC has a report of its own")
    listener, env, conf = way(workdir, secure_broker)
    s = sidecar(listener, env, **conf, kafka__debug="all", log__level="debug")
    s.start()
    wait_until(lambda: get(s, "/ready")[0] == 200, 30, "the topic")
    s.process.send(signal.SIGHUP)
    wait_until(lambda: "HUP: " in s.log_text(), 10, "HUP")
    seen = {"log": s.log_text()}
    for path in ("/metrics", "/live", "/ready"):
        seen[path] = get(s, path)[1]
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as f:
                seen[path] = f.read().decode(errors="replace")
        except OSError:
            pass
    assert any(BINARY in text for text in seen.values())
    s.close()
    seen["log at the end"] = s.log_text()
    done = subprocess.run([BINARY, "--check", "-c", s.file], text=True,
                          capture_output=True, env={**os.environ, **s._env()})
    assert done.returncode == 0, done.stderr
    seen["--check"] = done.stdout + done.stderr
    secrets = secrets_of(workdir)
    assert len(s.log_text()) > 10000
    for where, text in seen.items():
        for secret in secrets:
            assert secret not in text, f"{secret} in {where}"


@pytest.mark.parametrize("name,value", [
    ("kafka.sasl.password", "5ecret-word\x01"),
    ("kafka.ssl.key.pem", "5ecret-word"),
    ("kafka.ssl.keystore.password", "5ecret-word"),
    ("kafka.sasl.oauthbearer.config", "5ecret-word"),
    ("kafka.sasl.oauthbearer.client.secret", "5ecret-word"),
    ("kafka.sasl.oauthbearer.assertion.private.key.pem", "5ecret-word"),
    ("kafka.sasl.oauthbearer.assertion.private.key.passphrase", "5ecret-word")])
def test_no_mistake_shows_a_secret(workdir, name, value):
    for extra in ({}, {"kafka.security.protocol": "ssl"},
                  {"kafka.security.protocol": "sasl_ssl",
                   "kafka.sasl.mechanism": "OAUTHBEARER",
                   "kafka.sasl.oauthbearer.method": "oidc"}):
        _, err = check(workdir, {"listen": "unix:/tmp/none", **extra,
                                 "kafka.bootstrap.servers": "127.0.0.1:1",
                                 "kafka.acks": "1", name: value})
        assert "kafka.acks = 1" in err and "5ecret" not in err, err


# ---- core files ----

def crash(s):
    """Whether it left, or would have left, a core file."""
    pid = os.posix_spawn(BINARY, [BINARY, "-c", s.file], os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 2, s.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND,
         0o600)])
    try:
        wait_until(lambda: "capture-sidecar ready" in s.log_text(), 30, "start")
    finally:
        os.kill(pid, signal.SIGABRT)
        _, status = os.waitpid(pid, 0)
    return os.WCOREDUMP(status)


@pytest.mark.skipif(SANITIZED, reason="sanitizers turn core files off themselves")
def test_a_crash_leaves_a_core_file_only_on_request(sidecar, workdir, monkeypatch):
    with open("/proc/sys/kernel/core_pattern") as f:
        if "/" in f.read() or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
            pytest.skip("core files of this machine go elsewhere")
    os.chmod(workdir, 0o700)
    monkeypatch.chdir(workdir)
    old = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (old[1], old[1]))
    try:
        found = {}
        for asked in ("off", "on"):
            s = sidecar("SASLPLAIN", core__dumps=asked, log__format="text",
                        kafka__sasl__mechanism="PLAIN",
                        kafka__sasl__username="plain",
                        kafka__sasl__password=PASSWORDS["plain"])
            with open(s.file, "w") as f:
                f.writelines(f"{k} = {v}\n" for k, v in s.conf.items())
            found[asked] = crash(s), bool(glob.glob("core*"))
        assert found["off"] == (False, False)
        assert found["on"][0], "no core file even when asked: nothing is shown"
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, old)


@pytest.mark.skipif(SANITIZED or os.geteuid() != 0, reason="needs another user")
def test_nobody_of_the_same_user_can_look_into_its_memory(sidecar, workdir):
    s = sidecar("TLS", kafka__security__protocol="ssl")
    os.chmod(workdir, 0o755)
    os.chmod(s.directory, 0o777)
    with open(s.file, "w") as f:
        f.writelines(f"{k} = {v}\n" for k, v in s.conf.items()
                     if "ssl" not in k)
    child = subprocess.Popen([BINARY, "-c", s.file], user=65534, group=65534,
                             extra_groups=[], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: get(s, "/live")[0] == 200, 30, "start")
        assert os.stat(f"/proc/{child.pid}/environ").st_uid == 0
        assert os.stat(f"/proc/{child.pid}/mem").st_uid == 0
    finally:
        child.terminate()
        child.wait(30)


# ---- metrics, log ----

def test_expiry_of_certificate_and_token_are_metrics(
        sidecar, secure_broker, workdir):
    listener, env, conf = command(workdir, secure_broker)
    s = sidecar(listener, env, **conf)
    s.start()
    wait_until(lambda: get(s, "/ready")[0] == 200, 30, "the topic")
    left = metric(s, "kafka_token_expiry_timestamp_seconds") - time.time()
    assert 3000 < left <= 3600
    assert metric(s, "kafka_tokens_total") >= 1
    assert metric(s, "kafka_token_failures_total") == 0
    assert metric(s, "kafka_certificate_expiry_timestamp_seconds") == 0
    crt, key = secure_broker.authority.issue("client", "DNS:none", 5)
    s = sidecar("MTLS", kafka__security__protocol="ssl",
                kafka__ssl__certificate__location=crt,
                kafka__ssl__key__location=key)
    s.start()
    wait_until(lambda: get(s, "/ready")[0] == 200, 30, "the topic")
    left = metric(s, "kafka_certificate_expiry_timestamp_seconds") - time.time()
    assert 4.9 * 86400 < left <= 5 * 86400
    assert re.search("certificate expires in [45] days: replace it", s.log_text())


def test_failures_to_get_a_token_are_counted(sidecar):
    s = sidecar("OIDC", token__source="command", token__command="/bin/false")
    s.start()
    wait_until(lambda: metric(s, "kafka_token_failures_total") >= 1, 30, "it")
    status, why = get(s, "/ready")
    assert status == 503 and "ended with status 1" in why
    assert get(s, "/live") == (200, "live\n")


def test_the_log_as_json_is_one_object_a_line(sidecar, workdir, secure_broker):
    listener, env, conf = password(workdir, secure_broker)
    s = sidecar(listener, env, **conf, log__format="json", kafka__debug="all",
                log__level="debug")
    s.start()
    wait_until(lambda: get(s, "/ready")[0] == 200, 30, "the topic")
    s.close()
    lines = [json.loads(line) for line in s.log_text().splitlines()]
    assert len(lines) > 50
    for line in lines:
        assert set(line) == {"time", "level", "message"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
                            line["time"])
        assert line["level"] in ("error", "warn", "info", "debug")
    assert any("is ready" in line["message"] for line in lines)


def promtool():
    found = os.path.join(TOP, "build", "promtool")
    return found if os.path.exists(found) else None


@pytest.mark.long
@pytest.mark.skipif(not promtool(), reason="script/bootstrap --test brings it")
def test_promtool_has_nothing_to_say_of_the_metrics(sidecar, workdir,
                                                    secure_broker):
    listener, env, conf = command(workdir, secure_broker)
    s = sidecar(listener, env, **conf)
    s.start()
    wait_until(lambda: get(s, "/ready")[0] == 200, 30, "the topic")
    for text, good in ((get(s, "/metrics")[1], True),
                       ("capture_bad_total 1\n", False)):
        done = subprocess.run([promtool(), "check", "metrics"], input=text,
                              text=True, capture_output=True)
        assert (done.returncode == 0 and done.stderr == "") == good, done.stderr
