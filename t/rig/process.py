"""A child process that is ended by its pid, whatever happens to the test."""

import contextlib
import ctypes
import glob
import os
import random
import signal
import socket
import subprocess
import time

from .status import POLL, wait_until

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SANITIZED = os.environ.get("CAPTURE_SAN", "") not in ("", "0")
BUILD = os.path.join(TOP, "build", "asan" if SANITIZED else "")

SUPPRESSIONS = os.path.join(TOP, "t", "rig", "asan.supp")
PR_SET_CHILD_SUBREAPER = 36

_given = set()


def free_port(host="127.0.0.1"):
    """A port that nothing listens on. It is below the range from which the
    kernel takes the ports of outgoing connections, so that none of the test's
    own connections can take it before its server does, and comes once only.
    Where tests run side by side (pytest -n) each process has its own ports."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    first = 10000 + int(worker) % 4 * 5500
    while True:
        port = random.randrange(first, first + 5500)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as s:
            try:
                s.bind((host, port))
                return port
            except OSError:
                continue


def accepts(port, host="127.0.0.1"):
    """Does something accept connections there?"""
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex((host, port)) == 0


def children(pid):
    """Of all its threads: any of them may have forked."""
    try:
        found = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as f:
                found += [int(p) for p in f.read().split()]
        return found
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pids):
    """Those that have not ended."""
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status") as f:
                found += [] if "\nState:\tZ" in f.read() else [pid]
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def sanitizer_env(directory, leaks=False):
    """Environment in which ASan and UBSan write their reports as files into
    `directory`, and go on after an UBSan report so that one test shows all.
    `leaks` is not for NGINX, which leaves memory to its end on purpose."""
    log = os.path.join(directory, "sanitizer")
    return {
        # odr: a dynamic module brings NGINX's symbols a second time
        "ASAN_OPTIONS": f"log_path={log}:detect_odr_violation=0:"
                        f"detect_leaks={int(leaks)}:suppressions={SUPPRESSIONS}",
        "UBSAN_OPTIONS": f"log_path={log}:print_stacktrace=1:halt_on_error=0",
    }


def sanitizer_reports(directory):
    """The text of the sanitizers' reports in `directory`; empty if none."""
    text = ""
    for name in sorted(os.listdir(directory)):
        if name.startswith("sanitizer"):
            with open(os.path.join(directory, name), errors="replace") as f:
                text += f"--- {name}\n{f.read()}"
    return text


class Process:
    """Runs `argv` with standard output and standard error going to `log`."""

    def __init__(self, argv, log, cwd=None, env=None, pass_fds=()):
        self.name = os.path.basename(argv[0])
        self.log = log
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
                pass_fds=pass_fds, env={**os.environ, **(env or {})})

    @property
    def pid(self):
        return self.child.pid

    def running(self):
        return self.child.poll() is None

    def dead(self):
        """None while it runs, else a text that says how it ended."""
        if self.running():
            return None
        return (f"{self.name} ended with {self.child.returncode}:\n"
                + self.log_text()[-4000:])

    def log_text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def wait_for_log(self, text, timeout=10.0, start=0):
        wait_until(lambda: text in self.log_text()[start:], timeout,
                   f"{text!r} in {self.log}", self.dead)

    def hang(self):
        """SIGSTOP; returns when each of its threads has stopped."""
        self.send(signal.SIGSTOP)

        def stopped():
            tasks = glob.glob(f"/proc/{self.pid}/task/*/stat")
            return tasks and all(_state(task) == "T" for task in tasks)
        wait_until(stopped, 30, "a process that has stopped")

    def send(self, number):
        if self.running():
            os.kill(self.pid, number)

    def wait(self, timeout=10.0):
        """Waits for its end; its return code (negative: the signal)."""
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} has not ended within {timeout:g} s:\n"
                + self.log_text()[-4000:]) from None

    def stop(self, number=signal.SIGTERM, timeout=10.0):
        """Asks it to end, waits; kills it if it does not, and then fails."""
        self.send(number)
        try:
            return self.wait(timeout)
        except AssertionError:
            self.kill()
            raise

    def kill(self):
        self.send(signal.SIGKILL)
        return self.child.wait()


class Adopted(Process):
    """A child's child, whose parent has ended while `adopting()`."""

    def __init__(self, pid, name, log):
        self.name = name
        self.log = log
        self.child = _Child(pid)


class _Child:
    """What Process uses of subprocess.Popen."""

    def __init__(self, pid):
        self.pid = pid
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        deadline = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(POLL)
        return self.returncode


@contextlib.contextmanager
def adopting():
    """Meanwhile the children of a process that ends become our own."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _state(stat):
    """R, S, T ...: of a file /proc/PID/task/TID/stat; a thread that has gone runs
    no more, as one that has stopped."""
    try:
        with open(stat) as f:
            return f.read().rpartition(")")[2].split()[0]
    except OSError:
        return "T"
