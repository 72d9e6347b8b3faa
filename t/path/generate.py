"""Random exchanges, the same for the same seed: what a client sends, what the
source answers, and who gives up where."""

import random
from dataclasses import dataclass, field

from rig.source import Response, pattern

MB = 1 << 20
LOCATIONS = ("/plain/", "/up/", "/down/", "/both/")

# proxy_request_buffering and proxy_buffering off: neither, one, the other, both
SERVER = """
    large_client_header_buffers 4 16k;
    proxy_buffer_size 32k;
    proxy_busy_buffers_size 64k;
    proxy_buffers 8 16k;
    location /up/ {{ proxy_request_buffering off; proxy_pass http://source; }}
    location /down/ {{ proxy_buffering off; proxy_pass http://source; }}
    location /both/ {{
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_pass http://source;
    }}
    {server}
"""

# how a client leaves
IN_REQUEST, IN_RESPONSE, HALF_CLOSED = "in request", "in response", "half-closed"

# (status, reason); two of them have no body
STATUSES = ((200, "OK"), (201, "Created"), (204, "No Content"), (206, "Partial"),
            (301, "Moved"), (304, "Not Modified"), (400, "Bad Request"),
            (404, "Not Found"), (409, ""), (429, "Slow Down"), (500, "Oops"),
            (503, "Later"))
BODYLESS = (204, 304)


@dataclass
class Answer:
    """What the source does. `cut`: it closes after so many bytes of the body;
    -1: without an answer."""
    status: int = 200
    reason: str = "OK"
    headers: list = field(default_factory=list)
    framing: str = "length"        # or chunked, close
    chunks: tuple = None
    size: int = 0
    piece: int = MB                # written at once, with `pause` between
    pause: float = 0
    cut: int = None


@dataclass
class Spec:
    """One exchange as it is planned. `version` and `pipelined` mean something
    to HTTP/1 alone, `together` to the protocols with streams."""
    index: int
    mark: str
    method: str
    target: str
    headers: list
    size: int = None               # of the body; None: there is none
    chunks: tuple = None           # sizes; None: Content-Length
    version: str = "1.1"
    close: bool = False            # the client asks for it
    pipelined: bool = False        # sent with the one after it
    together: bool = False         # in flight with the one after it
    fragments: list = field(default_factory=list)   # (share of all, pause)
    leaves: str = None             # IN_REQUEST ...
    place: float = 0               # where, as a share
    reset: bool = False            # and how: RST instead of FIN
    answer: Answer = None

    @property
    def body(self):
        return None if self.size is None else pattern(self.size, self.index)

    @property
    def answer_body(self):
        """What reaches a client that stays."""
        a = self.answer
        if not self.has_answer_body or a.cut == -1:
            return b""
        return pattern(a.size, self.index + 1)[:a.cut]

    @property
    def source_cuts(self):
        """Will the answer lack a part that its framing promises?"""
        a = self.answer
        return (a.cut is not None and a.cut >= 0 and self.has_answer_body
                and a.framing != "close")

    @property
    def has_answer_body(self):
        return self.method != "HEAD" and self.answer.status not in BODYLESS

    def response(self):
        a = self.answer
        if a.cut == -1:
            return Response(raw=b"", close=True)
        return Response(
            a.status, a.reason, a.headers, pattern(a.size, self.index + 1),
            chunked=a.chunks if a.framing == "chunked" else None,
            until_close=a.framing == "close", piece=a.piece, pause=a.pause,
            # else it would end what NGINX takes for a connection to keep
            cut=a.cut if self.has_answer_body else None)

    def __str__(self):
        shown = {k: v for k, v in vars(self).items() if v not in (None, [], False)}
        return " ".join(f"{k}={_short(v)}" for k, v in shown.items())


def _short(value):
    text = repr(value)
    return text if len(text) < 300 else text[:290] + "..." + text[-10:]


class Generator:
    """`streams`: for a protocol that has them."""

    def __init__(self, seed, streams):
        self.r = random.Random(seed)
        self.streams = streams
        self.index = 0

    def conversations(self, count):
        """Lists of Specs, a connection each, `count` Specs in all."""
        out = []
        while count:
            size = min(count, 1 + int(self.r.expovariate(1 / 6)))
            out.append(self._conversation(size))
            count -= size
        return out

    def _conversation(self, size):
        specs = [self._spec() for _ in range(size)]
        for spec, after in zip(specs, specs[1:]):
            if spec.close or spec.leaves or spec.answer.cut is not None:
                continue
            if self.streams:
                spec.together = self._chance(.6)
            elif self._chance(.3) and spec.version == after.version == "1.1":
                spec.pipelined = True
        for spec, after in zip(specs, specs[1:]):
            if spec.pipelined:    # nobody reads while all of them are sent
                _shrink(spec)
                _shrink(after)
        return specs

    def _spec(self):
        r = self.r
        self.index += 1
        spec = Spec(self.index, f"x{self.index}", self._method(),
                    self._target(), self._headers("Cookie"))
        if spec.method in ("POST", "PUT", "PATCH") or self._chance(.05):
            spec.size = self._size()
            if self._chance(.4):
                spec.chunks = self._chunks()
        if not self.streams and self._chance(.08) and not spec.chunks:
            spec.version = "1.0"
            spec.close = self._chance(.5)
        spec.close = spec.close or self._chance(.04)
        if spec.size and spec.version == "1.1" and self._chance(.05):
            spec.headers.append((self._case("Expect"), "100-continue"))
        if self._chance(.06):
            self._long_head(spec)
        spec.fragments = self._fragments()
        spec.answer = self._answer(spec)
        if self._chance(.08):
            spec.leaves = r.choice((IN_REQUEST, IN_RESPONSE) if self.streams else
                                   (IN_REQUEST, IN_RESPONSE, HALF_CLOSED))
            spec.place = r.random()
            spec.reset = self._chance(.5)
        return spec

    def _answer(self, spec):
        r = self.r
        a = Answer(size=self._size(), headers=self._headers("Set-Cookie"))
        if self._chance(.3):
            a.status, a.reason = r.choice(STATUSES)
        if a.status == 301:
            a.headers.append(("Location", "http://elsewhere.test/" + spec.mark))
        a.framing = r.choice(("length", "length", "chunked", "chunked", "close"))
        if a.framing == "chunked":
            a.chunks = self._chunks()
        if self._chance(.3):
            a.piece = max(1 + r.randrange(9000), a.size // 20)
            a.pause = r.choice((0, 0, .001, .003))
        if self._chance(.08):
            a.cut = r.choice((-1, 0, r.randrange(a.size + 1)))
            if a.cut == a.size:
                a.cut = None       # that would be all of it
        return a

    # the parts of them

    def _chance(self, share):
        return self.r.random() < share

    def _method(self):
        return self.r.choice(("GET",) * 6 + ("POST",) * 5 + (
            "PUT", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND",
            "X-ODD", "QUERY"))

    def _target(self):
        tail = "".join(self.r.choices("abcZ09-._~!$&'()*+,;=:@/", k=self.r.choice(
            (0, 3, 10, 60)))).replace("//", "/x")
        if self._chance(.1):
            tail += self.r.choice(("%C3%A4", "%2F", "%20", "\xe4\xf6", "..;"))
        if self._chance(.4):
            tail += "?" + "".join(self.r.choices("abc=&?/%25", k=30))
        return self.r.choice(LOCATIONS) + "x" + tail.replace("/..", "/")

    def _headers(self, one_more):
        r, out = self.r, []
        for _ in range(r.choice((0, 0, 1, 3, 8))):
            name = self._case(r.choice(("X-Some", "x-other", "Accept", "X-1",
                                        "X-Opaque-Id", "A", one_more)))
            value = self._value()
            if name.lower() == "cookie":
                # an empty crumb, put together with others, is white space that
                # HTTP/1.1 does not count
                value = value or "c=d"
            out.append((name, value))
        if out and self._chance(.4):
            out.append((self._case(r.choice(out)[0]), "again"))
        return out

    def _value(self):
        r = self.r
        return r.choice((
            "", "v", "a b  c", "a\tb", "\xe4\xf6\xfc\xff", "\xe2\x82\xac",
            '"quoted, list", b', "x" * r.randrange(200),
            "%d" % r.randrange(1 << 40), "e" * r.randrange(1000),
            "v" if self.streams else "  spaced "))

    def _case(self, name):
        if self.streams:
            return name.lower()
        return self.r.choice((name, name, name.lower(), name.upper(),
                              name.swapcase()))

    def _long_head(self, spec):
        """About as long as the Replayer takes, or more."""
        if self._chance(.3):
            goal = 4096 + self.r.choice((-200, -20, 0, 20, 500))
            spec.target += "l" * (goal - len(spec.target) - len(spec.method) - 10)
        else:
            have = sum(len(n) + len(v) + 2 for n, v in spec.headers)
            goal = 8192 + self.r.choice((-400, -60, -30, 0, 30, 900))
            for i in range(4):
                spec.headers.append((self._case(f"X-Long-{i}"),
                                     "l" * max(1, (goal - have) // 4 - 10)))

    def _size(self):
        """Mostly small, now and then some megabytes."""
        r, kind = self.r, self.r.random()
        if kind < .12:
            return 0
        if kind < .45:
            return r.randrange(1, 300)
        if kind < .70:
            return r.randrange(300, 20_000)
        if kind < .85:
            return r.choice((8192, 16384, 32768, 65536)) + r.randrange(-2, 3)
        if kind < .98:
            return r.randrange(20_000, 300_000)
        return r.randrange(MB, 4 * MB)

    def _chunks(self):
        r = self.r
        return tuple(r.choice((1, 2, 15, 16, 255, 4096, 65535, 65536, 100_000))
                     for _ in range(r.randrange(1, 6))) + (r.randrange(5000, 200_000),)

    def _fragments(self):
        """Where what is sent is cut into pieces, and how long to wait there."""
        if self._chance(.5):
            return []
        return sorted((self.r.random(), self.r.choice((0, 0, .001, .004)))
                      for _ in range(self.r.randrange(1, 6)))


def _shrink(spec):
    if spec.size is not None:
        spec.size = min(spec.size, 3000)
    spec.answer.size = min(spec.answer.size, 3000)
    if spec.answer.cut is not None:
        spec.answer.cut = min(spec.answer.cut, spec.answer.size - 1)
