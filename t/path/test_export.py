"""The file export is a second copy of the topic, or the only one."""

import base64
import glob
import os
import subprocess

import pytest

from refconsumer.lines import records_of_lines
from rig.process import BUILD

from path.session import Session, assert_captured, settled

CAPTURECTL = os.path.join(BUILD, "capturectl")


def exported(directory):
    lines = []
    for path in sorted(glob.glob(f"{directory}/*")):
        with open(path) as f:
            lines += f.read().splitlines()
    return lines


def exchange_some(s):
    with Session(s) as c:
        c.request("PUT", "/a", body=b"x" * 1000)
        c.request("GET", "/a")
        s.wait_for_status(settled)
    return c


def test_the_export_has_what_the_topic_has(stack, workdir):
    directory = os.path.join(workdir, "export")
    s = stack(sidecar_conf={"export.path": directory})
    session = exchange_some(s)
    records = s.drain()
    assert_captured(records, [session])
    assert sorted(exported(directory)) == sorted(
        f"{r.key.decode()}|{base64.b64encode(r.value).decode()}" for r in records)


@pytest.mark.parametrize("form", ["lines", "protocap"])
def test_capturectl_reads_the_export(stack, workdir, form):
    directory = os.path.join(workdir, "export")
    s = stack(sidecar_conf={"export.path": directory, "export.format": form})
    exchange_some(s)
    s.drain()
    files = sorted(glob.glob(f"{directory}/*"))
    out = subprocess.run([CAPTURECTL, "http", "-q", *files], check=True,
                         capture_output=True, text=True).stdout
    assert '"PUT /a HTTP/1.1"' in out and '"GET /a HTTP/1.1"' in out, out


def test_without_a_broker_the_export_is_the_destination(stack, workdir):
    """Its records are acknowledged, so that exchanges become captured."""
    directory = os.path.join(workdir, "export")
    s = stack(sidecar_conf={"export.path": directory})
    del s.sidecar.conf["kafka.bootstrap.servers"]
    s.nginx.stop(graceful=True)
    assert s.sidecar.stop() == 0
    for path in glob.glob(f"{directory}/*"):
        os.unlink(path)
    s.start()
    session = exchange_some(s)
    assert s.drain() == []
    assert_captured(records_of_lines(exported(directory)), [session])
