"""A network and a file system of a test's own, so that it can use the ports and
paths of a deployment, whatever else runs on this machine.

    pytest(FILE) runs the tests of FILE there; they ask for INSIDE
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VARIABLE = "CAPTURE_OWN_NETWORK"
INSIDE = bool(os.environ.get(VARIABLE))

# directories in which files may be made, which nobody else sees
OVERLAID = ["/usr/share", "/etc"]


def command(*argv):
    """argv in there, with its loopback up; the layers are in memory."""
    return ["unshare", "--net", "--mount", "--propagation", "private",
            sys.executable, os.path.abspath(__file__), *argv]


def available():
    return not INSIDE and subprocess.run(
        command("true"), capture_output=True).returncode == 0


def pytest(path, *arguments):
    """(return code, output)"""
    done = subprocess.run(
        command(sys.executable, "-m", "pytest", "-c",
                os.path.join(TOP, "t", "pytest.ini"), "-p", "no:xdist", "-q",
                path, *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TOP,
        errors="replace", env={**os.environ, VARIABLE: "1"})
    return done.returncode, done.stdout


def _loopback_up():
    siocsifflags, up = 0x8914, 0x1
    with socket.socket() as s:
        fcntl.ioctl(s, siocsifflags, struct.pack("16sH14x", b"lo", up))


def _overlay():
    # containers have it mounted, which a layer above its directory does not see;
    # a bare system may have none
    try:
        with open("/etc/hosts") as f:
            hosts = f.read()
    except FileNotFoundError:
        hosts = ""
    layers = "/mnt"      # is there, and empty enough: nobody else sees this one
    subprocess.run(["mount", "-t", "tmpfs", "layers", layers], check=True)
    for i, lower in enumerate(OVERLAID):
        upper, work = f"{layers}/u{i}", f"{layers}/w{i}"
        os.mkdir(upper)
        os.mkdir(work)
        subprocess.run(
            ["mount", "-t", "overlay", "-o",
             f"lowerdir={lower},upperdir={upper},workdir={work}", "layers",
             lower], check=True)
    with open("/etc/hosts", "w") as f:
        f.write(hosts or "127.0.0.1 localhost\n::1 localhost\n")


if __name__ == "__main__":
    _loopback_up()
    _overlay()
    os.execvp(sys.argv[1], sys.argv[1:])
