"""What README calls "not built yet" is refused in these words, and never taken
for granted by somebody who configures it."""

import pytest

from rig.sidecar import check


@pytest.mark.parametrize("key,value", [
    ("durability", "disk")])
def test_the_sidecar_refuses_durability_by_the_disk(workdir, key, value):
    rc, err = check(workdir, {"listen": "unix:/tmp/none",
                              "kafka.bootstrap.servers": "127.0.0.1:9092",
                              key: value})
    assert rc != 0
    assert "not built yet" in err, err
