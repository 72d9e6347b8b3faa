"""A broker with a listener for each way to authenticate, and what they need:
a certificate authority, an issuer of tokens, AWS's endpoints for credentials."""

import base64
import http.server
import json
import os
import re
import subprocess
import threading
import time
import urllib.parse

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .kafka import KafkaBroker
from .process import TOP

PASSWORDS = {"plain": "plain-5ecret-word", "scram256": "scram256-5ecret-word",
             "scram512": "scram512-5ecret-word", "four": "four-5ecret-word"}
ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "aws/5ecret+key/of/the/tests/0123456789ABCD"
SESSION_TOKEN = "aws+5ecret/session=token//of+the+tests=="
CLIENT_SECRET = "oidc-5ecret-word"

# who may assume what: access key -> (secret key, session token)
ASSUMERS = {"AKIABASE": ("base/5ecret+key", None),
            "ASIAMIDDLE": ("middle/5ecret+key", "middle+5ecret/session==")}

# what must never be seen outside
SECRETS = (*PASSWORDS.values(), SECRET_KEY, SESSION_TOKEN, CLIENT_SECRET,
           *(word for words in ASSUMERS.values() for word in words if word))


def openssl(*arguments, stdin=None):
    return subprocess.run(["openssl", *arguments], input=stdin, check=True,
                          capture_output=True).stdout


def self_signed(directory, name, alternatives, days=30):
    """(certificate, key): files; `alternatives` as in subjectAltName."""
    crt, key = (os.path.join(directory, f"{name}.{kind}") for kind in ("crt", "key"))
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", str(days), "-subj", f"/CN={name}", "-addext",
            f"subjectAltName={alternatives}", "-keyout", key, "-out", crt)
    return crt, key


class Authority:
    """A certificate authority; key and certificate of each name are PEM files."""

    def __init__(self, directory):
        self.directory = directory
        self.crt = self._path("ca.crt")
        self._key("ca")
        openssl("req", "-x509", "-new", "-key", self._path("ca.key"), "-days",
                "30", "-subj", "/CN=test authority", "-addext",
                "keyUsage=critical,keyCertSign", "-out", self.crt)

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _key(self, name):
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt",
                "ec_paramgen_curve:prime256v1", "-out", self._path(f"{name}.key"))

    def issue(self, name, alternatives="DNS:none", days=30):
        """(certificate, key); `alternatives` as in subjectAltName."""
        self._key(name)
        crt, key = self._path(f"{name}.crt"), self._path(f"{name}.key")
        request = openssl("req", "-new", "-key", key, "-subj", f"/CN={name}")
        with open(self._path(f"{name}.ext"), "w") as f:
            f.write(f"subjectAltName={alternatives}\n"
                    "authorityKeyIdentifier=keyid\n")
        openssl("x509", "-req", "-CA", self.crt, "-CAkey", self._path("ca.key"),
                "-CAcreateserial", "-days", str(days), "-extfile",
                self._path(f"{name}.ext"), "-out", crt, stdin=request)
        return crt, key

    def keystore(self, name, *arguments):
        """Both in one file, as the broker takes them."""
        store = self._path(f"{name}.pem")
        with open(store, "w") as out:
            for part in reversed(self.issue(name, *arguments)):
                with open(part) as f:
                    out.write(f.read())
        return store


class Server:
    """HTTP on a free port: requests go to answer(method, path, headers, body),
    which returns (status, body)."""

    def __init__(self, answer):
        self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do(handler):
                length = int(handler.headers.get("Content-Length") or 0)
                body = handler.rfile.read(length).decode()
                self.requests.append((handler.command, handler.path,
                                      dict(handler.headers), body))
                status, text = answer(*self.requests[-1])
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(text)))
                handler.end_headers()
                handler.wfile.write(text.encode())
            do_GET = do_POST = do_PUT = do

            def log_message(handler, *_):
                pass
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def base64url(data):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Issuer(Server):
    """An OIDC provider for the client credentials grant, with RS256 tokens."""

    def __init__(self, directory):
        super().__init__(self._answer)
        self.key = os.path.join(directory, "issuer.key")
        self.jwks = os.path.join(directory, "jwks.json")
        self.lifetime = 3600
        self.answers = None  # else (status, body)
        openssl("genrsa", "-out", self.key, "2048")
        modulus = openssl("rsa", "-in", self.key, "-noout", "-modulus")
        with open(self.jwks, "w") as f:
            json.dump({"keys": [{
                "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k1",
                "e": "AQAB", "n": base64url(bytes.fromhex(
                    modulus.decode().strip().partition("=")[2]))}]}, f)

    def token(self, lifetime=None, subject="oidc"):
        now = int(time.time())
        claims = {"sub": subject, "iss": "https://issuer.test", "aud": "kafka",
                  "iat": now, "exp": now + (lifetime or self.lifetime)}
        signed = f"{base64url({'alg': 'RS256', 'kid': 'k1'})}.{base64url(claims)}"
        signature = openssl("dgst", "-sha256", "-sign", self.key,
                            stdin=signed.encode())
        return f"{signed}.{base64url(signature)}"

    def _answer(self, method, path, headers, body):
        if self.answers:
            return self.answers
        basic = base64.b64encode(f"capture:{CLIENT_SECRET}".encode()).decode()
        if headers.get("Authorization") != f"Basic {basic}":
            return 401, '{"error":"invalid_client"}'
        return 200, json.dumps({"access_token": self.token(),
                                "token_type": "Bearer",
                                "expires_in": self.lifetime})


class AwsEndpoints(Server):
    """EC2's metadata, a container's endpoint, and the security token service."""

    def __init__(self):
        super().__init__(self._answer)
        self.lifetime = 3600
        self.forms = []

    def _answer(self, method, path, headers, body):
        headers = {name.lower(): value for name, value in headers.items()}
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ",
                                time.gmtime(time.time() + self.lifetime))
        found = json.dumps({
            "Code": "Success", "AccessKeyId": ACCESS_KEY, "Token": SESSION_TOKEN,
            "SecretAccessKey": SECRET_KEY, "Expiration": expires})
        roles = "/latest/meta-data/iam/security-credentials/"
        if (method, path) == ("PUT", "/latest/api/token"):
            ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds")
            return (200, "metadata-session") if ttl else (400, "")
        if path.startswith("/latest/"):
            if headers.get("x-aws-ec2-metadata-token") != "metadata-session":
                return 401, ""
            return {roles: (200, "a-role"), roles + "a-role": (200, found)}.get(
                path, (404, ""))
        if path == "/container":
            right = headers.get("authorization") == "container-authorization"
            return (200, found) if right else (401, "")
        form = dict(urllib.parse.parse_qsl(body))
        self.forms.append(form)
        action, role = form.get("Action"), form.get("RoleArn")
        if path == "/" and form == {
                "Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15",
                "RoleArn": "arn:aws:iam::1:role/x", "RoleSessionName": "me",
                "WebIdentityToken": "identity+token"}:
            return 200, assumed(action, ACCESS_KEY, SECRET_KEY, SESSION_TOKEN,
                                expires)
        if path == "/" and action == "AssumeRole":
            by = signer(f"{self.url}/", headers, body)
            if by is None:
                return 403, "<Code>SignatureDoesNotMatch</Code>"
            if role == "arn:aws:iam::1:role/middle":
                return 200, assumed(action, "ASIAMIDDLE", *ASSUMERS["ASIAMIDDLE"],
                                    expires)
            if role == "arn:aws:iam::1:role/x":
                return 200, assumed(action, ACCESS_KEY, SECRET_KEY, SESSION_TOKEN,
                                    expires)
            return 403, "<Code>AccessDenied</Code>"
        return 404, ""


def assumed(action, access, secret, session, expires):
    """What the security token service answers with."""
    return (f"<{action}Response><{action}Result><Credentials>"
            f"<AccessKeyId>{access}</AccessKeyId>"
            f"<SecretAccessKey>{secret}</SecretAccessKey>"
            f"<SessionToken>{session}</SessionToken>"
            f"<Expiration>{expires}</Expiration></Credentials>"
            "<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/x/s</Arn>"
            "<AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser>"
            f"</{action}Result></{action}Response>")


def signer(url, headers, body):
    """The access key with which a request is signed, if it is, and rightly: by
    AWS's own code. Names of headers in small letters."""
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([\w-]+)/sts/aws4_request, "
        r"SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})",
        headers.get("authorization") or "")
    if not found or found[1] not in ASSUMERS:
        return None
    access, day, region, names, signature = found.groups()
    secret, session = ASSUMERS[access]
    if headers.get("x-amz-security-token") != session:
        return None
    signed = {name: headers[name] for name in names.split(";") if name != "host"}
    request = AWSRequest("POST", url, data=body, headers=signed)
    request.context["timestamp"] = headers["x-amz-date"]
    assert headers["x-amz-date"].startswith(day)
    auth = SigV4Auth(Credentials(access, secret, session), "sts", region)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return access if auth.signature(text, request) == signature else None


def compile_validator(directory):
    jars = os.path.join(TOP, "build", "kafka", "*")
    source = os.path.join(TOP, "t", "rig", "java", "MskValidator.java")
    subprocess.run(["javac", "-cp", jars, "-d", directory, source], check=True,
                   capture_output=True)
    return directory


OAUTH = "org.apache.kafka.common.security.oauthbearer."


class SecureBroker(KafkaBroker):
    """Listeners TLS, WRONG (a certificate of another name), MTLS, SASLPLAIN,
    SCRAM, OIDC and MSK; all principals may do everything, except `four`."""

    def __init__(self, directory):
        os.makedirs(directory)
        self.authority = Authority(directory)
        self.issuer = Issuer(directory)
        credentials = os.path.join(directory, "msk.properties")
        with open(credentials, "w") as f:
            f.write(f"access={ACCESS_KEY}\nsecret={SECRET_KEY}\n"
                    f"session={SESSION_TOKEN}\n")
        logins = "".join(f' user_{u}="{PASSWORDS[u]}"' for u in ("plain",))
        bearer = (OAUTH + 'OAuthBearerLoginModule required '
                  'unsecuredLoginStringClaim_sub="broker";')
        p = {
            "authorizer.class.name":
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": ";".join(f"User:{u}" for u in (
                "ANONYMOUS", "CN=client", "plain", "scram256", "scram512",
                "oidc", ACCESS_KEY)),
            "ssl.keystore.type": "PEM", "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.crt,
            "ssl.keystore.location": self.authority.keystore(
                "broker", "DNS:localhost,IP:127.0.0.1"),
            "listener.name.wrong.ssl.keystore.type": "PEM",
            "listener.name.wrong.ssl.keystore.location":
                self.authority.keystore("other", "DNS:other.test"),
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.saslplain.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.saslplain.plain.sasl.jaas.config":
                "org.apache.kafka.common.security.plain.PlainLoginModule "
                f"required{logins};",
            "listener.name.scram.sasl.enabled.mechanisms":
                "SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.oidc.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oidc.oauthbearer.sasl.jaas.config": bearer,
            "listener.name.oidc.oauthbearer.sasl.server.callback.handler.class":
                OAUTH + "OAuthBearerValidatorCallbackHandler",
            # the default of Kafka 4.1 looks at no signature
            "sasl.oauthbearer.jwt.validator.class": OAUTH + "BrokerJwtValidator",
            "sasl.oauthbearer.jwks.endpoint.url":
                f"file://{self.issuer.jwks}",
            "sasl.oauthbearer.expected.audience": "kafka",
            "sasl.oauthbearer.expected.issuer":
                "https://issuer.test",
            "listener.name.oidc.oauthbearer.connections.max.reauth.ms": "3600000",
            "listener.name.msk.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.msk.oauthbearer.sasl.jaas.config": bearer,
            "listener.name.msk.oauthbearer.sasl.server.callback.handler.class":
                "MskValidator",
            # a session ends soon, unless it authenticates again
            "listener.name.msk.oauthbearer.connections.max.reauth.ms": "3000",
        }
        for mechanism in ("256", "512"):
            p[f"listener.name.scram.scram-sha-{mechanism}.sasl.jaas.config"] = (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;")
        super().__init__(
            directory, auto_create=True, properties=p,
            listeners={"TLS": "SSL", "WRONG": "SSL", "MTLS": "SSL",
                       "SASLPLAIN": "SASL_SSL", "SCRAM": "SASL_SSL",
                       "OIDC": "SASL_SSL", "MSK": "SASL_SSL"},
            scram={("SCRAM-SHA-256", "scram256"): PASSWORDS["scram256"],
                   ("SCRAM-SHA-512", "scram512"): PASSWORDS["scram512"],
                   ("SCRAM-SHA-512", "four"): PASSWORDS["four"]},
            classpath=compile_validator(directory),
            defines={"org.apache.kafka.sasl.oauthbearer.allowed.urls":
                         f"file://{self.issuer.jwks}",
                     "msk.credentials": credentials})

    def set_password(self, user, password):
        """Of a SCRAM-SHA-512 user, while it runs."""
        from confluent_kafka.admin import (
            ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion)
        change = UserScramCredentialUpsertion(
            user, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096),
            password.encode())
        for future in self.admin.alter_user_scram_credentials([change]).values():
            future.result(30)

    def kill(self):
        super().kill()
        self.issuer.close()
