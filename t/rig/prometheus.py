"""Prometheus' text format: reading it, and asking promtool about it."""

import os
import re
import subprocess
import urllib.request

from .process import TOP

SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse(text):
    """{"name" or 'name{label="value"}': number}; fails on a line that is none,
    on a sample without a TYPE before it, and on one that is there twice."""
    found, types = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, line
            types[name] = kind
        elif not line.startswith("# HELP "):
            m = SAMPLE.fullmatch(line)
            assert m, line
            base = re.sub(r"_(bucket|sum|count)$", "", m[1])
            assert m[1] in types or types.get(base) == "histogram", line
            key = line.rsplit(" ", 1)[0]
            assert key not in found, line
            found[key] = float(m[3])
    return found


def fetch(url, accept=None):
    """(content type, text)"""
    request = urllib.request.Request(url, headers={"Accept": accept} if accept
                                     else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def scrape(url):
    return parse(fetch(url)[1])


def promtool():
    """Its path, or None where script/bootstrap --long has not been run."""
    path = os.path.join(TOP, "build", "promtool")
    return path if os.path.exists(path) else None


def check_metrics(text):
    """What `promtool check metrics` has to say: "" if all is well."""
    done = subprocess.run([promtool(), "check", "metrics"], input=text, text=True,
                          capture_output=True)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else "failed")
