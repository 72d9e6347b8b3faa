"""sidecar/kafka.c alone, driven by t/tools/kafka_probe.c."""

import os
import re
import subprocess
import threading

from .process import BUILD, sanitizer_env, sanitizer_reports
from .status import wait_until

PROBE = os.path.join(BUILD, "unit", "kafka-probe")


class Probe:
    """conf: {key: value}; env: variables that are added to the environment."""

    def __init__(self, directory, conf, env=None):
        file = os.path.join(directory, "probe.conf")
        self.directory = directory
        conf = {"listen": "unix:/tmp/unused.sock", **conf}
        with open(file, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.writelines(f"{key} = {value}\n" for key, value in conf.items())
        self.err = os.path.join(directory, "probe.log")
        self.lines = []
        with open(self.err, "w") as err:
            self.process = subprocess.Popen(
                [PROBE, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=err, text=True, bufsize=1, cwd=directory,
                env={**os.environ, **sanitizer_env(directory, leaks=True),
                     **(env or {})})
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def log(self):
        with open(self.err, errors="replace") as f:
            return f.read()

    def say(self, command):
        self.process.stdin.write(command + "\n")

    def wait(self, pattern, timeout=30, start=0):
        """The first line from `start` on that begins with the pattern."""
        def found():
            return next((x for x in self.lines[start:] if re.match(pattern, x)),
                        None)
        wait_until(found, timeout, f"{pattern} in {self.lines}\n{self.log()}")
        return found()

    def wait_log(self, text, timeout=30):
        wait_until(lambda: text in self.log(), timeout,
                   f"{text!r} in the log:\n{self.log()}")

    def produce(self, count, size, timeout=60):
        start = len(self.lines)
        self.say(f"produce {count} {size}")
        return self.done(start, timeout)

    def done(self, start, timeout=60):
        line = self.wait("done ", timeout, start)
        return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line)}

    def read(self, partition, timeout=30):
        """How many records are there."""
        start = len(self.lines)
        self.say(f"read {partition}")
        line = self.wait(f"read {partition} ", timeout, start)
        assert "records=" in line, line
        return int(line.rpartition("=")[2])

    def close(self):
        if self.process.poll() is None:
            self.say("free 1000")
            self.process.stdin.close()
            assert self.process.wait(20) == 0, self.log()
        report = sanitizer_reports(self.directory)
        assert not report, report
