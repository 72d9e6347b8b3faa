"""Many cases, one NGINX, one topic: what test_matrix.py is made with.

    @case("name", captured="...", replayed="...", limits="...",
          http="...", server="...", needs=("slice",))
    def name(m):
        with m.session() as c:
            c.request("GET", "/name/x")

A case brings its own snippets of configuration, whose locations begin with its
name, and is run once. All that its sessions exchange must then be in the topic,
byte for byte. In the snippets @SOURCE@, @DIR@, @CRT@, @KEY@ and @PORT:name@ stand
for what they say; the latter is m.port("name").
"""

import os
import re
import subprocess
import traceback
from collections import Counter
from dataclasses import dataclass, field

from path.fidelity import ENDS
from path.session import Session, assert_order, assert_same, mark_of, settled
from refconsumer.verify import verify_topic
from rig.client import Client
from rig.nginx import BINARY
from rig.process import free_port
from rig.source import Response
from rig.stack import Stack

CASES = []


@dataclass
class Case:
    name: str
    function: object
    http: str
    server: str
    needs: tuple
    sessions: list = field(default_factory=list)
    filtered: Counter = field(default_factory=Counter)
    error: str = None


def case(name, captured="", replayed="", limits="", ends="", http="", server="",
         needs=()):
    """A row of docs/fidelity.md (see fidelity.row) and its test."""
    assert ends in ENDS if ends else captured and replayed, name

    def register(function):
        CASES.append(Case(name, function, http, server, needs))
        return function
    return register


class MatrixSession(Session):
    """A Session on any port; `ignore` names response headers that a filter
    behind the capture changes. `tls`: an ssl.SSLContext; `first`: raw bytes
    before all."""

    def __init__(self, port, ignore=(), tls=None, tls_session=None, first=b"",
                 **options):
        self.client = Client(port, **options)
        self.exchanges = []
        self.ignore = tuple(n.lower().encode() for n in ignore)
        if first:
            self.client.sock.sendall(first)
        if tls:
            self.client.sock = tls.wrap_socket(
                self.client.sock, server_hostname="source.test",
                session=tls_session)


class Matrix:
    def __init__(self, directory, source, broker, topic, certificate, ports):
        self.source = source
        self.directory = directory
        self.certificate = certificate
        self.answers = {}            # first part of a path -> answer()
        self.modules = _configured()
        self.ports = dict(ports)     # name -> port
        self.current = None
        self.result = None
        self.cases = [c for c in CASES if not self.missing(c)]
        source.answer = self._answer
        source.early = lambda q: "/early" in q.target
        self.stack = Stack(
            directory, source, broker, topic,
            http=self._fill("\n".join(c.http for c in self.cases)),
            server=self._fill("\n".join(c.server for c in self.cases)))

    def missing(self, c):
        """Modules that this NGINX has not."""
        return [n for n in c.needs if not self.modules(n)]

    def run(self):
        """All cases, then NGINX and sidecar end; the topic is judged."""
        self.stack.start()
        seen = 0
        for c in self.cases:
            self.current = c
            try:
                c.function(self)
            except Exception:
                c.error = traceback.format_exc()
            finally:
                for session in c.sessions:
                    session.client.close()
            seen += (sum(len(s.exchanges) for s in c.sessions)
                     + c.filtered.total())
        self.seen = seen
        self.broken = [c.name for c in self.cases if c.error]
        if not self.broken:
            self.total = self.stack.wait_for_status(settled(seen))["total"]
        self.result = verify_topic(self.stack.drain())
        self.found = {}
        for exchange in self.result.exchanges:
            self.found.setdefault(_mark(exchange), []).append(exchange)

    # for the cases

    def session(self, port=None, **options):
        s = MatrixSession(port or self.stack.port, **options)
        self.current.sessions.append(s)
        return s

    def filtered(self, reason, n=1):
        """n exchanges of this case end so, and are in no session."""
        self.current.filtered[reason] += n

    def answer(self, function):
        """For what is asked for below /name/ of this case."""
        self.answers[self.current.function.__name__] = function

    def port(self, name):
        return self.ports.setdefault(name, free_port())

    def file(self, name, data):
        """A file below @DIR@/html."""
        path = os.path.join(self.directory, "html", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)

    # its verdicts

    def judge(self, c):
        assert not c.error, c.error
        for session in c.sessions:
            found = {}
            for sent in session.exchanges:
                assert len(self.found.get(sent.mark, [])) == 1, (
                    f"{sent.mark} is {len(self.found.get(sent.mark, []))} times "
                    f"in the topic: {sent.raw[:200]!r}")
                found[sent.mark] = self.found[sent.mark][0]
                assert_same(found[sent.mark], sent, session.ignore)
            assert_order(self.result, [s.mark for s in session.exchanges], found)

    def judge_all(self):
        """Nothing else is in the topic, and every exchange is in its class."""
        self.result.assert_clean(all_closed=True)
        assert not self.broken
        sent = {s.mark for c in self.cases for x in c.sessions
                for s in x.exchanges}
        assert set(self.found) == sent
        want = Counter()
        for c in self.cases:
            want += c.filtered
        assert {n: v for n, v in self.total["filtered"].items() if v} == want
        assert not any(self.total["lost"].values())
        assert self.total["captured"] == len(sent)
        assert not self.total["truncated"]

    # inside

    def _answer(self, request):
        name = request.target.lstrip("/").replace("?", "/").split("/")[0]
        answer = self.answers.get(name.replace("-", "_"))
        return answer(request) if answer else Response(
            headers=[("X-Method", request.method)],
            body=b"%s %d\n" % (request.target.encode("latin-1"),
                               len(request.body)))

    def _fill(self, text):
        names = {"SOURCE": f"http://127.0.0.1:{self.source.port}",
                 "DIR": self.directory,
                 "CRT": self.certificate[0], "KEY": self.certificate[1]}

        def value(m):
            kind, _, name = m[1].partition(":")
            return str(self.port(name)) if kind == "PORT" else names[kind]
        return re.sub(r"@([A-Z]+(?::\w+)?)@", value, text)


def _mark(exchange):
    try:
        return mark_of(exchange.request)
    except AssertionError:
        return exchange.request


def _configured():
    """A function: was this NGINX built with a module?"""
    said = subprocess.run([BINARY, "-V"], capture_output=True, text=True).stderr
    default = {"uwsgi", "fastcgi", "gzip", "proxy", "map", "rewrite"}

    def has(name):
        if name in default:
            return f"--without-http_{name}_module" not in said
        if name == "threads":
            return "--with-threads" in said
        return f"--with-http_{name}_module" in said
    return has
