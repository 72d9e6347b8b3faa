"""Pages of documentation, used as their readers use them: the code blocks of the
Markdown, and a shell that runs them as they stand.

    page = Page("docs/operations.md", not_run={"seen = captured": "a formula"})
    shell = Shell(workdir, stand_ins={"broker1:9092": broker.bootstrap})
    shell.run(page.take("capturectl topic"))
    page.finish()       # every block was taken, or is in not_run with its reason
    shell.close()       # every stand-in was needed; nothing that it started is left
"""

import os
import re
import select
import signal
import subprocess
from dataclasses import dataclass

from .process import BUILD, TOP, sanitizer_env, sanitizer_reports
from .status import wait_until

LIST_ITEM = re.compile(r" *(?:[-*+]|\d+[.)]) +")


@dataclass
class Block:
    """One code block: the file and line where it begins, the heading above it, and
    its text without what Markdown has indented it by."""
    page: str
    line: int
    heading: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line} ({self.heading}):\n{self.text}"


def read_blocks(page):
    """All code blocks of a page, in their order; `page` is a path in the tree."""
    with open(os.path.join(TOP, page)) as f:
        return parse(f.read(), page)


def parse(text, page="-"):
    """Blocks are fenced, or indented by four more than the text that they belong
    to, which in a list is that of its item."""
    blocks, heading, base, code, fence, blank = [], "", 0, None, None, True
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            if line.strip().startswith(fence):
                fence, code = None, None
            else:
                code.text += line[base:] + "\n"
            continue
        if not line.strip():
            blank = True
            if code:
                code.text += "\n"
            continue
        indent = len(line) - len(line.lstrip(" "))
        if indent >= base + 4 and (code or blank):
            if not code:
                code = Block(page, number, heading, "")
                blocks.append(code)
            code.text += line[base + 4:] + "\n"
            continue
        code = None
        item = LIST_ITEM.match(line)
        if item:
            base = item.end()
        elif indent < base and blank:
            base = 0
        if line.startswith("#"):
            heading = line.lstrip("# ")
        mark = re.match(r" *(```+|~~~+)", line)
        if mark:
            fence, base = mark[1], indent
            code = Block(page, number + 1, heading, "")
            blocks.append(code)
        blank = False
    for block in blocks:
        block.text = block.text.rstrip("\n") + "\n"
    return blocks


class Page:
    """not_run: {the first words of a block: why nobody runs it here}."""

    def __init__(self, path, not_run=None):
        self.path = path
        self.blocks = read_blocks(path)
        self.left = list(self.blocks)
        assert self.left, f"{path} has no code block"
        for start, reason in (not_run or {}).items():
            assert reason, f"{path}: why is {start!r} not run?"
            self.take(start)

    def take(self, start):
        """The block that begins with these words; it must be one, and is taken
        once."""
        found = [b for b in self.left if b.text.startswith(start)]
        assert len(found) == 1, (
            f"{self.path}: {len(found)} blocks begin with {start!r}; left are\n"
            + "\n".join(map(str, self.left)))
        self.left.remove(found[0])
        return found[0]

    def take_under(self, heading):
        """All blocks that are left below one heading, in their order."""
        found = [b for b in self.left if b.heading == heading]
        assert found, f"{self.path}: no block is left under {heading!r}"
        self.left = [b for b in self.left if b not in found]
        return found

    def finish(self):
        """No block of the page is left."""
        assert not self.left, (
            "blocks that no test runs, and that are not in its not_run:\n"
            + "\n".join(map(str, self.left)))


class Shell:
    """A reader's shell in `directory`: one bash, so that a block finds what those
    before it have set, gone to, or left running.

    stand_ins  {what the pages say: what there is here}, replaced in the text of
               every block; one that no block has is a mistake
    commands   {name: text of a bash script} that comes first in PATH, for what a
               test must not touch (systemctl, sudo); what make has built comes next
    """

    def __init__(self, directory, stand_ins=None, commands=None, env=None):
        self.directory = str(directory)
        self.stand_ins = dict(stand_ins or {})
        self.unused = set(self.stand_ins)
        self.count = 0
        bin = os.path.join(self.directory, "bin")
        os.makedirs(bin, exist_ok=True)
        for name, text in (commands or {}).items():
            path = os.path.join(bin, name)
            with open(path, "w") as f:
                f.write("#!/usr/bin/env bash\n" + text + "\n")
            os.chmod(path, 0o755)
        env = {**os.environ, **sanitizer_env(self.directory), **(env or {})}
        env["PATH"] = ":".join([bin, BUILD, env["PATH"], "/usr/sbin", "/sbin"])
        self.bash = subprocess.Popen(
            ["bash", "-o", "pipefail"], cwd=self.directory, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def run(self, block, timeout=60, status=0):
        """Runs a block, command by command, each of which must end with 0, the last
        one with `status`. Returns what they wrote, standard error too."""
        output = ""
        parts = list(commands(self.text(block)))
        assert parts, f"no command in {block}"
        for i, part in enumerate(parts, 1):
            rc, text = self._command(part, timeout)
            output += text
            wanted = status if i == len(parts) else 0
            assert rc == wanted, (
                f"{block}\nas it was run here:\n{part}\nended with {rc}, not with "
                f"{wanted}:\n{text[-4000:]}")
        return output

    def text(self, block):
        """A block's text with its stand-ins; for one that is put into a file."""
        text = block.text
        for said, here in self.stand_ins.items():
            if said in text:
                self.unused.discard(said)
                text = text.replace(said, here)
        return text

    def close(self):
        """Ends the shell, and what it has left in the background."""
        _end(self.bash)
        report = sanitizer_reports(self.directory)
        assert not report, report

    def finish(self):
        """close(), and fails for stand-ins that nothing has needed."""
        self.close()
        assert not self.unused, f"nothing that was run has {self.unused}"

    def _command(self, text, timeout):
        """Its exit status, or a text, and what it wrote. Output goes to a file, which
        what runs in the background may keep."""
        self.count += 1
        name = os.path.join(self.directory, f"shell.{self.count}")
        with open(name, "w") as f:
            f.write(text)
        self.bash.stdin.write(f". {name} </dev/null >{name}.out 2>&1; echo $?\n")
        self.bash.stdin.flush()
        if select.select([self.bash.stdout], [], [], timeout)[0]:
            rc = self.bash.stdout.readline()
            rc = int(rc) if rc else "the end of the shell"
        else:
            rc = f"nothing, within {timeout} s"
        with open(f"{name}.out", errors="replace") as f:
            return rc, f.read()


def commands(text):
    """A block's commands one by one, each with its continuation lines: so that one
    that fails cannot hide behind those after it."""
    part = ""
    for line in text.splitlines(keepends=True):
        part += line
        if part.strip() and _complete(part):
            if not all(l.lstrip().startswith("#") for l in part.splitlines()
                       if l.strip()):
                yield part
            part = ""
    assert not part.strip(), f"not a whole command:\n{part}"


def _complete(text):
    if text.rstrip("\n").endswith("\\"):
        return False
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    return done.returncode == 0 and not done.stderr  # a here-document only warns


def _end(leader):
    """Ends a process and all of its group."""
    def signalled(number):
        leader.poll()
        try:  # its children are ours when we are their reaper (rig/process.py)
            while os.waitpid(-leader.pid, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        try:
            os.killpg(leader.pid, number)
        except ProcessLookupError:
            return True
    leader.stdin.close()
    leader.stdout.close()
    try:
        wait_until(lambda: signalled(signal.SIGTERM), 20, "the end of a shell")
    except AssertionError:
        signalled(signal.SIGKILL)
        raise
