"""Runs capturectl, and reads what it says."""

import base64
import json
import os
import subprocess
from typing import NamedTuple

from rig.process import BUILD

CAPTURECTL = os.path.join(BUILD, "capturectl")

# A sanitizer's report must not pass for capturectl's own exit status 1.
ENVIRONMENT = {**os.environ,
               "ASAN_OPTIONS": "exitcode=99",
               "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99"}


class Answer(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def text(self):
        return self.out.decode()

    @property
    def lines(self):
        return self.text.splitlines()

    @property
    def json(self):
        return [json.loads(line) for line in self.lines]


def capturectl(*arguments, stdin=b"", timeout=60) -> Answer:
    run = subprocess.run([CAPTURECTL, *map(str, arguments)], input=stdin,
                         capture_output=True, timeout=timeout, env=ENVIRONMENT)
    assert run.returncode in (0, 1, 2), run.stderr.decode()
    return Answer(run.returncode, run.stdout, run.stderr.decode())


def remarks(answer):
    """The lines on standard error but for the summary of `http`."""
    lines = answer.err.splitlines()
    assert all(line.startswith("% ") for line in lines), answer.err
    return [line[2:] for line in lines if " records, " not in line]


def line_of(value: bytes) -> bytes:
    return base64.b64encode(value) + b"\n"


def lines_of(values) -> bytes:
    return b"".join(map(line_of, values))


def bytes_of(message) -> bytes:
    """A message's bytes out of `http --json --full`."""
    return b"".join(base64.b64decode(message[part]["data"])
                    for part in ("head", "body"))
