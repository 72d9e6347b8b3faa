"""Every way to authenticate to Kafka, each on a real broker's listener that asks
for it; and that the wrong key, password, name or token is refused."""

import itertools
import os
import shutil
import stat
import time

import pytest
from rig.process import SANITIZED
from rig.security import (ACCESS_KEY, ASSUMERS, CLIENT_SECRET, PASSWORDS,
                          SECRET_KEY, SECRETS, SESSION_TOKEN, AwsEndpoints)
from rig.sidecar import check, librdkafka
from rig.status import wait_until

_names = itertools.count(1)


@pytest.fixture
def broker(secure_broker):
    return secure_broker


@pytest.fixture
def aws():
    endpoints = AwsEndpoints()
    yield endpoints
    endpoints.close()


@pytest.fixture(scope="module")
def client(secure_broker):
    """(certificate, key) of a client that the broker knows."""
    return secure_broker.authority.issue("client")


def conf_of(broker, listener, **more):
    """The probe's configuration for a listener, and a topic of its own, which
    this broker creates when it is asked for it."""
    tls = {} if listener == "PLAIN" else {
        "kafka__ssl__ca__location": broker.authority.crt}
    return {"kafka__bootstrap__servers":
                broker.bootstrap if listener == "PLAIN" else broker.at(listener),
            "topic": f"secure{os.getpid()}-{next(_names)}", **tls, **more}


def sasl(mechanism, user, password=None):
    return {"kafka__security__protocol": "sasl_ssl",
            "kafka__sasl__mechanism": mechanism, "kafka__sasl__username": user,
            "kafka__sasl__password": password or PASSWORDS[user]}


def assert_delivers(p, count=20, reads=True):
    """And reads it, with a connection of its own, as settlement does."""
    p.wait("ready ")
    assert p.produce(count, 100)["acked"] == count
    if reads:
        assert p.read(0) > 0
    assert_unseen(p.log())


def assert_unseen(text):
    for secret in SECRETS:
        assert secret not in text
    assert "PRIVATE KEY" not in text


SSL = {"kafka__security__protocol": "ssl"}


# ---- plaintext, TLS, mTLS, passwords ----

@pytest.mark.parametrize("listener,conf", [
    ("PLAIN", {}),
    ("TLS", SSL),
    ("SASLPLAIN", sasl("PLAIN", "plain")),
    ("SCRAM", sasl("SCRAM-SHA-256", "scram256")),
    ("SCRAM", sasl("SCRAM-SHA-512", "scram512")),
], ids=["plaintext", "tls", "plain", "scram-256", "scram-512"])
def test_records_are_delivered(broker, probe, listener, conf):
    p = probe(**conf_of(broker, listener, **conf), kafka__debug="all",
              log__level="debug")
    assert_delivers(p)


def test_tls_with_a_certificate_of_the_clients(broker, probe, client):
    crt, key = client
    p = probe(**conf_of(broker, "MTLS", **SSL),
              kafka__ssl__certificate__location=crt,
              kafka__ssl__key__location=key)
    assert_delivers(p)


def test_keys_in_the_configuration_itself(broker, probe, client):
    """As Kubernetes gives them: in a variable, and in a file of another name."""
    crt, key = client
    with open(crt) as f:
        env = {"CRT": f.read()}
    p = probe(env, **conf_of(broker, "MTLS", **SSL),
              kafka__ssl__certificate__pem="${env:CRT}",
              kafka__ssl__key__pem=f"${{file:{key}}}")
    assert_delivers(p)


def no_authority(broker):
    return {"kafka__ssl__ca__location": broker.issuer.jwks.replace(
        "jwks.json", "other.crt")}


@pytest.mark.parametrize("listener,conf,says", [
    ("WRONG", lambda b: SSL, "certificate verify failed"),
    ("TLS", lambda b: {**SSL, **no_authority(b)}, "certificate verify failed"),
    ("MTLS", lambda b: SSL, "ertificate"),
    ("SASLPLAIN", lambda b: sasl("PLAIN", "plain", "wrong-5ecret-word"),
     "uthentication failed"),
    ("SCRAM", lambda b: sasl("SCRAM-SHA-512", "scram512", "wrong-5ecret-word"),
     "uthentication failed"),
    ("SCRAM", lambda b: sasl("PLAIN", "plain"), "nsupported"),
], ids=["name", "authority", "no-certificate", "password", "scram-password",
        "mechanism"])
def test_the_wrong_one_is_refused_and_told(broker, probe, listener, conf, says):
    p = probe(**{**conf_of(broker, listener), **conf(broker)})
    p.wait_log("Kafka's brokers refuse us")
    p.wait_log(says)
    assert not any(line.startswith("ready") for line in p.lines)
    assert "wrong-5ecret-word" not in p.log()
    assert_unseen(p.log())


# ---- tokens: OIDC, a command ----

def oidc(broker, secret="${env:CLIENT_SECRET}"):
    return {"kafka__security__protocol": "sasl_ssl",
            "kafka__sasl__mechanism": "OAUTHBEARER",
            "kafka__sasl__oauthbearer__method": "oidc",
            "kafka__sasl__oauthbearer__client__id": "capture",
            "kafka__sasl__oauthbearer__client__secret": secret,
            "kafka__sasl__oauthbearer__token__endpoint__url":
                broker.issuer.url + "/token"}


def skip_what_librdkafka_does():
    """It reads one byte beyond a token endpoint's answer; 2.14 no longer does."""
    if SANITIZED and librdkafka() < (2, 14):
        pytest.skip("this librdkafka's OIDC has a report of its own")


def test_oidc(broker, probe):
    skip_what_librdkafka_does()
    p = probe({"CLIENT_SECRET": CLIENT_SECRET},
              **conf_of(broker, "OIDC", **oidc(broker)))
    assert_delivers(p)


def test_a_check_asks_for_no_token(broker, workdir):
    before = len(broker.issuer.requests)
    conf = conf_of(broker, "OIDC", **oidc(broker, CLIENT_SECRET))
    rc, err = check(workdir, {k.replace("__", "."): v for k, v in {
        "listen": "unix:/tmp/none", **conf}.items()})
    assert rc == 0, err
    assert len(broker.issuer.requests) == before


def test_a_client_that_the_issuer_refuses_is_told(broker, probe):
    p = probe(**conf_of(broker, "OIDC", **oidc(broker, "wrong-5ecret-word")))
    p.wait_log("Kafka's brokers refuse us: Failed to acquire SASL OAUTHBEARER "
               "token")
    assert "wrong-5ecret-word" not in p.log()


def command(workdir, lines, name="token"):
    path = os.path.join(workdir, name)
    with open(path, "w") as f:
        f.write("#!/bin/sh\n" + lines + "\n")
    os.chmod(path, 0o700)
    return {"token__source": "command", "token__command": f"{path} one two"}


def test_a_commands_token_is_renewed_before_it_expires(broker, probe, workdir):
    calls = os.path.join(workdir, "calls")
    token = broker.issuer.token  # each call takes the next of these
    for n in range(20):
        with open(os.path.join(workdir, f"t{n}"), "w") as f:
            f.write(token(lifetime=2 * n + 4))
    conf = command(workdir, f"echo $* >> {calls}\n"
                            f"n=$(($(wc -l < {calls}) - 1))\n"
                            f"cat {workdir}/t$n")
    p = probe(**conf_of(broker, "OIDC", **conf))
    assert_delivers(p)

    def lines():
        with open(calls) as f:
            return f.read().splitlines()
    wait_until(lambda: len(lines()) >= 3, 30, "two more tokens")
    assert set(lines()) == {"one two"}
    assert p.produce(20, 100)["acked"] == 20
    assert "refuse" not in p.log()


def test_a_command_may_print_what_a_token_endpoint_answers(
        broker, probe, workdir):
    conf = command(workdir, "cat <<END\n{\"access_token\":\""
                   + broker.issuer.token() + "\", \"expires_in\": 60}\nEND")
    assert_delivers(probe(**conf_of(broker, "OIDC", **conf)))


@pytest.mark.parametrize("lines,says", [
    ("echo nonsense", "printed neither a JWT with exp"),
    ("echo it is broken >&2; exit 3", "ended with status 3: it is broken"),
    ("sleep 100", "has not ended within 1000 ms"),
    ("kill -9 $$", "ended with signal 9"),
    ("head -c 200000 /dev/zero; sleep 100 &", "has not ended within 1000 ms"),
])
def test_a_command_that_gives_no_token_is_told(
        broker, probe, workdir, lines, says):
    p = probe(**conf_of(broker, "OIDC", **command(workdir, lines)),
              token__timeout="1s")
    p.wait_log("Kafka's brokers refuse us: Failed to acquire SASL OAUTHBEARER "
               "token")
    assert says in p.log()


def test_a_token_that_the_broker_refuses_is_told_without_it(
        broker, probe, workdir):
    token = broker.issuer.token()
    forged = token[:-20] + "A" * 20
    p = probe(**conf_of(broker, "OIDC", **command(workdir, f"echo {forged}")),
              kafka__debug="security", log__level="debug")
    p.wait_log("Kafka's brokers refuse us")
    assert forged not in p.log()
    assert forged.split(".")[1] not in p.log()


# ---- Amazon MSK ----

def msk(broker, **more):
    return conf_of(broker, "MSK", token__source="aws-msk-iam",
                   aws__region="eu-west-1", **more)


KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN}


def environment(aws, workdir):
    return KEYS


def web_identity(aws, workdir):
    file = os.path.join(workdir, "identity")
    with open(file, "w") as f:
        f.write("identity+token\n")
    return {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_ROLE_SESSION_NAME": "me",
            "AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ENDPOINT_URL_STS": aws.url}


def profile(aws, workdir):
    file = os.path.join(workdir, "credentials")
    with open(file, "w") as f:
        f.write("[default]\naws_access_key_id = WRONG\n"
                "aws_secret_access_key = wrong\n\n"
                f"[capture]\naws_access_key_id={ACCESS_KEY}\n"
                f"aws_secret_access_key = {SECRET_KEY}\n"
                f"aws_session_token = {SESSION_TOKEN}\n")
    return {"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "capture"}


def role_of_profile(aws, workdir):
    """A role, assumed by another one, assumed by a program's keys."""
    file = os.path.join(workdir, "config")
    with open(file, "w") as f:
        f.write("[profile capture]\nrole_arn = arn:aws:iam::1:role/x\n"
                "source_profile = middle\n[profile middle]\n"
                "role_arn = arn:aws:iam::1:role/middle\nsource_profile = base\n"
                "[profile base]\ncredential_process = /bin/echo '{\"Version\": 1, "
                '"AccessKeyId": "AKIABASE", "SecretAccessKey": '
                f'"{ASSUMERS["AKIABASE"][0]}"}}\'\n')
    return {"AWS_CONFIG_FILE": file, "AWS_PROFILE": "capture",
            "AWS_ENDPOINT_URL_STS": aws.url}


def container(aws, workdir):
    """As ECS has it: the authorization in a variable."""
    return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": aws.url + "/container",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "container-authorization"}


def pod_identity(aws, workdir):
    file = os.path.join(workdir, "authorization")
    with open(file, "w") as f:
        f.write("container-authorization")
    return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": aws.url + "/container",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": file}


def instance(aws, workdir):
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url + "/"}


# none of the machine's own
NO_AWS = {name: "" for name in (
    *KEYS, "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_ENDPOINT_URL_STS")} | {
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": ""}


@pytest.mark.parametrize("source", [environment, web_identity, profile,
                                    role_of_profile, container, pod_identity,
                                    instance])
def test_msk_iam_with_credentials_from(broker, probe, aws, workdir, source):
    p = probe({**NO_AWS, **source(aws, workdir)}, **msk(broker),
              kafka__debug="security", log__level="debug")
    assert_delivers(p)


def test_msk_sessions_and_credentials_are_renewed(broker, probe, aws, workdir):
    """The broker ends a session after 3 s, the credentials expire after 5 s."""
    def accepted():
        return broker.process.log_text().count("msk: token accepted")
    aws.lifetime = 5
    before = accepted()
    p = probe({**NO_AWS, **container(aws, workdir)}, **msk(broker))
    p.wait("ready ")
    sent = 0
    until = time.monotonic() + 60
    while len(aws.requests) < 3 or accepted() < before + 4:
        assert p.produce(5, 100)["acked"] == 5
        sent += 5
        assert time.monotonic() < until, (aws.requests, p.log())
        time.sleep(0.1)
    assert "refuse" not in p.log()
    assert "in_doubt=0" in p.lines[-1]


@pytest.mark.parametrize("source,conf,says", [
    (lambda *_: {**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong-5ecret-word"}, {},
     "invalid_token"),
    (lambda *_: {**KEYS, "AWS_SECRET_ACCESS_KEY": ""}, {},
     "the environment has no access key, or no secret key"),
    (lambda *_: {"AWS_EC2_METADATA_DISABLED": "true"}, {},
     "none of the sources is there"),
    (lambda *_: {}, {"aws__credentials": "container"},
     "aws.credentials = container, and there are none"),
    (lambda *_: {"AWS_PROFILE": "none"}, {}, "there is no profile none in /nonexistent"),
    (lambda *_: {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://10.0.0.1/x"}, {},
     "it must name this host"),
    (lambda aws, w: {**container(aws, w),
                     "AWS_CONTAINER_AUTHORIZATION_TOKEN": "x"}, {},
     "HTTP status 401"),
    (lambda *_: {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"}, {},
     "PUT http://127.0.0.1:1/latest/api/token: "),
])
def test_credentials_that_are_not_there_are_told(
        broker, probe, aws, workdir, source, conf, says):
    p = probe({**NO_AWS, **source(aws, workdir)}, **msk(broker, **conf))
    p.wait_log("Kafka's brokers refuse us")
    p.wait_log(says)
    assert "wrong-5ecret-word" not in p.log()


# ---- HUP ----

def write(path, text):
    """As a secret's volume does it: whole, and at once."""
    with open(path + ".new", "w") as f:
        f.write(text)
    os.chmod(path + ".new", stat.S_IRUSR | stat.S_IWUSR)
    os.rename(path + ".new", path)


def test_another_password_is_taken_without_a_restart(broker, probe, workdir):
    file = os.path.join(workdir, "password")
    write(file, "wrong-5ecret-word\n")
    conf = sasl("SCRAM-SHA-512", "scram512", f"${{file:{file}}}")
    p = probe(**conf_of(broker, "SCRAM", **conf))
    p.wait_log("Kafka's brokers refuse us")
    write(file, PASSWORDS["scram512"] + "\n")
    p.say("reload")
    assert_delivers(p)
    assert "made anew" not in p.log()
    write(file, "")
    p.say("reload")
    p.wait_log(f"kafka.sasl.password: {file} is empty")
    assert_delivers(p)


def test_another_certificate_is_taken_when_the_old_one_was_refused(
        broker, probe, workdir, client):
    crt, key = (os.path.join(workdir, n) for n in ("crt", "key"))
    shutil.copy(broker.authority._path("ca.crt"), crt)
    shutil.copy(broker.authority._path("ca.key"), key)
    stranger = os.path.join(workdir, "stranger")
    os.mkdir(stranger)
    for made, to in zip(type(broker.authority)(stranger).issue("client"),
                        (crt, key)):
        shutil.copy(made, to)
    p = probe(**conf_of(broker, "MTLS", **SSL),
              kafka__ssl__certificate__location=crt,
              kafka__ssl__key__location=key)
    p.wait_log("Kafka's brokers refuse us")
    for made, to in zip(client, (crt, key)):
        shutil.copy(made, to)
    p.say("reload")
    assert_delivers(p)
    assert "the producer is made anew" in p.log()


def test_another_certificate_under_load_loses_and_doubles_nothing(
        broker, probe, workdir, client):
    crt, key = (os.path.join(workdir, n) for n in ("crt", "key"))
    for made, to in zip(client, (crt, key)):
        shutil.copy(made, to)
    conf = conf_of(broker, "MTLS", **SSL)
    p = probe(**conf, kafka__ssl__certificate__location=crt,
              kafka__ssl__key__location=key)
    p.wait("ready ")
    start = len(p.lines)
    p.say("closed 20000 1000 500")
    wait_until(lambda: sum(broker.end_offsets(conf["topic"]).values()) > 1000, 30,
               "some records")
    for made, to in zip(broker.authority.issue("client"), (crt, key)):
        shutil.copy(made, to)
    p.say("reload")
    done = p.done(start)
    assert done["acked"] == 20000 and done["in_doubt"] == 0
    p.wait_log("the producer is made anew")  # the records may have been faster
    found = [r.key for r in broker.read_topic(conf["topic"])]
    assert len(found) == len(set(found)) == 20000
    # half a change: the old producer goes on
    with open(crt, "w") as f:
        f.write("no certificate")
    p.say("reload")
    p.wait_log("the producer stays as it was")
    assert_delivers(p, reads=False)  # with what is there by now


# ---- the four permissions ----

def test_the_four_permissions_of_the_deployment_are_enough(broker, probe):
    """Connect, CreateTopic, DescribeTopic, WriteData: in Kafka's own words
    Create, Describe and Write on the topic, and nothing on the cluster."""
    conf = conf_of(broker, "SCRAM", **sasl("SCRAM-SHA-512", "four"))
    p = probe(**conf)
    p.wait_log(f"topic {conf['topic']} is not permitted to this principal")
    broker.permit("four", conf["topic"], "CREATE", "DESCRIBE", "WRITE")
    assert_delivers(p, reads=False)
    assert len(broker.read_topic(conf["topic"])) == 20
