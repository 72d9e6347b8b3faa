"""What conf/ shows to users is what NGINX and the sidecar accept: an example
that does not start is worse than none."""

import os
import re
import subprocess

import pytest

from rig.nginx import MODULE, check_config
from rig.process import SANITIZED, TOP
from rig.sidecar import BINARY, check

CONF = os.path.join(TOP, "conf")


def read(name):
    with open(os.path.join(CONF, name)) as f:
        return f.read()


def put_in_place(text, workdir):
    """Only what this machine cannot have: the module where it was built, a
    directory for logs, and the files that a fleet has anyway."""
    text = text.replace("modules/ngx_http_capture_module.so", MODULE)
    text = text.replace("/var/log/nginx/", f"{workdir}/")
    text = text.replace("/etc/nginx/tls/", f"{workdir}/")
    text = text.replace("/etc/nginx/search.passwd", f"{workdir}/passwd")
    # what an unprivileged `nginx -t` would not be allowed to open
    extra = f"pid {workdir}/nginx.pid;\nerror_log stderr;\n"
    temp = "".join(f"    {m}_temp_path {workdir}/temp/{m};\n"
                   for m in ["client_body", "proxy", "fastcgi"]
                   + ([] if SANITIZED else ["uwsgi", "scgi"]))
    return extra + text.replace("http {\n", "http {\n" + temp, 1)


def make_tls_files(workdir):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=search.example", "-out", f"{workdir}/search.example.pem",
         "-keyout", f"{workdir}/search.example.key"],
        check=True, capture_output=True)


@pytest.mark.parametrize("name", ["nginx-minimal.conf", "nginx-fleet.conf"])
def test_nginx_accepts_the_example(workdir, name):
    make_tls_files(workdir)
    rc, err = check_config(workdir, put_in_place(read(name), workdir))
    assert rc == 0, err
    assert "[warn]" not in err, err


def test_four_lines_are_all_that_the_fleet_needs(workdir):
    """Without the marked lines it is a configuration as it was before."""
    make_tls_files(workdir)
    lines = read("nginx-fleet.conf").splitlines(keepends=True)
    marked = [line for line in lines if re.search(r"# +\([1-4]\)$", line)]
    assert len(marked) == 4
    rest = "".join(line for line in lines if line not in marked)
    code = "\n".join(line.split("#")[0] for line in rest.splitlines())
    left = [line.strip() for line in code.splitlines() if "capture" in line]
    # switching it off where it is not wanted is for whoever wants that
    assert left == ["capture off;"]
    code = code.replace("capture off;", "")
    rc, err = check_config(workdir, put_in_place(code, workdir))
    assert rc == 0, err


def test_the_sidecar_accepts_the_example(workdir):
    rc, err = check(workdir, read("capture-sidecar.conf"))
    assert rc == 0, err
    assert "warning" not in err, err


def test_the_sidecars_example_has_every_key_with_its_default():
    """And none that is not there: else people set what does nothing."""
    text = read("capture-sidecar.conf")
    shown = dict(re.findall(r"^#?([a-z_.]+) = (.+)$", text, re.M))
    text = subprocess.run([BINARY, "--help-config"], check=True,
                          capture_output=True, text=True).stdout
    known = {}
    for key, rest in re.findall(r"^([a-z_.]+) = (.+)$", text, re.M):
        default = re.search(r"\(default (.+)\)", rest)
        known[key] = default and default[1]
    assert len(known) > 15, text
    assert {k for k in shown if not k.startswith("kafka.")} == set(known)
    assert {k: shown[k] for k, d in known.items() if d} \
        == {k: d for k, d in known.items() if d}


def test_both_examples_name_the_same_socket():
    sockets = set()
    for name in ["nginx-minimal.conf", "nginx-fleet.conf", "capture-sidecar.conf"]:
        sockets |= set(re.findall(r"unix:[\w./-]+", read(name)))
    assert len(sockets) == 1, sockets
