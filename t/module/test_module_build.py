"""Builds that do not fit, and a module that has nothing to do."""

import os
import re
import subprocess

import pytest

from path.fidelity import row
from rig import nginx as rig_nginx
from rig.client import Client
from rig.client2 import Client2
from rig.nginx import has_http3, http2
from rig.process import SANITIZED, TOP, free_port
from rig.source import Response, pattern

SRC = "/usr/share/nginx/src"
TOLD = "ngx_http_capture_module was built without HTTP/2 (--with-http_v2_module)"


@pytest.fixture
def poor_module(tmp_path):
    """A module that was built for this NGINX, but without HTTP/2 and HTTP/3."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    subprocess.run(
        ["make", "-s", "-C", TOP, "module", f"BUILD={tmp_path}", f"NGINX_SRC={SRC}",
         "NGINX_CONFIGURE=--with-compat --with-threads"],
        check=True, capture_output=True, env=env, timeout=500)
    return str(tmp_path / "ngx_http_capture_module.so")


@row("HTTP/2 and HTTP/3 where the module was built without them", ends="unsupported",
     section="Not captured, or not wholly",
     limits="said once, when the configuration is read")
@pytest.mark.timeout(600)          # it compiles
@pytest.mark.skipif(SANITIZED or not os.path.exists(SRC),
                    reason="for the installed NGINX and its headers")
def test_a_build_without_http2_and_3_says_so_once_and_counts(
        rig, poor_module, monkeypatch, certificate):
    monkeypatch.setattr(rig_nginx, "MODULE", poor_module)
    port, port3 = free_port(), free_port()
    quic = (f"listen 127.0.0.1:{port3} quic; ssl_certificate {certificate[0]};"
            f"ssl_certificate_key {certificate[1]};" if has_http3() else "")
    r = rig(server=http2(port) + quic)
    with Client2(port) as two, r.client() as one:
        for _ in range(3):
            assert two.request("POST", "/", [], b"abc").status == 200
        assert one.request("GET", "/").status == 200
    if quic:
        from rig.client3 import Client3
        with Client3(port3, certificate[0]) as three:
            assert three.request("POST", "/", [], b"abc").status == 200
    r.exchanges(1)
    n = 3 + bool(quic)
    r.total(seen=n + 1, captured=1, unsupported=n)
    log = r.nginx.error_log()
    line, = [x for x in log.splitlines() if "was built without" in x]
    assert "[warn]" in line and TOLD in line
    assert (" and HTTP/3 (--with-http_v3_module)" in line) == bool(quic)
    assert "not captured by this build" not in log


def test_a_build_that_fits_says_nothing(rig):
    r = rig()
    assert "was built without" not in r.nginx.error_log()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_loaded_and_off_nginx_answers_as_without_it(nginx, source, certificate,
                                                    version):
    """Byte for byte, but for the date."""
    if version == 3 and not has_http3():
        pytest.skip("this NGINX has no HTTP/3: script/test-versions")
    source.answer = lambda q: Response(
        201, "Made", [("X", q.method)], body=pattern(100_000, 2),
        chunked=(999,) if q.target == "/chunked" else None)

    def answers(**options):
        port = free_port()
        server = {1: f"listen 127.0.0.1:{port};", 2: http2(port),
                  3: f"listen 127.0.0.1:{port} quic;"
                     f"ssl_certificate {certificate[0]};"
                     f"ssl_certificate_key {certificate[1]};"}[version]
        n = nginx(server=server + "location / { proxy_http_version 1.1;"
                  f"proxy_pass http://127.0.0.1:{source.port}; }}", **options)
        if version == 1:
            c = Client(port)
        elif version == 2:
            c = Client2(port)
        else:
            from rig.client3 import Client3
            c = Client3(port, certificate[0])
        with c:
            got = [c.request("GET", "/"), c.request("GET", "/chunked"),
                   c.request("HEAD", "/"), c.request("DELETE", "/x?y"),
                   c.request("POST", "/", body=b"abc")]
        assert "capture" not in n.error_log()
        assert n.stop() == 0
        return [(re.sub(rb"(?i)\r\ndate: [^\r]*", b"", x.head), bytes(x.body))
                for x in got]
    without = answers(module=False)
    assert answers() == without
    assert answers(http="capture off;") == without
