"""NGINX as a process, in a prefix directory of its own."""

import functools
import os
import re
import signal
import subprocess

from .process import (BUILD, SANITIZED, TOP, Adopted, Process, accepts, adopting,
                      children, free_port, sanitizer_env, sanitizer_reports)
from .status import wait_until

BINARY = (os.path.join(TOP, "build", "nginx-asan", "objs", "nginx")
          if SANITIZED else os.environ.get("NGINX_BIN", "/usr/sbin/nginx"))
MODULE = os.path.join(BUILD, "ngx_http_capture_module.so")

TEMPLATE = """\
{load_module}
{user}
{env}
daemon {daemon};
pid nginx.pid;
worker_processes {workers};
{main}
events {{
    worker_connections 4096;
    {events}
}}
http {{
    access_log access.log;
    client_max_body_size 0;
    client_body_temp_path temp/client;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port}{reuseport};
        {server}
    }}
}}
"""


@functools.cache
def build():
    """What `nginx -V` says."""
    return subprocess.run(
        [BINARY, "-V"], capture_output=True, text=True, check=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}).stderr


def version():
    """(1, 22, 1)"""
    return tuple(map(int, re.search(r"nginx/([\d.]+)", build())[1].split(".")))


def has_http3():
    return "--with-http_v3_module" in build()


def has_quic_early_data():
    """Can this NGINX take 0-RTT over QUIC? With OpenSSL it can by the interface that
    this has since 3.5.1; else it works by a layer of its own, which cannot."""
    tls = re.search(r"(?:built|running) with OpenSSL ([\d.]+)", build())
    return bool(has_http3() and version() >= (1, 29, 1) and tls
                and tuple(map(int, tls[1].split("."))) >= (3, 5, 1))


def http2(port):
    """The lines of a server that speaks HTTP/2, on this port or, where NGINX has
    a directive for it, on all."""
    if version() < (1, 25, 1):
        return f"listen 127.0.0.1:{port} http2;"
    return f"listen 127.0.0.1:{port}; http2 on;"


def render(port, http="", server="", main="", events="", workers=1, module=True,
           daemon=False):
    """A whole configuration around snippets for its contexts."""
    text = TEMPLATE
    if SANITIZED:  # built without these modules
        text = re.sub(r"\n *(uwsgi|scgi)_temp_path.*", "", text)
    return text.format(
        load_module=f"load_module {MODULE};" if module else "",
        daemon="on" if daemon else "off",
        # an upgrade passes on nothing else
        env="env ASAN_OPTIONS; env UBSAN_OPTIONS;" if SANITIZED else "",
        # the workers share the sidecar's socket and memory with the master's
        # user, so that the tests need no other one
        user="user root;" if os.geteuid() == 0 else "",
        port=port, reuseport=" reuseport" if workers > 1 else "", http=http, server=server, main=main, events=events,
        workers=workers)


class Nginx:
    """Snippets as for render(); `allowed` holds regular expressions of [alert]
    and [emerg] lines that the test provokes. daemon: only such a master, whose
    parent has gone, can upgrade()."""

    def __init__(self, directory, log_level="info", **snippets):
        self.directory = str(directory)
        self.port = free_port()
        self.log_level = log_level
        self.snippets = snippets
        self.process = None
        self.allowed = []
        self.env = {}
        os.makedirs(os.path.join(self.directory, "temp"), exist_ok=True)

    @property
    def pid(self):
        return self.process.pid

    def start(self, timeout=30):
        self.write_config()
        with adopting():
            self.process = Process(
                _argv(self.directory, "nginx.conf", self.log_level),
                self._path("nginx.out"), cwd=self.directory,
                env={**sanitizer_env(self.directory), **self.env})
            if self.snippets.get("daemon"):
                assert self.process.wait(timeout) == 0, self._dead()
                self._adopt(timeout)
        wait_until(lambda: accepts(self.port), timeout, "NGINX's port",
                   self._dead)

    def write_config(self, **snippets):
        """Writes nginx.conf, with other snippets than before if given."""
        self.snippets |= snippets
        with open(self._path("nginx.conf"), "w") as f:
            f.write(render(self.port, **self.snippets))

    def reload(self, timeout=30, **snippets):
        """Reloads, with other snippets if given; returns when the new workers
        have started. The old ones may still be at work."""
        before = self.workers()
        start = len(self.error_log())
        self.write_config(**snippets)
        self.process.send(signal.SIGHUP)

        def replaced():
            log = self.error_log()[start:]
            assert "[emerg]" not in log, log
            new = set(self.workers()) - set(before)
            return len(new) >= self.snippets.get("workers", 1)
        wait_until(replaced, timeout, "the new workers", self._dead)

    def upgrade(self, timeout=30):
        """Another binary (the same one) takes over while clients are served: USR2,
        then WINCH and QUIT for the old master. Returns when that has ended; the
        new master is then this object's process."""
        old = self.process
        old.send(signal.SIGUSR2)
        with adopting():
            self._adopt(timeout)
            old.send(signal.SIGWINCH)
            rc = old.stop(signal.SIGQUIT, timeout)
        assert rc == 0, f"the old master ended with {rc}"

    def workers(self):
        """The pids of the master's children."""
        return children(self.pid)

    def stop(self, graceful=False, timeout=30):
        """Its return code. graceful: requests in flight are served first."""
        return self.process.stop(
            signal.SIGQUIT if graceful else signal.SIGTERM, timeout)

    def kill9(self):
        """Kills the master and its workers, as a crashed machine would."""
        pids = self.workers()
        self.process.kill()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def running(self):
        return self.process is not None and self.process.running()

    def answers(self):
        return accepts(self.port)

    def error_log(self):
        return self._read("error.log")

    def access_log(self):
        return self._read("access.log")

    def wait_for_log(self, text, timeout=10):
        wait_until(lambda: text in self.error_log(), timeout,
                   f"{text!r} in error.log", self._dead)

    def close(self):
        """Ends it if it still runs; fails for what must never be in its log."""
        if self.running():
            for pid in self.workers():  # a worker that a test has stopped
                os.kill(pid, signal.SIGCONT)
            rc = self.stop()
            assert rc == 0, f"NGINX ended with {rc}:\n{self.error_log()[-4000:]}"
        bad = [line for line in self.error_log().splitlines()
               if re.search(r"\[(alert|emerg)\]", line)
               and not any(re.search(a, line) for a in self.allowed)]
        assert not bad, "\n".join(bad)
        report = sanitizer_reports(self.directory)
        assert not report, report

    def _adopt(self, timeout):
        """The master is now the one that the pid file names, if another."""
        old = self.process.pid

        def successor():
            pid = int(self._read("nginx.pid"))
            return pid != old and children(pid) and pid
        new = wait_until(successor, timeout, "the new master")
        self.process = Adopted(new, "nginx", self.process.log)

    def _dead(self):
        dead = self.process.dead()
        return dead and dead + "\n" + self.error_log()[-4000:]

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _read(self, name):
        if not os.path.exists(self._path(name)):
            return ""
        with open(self._path(name), errors="replace") as f:
            return f.read()


def check_config(directory, conf):
    """`nginx -t` on a whole configuration. Returns (return code, stderr)."""
    directory = str(directory)
    os.makedirs(os.path.join(directory, "temp"), exist_ok=True)
    with open(os.path.join(directory, "check.conf"), "w") as f:
        f.write(conf)
    done = subprocess.run(
        [BINARY, "-t", "-p", directory + "/", "-c", "check.conf", "-e", "stderr"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
        errors="replace", cwd=directory,
        env={**os.environ, **sanitizer_env(directory)})
    report = sanitizer_reports(directory)
    assert not report, report
    return done.returncode, done.stderr


def _argv(directory, conf, log_level):
    return [BINARY, "-p", directory + "/", "-c", conf, "-e", "error.log",
            "-g", f"error_log error.log {log_level};"]
