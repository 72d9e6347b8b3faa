"""Requests that are held until they are durable (capture_wait)."""

import time

import pytest

from rig.client2 import Client2
from rig.source import pattern

from path.session import Session, assert_captured, settled

WAYS = [(buffering, framing, size)
        for buffering in ("on", "off")
        for framing in ("length", "chunked", "none")
        for size in ((0,) if framing == "none" else (0, 1, 3000, 5_000_000))]


def body_of(framing, size):
    body = pattern(size, 7)
    return {"length": {"body": body}, "none": {},
            "chunked": {"chunks": [body[i:i + 70001]
                                   for i in range(0, size, 70001)] or []},
            }[framing]


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_mutating_request_waits_and_is_captured(stack, source, buffering):
    s = stack(wait="mutating", location=f"proxy_request_buffering {buffering};")
    n = 0
    with Session(s) as c:
        for way, framing, size in WAYS:
            if way == buffering:
                start = time.monotonic()
                answer = c.request("POST", f"/{framing}/{size}",
                                   **body_of(framing, size))
                assert answer.status == 200
                print(framing, size, f"{time.monotonic() - start:.4f}")
                n += 1
        c.request("GET", "/does-not-wait")
    waits = s.wait_for_status(settled(n + 1))["total"]["waits"]
    assert waits["held"] == waits["acked"] == n, waits
    assert_captured(s.drain(), [c])
