"""sidecar/aws_sigv4.c against AWS's own signer, under a fixed clock."""

import base64
import datetime
import os
import subprocess
import urllib.parse

import botocore.auth
import pytest
from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
from botocore.credentials import CredentialProvider, Credentials
from rig.process import BUILD

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
