"""Each kafkaAuthType, as the deployments give it, reaches a real broker's
listener, and what is captured is in the topic."""

import pytest

from path.session import Session, assert_captured, settled
from rig.security import ACCESS_KEY, PASSWORDS, SECRET_KEY, SESSION_TOKEN


@pytest.fixture
def authenticated(launcher, source, secure_broker, workdir):
    """Starts it with the property file of the Kubernetes workflow, sends a
    request, and looks into the topic."""
    def run(listener, *args, env=None):
        topic = f"launcher-{listener}-{len(args)}"
        secure_broker.create_topic(topic, 2)
        with open(f"{workdir}/client.properties", "w") as f:
            f.write("ssl.truststore.type=PEM\nssl.truststore.location="
                    f"{secure_broker.authority.crt}\n")
        l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                     "--kafkaConnection", secure_broker.at(listener),
                     "--kafkaTopic", topic, "--kafkaPropertyFile",
                     f"{workdir}/client.properties", *args, env=env)
        l.wait_linked()
        with Session(l) as c:
            c.request("POST", "/_bulk", body=b"{}\n")
            status = l.wait_for_status(settled(1), 30)
            assert status["total"]["captured"] == 1, l.log_text()
        assert l.stop() == 0, l.log_text()
        assert_captured(secure_broker.read_topic(topic), [c])
    return run


def test_scram_sha_512(authenticated):
    authenticated("SCRAM", "--kafkaAuthType", "scram-sha-512", "--kafkaUserName",
                  "scram512",
                  env={"CAPTURE_PROXY_KAFKA_PASSWORD": PASSWORDS["scram512"]})


def test_ssl(authenticated):
    authenticated("TLS", "--kafkaAuthType", "ssl")


@pytest.mark.parametrize("flags", [["--enableMSKAuth"],
                                   ["--kafkaAuthType", "msk-iam"]])
def test_msk_iam(authenticated, flags):
    authenticated("MSK", *flags, env={
        "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN})
