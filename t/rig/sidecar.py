"""The sidecar as a process, with a configuration of the test's."""

import os
import re
import signal
import subprocess

from .process import BUILD, Process, sanitizer_env, sanitizer_reports

BINARY = os.path.join(BUILD, "capture-sidecar")


class Sidecar:
    """conf is {key: value}, written as `key = value` lines to `directory`; env
    is added to the environment. keeper: a Keeper, or None."""

    def __init__(self, directory, conf, ready="ready", env=None, keeper=None):
        self.keeper = keeper
        self.env = env or {}
        self.binary = BINARY
        self.directory = str(directory)
        self.ready = ready
        self.conf = dict(conf)
        self.process = None
        self.log = os.path.join(self.directory, "sidecar.log")
        self.file = os.path.join(self.directory, "sidecar.conf")
        os.makedirs(self.directory, exist_ok=True)

    def start(self, wait=True, timeout=30):
        """Starts it, and waits until it has logged that it is ready."""
        with open(self.file, "w") as f:
            f.writelines(f"{key} = {value}\n" for key, value in self.conf.items())
        start = len(self.log_text())
        argv, env, fds = [self.binary, "-c", self.file], self._env(), []
        if self.keeper:
            argv, more, fds = self.keeper.command(argv)
            env |= more
        self.process = Process(argv, self.log, cwd=self.directory, env=env,
                               pass_fds=fds)
        for fd in fds:
            os.close(fd)
        if wait:
            self.process.wait_for_log(self.ready, timeout, start)

    def stop(self, timeout=30):
        """TERM: it drains and ends. Its return code."""
        return self.process.stop(signal.SIGTERM, timeout)

    def kill9(self):
        self.process.kill()

    def pause(self):
        """Makes it hang; resume() ends that."""
        self.process.hang()

    def resume(self):
        self.process.send(signal.SIGCONT)

    def running(self):
        return self.process is not None and self.process.running()

    def log_text(self):
        if not os.path.exists(self.log):
            return ""
        with open(self.log, errors="replace") as f:
            return f.read()

    def close(self):
        """Ends it if it still runs, and fails if that or a sanitizer fails."""
        if self.running():
            self.resume()
            rc = self.stop()
            assert rc == 0, (f"the sidecar ended with {rc}:\n{self.log_text()}"
                             f"{sanitizer_reports(self.directory)}")
        report = sanitizer_reports(self.directory)
        assert not report, report

    def check_totals(self):
        """The last line of an orderly end: all that was seen has its class.
        Returns the sums of all workers, also of those that have gone."""
        return totals_in(self.log_text())

    def _env(self):
        return {**sanitizer_env(self.directory, leaks=True), **self.env}


def totals_in(log):
    """Of a sidecar's log, whoever has kept that: see check_totals()."""
    lines = re.findall(r"seen (\d+) captured (\d+) filtered (\d+) "
                       r"lost (\d+) pending (\d+)", log)
    assert lines, f"no totals in the log:\n{log}"
    seen, *classes = map(int, lines[-1])
    assert seen == sum(classes), lines[-1]
    return dict(zip(("seen", "captured", "filtered", "lost", "pending"),
                    (seen, *classes)))


def librdkafka():
    """Its version, like (2, 14, 2)."""
    done = subprocess.run([os.path.join(BUILD, "capture-sidecar"), "--version"],
                          capture_output=True, text=True, check=True)
    return tuple(map(int, re.search(r"librdkafka (\d+)\.(\d+)\.(\d+)",
                                    done.stdout).groups()))


def check(directory, conf):
    """`capture-sidecar --check` on conf, a dictionary or the file's whole text.
    Returns (return code, standard error)."""
    if not isinstance(conf, str):
        conf = "".join(f"{key} = {value}\n" for key, value in conf.items())
    file = os.path.join(str(directory), "check.conf")
    with open(file, "w") as f:
        f.write(conf)
    done = subprocess.run(
        [BINARY, "--check", "-c", file], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=30, errors="replace",
        env={**os.environ, **sanitizer_env(str(directory), leaks=True)})
    report = sanitizer_reports(str(directory))
    assert not report, report
    return done.returncode, done.stderr
