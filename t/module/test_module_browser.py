"""The page of capture_status in a real browser: nothing is loaded beside it, and it
looks as it should."""

import os
import re
import shutil
import struct
import subprocess
import zlib

import pytest

BROWSER = shutil.which("chromium")

pytestmark = [pytest.mark.long,
              pytest.mark.skipif(not BROWSER, reason="script/bootstrap --long "
                                 "brings a browser")]


def browse(workdir, *what):
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
         "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", "--hide-scrollbars",
         f"--user-data-dir={workdir}/browser", "--window-size=1000,800", *what],
        capture_output=True, timeout=180,
        env={**os.environ, "HOME": str(workdir)})
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


def pixels(path):
    """The set of colours in a PNG of eight bits a channel."""
    with open(path, "rb") as f:
        data = f.read()
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(
                ">IIBB", data[at + 8:at + 18])
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + size]
        at += size + 12
    assert depth == 8 and colour in (2, 6)
    step = {2: 3, 6: 4}[colour]
    raw, line, found = zlib.decompress(packed), bytes(width * step), set()
    for y in range(height):
        start = y * (width * step + 1)
        line = unfilter(raw[start], raw[start + 1:start + 1 + width * step], line,
                        step)
        found |= {tuple(line[i:i + 3]) for i in range(0, len(line), step)}
    return found


def unfilter(kind, row, above, step):
    """A row of PNG (RFC 2083, 6)."""
    out = bytearray(row)
    for i in range(len(out)):
        a = out[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        if kind == 4:
            p = a + b - c
            near = min((abs(p - v), n) for n, v in enumerate((a, b, c)))[1]
            add = (a, b, c)[near]
        else:
            add = (0, a, b, (a + b) // 2)[kind]
        out[i] = (out[i] + add) & 255
    return bytes(out)


GREEN, RED, PINK = (0x22, 0xaa, 0x77), (0xcc, 0x22, 0x22), (0xfd, 0xe8, 0xe4)


@pytest.mark.parametrize("linked", [True, False])
def test_the_page_looks_as_it_should(rig, workdir, linked):
    r = rig(sidecar=linked, location="capture_bypass $http_x_skip;")
    for _ in range(3):
        r.get()
    r.total(seen=3, **{"captured" if linked else "unlinked": 3})
    # a browser's own Accept is what is tried here
    url = f"http://127.0.0.1:{r.port}/capture_status"
    dom = browse(workdir, "--dump-dom", url)
    assert ("Every worker has its sidecar" in dom) == linked
    assert ("have no sidecar" in dom) != linked
    assert re.search(r"<td>all</td>", dom)
    shot = f"{workdir}/page.png"
    browse(workdir, f"--screenshot={shot}", url)
    colours = pixels(shot)
    assert (GREEN in colours) == linked
    assert ({RED, PINK} <= colours) != linked
    # the page and its icon; its links are not followed
    asked = {line.split('"')[1].split(" ")[1]
             for line in r.nginx.access_log().splitlines() if '"' in line}
    assert asked <= {"/", "/capture_status", "/favicon.ico"}, asked
