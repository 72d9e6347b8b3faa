"""A module and a sidecar of different releases, as in the middle of an upgrade:
both say so, nobody waits, and what comes meanwhile is counted."""

import os
import re
import shutil
import subprocess

import pytest

from path.session import Session, assert_balanced, lost, settled
from rig import nginx as rig_nginx
from rig.process import SANITIZED, TOP
from rig.status import wait_until

pytestmark = [pytest.mark.skipif(SANITIZED, reason="builds another module"),
              pytest.mark.timeout(600)]

LAYOUT = os.path.join("wire", "layout.h")


@pytest.fixture
def module_of(tmp_path):
    """Builds the module with the link's version changed by a number."""
    def build(change):
        tree = tmp_path / "tree"
        for name in ["config", "Makefile", "ngx_http_capture_module.c"]:
            tree.mkdir(exist_ok=True)
            shutil.copy(os.path.join(TOP, name), tree)
        for name in ["module", "wire", "proto", "script", "sidecar"]:
            shutil.copytree(os.path.join(TOP, name), tree / name)
        text = (tree / LAYOUT).read_text()
        found = re.search(r"#define CAP_WIRE_VERSION (\d+)u", text)
        ours = int(found[1])
        (tree / LAYOUT).write_text(text.replace(
            found[0], f"#define CAP_WIRE_VERSION {ours + change}u"))
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        subprocess.run(["make", "-s", "-C", str(tree), "module"], check=True,
                       capture_output=True, env=env, timeout=500)
        return str(tree / "build/ngx_http_capture_module.so"), ours
    return build


@pytest.mark.parametrize("change", [
    pytest.param(-1, id="old module, new sidecar"),
    pytest.param(1, id="new module, old sidecar", marks=pytest.mark.long)])
def test_versions_that_do_not_fit(stack, module_of, monkeypatch, change):
    module, ours = module_of(change)
    with monkeypatch.context() as m:
        m.setattr(rig_nginx, "MODULE", module)
        s = stack(start_sidecar=False)
        s.sidecar.start()
        said = (f"the worker's module speaks version {ours + change} of the "
                f"link, this sidecar version {ours}")
        wait_until(lambda: said in s.nginx.error_log(), 30, "the worker's line")
        wait_until(lambda: said in s.sidecar.log_text(), 30,
                   "the sidecar's line")
        with Session(s) as c:
            assert c.request("POST", "/", body=b"x").status == 200
            status = assert_balanced(s.wait_for_status(settled(1)))
        assert status["total"]["lost"]["unlinked"] == lost(status) == 1
    assert s.drain() == []
