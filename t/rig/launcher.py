"""capture-proxy as a process: NGINX and the sidecar run by it."""

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile

from . import nginx as rig_nginx
from . import status
from .client import Client
from .process import (BUILD, Process, accepts, children, free_port, sanitizer_env,
                      sanitizer_reports)
from .status import wait_until

BINARY = os.path.join(BUILD, "capture-proxy")


def environment(env=None):
    """This process's, without what capture-proxy would take for flags."""
    return {**{k: v for k, v in os.environ.items()
               if not k.startswith("CAPTURE_PROXY_") and k != "KAFKA_PASSWORD"},
            **(env or {})}


def run(*args, env=None, timeout=60, binary=BINARY):
    """Runs it to its end: (return code, standard output, standard error)."""
    with tempfile.TemporaryDirectory() as d:
        done = subprocess.run(
            [binary, *args], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout, errors="replace",
            # no leaks looked for: `nginx -V` leaves its memory to the end
            env=environment({**sanitizer_env(d, leaks=False), **(env or {})}))
        report = sanitizer_reports(d)
        assert not report, report
    return done.returncode, done.stdout, done.stderr


class Launcher:
    """`args` are the flags; --listenPort comes by itself, unless `args` are one
    of the JSON forms. prefix: a command to run it under. tls: clients use TLS
    with this certificate as the authority."""

    def __init__(self, directory, args, port=None, env=None, prefix=(),
                 tls=None, own=True, stdout=None, binary=BINARY):
        self.directory = str(directory)
        self.port = port or free_port()
        self.status_port = free_port()
        self.tls = tls
        self.log = os.path.join(self.directory, "launcher.log")
        self.allowed = []
        self.stdout = stdout
        run_directory = os.path.join(self.directory, "r")
        self.env = {
            "CAPTURE_PROXY_STATUS_LISTEN": f"127.0.0.1:{self.status_port}",
            "CAPTURE_PROXY_RUN_DIRECTORY": run_directory,
            "CAPTURE_PROXY_NGINX_BINARY": rig_nginx.BINARY,
            "TMPDIR": self.directory, **(env or {})}
        if own:
            args = [*args, "--listenPort", str(self.port)]
        self.argv = [*prefix, binary, *args]
        os.makedirs(self.directory, exist_ok=True)

    def start(self, wait=True, timeout=30):
        env = environment({**sanitizer_env(self.directory), **self.env})
        if self.stdout is None:
            self.process = Process(self.argv, self.log, cwd=self.directory,
                                   env=env)
        else:
            self.process = _Unread(self.argv, self.log, self.directory, env,
                                   self.stdout)
        if wait:
            wait_until(lambda: accepts(self.port), timeout, "NGINX's port",
                       self.process.dead)

    # the processes

    @property
    def pid(self):
        """capture-proxy's own, also under a prefix that has forked."""
        return next((p for p in self._family(self.process.pid)
                     if _name(p) == "capture-proxy"), self.process.pid)

    def nginx_pid(self):
        return self._child("nginx")

    def sidecar_pid(self):
        return self._child("capture-sidecar")

    def family(self):
        """All pids of the unit."""
        return self._family(self.process.pid)

    def _child(self, name):
        return wait_until(
            lambda: next((p for p in children(self.pid)
                          if _name(p).startswith(name[:15])), None),
            15, f"the process {name}", self.process.dead)

    def _family(self, pid):
        return [pid] + [p for c in children(pid) for p in self._family(c)]

    # use

    def client(self, **options):
        c = Client(self.port, **options)
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls)
            context.check_hostname = False
            c.sock = context.wrap_socket(c.sock, server_hostname="source.test")
        return c

    def status(self):
        return status.capture_status(self.status_port)

    def wait_for_status(self, cond, timeout=15, what=None):
        last = {}

        def good():
            last["now"] = self.status()
            return cond(last["now"])
        try:
            wait_until(good, timeout, what or "capture_status",
                       self.process.dead)
        except AssertionError as e:
            raise AssertionError(
                f"{e}\ncapture_status: {json.dumps(last.get('now'))}") from None
        return last["now"]

    def wait_linked(self):
        self.wait_for_status(lambda s: s["workers"] and all(
            w["linked"] for w in s["workers"]), what="the links")

    def wait_for_log(self, text, timeout=30, start=0):
        self.process.wait_for_log(text, timeout, start)

    def log_text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    # the end

    def stop(self, number=signal.SIGTERM, timeout=60):
        """Its exit status, after TERM."""
        os.kill(self.pid, number)
        return self.process.wait(timeout)

    def close(self):
        if not hasattr(self, "process"):
            return
        if self.process.running():
            self.stop()
        bad = [line for line in self.log_text().splitlines()
               if re.search(r"\[(ALERT|EMERG)\]", line)
               and not any(re.search(a, line) for a in self.allowed)]
        assert not bad, "\n".join(bad)
        report = sanitizer_reports(self.directory)
        assert not report, report


class _Unread(Process):
    """Standard output to a file descriptor of the test's, errors to the log."""

    def __init__(self, argv, log, cwd, env, stdout):
        self.name = os.path.basename(argv[0])
        self.log = log
        with open(log, "ab") as err:
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=err,
                cwd=cwd, env=env)


def _name(pid):
    try:
        with open(f"/proc/{pid}/comm") as f:
            return f.read().strip()
    except FileNotFoundError:
        return ""


def install_for_others(directory):
    """Copies of the programs where every user may run them; the path of
    capture-proxy there. It finds module and sidecar beside itself; NGINX is there
    as well."""
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o755)
    for name in ("capture-proxy", "capture-sidecar",
                 "ngx_http_capture_module.so"):
        at = shutil.copy(os.path.join(BUILD, name), directory)
        os.chmod(at, 0o755)
    at = shutil.copy(rig_nginx.BINARY, os.path.join(directory, "nginx"))
    os.chmod(at, 0o755)
    return os.path.join(directory, "capture-proxy")
