"""The arguments in deploy/ are ones that capture-proxy takes."""

import json
import os
import re

import pytest

from rig.launcher import run
from rig.process import TOP

DEPLOY = os.path.join(TOP, "deploy")


def read(*path):
    with open(os.path.join(DEPLOY, *path)) as f:
        return f.read()


def ecs():
    (container,) = json.loads(read("ecs", "proxy.json"))["containerDefinitions"]
    return container["command"]


def listed(text, key):
    """The list under `key:`, without YAML's quotes and comments."""
    items = re.search(rf"^ *{key}:\n((?: *- .*\n)+)", text, re.M)[1]
    return [item.strip()[2:].strip('"') for item in items.splitlines()]


def kubernetes():
    return listed(read("kubernetes", "proxy", "proxy.yaml"), "args")


def compose():
    return [a if not a.startswith("${") else "http://source:9200"
            for a in listed(read("compose.yaml"), "command")]


@pytest.mark.parametrize("arguments", [ecs, kubernetes, compose])
def test_the_arguments_are_taken_without_a_warning(arguments):
    rc, out, err = run(*arguments(), "--print-config")
    assert rc == 0 and "listen" in out, err
    assert "warning" not in err, err
