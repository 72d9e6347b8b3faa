"""Planned exchanges (generate.py), spoken: a class for each protocol.

A Speaker has converse(specs): it says what is planned for one client, on as many
connections as that takes, and returns a Seen for each. A further protocol is a
further Speaker, in PROTOCOLS.
"""

import time
from dataclasses import dataclass

from rig.client import Client, build_request
from rig.client2 import Client2, alpn, captured
from rig.process import free_port

from path.generate import HALF_CLOSED, IN_REQUEST

HOST = "source.test"


@dataclass
class Seen:
    """How an exchange went. `raw` is what its request must be captured as, by
    the words of HTTP/1.1. `said` tells whether all of it was sent."""
    spec: object
    raw: bytes
    said: bool
    answer: object               # rig.client.Answer or None
    connection: object           # the same for what shared one

    @property
    def whole(self):
        return self.answer is not None and self.answer.complete


def headers_of(spec):
    return [("Host", HOST), ("X-Mark", spec.mark), *spec.headers]


def pieces(data, fragments):
    """(piece, seconds to wait after it), as the fragments say."""
    at = 0
    for share, pause in fragments:
        end = int(share * len(data))
        yield data[at:end], pause
        at = end
    yield data[at:], 0


def chunks_of(body, sizes):
    out, at, sizes = [], 0, list(sizes)
    while at < len(body):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        out.append(body[at:at + size])
        at += size
    return out


class Speaker1:
    """HTTP/1.1 and 1.0."""
    streams = False
    ordered = True               # one connection is one connectionId, in order
    cut_in_order = True          # a response that is cut comes as far as it was sent
    end_alone = False            # a stream's end comes in no frame of HTTP's

    def __init__(self, options):
        self.options = options

    @staticmethod
    def listen(certificate):
        """({option: value} for the Speaker, a snippet of NGINX's server)"""
        return {}, ""

    def converse(self, specs, port):
        self.port, self.client, self.seen = port, None, []
        group = []
        for spec in specs:
            group.append(spec)
            if not spec.pipelined:
                self._exchange(group)
                group = []
        self._close()
        return self.seen

    def _exchange(self, group):
        if self.client is None:
            self.client = Client(self.port)
        raws = [self._raw(spec) for spec in group]
        last = group[-1]
        if last.leaves:
            self._leave(group, raws)
            return
        said = self._send(b"".join(raws), last.fragments)
        for spec, raw in zip(group, raws):
            answer = self.client and self.client.receive(spec.method)
            self.seen.append(Seen(spec, raw, said, answer, self.client))
            if answer is None or not answer.complete or _closes(spec, answer):
                self._close()

    def _leave(self, group, raws):
        """The last of the group is not brought to its end."""
        spec, raw, client = group[-1], raws[-1], self.client
        said = spec.leaves != IN_REQUEST
        if not said:
            raw = raw[:int(spec.place * len(raw))]
        self._send(b"".join(raws[:-1]) + raw, spec.fragments)
        for before, its in zip(group[:-1], raws):
            answer = client.receive(before.method)
            self.seen.append(Seen(before, its, True, answer, client))
        answer = None
        if spec.leaves == HALF_CLOSED:
            client.half_close()
            answer = client.receive(spec.method)
        elif said:
            want = int(spec.place * len(spec.answer_body))
            while want > 0 and (piece := client.receive_some(min(want, 1 << 16))):
                want -= len(piece)
        if spec.reset:
            client.reset()
        self._close()
        self.seen.append(Seen(spec, raws[-1], said, answer, client))

    def _raw(self, spec):
        headers = headers_of(spec)
        if spec.close:
            headers.append(("Connection", "close"))
        elif spec.version == "1.0":
            headers.append(("Connection", "keep-alive"))
        chunks = body = None
        if spec.size is not None:
            body = spec.body
            if spec.chunks:
                body, chunks = None, chunks_of(body, spec.chunks)
        raw = build_request(spec.method, spec.target, headers, body, chunks)
        return raw.replace(b" HTTP/1.1\r\n", b" HTTP/%s\r\n" % spec.version.encode(),
                           1)

    def _send(self, data, fragments):
        try:
            for piece, pause in pieces(data, fragments):
                if piece:
                    self.client.send(piece)
                if pause:
                    time.sleep(pause)
        except ConnectionError:
            return False
        return True

    def _close(self):
        if self.client:
            self.client.close()
        self.client = None


def _closes(spec, answer):
    return ((answer.header("connection") or "").lower() == "close" or spec.close
            or (spec.version == "1.0" and answer.header("content-length") is None))


class Speaker2:
    """HTTP/2 by prior knowledge."""
    streams = True
    ordered = False
    cut_in_order = True
    end_alone = False
    tls = None

    def __init__(self, options):
        self.port = options["port"]

    @staticmethod
    def listen(certificate):
        port = free_port()
        return {"port": port}, f"listen 127.0.0.1:{port} http2;"

    def converse(self, specs, _port):
        self.client, self.seen, group = None, [], []
        for spec in specs:
            group.append(spec)
            if not spec.together:
                self._exchange(group)
                group = []
        if self.client:
            self.client.close()
        return self.seen

    def _exchange(self, group):
        if self.client is None or self.client.goaway is not None:
            self.client = self._connect()
        client, todo = self.client, []
        for spec in group:
            todo.append(self._begin(spec))
        # a piece of each in turn
        while any(left for *_, left in todo):
            for spec, stream, left in todo:
                if left:
                    self._say(spec, stream, *left.pop(0))
        for spec, stream, _ in todo:
            self._finish(spec, stream)
        if group[-1].leaves:
            self._abandon(group[-1].reset)
            self.client = None

    def _connect(self):
        return Client2(self.port, tls=self.tls)

    def _begin(self, spec):
        headers = self._headers(spec)
        if spec.size is not None and not spec.chunks:
            headers = [*headers, ("content-length", str(spec.size))]
        end = spec.size is None
        # one that leaves in its request never ends it
        stream = self.client.start(spec.method, spec.target, headers,
                                   end=end and spec.leaves != IN_REQUEST)
        if end:
            return spec, stream, []
        body = spec.body
        if spec.leaves == IN_REQUEST:
            body = body[:int(spec.place * len(body))]
        left = list(pieces(body, spec.fragments))
        return spec, stream, [(piece, pause, i == len(left) - 1)
                              for i, (piece, pause) in enumerate(left)]

    def _say(self, spec, stream, piece, pause, last):
        end = last and spec.leaves != IN_REQUEST
        if piece or end:
            self.client.data(stream, piece, end=end)
        if pause:
            time.sleep(pause)

    def _abandon(self, reset):
        self.client.reset() if reset else self.client.close()

    def _finish(self, spec, stream):
        client, answer = self.client, None
        # Content-Length: 0 is all of it, without an END_STREAM
        said = spec.leaves != IN_REQUEST or (spec.size == 0 and not spec.chunks)
        if spec.leaves is None:
            answer = client.receive(stream)
        else:
            if spec.leaves != IN_REQUEST:
                client.receive_some(stream, int(spec.place * spec.answer.size))
            if not (stream in client.done or stream in client.resets
                    or client.closed):
                client.reset_stream(stream)
        self.seen.append(Seen(spec, self._raw(spec), said, answer, client))

    @staticmethod
    def _headers(spec):
        return [("x-mark", spec.mark), *spec.headers]

    def _raw(self, spec):
        """Cookies are put together, at the end of what the client sent."""
        headers = self._headers(spec)
        crumbs = [v for n, v in headers if n == "cookie"]
        headers = [h for h in headers if h[0] not in ("cookie", "expect")]
        length = spec.size is not None and not spec.chunks
        if length:
            headers.append(("content-length", str(spec.size)))
        if crumbs:
            headers.append(("cookie", "; ".join(crumbs)))
        if length:
            return captured(spec.method, spec.target, headers,
                            authority=HOST) + spec.body
        return captured(spec.method, spec.target, headers, spec.body, length=False,
                        authority=HOST)


class Speaker2Tls(Speaker2):
    """HTTP/2 by ALPN."""

    def __init__(self, options):
        super().__init__(options)
        self.tls = alpn(options["trust"])

    @staticmethod
    def listen(certificate):
        port = free_port()
        return {"port": port, "trust": certificate[0]}, (
            f"listen 127.0.0.1:{port} ssl http2;"
            f"ssl_certificate {certificate[0]};"
            f"ssl_certificate_key {certificate[1]};")


class Speaker3(Speaker2):
    """HTTP/3."""
    cut_in_order = False         # a stream's reset throws away what is on its way
    # with it NGINX cannot tell no body from one without a byte, when it comes at
    # once with the head; later than that it can
    end_alone = True

    def __init__(self, options):
        super().__init__(options)
        self.trust = options["trust"]

    @staticmethod
    def listen(certificate):
        port = free_port()
        return {"port": port, "trust": certificate[0]}, (
            f"listen 127.0.0.1:{port} quic reuseport;"
            f"ssl_certificate {certificate[0]};"
            f"ssl_certificate_key {certificate[1]};")

    def _connect(self):
        from rig.client3 import Client3
        return Client3(self.port, self.trust, timeout=60)

    def _abandon(self, reset):
        """Streams have been reset by now. (A connection without a word would last
        until NGINX's timeout: test_http3.py.)"""
        self.client.close()


PROTOCOLS = {"http1": Speaker1, "http2": Speaker2, "http2-tls": Speaker2Tls,
             "http3": Speaker3}
