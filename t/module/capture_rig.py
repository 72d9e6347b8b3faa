"""NGINX with the module in front of a source, beside a sidecar in Python."""

import os

from fake_sidecar import FakeSidecar
from rig import status
from rig.client import Client
from rig.nginx import Nginx
from rig.status import wait_until

HTTP = """
    capture_sidecar unix:{socket};
    capture_buffer {buffer};
    log_format capture '$request [$capture_result] $capture_connection_id';
    access_log capture.log capture;
    upstream source {{
        server 127.0.0.1:{source};
        keepalive 64;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    keepalive_requests 100000;
    {http}
"""

SERVER = """
        capture {capture};
        capture_wait {wait};
        location = /capture_status {{
            capture off;
            capture_status;
        }}
        location / {{
            proxy_pass http://source;
            {location}
        }}
        {server}
"""

# of the connection, or framing, which is written anew
HOP = {"connection", "keep-alive", "transfer-encoding"}


class Rig:
    """http, server, location, main, events   further snippets of configuration
    sidecar                  False: the test starts rig.sidecar itself
    options                  attributes of the FakeSidecar before it starts
    env                      added to NGINX's environment"""

    def __init__(self, directory, source, http="", server="", location="",
                 main="", capture="on", wait="off", buffer="8m", workers=1,
                 sidecar=True, options=None, log_level="info", env=None):
        os.makedirs(directory)
        self.directory = directory
        self.source = source
        self.start_sidecar = sidecar
        self.socket = os.path.join(directory, "sock")
        self.sidecar = FakeSidecar(self.socket)
        for name, value in (options or {}).items():
            setattr(self.sidecar, name, value)
        self.nginx = Nginx(
            directory, log_level, workers=workers, main=main,
            http=HTTP.format(socket=self.socket, buffer=buffer, http=http,
                             source=source.port if source else 1),
            server=SERVER.format(capture=capture, wait=wait, location=location,
                                 server=server))
        self.nginx.env |= env or {}

    def start(self):
        if self.start_sidecar:
            self.sidecar.start()
        self.nginx.start()
        if self.start_sidecar and self.sidecar.answer(None) is not None:
            self.linked(self.nginx.snippets["workers"])

    def linked(self, n=1):
        """Waits until n workers use their links; returns these."""
        wait_until(lambda: len(self.sidecar.up) >= n, 15, f"{n} links")
        if self.nginx.process.running():
            # the worker takes WELCOME up a moment after it was sent
            wait_until(lambda: self.nginx.error_log().count("capture linked to")
                       >= len(self.sidecar.links), 15, "the workers' side")
        return self.sidecar.up

    @property
    def link(self):
        return self.sidecar.links[-1]

    @property
    def port(self):
        return self.nginx.port

    def client(self, **options):
        return Client(self.port, **options)

    def get(self, target="/", **options):
        """One request on a connection of its own."""
        with self.client() as client:
            return client.request(options.pop("method", "GET"), target, **options)

    def caught_up(self):
        """Waits until the sidecar has read all that the workers have published
        and nothing more comes for a moment."""
        def quiet():
            before = [link.seq for link in self.sidecar.links]
            return all(link.worker("frames") == link.seq
                       for link in self.sidecar.up) and before == [
                           link.seq for link in self.sidecar.links]
        wait_until(quiet, 15, "a sidecar that has caught up")

    def exchanges(self, n):
        """Waits until n exchanges have ended, and there are no more; returns
        them in the order in which they began."""
        def ended():
            all_ = self.sidecar.exchanges
            return len(all_) >= n and all(x.end for x in all_)
        try:
            wait_until(ended, 15)
        except AssertionError:
            raise AssertionError(f"not {n} exchanges that have ended: "
                                 f"{self.sidecar.exchanges}") from None
        assert len(self.sidecar.exchanges) == n, self.sidecar.exchanges
        return self.sidecar.exchanges

    def closed(self, n):
        """Waits until n connectionIds are over; returns all."""
        wait_until(lambda: sum(bool(c.end) for c in self.sidecar.connections) >= n,
                   15, f"{n} closed connectionIds")
        return self.sidecar.connections

    def status(self):
        """capture_status; what must always hold is checked."""
        document = status.capture_status(self.port)
        for row in document["workers"] + [document["exited"], document["total"]]:
            check_sum(row)
        for name in ("seen", "captured", "truncated", "pending", "bytes"):
            rows = document["workers"] + [document["exited"]]
            assert document["total"][name] == sum(r[name] for r in rows), document
        return document

    def total(self, **want):
        """Waits until capture_status' total says this: seen=, captured=,
        pending=, or a reason's name; returns the total. What is not named and
        is no sum must be 0."""
        last = {}

        def good():
            last.update(total=self.status()["total"])
            return flat(last["total"]) == want
        try:
            wait_until(good, 10)
        except AssertionError:
            raise AssertionError(f"capture_status says {flat(last['total'])}, "
                                 f"not {want}") from None
        return last["total"]

    def log(self, n):
        """Waits for n lines of the access log, without those of capture_status:
        `request [$capture_result] $capture_connection_id`."""
        def lines():
            return [line for line in self.nginx._read("capture.log").splitlines()
                    if "/capture_status" not in line]
        wait_until(lambda: len(lines()) >= n, 10, f"{n} lines of the log")
        return lines()

    def close(self):
        try:
            self.nginx.close()
        finally:
            self.sidecar.close()


def flat(row):
    """{name: count} of what a row counts, without zeros."""
    out = {name: row[name] for name in ("seen", "captured", "truncated", "pending")}
    out |= row["filtered"] | row["lost"]
    return {name: n for name, n in out.items() if n}


def check_sum(row):
    parts = (row["captured"] + row["pending"] + sum(row["filtered"].values())
             + sum(row["lost"].values()))
    assert row["seen"] == parts, row


class Message:
    """A captured request or response, parsed strictly: `raw` is exactly one."""

    def __init__(self, raw, bodyless=False):
        head, sep, rest = raw.partition(b"\r\n\r\n")
        assert sep, raw[:200]
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.headers = []
        for line in lines:
            name, sep, value = line.partition(": ")
            assert sep, line
            self.headers.append((name, value))
        lengths = self.all("content-length")
        coding = self.all("transfer-encoding")
        self.trailers = []
        assert len(lengths) + len(coding) <= 1, head
        if bodyless:
            self.body = rest
            assert not rest and not coding, raw[:500]
        elif coding:
            assert coding == ["chunked"]
            self.body, self.trailers = dechunk(rest)
        else:
            self.body = rest
            assert len(rest) == int(lengths[0] if lengths else 0), (
                len(rest), head)

    def all(self, name):
        return [v for n, v in self.headers if n.lower() == name]


def dechunk(data):
    parts, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        line = data[at:end]
        assert line and all(c in b"0123456789abcdef" for c in line), line
        size, at = int(line, 16), end + 2
        if size == 0:
            *lines, last, nothing = data[at:].split(b"\r\n")
            assert last == nothing == b"", data[at:at + 100]
            return b"".join(parts), lines
        parts.append(data[at:at + size])
        assert len(parts[-1]) == size and data[at + size:at + size + 2] == b"\r\n"
        at += size + 2


def same_request(exchange, raw):
    """The captured request is `raw`, whose framing is Content-Length or none;
    endOfMessage has its lengths."""
    assert exchange.request == raw
    lengths_fit(exchange)


def lengths_fit(exchange):
    head = exchange.request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert exchange.eom == (len(head[0]), sum(len(line) for line in head[1:]))


def same_response(exchange, answer, bodyless=False, ignore=()):
    """The captured response is what the client got, but for `ignore` (names)
    and headers of the connection."""
    got = Message(exchange.response, bodyless)
    without = HOP | set(ignore)

    def keep(headers):
        return [h for h in headers if h[0].lower() not in without]
    assert got.line.split(" ", 2)[:2] == ["HTTP/1.1", str(answer.status)]
    assert got.line == answer.head.split(b"\r\n")[0].decode("latin-1")
    assert keep(got.headers) == keep(answer.headers)
    assert got.body == answer.body
    return got
