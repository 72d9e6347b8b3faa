"""The loads, and wrk, which makes them."""

import json
import os
import subprocess
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
CONNECTIONS = 32


class Load(NamedTuple):
    """One kind of request; `path` is the source's (server.py), `rate` the
    requests a second when it is paced: what two cores can take with Kafka."""
    name: str
    method: str
    path: str
    body: int
    rate: int


LOADS = {
    "get-1k": Load("GET 1 KiB", "GET", "/1k", 0, 8000),
    "post-1k": Load("POST 1 KiB", "POST", "/post", 1024, 8000),
    "post-64k": Load("POST 64 KiB", "POST", "/post", 65536, 1000),
    "get-1m": Load("GET 1 MiB", "GET", "/1m", 0, 60),
}


def run(load, port, seconds, prefix, paced=False, connections=CONNECTIONS):
    """Requests for `seconds` over so many connections, each sending its
    next one when it has its answer (paced: and then some time later, so that
    all together come near load.rate): {"requests", "us", "errors", ...}."""
    pause = 1000 * connections // load.rate if paced else 0
    argv = prefix + [
        "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
        "-s", os.path.join(HERE, "load.lua"),
        f"http://127.0.0.1:{port}{load.path}", "--", load.method,
        str(load.body), str(pause)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=seconds + 30)
    if done.returncode != 0:
        raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
