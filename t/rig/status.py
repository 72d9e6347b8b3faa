"""Waiting for conditions, and reading the module's own counts."""

import json
import time
import urllib.request

POLL = 0.02  # seconds between two looks; the rig sleeps nowhere else


def wait_until(cond, timeout=10.0, what=None, dead=None):
    """Returns cond()'s first true value.

    Fails with a message after `timeout` seconds, or at once when `dead`, if
    given, returns a text: the reason why the condition cannot come any more
    (a process has ended, say). An exception of cond's counts as "not yet" and
    is shown if that stays the last word.
    """
    deadline = time.monotonic() + timeout
    while True:
        error = None
        try:
            value = cond()
            if value:
                return value
        except Exception as e:  # what cond needs may not be there yet
            value, error = None, e
        reason = dead() if dead else None
        late = time.monotonic() >= deadline
        if reason or late:
            what = what or getattr(cond, "__name__", "the condition")
            why = reason or f"not within {timeout:g} s"
            last = f"raised {error!r}" if error else f"was {value!r}"
            raise AssertionError(f"waiting for {what}: {why}; it last {last}")
        time.sleep(POLL)


def capture_status(port, uri="/capture_status", host="127.0.0.1"):
    """The JSON document of capture_status, as Python objects."""
    with urllib.request.urlopen(f"http://{host}:{port}{uri}", timeout=5) as r:
        return json.load(r)


def unbalanced(status):
    """The rows of capture_status in which seen is not captured + filtered +
    lost + pending; none is as it must be."""
    return [row for row in (*status["workers"], status["exited"], status["total"])
            if row["seen"] != (row["captured"] + sum(row["filtered"].values())
                               + sum(row["lost"].values()) + row["pending"])]
