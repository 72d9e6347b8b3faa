"""Every page's commands are run by some test, or it says why they are not."""

import glob
import os
import re

import pytest

from rig.pages import Block, Page, Shell, commands, parse, read_blocks
from rig.process import TOP

# page -> why no test runs what it shows
FIGURES = "figures and formats: it has no commands"
NOT_WALKED = {
    "docs/delivery.md": FIGURES,
    "docs/link.md": FIGURES,
    "docs/path.md": FIGURES,
    "docs/record-contract.md": FIGURES,
}


def pages():
    found = ["README.md", "bench/README.md", "t/README.md"]
    found += [os.path.relpath(p, TOP) for p in glob.glob(f"{TOP}/docs/*.md")]
    return sorted(p for p in found if read_blocks(p))


@pytest.mark.parametrize("page", pages())
def test_a_page_is_walked_or_says_why_not(page):
    tests = ""
    for path in (*glob.glob(f"{TOP}/t/docs/test_*.py"),
                 f"{TOP}/t/rehearsal/test_troubleshooting.py"):
        with open(path) as f:
            tests += f.read()
    walked = f'Page("{page}"' in tests
    assert walked or NOT_WALKED.get(page), f"no test walks {page}"
    assert not (walked and page in NOT_WALKED), f"{page} is walked"


def test_no_page_is_excused_that_is_not_there():
    assert set(NOT_WALKED) <= set(pages())


MARKDOWN = """\
# Title

Text, and
    no code, as it goes on with a paragraph.

    first
      deeper

    same block

- An item

  with more text.

      in the item
- Another.

  Its text.

## Second

1. Numbered:

        eight

   goes on

    a paragraph of the item? No: less than seven.

Text.

```sh
fenced
```
"""


def test_blocks_are_what_markdown_calls_code():
    found = [(b.line, b.heading, b.text) for b in parse(MARKDOWN)]
    assert found == [
        (6, "Title", "first\n  deeper\n\nsame block\n"),
        (15, "Title", "in the item\n"),
        (24, "Second", " eight\n"),
        (33, "Second", "fenced\n"),
    ]


def block(text):
    return Block("-", 1, "", text)


def test_commands_are_run_one_by_one():
    text = "a &&\n  b\n# a remark\nc \\\n  --d\ncat <<END\ne\nEND\nfor i in 1; do\n i\ndone\n"
    assert [c.split("\n")[0] for c in commands(text)] \
        == ["a &&", "c \\", "cat <<END", "for i in 1; do"]


def test_a_block_fails_with_any_of_its_commands(workdir):
    shell = Shell(workdir)
    assert shell.run(block("echo one\necho two >&2\n")) == "one\ntwo\n"
    for text in ("false && true\ntrue\n", "false | cat\n", "(exit 3)\ntrue\n",
                 "no-such-command\n", "if true\n", "# a remark\n"):
        with pytest.raises(AssertionError):
            shell.run(block(text))
    shell.run(block("true\n(exit 3)\n"), status=3)
    with pytest.raises(AssertionError, match="nothing, within"):
        shell.run(block("sleep 100"), timeout=0.2)
    shell.finish()


def test_a_shell_keeps_what_was_set(workdir):
    shell = Shell(workdir, {"node1:80": "127.0.0.1:81"}, {"sudo": 'exec "$@"'})
    shell.run(block("NODE='node1:80 \"x\"\n y'\nmkdir sub; cd sub\n"))
    assert shell.run(block('sudo echo "$NODE"; pwd; echo hello\n')) \
        == f'127.0.0.1:81 "x"\n y\n{workdir}/sub\nhello\n'
    shell.finish()


def test_a_shell_ends_what_it_left_in_the_background(workdir):
    shell = Shell(workdir)
    shell.run(block("sleep 1000 &\necho $! > pid\n"))
    with open(f"{workdir}/pid") as f:
        pid = int(f.read())
    assert os.path.exists(f"/proc/{pid}")
    shell.close()
    with open(f"/proc/{pid}/stat") if os.path.exists(f"/proc/{pid}/stat") \
            else open(os.devnull) as f:
        assert not f.read() or re.search(r"\) Z", f.read())


def test_a_stand_in_that_nothing_needs_is_a_mistake(workdir):
    shell = Shell(workdir, {"node1:80": "127.0.0.1:81", "node2:80": "x"})
    shell.run(block("echo node1:80\n"))
    with pytest.raises(AssertionError, match="node2:80"):
        shell.finish()


def test_a_block_that_nobody_lists_fails(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# P\n\n    one\n\nand\n\n    two\n\nand\n\n    three\n")
    page = Page(str(path), not_run={"one": "why not"})
    assert page.take("two").text == "two\n"
    with pytest.raises(AssertionError, match="three"):
        page.finish()
    with pytest.raises(AssertionError, match="0 blocks begin with 'four'"):
        page.take("four")
    with pytest.raises(AssertionError, match="why is"):
        Page(str(path), not_run={"one": ""})
