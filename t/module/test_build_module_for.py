"""script/build-module-for: the module for the NGINX of somebody else."""

import functools
import http.server
import os
import shutil
import struct
import subprocess
import tarfile
import threading

import pytest

from rig.nginx import BINARY, MODULE, build, check_config, version
from rig.process import SANITIZED, TOP

SCRIPT = os.path.join(TOP, "script", "build-module-for")
SRC = "/usr/share/nginx/src"
VERSION = ".".join(map(str, version()))

pytestmark = pytest.mark.skipif(
    SANITIZED or not os.path.exists(SRC),
    reason="for the installed NGINX and its headers")


def build_for(*args, told=None, headers=SRC):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run([SCRIPT, *args], capture_output=True, text=True,
                          input=told or "", timeout=500,
                          env={**env, "NGINX_DEV_SRC": headers})
    return done.returncode, done.stdout, done.stderr


def says_in_one_line(wanted, *args, **more):
    rc, _, err = build_for(*args, **more)
    assert rc == 1 and wanted in err, err
    assert err.count("\n") == 1, err


@pytest.fixture
def another_version(tmp_path):
    """NGINX's source as if it were of another version."""
    shutil.copytree(SRC, tmp_path / "src", symlinks=True)
    header = tmp_path / "src/src/core/nginx.h"
    text = header.read_text()
    assert f'"{VERSION}"' in text
    header.write_text(text.replace(f'"{VERSION}"', '"1.2.3"'))
    return str(tmp_path / "src")


@pytest.fixture
def archive_by_http(tmp_path):
    """The source as nginx.org has it, by HTTP."""
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "nginx.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(SRC, arcname=f"nginx-{VERSION}")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass
    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0),
            functools.partial(Quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/nginx.tar.gz"
        server.shutdown()
        thread.join()


@pytest.mark.timeout(600)          # it compiles
@pytest.mark.parametrize("by", [
    "the binary", pytest.param("what its -V said", marks=pytest.mark.long),
    pytest.param("its version", marks=pytest.mark.long)])
def test_it_is_built_from_an_archive_and_loaded_by_the_binary(
        tmp_path, archive_by_http, workdir, by):
    """The three ways of docs/install.md to say which NGINX it is for."""
    args, told = {"the binary": ([BINARY], None),
                  "what its -V said": (["--nginx-V", "-"], build()),
                  "its version": (["--nginx-version", VERSION], None)}[by]
    rc, out, err = build_for(*args, "--source", archive_by_http,
                             "-o", str(tmp_path / "out"), told=told)
    assert rc == 0, err
    assert f"is for nginx {VERSION}: " in out and "--with-http_v2_module" in out
    module = tmp_path / "out/ngx_http_capture_module.so"
    rc, err = check_config(
        workdir, f"load_module {module};\npid {workdir}/pid;\nevents {{}}\n")
    assert rc == 0, err


def test_a_source_of_another_version_is_refused(another_version):
    says_in_one_line(f"the NGINX is {VERSION}, the source in {another_version} "
                     "is 1.2.3: give --source", BINARY, "--source",
                     another_version)


def test_the_installed_headers_are_not_taken_for_another_version(tmp_path):
    says_in_one_line("the NGINX is 1.2.3, the source in",
                     "--nginx-version", "1.2.3")
    says_in_one_line("give its source, --source nginx-1.2.3.tar.gz",
                     "--nginx-version", "1.2.3", headers=str(tmp_path))


def test_an_nginx_without_compat_is_refused():
    says_in_one_line("was built without --with-compat", "--nginx-V", "-",
                     told=f"nginx version: nginx/{VERSION}\n"
                     "configure arguments: --with-cc-opt='-g -O2' --prefix=/x\n")


@pytest.mark.parametrize("args,says", [
    (["/nonexistent/nginx"], "is not there"),
    (["--nginx-V", "-"], "is empty"),
    (["--source", "/"], "which NGINX?"),
    (["--nginx-version", "1.2.3", "--source", "/etc"], "not NGINX's source"),
    (["--nginx-version"], "wants a value"),
    (["--what"], "unknown option")])
def test_mistakes_are_named(args, says):
    says_in_one_line(says, *args)


def test_nginx_names_both_versions_when_the_module_is_for_another(workdir):
    """Whoever copies the wrong file gets one line, of NGINX itself."""
    number = int("%d%03d%03d" % version())
    with open(MODULE, "rb") as f:
        code = f.read()
    assert struct.pack("<I", number) in code
    wrong = f"{workdir}/ngx_http_capture_module.so"
    with open(wrong, "wb") as f:
        f.write(code.replace(struct.pack("<I", number),
                             struct.pack("<I", number + 1000)))
    rc, err = check_config(
        workdir, f"load_module {wrong};\npid {workdir}/pid;\nevents {{}}\n")
    assert rc != 0
    assert f'module "{wrong}" version {number + 1000} instead of {number}' in err
