"""sidecar/aws_*.c against AWS's own code: the signer under a fixed clock, and
botocore, which finds credentials in the same files and variables."""

import base64
import calendar
import datetime
import os
import subprocess
import time
import urllib.parse

import botocore.auth
import botocore.session
import pytest
from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
from botocore.credentials import CredentialProvider, Credentials
from rig.process import BUILD
from rig.security import (ACCESS_KEY, ASSUMERS, SECRET_KEY, SESSION_TOKEN,
                          AwsEndpoints)

PROBE = os.path.join(BUILD, "unit", "aws-probe")
AGENT = MSKAuthTokenProvider.__get_user_agent__()


def ours(*arguments, env=None):
    return subprocess.run([PROBE, *arguments], check=True, text=True,
                          capture_output=True,
                          env={**os.environ, **(env or {})}).stdout.strip()


@pytest.fixture
def theirs(monkeypatch):
    def make(region, seconds, access, secret, session):
        now = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        monkeypatch.setattr(botocore.auth, "get_current_datetime",
                            lambda *_: now.replace(tzinfo=None))

        class Provider(CredentialProvider):
            def load(self):
                return Credentials(access, secret, session)
        return MSKAuthTokenProvider.generate_auth_token_from_credentials_provider(
            region, Provider())
    return make


@pytest.mark.parametrize("session", [
    None, "plain", "with+some/signs==", "IQoJb3JpZ2luX2VjE" * 40],
    ids=["no-session", "plain", "signs", "long"])
@pytest.mark.parametrize("region,seconds,secret", [
    ("eu-west-1", 1767225599, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ("us-gov-east-1", 1709164800, "short"),
    ("ap-southeast-2", 4102444800, "+/=&%?" * 30)],
    ids=["europe", "government", "signs"])
def test_the_token_is_byte_for_byte_what_awss_signer_makes(
        theirs, region, seconds, secret, session):
    access = "AKIDEXAMPLE1234567890"
    token, expires_ms = theirs(region, seconds, access, secret, session)
    assert expires_ms == (seconds + 900) * 1000
    more = [session] if session else []
    assert ours("token", region, str(seconds), AGENT, access, secret,
                *more) == token
    url = base64.urlsafe_b64decode(token + "==").decode()
    assert urllib.parse.urlsplit(url).hostname == f"kafka.{region}.amazonaws.com"


NONE = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": ""}


@pytest.mark.parametrize("variable,value,url", [
    ("RELATIVE", "/v2/credentials/x", "http://169.254.170.2/v2/credentials/x"),
    ("FULL", "http://169.254.170.23/v1/credentials",
     "http://169.254.170.23/v1/credentials"),
    ("FULL", "http://[fd00:ec2::23]/v1", "http://[fd00:ec2::23]/v1"),
    ("FULL", "http://localhost:81", "http://localhost:81"),
    ("FULL", "https://any.example/x", "https://any.example/x"),
    ("FULL", "http://any.example/x", None),
    ("FULL", "http://127.0.0.1.any.example/x", None),
    ("FULL", "http://127.0.0.1:x@any.example/x", None),
    ("FULL", "file:///etc/passwd", None)])
def test_only_the_containers_own_endpoint_is_sent_its_authorization(
        variable, value, url):
    found = ours("container", env={
        **NONE, f"AWS_CONTAINER_CREDENTIALS_{variable}_URI": value})
    if url is None:
        assert "without https it must name this host" in found
    else:
        assert found == url


# ---- profiles ----

BASE = ASSUMERS["AKIABASE"][0]
KEYS = f"aws_access_key_id = AKIABASE\naws_secret_access_key = {BASE}\n"
ROLE = "role_arn = arn:aws:iam::1:role/x\n"
MIDDLE = "role_arn = arn:aws:iam::1:role/middle\n"
FINAL = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)
OWN = ("AKIABASE", BASE, "")
IDENTITY = "web_identity_token_file = {dir}/identity\nrole_session_name = me\n"

PROCESS = """#!/bin/sh
[ "$1" = "two words" ] || { echo "no such person" >&2; exit 3; }
echo '{"Version": %s, "AccessKeyId": "AKIABASE", "SecretAccessKey": "%s",
       "SessionToken": "t", "Expiration": "2099-01-01T01:00:00+01:00"}'
"""


@pytest.fixture
def aws():
    endpoints = AwsEndpoints()
    yield endpoints
    endpoints.close()


@pytest.fixture
def found(aws, tmp_path, monkeypatch):
    """found(config, credentials, variables) -> what we find, the triple of the
    credentials or the text of the refusal; and what botocore does: the triple,
    or None."""
    def find(config="", credentials="", env=None):
        for name, text, mode in (
                ("config", config, 0o600), ("credentials", credentials, 0o600),
                ("identity", "identity+token", 0o600),
                ("process", PROCESS % (1, BASE), 0o700),
                ("process2", PROCESS % (2, BASE), 0o700)):
            path = tmp_path / name
            path.write_text(text.replace("{dir}", str(tmp_path)))
            path.chmod(mode)
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {
                "AWS_CONFIG_FILE": f"{tmp_path}/config",
                "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials",
                "AWS_PROFILE": "p", "AWS_DEFAULT_REGION": "eu-west-1",
                "AWS_ENDPOINT_URL_STS": aws.url,
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url + "/",
                **(env or {})}.items():
            if value:
                monkeypatch.setenv(name, value.replace("{url}", aws.url))
        done = subprocess.run([PROBE, "credentials", "eu-west-1"], text=True,
                              capture_output=True)
        ours = (tuple(done.stdout.splitlines()[:3]) if done.returncode == 0
                else done.stdout.strip())
        try:
            c = botocore.session.Session().get_credentials().get_frozen_credentials()
            theirs = c.access_key, c.secret_key, c.token or ""
        except Exception as e:  # of whatever kind
            print(f"botocore: {e!r}")
            theirs = None
        return ours, theirs, done.stdout.splitlines()
    return find


CONTAINER = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/container",
             "AWS_CONTAINER_AUTHORIZATION_TOKEN": "container-authorization"}


@pytest.mark.parametrize("wanted, config, credentials, env", [
    (OWN, "", f"[p]\n{KEYS}", {}),
    (OWN, f"[profile p]\n{KEYS}", "", {}),
    (OWN, f"[default]\n{KEYS}", "", {"AWS_PROFILE": "default"}),
    # of two files that of the credentials counts, key by key
    (OWN, "[profile p]\naws_access_key_id=A\naws_secret_access_key=b\n",
     f"[p]\n{KEYS}", {}),
    # roles
    (FINAL, f"[profile p]\n{ROLE}source_profile = base\n", f"[base]\n{KEYS}", {}),
    (FINAL, f"[profile p]\n{ROLE}source_profile = base\n[profile base]\n{KEYS}",
     "", {}),
    (FINAL, f"[profile p]\n{ROLE}source_profile = p\n{KEYS}", "", {}),
    (FINAL, f"[profile p]\n{ROLE}source_profile = p\n", f"[p]\n{KEYS}", {}),
    (FINAL, f"[profile p]\n{ROLE}source_profile = m\n[profile m]\n{MIDDLE}"
     "source_profile = base\n", f"[base]\n{KEYS}", {}),
    # a source with keys is taken for these, whatever role it has
    (FINAL, f"[profile p]\n{ROLE}source_profile = m\n[profile m]\n{MIDDLE}"
     f"source_profile = none\n{KEYS}", "", {}),
    (FINAL, f"[profile p]\n{ROLE}{IDENTITY}", "", {}),
    (FINAL, f"[profile p]\n{ROLE}source_profile = w\n[profile w]\n{MIDDLE}"
     f"source_profile = x\n[profile x]\ncredential_process = /bin/echo "
     '\'{"Version": 1, "AccessKeyId": "AKIABASE", "SecretAccessKey": "'
     f"{BASE}\"}}'\n", "", {}),
    # programs
    (("AKIABASE", BASE, "t"),
     '[profile p]\ncredential_process = {dir}/process "two words"\n', "", {}),
    (OWN, '[profile p]\ncredential_process = /bin/false\n', f"[p]\n{KEYS}", {}),
    (("AKIABASE", BASE, "t"), '[profile p]\ncredential_process = {dir}/process '
     f"two\\ words\n{KEYS}", "", {}),
    # the chain goes on when the profile says nothing
    (FINAL, "[default]\nregion = x\n", "", {"AWS_PROFILE": "", **CONTAINER}),
    (FINAL, "[profile p]\nregion = x\n", "", CONTAINER),
])
def test_a_profile_gives_what_awss_own_code_finds(found, wanted, config, credentials,
                                                  env):
    ours, theirs, _ = found(config, credentials, env)
    assert (ours, theirs) == (wanted, wanted)


@pytest.mark.parametrize("says, config, credentials", [
    ("there is no profile p in {dir}/credentials and {dir}/config", "", ""),
    # only the file of credentials has bare names
    ("there is no profile p in", f"[p]\n{KEYS}", "[profile p]\n{KEYS}"),
    ("has no access key, or no secret key", "", "[p]\naws_access_key_id = A\n"),
    ("role_arn of profile p needs source_profile or credential_source",
     f"[profile p]\n{ROLE}", ""),
    ("role_arn of profile p needs source_profile or credential_source, not both",
     f"[profile p]\n{ROLE}source_profile = b\ncredential_source = Environment\n",
     f"[b]\n{KEYS}"),
    ("source_profile = none of profile p: there is no such profile",
     f"[profile p]\n{ROLE}source_profile = none\n", ""),
    ("source_profile = b of profile p has no aws_access_key_id",
     f"[profile p]\n{ROLE}source_profile = b\n[profile b]\nregion = x\n", ""),
    ("source_profile = p of profile p: it leads back",
     f"[profile p]\n{ROLE}source_profile = p\n", ""),
    ("source_profile = p of profile b: it leads back",
     f"[profile p]\n{ROLE}source_profile = b\n[profile b]\n{MIDDLE}"
     "source_profile = p\n", ""),
    ("credential_source = Nowhere of profile p: it must be Environment",
     f"[profile p]\n{ROLE}credential_source = Nowhere\n", ""),
    ("credential_source = EcsContainer of profile p: there are none",
     f"[profile p]\n{ROLE}credential_source = EcsContainer\n", ""),
    ("mfa_serial of profile p is not supported",
     f"[profile p]\n{ROLE}source_profile = b\nmfa_serial = arn:x\n",
     f"[b]\n{KEYS}"),
    ("HTTP status 403", f"[profile p]\n{ROLE}source_profile = b\n",
     "[b]\naws_access_key_id = AKIABASE\naws_secret_access_key = other\n"),
    ("HTTP status 403", "[profile p]\nrole_arn = arn:aws:iam::1:role/no\n"
     "source_profile = b\n", f"[b]\n{KEYS}"),
    ("credential_process of profile p: {dir}/process ended with status 3: no such "
     "person", "[profile p]\ncredential_process = {dir}/process one two\n", ""),
    ("credential_process of profile p has not printed a JSON object with",
     "[profile p]\ncredential_process = {dir}/process2 'two words'\n", ""),
    ("credential_process of profile p has not printed a JSON object with",
     "[profile p]\ncredential_process = /bin/echo 1\n", ""),
    ("credential_process of profile p: a quote has no end",
     "[profile p]\ncredential_process = /bin/echo 'x\n", ""),
    ("/nonexistent cannot be started",
     "[profile p]\ncredential_process = /nonexistent\n", ""),
    ("/nonexistent, No such file",
     f"[profile p]\n{ROLE}web_identity_token_file = /nonexistent\n", ""),
])
def test_a_profile_that_gives_none_is_told(found, tmp_path, says, config, credentials):
    ours, theirs, _ = found(config, credentials)
    assert theirs is None
    assert ours.startswith("AWS credentials (profile): ")
    assert says.replace("{dir}", str(tmp_path)) in ours
    assert BASE not in ours


@pytest.mark.parametrize("key", ["sso_session", "sso_start_url", "sso_account_id",
                                 "login_session"])
def test_a_login_is_refused_with_its_key_and_a_way_out(found, key):
    """AWS's own code would take what somebody's login has left in a cache."""
    for config in (f"[profile p]\n{key} = x\n",
                   f"[profile p]\n{ROLE}source_profile = b\n[profile b]\n"
                   f"{key} = x\n"):
        ours, _, _ = found(config)
        assert f"{key} of profile " in ours and "export-credentials" in ours
    assert found(f"[profile p]\n{ROLE}source_profile = b\n{key} = x\n",
                 f"[b]\n{KEYS}")[0] == FINAL


@pytest.mark.parametrize("value", ["899", "43201", "1h", ""])
def test_a_duration_out_of_range_is_refused(found, value):
    """AWS's own code lets the service refuse it."""
    ours, _, _ = found(f"[profile p]\n{ROLE}source_profile = b\n"
                       f"duration_seconds = {value}\n", f"[b]\n{KEYS}")
    assert f"duration_seconds = {value} of profile p: it must be from 900" in ours


@pytest.mark.parametrize("source", ["Ec2InstanceMetadata", "EcsContainer"])
def test_credentials_of_the_host_assume_a_role(found, monkeypatch, source):
    monkeypatch.setitem(ASSUMERS, ACCESS_KEY, (SECRET_KEY, SESSION_TOKEN))
    env = CONTAINER if source == "EcsContainer" else {}
    config = f"[profile p]\n{MIDDLE}credential_source = {source}\n"
    ours, theirs, _ = found(config, env=env)
    assert ours == theirs == ("ASIAMIDDLE", *ASSUMERS["ASIAMIDDLE"])


def test_the_environments_credentials_assume_a_role(found):
    """Where they do not come first themselves."""
    env = {"AWS_ACCESS_KEY_ID": "AKIABASE", "AWS_SECRET_ACCESS_KEY": BASE}
    config = f"[profile p]\n{ROLE}credential_source = Environment\n"
    assert found(config, env=env)[0] == OWN
    done = subprocess.run([PROBE, "credentials", "eu-west-1", "profile"], text=True,
                          capture_output=True)
    assert tuple(done.stdout.splitlines()[:3]) == FINAL


def test_what_a_role_is_asked_with(found, aws):
    ours, theirs, lines = found(
        f"[profile p]\n{ROLE}source_profile = b\nexternal_id = a&b\n"
        "role_session_name = me\nduration_seconds = 1800\n", f"[b]\n{KEYS}")
    assert ours == theirs == FINAL
    mine, botocores = aws.forms
    assert mine == botocores == {
        "Action": "AssumeRole", "Version": "2011-06-15", "ExternalId": "a&b",
        "RoleArn": "arn:aws:iam::1:role/x", "RoleSessionName": "me",
        "DurationSeconds": "1800"}
    assert abs(int(lines[3]) - time.time() - 3600) < 60


def test_a_programs_credentials_expire_when_it_says(found):
    _, _, lines = found("[profile p]\ncredential_process = {dir}/process "
                        "'two words'\n")
    assert int(lines[3]) == calendar.timegm((2099, 1, 1, 0, 0, 0))
