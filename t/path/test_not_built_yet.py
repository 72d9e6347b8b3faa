"""What README calls "not built yet" is refused in these words, and never taken
for granted by somebody who configures it."""

import pytest

from rig.sidecar import check

SERVER = """
    location / {
        capture on;
        proxy_pass http://127.0.0.1:1;
    }
"""


def test_nginx_refuses_capture_include_not_forwarded(check_config):
    rc, err = check_config(http="capture_sidecar unix:/tmp/none;",
                           server="capture_include not_forwarded;" + SERVER)
    assert rc != 0
    assert "not_forwarded" in err, err


@pytest.mark.parametrize("key,value", [
    ("durability", "disk")])
def test_the_sidecar_refuses_durability_by_the_disk(workdir, key, value):
    rc, err = check(workdir, {"listen": "unix:/tmp/none",
                              "kafka.bootstrap.servers": "127.0.0.1:9092",
                              key: value})
    assert rc != 0
    assert "not built yet" in err, err
