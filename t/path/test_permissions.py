"""Who may speak to the sidecar: NGINX's workers under another user than its own.
A worker that is kept out serves all the same, and says why it does not capture."""

import os

import pytest
from rig import nginx as rig_nginx
from rig.status import wait_until

from path.session import (Session, assert_balanced, assert_captured, lost,
                          settled)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to be another user")


@pytest.fixture
def workers_as_www_data(monkeypatch, workdir):
    render = rig_nginx.render

    def changed(*args, **snippets):
        return render(*args, **snippets).replace("user root;", "user www-data;")
    monkeypatch.setattr(rig_nginx, "render", changed)
    os.chmod(workdir, 0o755)


@pytest.mark.parametrize("conf", [
    {"listen.group": "www-data"},
    {"listen.owner": "www-data", "listen.mode": "0600"},
    {"listen.mode": "0666", "listen.allowed_uids": "root, www-data"}])
def test_workers_of_the_named_user_are_let_in(
        stack, workers_as_www_data, conf):
    s = stack(sidecar_conf=conf)
    with Session(s) as c:
        c.request("POST", "/", body=b"x")
        assert_balanced(s.wait_for_status(settled(1)))
    assert_captured(s.drain(), [c])


@pytest.mark.parametrize("conf,says", [
    ({}, "Permission denied"),
    ({"listen.mode": "0666", "listen.allowed_uids": "root"},
     "not allowed (listen.allowed_uids)")])
def test_workers_of_another_user_are_kept_out_and_serve(
        stack, workers_as_www_data, conf, says):
    s = stack(start_sidecar=False, sidecar_conf=conf)
    s.sidecar.start()
    wait_until(lambda: says in s.nginx.error_log(), 15, f"{says} in error.log")
    with Session(s) as c:
        assert c.request("GET", "/").status == 200
        status = assert_balanced(s.wait_for_status(settled(1)))
    assert status["total"]["lost"]["unlinked"] == lost(status) == 1
    assert s.drain() == []
