"""What a pod of deploy/kubernetes runs beside the images: NGINX and the sidecar with
its two files, as they stand but for addresses and directories."""

import functools
import os
import re

import pytest

from path.session import Session, assert_balanced, assert_captured, settled
from path.test_conf_examples import Example, example, keys_of  # noqa: F401
from rig.process import TOP, free_port
from rig.sidecar import Sidecar
from rig.source import pattern

KUBERNETES = "../deploy/kubernetes"
# what the images do without them
OWN = r"^ *(pid|\w+_temp_path) .*\n"


class Pod(Example):
    def __init__(self, workdir, name, listen, broker, topic, places, directory):
        super().__init__(workdir, name, listen, broker, topic, places)
        self.text = re.sub(OWN, "", self.text, flags=re.M)
        with open(os.path.join(TOP, "conf", KUBERNETES, directory,
                               "capture-sidecar.conf")) as f:
            said = keys_of(f.read())
        here = {"listen": f"unix:{workdir}/sock",
                "kafka.bootstrap.servers": broker.bootstrap,
                "metrics.listen": f"127.0.0.1:{free_port()}"}
        if "spool.path" in said:
            here |= {"spool.path": f"{workdir}/spool", "spool.size": "64m"}
        assert set(here) <= set(said), said
        self.sidecar = Sidecar(workdir, {**said, **here, "topic": topic})


@pytest.mark.parametrize("directory", ["sidecar", "sidecar-spool"])
def test_the_pods_two_files_capture(example, source, workdir, directory):  # noqa: F811
    p = example(f"{KUBERNETES}/sidecar/nginx.conf", "9200",
                {"server source:9200": f"server 127.0.0.1:{source.port}"},
                kind=functools.partial(Pod, directory=directory))
    with Session(p) as c:
        assert c.request("GET", "/").status == 200
        assert c.request("POST", "/_bulk", body=pattern(2_000_000)).status == 200
        with p.client() as probe:         # of the kubelet: not the source's, nor ours
            assert probe.request("GET", "/healthz").body == b"ok\n"
        s = assert_balanced(p.wait_for_status(settled(2)))
    assert s["total"]["captured"] == 2, s["total"]
    assert [r.target for r in source.requests] == ["/", "/_bulk"]
    assert os.path.exists(f"{workdir}/spool") == (directory == "sidecar-spool")
    assert_captured(p.records(), [c])
