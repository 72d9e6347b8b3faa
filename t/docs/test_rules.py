"""docs/delivery.md: each rule of its table names tests that are there."""

import os
import re

import pytest

from rig.process import TOP


def rows(text):
    """(rule, cell) of the section's tables."""
    section = re.split("^## ", text.split("\n## Rules and their tests\n")[1],
                       flags=re.M)[0]
    return re.findall(r"^\| (?!rule \|)([^|]+?) \| ([^|]+?) \|$", section, re.M)


def missing(rule, cell):
    """Why this row proves nothing, or None."""
    tests = re.findall(r"`([\w/]+\.(?:c|py))::(\w+)`", cell)
    if not tests and not re.match(r"by reading: \w+", cell):
        return f"{rule}: no test, and nothing about reading it"
    for path, name in tests:
        path = os.path.join(TOP, "t", path)
        text = open(path).read() if os.path.exists(path) else ""
        is_there = (rf"^def {name}\(" if path.endswith(".py") else
                    rf"^START_TEST\(\s*{name}\)(?s:.*)tcase_add_\w+\(\s*\w+,\s*{name}\b")
        if not re.search(is_there, text, re.M):
            return f"{rule}: no {name} in {path}"


def test_every_rule_names_tests_that_are_there():
    found = rows(open(os.path.join(TOP, "docs/delivery.md")).read())
    assert len(found) > 50
    assert [m for row in found if (m := missing(*row))] == []


@pytest.mark.parametrize("cell", [
    "", "by reading", "somebody", "`unit/test_pool.c::nothing`",
    "`unit/test_none.c::main`", "`docs/test_rules.py::rows_`",
    "`docs/test_rules.py::rows`, `unit/test_pool.c::main`"])
def test_a_row_that_proves_nothing_is_found(cell):
    assert missing("a rule", cell)
