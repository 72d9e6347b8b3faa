"""docs/rerouting.md, to be run: its commands with what they say."""

import os
import re
import subprocess
from dataclasses import dataclass, field

from rig.process import BUILD, TOP
from rig.status import wait_until

PAGE = os.path.join(TOP, "docs", "rerouting.md")


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


def sections():
    """{heading: text}"""
    with open(PAGE) as f:
        parts = re.split(r"^(#+ .*)\n", f.read(), flags=re.M)
    return {head.lstrip("# "): text
            for head, text in zip(parts[1::2], parts[2::2])}


def commands(text):
    found, listening = [], False
    for line in text.splitlines():
        if line.startswith("    $ "):
            found.append(Command(line[6:]))
            listening = True
        elif not line.startswith("    "):
            listening = False
        elif listening:
            found[-1].says.append(line.strip())
    return found


def entries():
    """{heading: [commands]} of what is below `Troubleshooting`."""
    with open(PAGE) as f:
        text = re.search(r"^## Troubleshooting$(.*?)^## ", f.read(),
                         re.M | re.S)[1]
    parts = re.split(r"^### (.*)\n", text, flags=re.M)
    return {head: commands(body) for head, body in zip(parts[1::2], parts[2::2])}


def record_table():
    """[(command, remark, requests, least, most)] of the record check."""
    rows = re.findall(r"^\| `(.*?)`(, .*?)? \| (\d+) \| (\d+)(?: to (\d+))? \|$",
                      sections()["The record check"], re.M)
    return [(text, remark.lstrip(", "), int(requests), int(least),
             int(most or least)) for text, remark, requests, least, most in rows]
