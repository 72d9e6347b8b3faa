"""docs/rerouting.md, to be run: its commands with what they say."""

import os
import re
import subprocess
from dataclasses import dataclass, field

from rig.pages import read_blocks
from rig.process import BUILD, TOP
from rig.status import wait_until

PAGE = "docs/rerouting.md"


@dataclass
class Command:
    """`$ text`, and the lines below: what is to be found in its output."""
    text: str
    says: list = field(default_factory=list)

    def run(self, env):
        done = subprocess.run(
            ["bash", "-c", self.text], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=60, errors="replace",
            env={**{k: v for k, v in os.environ.items()
                    if not k.startswith("CAPTURE_PROXY_")},
                 # curl is not to ask a proxy of the environment's
                 "no_proxy": "*", "ASAN_OPTIONS": "detect_leaks=0",
                 "PATH": f"{BUILD}:{os.environ['PATH']}:/usr/sbin", **env})
        return done.stdout

    def check(self, env):
        """It says what the page says: soon, since a log or a count may come a
        moment later than what it is about."""
        last = []

        def said():
            last[:] = [self.run(env)]
            return all(line in last[0] for line in self.says)
        try:
            wait_until(said, 15)
        except AssertionError:
            raise AssertionError(f"{self.text}\nsays\n{last[0]}\nand not\n"
                                 + "\n".join(self.says)) from None


def read():
    with open(os.path.join(TOP, PAGE)) as f:
        return f.read()


def commands(heading):
    """Those of one section. What has no `$` is no command (see
    test_troubleshooting.py, which knows all of these)."""
    found = []
    for block in read_blocks(PAGE):
        if block.heading == heading and block.text.startswith("$ "):
            for line in filter(None, block.text.splitlines()):
                if line.startswith("$ "):
                    found.append(Command(line[2:]))
                else:
                    found[-1].says.append(line.strip())
    return found


def entries():
    """The headings below `Troubleshooting`: no other section has any of its own."""
    return re.findall(r"^### (.*)$", read(), re.M)


def record_table():
    """[(command, remark, requests, least, most)] of the record check."""
    rows = re.findall(r"^\| `(.*?)`(, .*?)? \| (\d+) \| (\d+)(?: to (\d+))? \|$",
                      read(), re.M)
    return [(text, remark.lstrip(", "), int(requests), int(least),
             int(most or least)) for text, remark, requests, least, most in rows]
