"""One HTTP/1.1 message out of captured bytes, and comparison with the original.

Strict where the target's parser is strict (the replay sends these bytes as
they are), lenient where a client may be: `parse_*` judges what was captured,
`canonical_request` reads what a client sent.
"""

import datetime
import re
from dataclasses import dataclass, field

# The Replayer's parsers hold these limits; line terminators do not count.
MAX_REQUEST_LINE = 4096
MAX_HEADERS = 8192
MAX_CHUNK_LINE = 4096

PREFACE = b"PRI * HTTP/2.0\r\n"
BODYLESS_STATUS = (204, 304)

# Not end-to-end, or (Date) made at another moment than the one compared with.
UNCOMPARED_HEADERS = {b"connection", b"keep-alive", b"transfer-encoding", b"date"}

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") +([^\x00-\x20\x7f]+) +HTTP/1\.\d")
_STATUS_LINE = re.compile(rb"HTTP/1\.\d (\d{3})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?", re.DOTALL)
_LINE_END = re.compile(rb"\r?\n")


class HttpError(ValueError):
    """The bytes are not one message; `rule` names the broken rule (rules.py)."""

    def __init__(self, rule, text):
        super().__init__(text)
        self.rule = rule


@dataclass
class Message:
    start_line: bytes
    headers: list[tuple[bytes, bytes]]
    head: bytes
    body: bytes = b""
    chunked: bool = False
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def values(self, name: bytes) -> list[bytes]:
        return [value for header, value in self.headers if header.lower() == name]

    @property
    def method(self) -> bytes:
        return self.start_line.split(b" ", 1)[0]

    @property
    def status(self) -> int:
        return int(self.start_line[9:12])


# ---- parsing what was captured


def parse_request(raw: bytes) -> Message:
    """Parses exactly one replayable request; HttpError says what is wrong."""
    if raw.startswith(PREFACE):
        raise HttpError("http2_preface", "begins with the HTTP/2 preface")
    request = _parse_head(raw, "request_malformed", _REQUEST_LINE)
    _check_request_limits(request)
    if request.values(b"expect"):
        raise HttpError("expect", f"Expect: {request.values(b'expect')[0]!r}")
    end = _parse_body(raw, request, "request_framing")
    if end is None:
        end = len(request.head)
    if end != len(raw):
        raise HttpError(
            "request_leftover",
            f"{len(raw) - end} bytes after its end: {_show(raw[end:])}",
        )
    return request


def parse_response(raw: bytes, method: bytes = b"GET") -> Message:
    """Parses exactly one final response to a request of that method."""
    if not raw:
        raise HttpError("response_missing", "no byte of a response")
    response = _parse_head(raw, "response_malformed", _STATUS_LINE)
    _check_final(response, method)
    if method == b"HEAD" or response.status in BODYLESS_STATUS:
        end = len(response.head)
    else:
        end = _parse_body(raw, response, "response_framing")
    if end is None:
        raise HttpError("response_framing", "neither Content-Length nor chunked")
    if end != len(raw):
        raise HttpError(
            "response_leftover",
            f"{len(raw) - end} bytes after its end: {_show(raw[end:])}",
        )
    return response


def head_lengths(raw: bytes) -> tuple[int, int] | None:
    """(request line, sum of header lines) without terminators, leading line
    ends and the blank line; None when the head has no end. LF ends a line
    here, because endOfMessage tells the lengths of whatever was captured."""
    at = _skip_line_ends(raw)
    lengths = []
    while match := _LINE_END.search(raw, at):
        if match.start() == at:
            return (lengths[0], sum(lengths[1:])) if lengths else None
        lengths.append(match.start() - at)
        at = match.end()
    return None


def _check_request_limits(request):
    line = len(request.start_line)
    if line > MAX_REQUEST_LINE:
        raise HttpError(
            "request_limits", f"request line of {line} bytes, at most {MAX_REQUEST_LINE}"
        )
    total = head_lengths(request.head)[1]
    if total > MAX_HEADERS:
        raise HttpError(
            "request_limits", f"header lines of {total} bytes, at most {MAX_HEADERS}"
        )


def _check_final(response, method):
    if 100 <= response.status < 200:
        raise HttpError("response_interim", f"status {response.status}")
    if method == b"CONNECT" and 200 <= response.status < 300:
        raise HttpError("tunnel", f"CONNECT answered by {response.status}")


def _parse_head(raw, rule, start_line) -> Message:
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        raise HttpError(rule, f"the head has no end: {_show(raw)}")
    first, *lines = raw[:end].split(b"\r\n")
    if not start_line.fullmatch(first):
        raise HttpError(rule, f"start line {_show(first)}")
    headers = [_parse_header(line, rule) for line in lines]
    return Message(first, headers, raw[: end + 4])


def _parse_header(line, rule):
    match = _HEADER.fullmatch(line)
    if not match:
        raise HttpError(rule, f"header line {_show(line)}")
    return match.group(1), match.group(2)


def _parse_body(raw, message, rule):
    """Fills in the body; returns the offset behind it, None when unframed."""
    lengths = message.values(b"content-length")
    codings = message.values(b"transfer-encoding")
    at = len(message.head)
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
            raise HttpError(rule, f"Transfer-Encoding {codings}, Content-Length {lengths}")
        message.chunked = True
        message.body, message.trailers, end = _dechunk(raw, at, rule)
        return end
    if not lengths:
        return None
    if len(lengths) != 1 or not re.fullmatch(rb"\d{1,18}", lengths[0]):
        raise HttpError(rule, f"Content-Length {lengths}")
    size = int(lengths[0])
    if len(raw) - at < size:
        raise HttpError(rule, f"body of {len(raw) - at} bytes, Content-Length {size}")
    message.body = raw[at : at + size]
    return at + size


def _dechunk(raw, at, rule):
    pieces = []
    while True:
        line, at = _chunk_line(raw, at, rule)
        match = _CHUNK_LINE.fullmatch(line)
        if not match:
            raise HttpError(rule, f"chunk size {_show(line)}")
        size = int(match.group(1), 16)
        if size == 0:
            return b"".join(pieces), *_parse_trailers(raw, at, rule)
        if raw[at + size : at + size + 2] != b"\r\n":
            raise HttpError(rule, f"a chunk of {size} bytes at byte {at} has no end")
        pieces.append(raw[at : at + size])
        at += size + 2


def _parse_trailers(raw, at, rule):
    trailers = []
    while True:
        line, at = _chunk_line(raw, at, rule)
        if not line:
            return trailers, at
        trailers.append(_parse_header(line, rule))


def _chunk_line(raw, at, rule):
    end = raw.find(b"\r\n", at, at + MAX_CHUNK_LINE + 2)
    if end < 0:
        raise HttpError(rule, f"chunked body: no line end after byte {at} of {len(raw)}")
    return raw[at:end], end + 2


# ---- comparing with what was sent and received


def canonical_request(sent: bytes) -> bytes:
    """What the capture of an HTTP/1.x client request must be.

    The request line verbatim without leading line ends, the headers in order
    and spelling as `Name: value` with the value trimmed, Expect left out. A
    Content-Length body verbatim; a chunked one as a single chunk, since chunk
    boundaries, extensions and trailers do not survive the proxy's reading.
    """
    request = _canonical(sent)
    return request.head + (_one_chunk(request.body) if request.chunked else request.body)


def same_request(captured: bytes, sent: bytes) -> str | None:
    """None when `captured` is what a client's `sent` must become, else why not."""
    try:
        got = parse_request(captured)
    except HttpError as error:
        return f"captured request: {error}"
    want = _canonical(sent)
    if got.head != want.head:
        return _head_difference(got.head, want.head)
    return _body_difference(got.body, want.body)


def same_response(
    captured: bytes,
    received_head: bytes,
    received_body: bytes,
    method: bytes = b"GET",
    ignore: tuple[bytes, ...] = (),
) -> str | None:
    """None when `captured` is the response that the client received.

    `received_body` is without transfer coding. Compared: status code, every
    end-to-end header by case-insensitive name (values of one name in order),
    body. `ignore` names headers that another filter of the server changes
    behind the capture, such as gzip's Content-Length.
    """
    try:
        got = parse_response(captured, method)
    except HttpError as error:
        return f"captured response: {error}"
    want = _lenient_head(received_head)
    if got.status != want.status:
        return f"captured status {got.status}, received {want.status}"
    return (
        _date_problem(got)
        or _header_difference(got, want, ignore)
        or _body_difference(got.body, received_body)
    )


def _canonical(sent) -> Message:
    raw = sent[_skip_line_ends(sent) :]
    request = _lenient_head(raw)
    end = _parse_body(raw, request, "sent")
    if (len(request.head) if end is None else end) != len(raw):
        raise HttpError("sent", "the client sent more than one request")
    request.headers = [
        (name, value) for name, value in request.headers if name.lower() != b"expect"
    ]
    lines = [request.start_line] + [b": ".join(header) for header in request.headers]
    request.head = b"\r\n".join(lines) + b"\r\n\r\n"
    return request


def _lenient_head(raw) -> Message:
    """A head as its peer may have written it: LF ends lines, too."""
    at, lines = 0, []
    while match := _LINE_END.search(raw, at):
        line, at = raw[at : match.start()], match.end()
        if not line:
            break
        lines.append(line)
    else:
        raise HttpError("sent", f"the head has no end: {_show(raw)}")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or line[:1] in b" \t":
            raise HttpError("sent", f"header line {_show(line)}")
        headers.append((name, value.strip(b" \t")))
    return Message(lines[0], headers, raw[:at])


def _skip_line_ends(raw) -> int:
    at = 0
    while raw[at : at + 1] in (b"\r", b"\n"):
        at += 1
    return at


def _one_chunk(body):
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return chunk + b"0\r\n\r\n"


def _head_difference(got, want):
    got_lines, want_lines = got.split(b"\r\n"), want.split(b"\r\n")
    for number, (have, must) in enumerate(zip(got_lines, want_lines), 1):
        if have != must:
            return f"head line {number}: captured {_show(have)}, must be {_show(must)}"
    return f"head of {len(got_lines)} lines captured, must have {len(want_lines)}"


def _header_difference(got, want, ignore):
    skipped = UNCOMPARED_HEADERS | {name.lower() for name in ignore}
    captured, received = _by_name(got, skipped), _by_name(want, skipped)
    for name in sorted(captured.keys() | received.keys()):
        have, must = captured.get(name), received.get(name)
        if have != must:
            return f"header {name.decode('latin-1')}: captured {have}, received {must}"
    return None


def _by_name(message, skipped):
    values: dict[bytes, list[bytes]] = {}
    for name, value in message.headers:
        if name.lower() not in skipped:
            values.setdefault(name.lower(), []).append(value)
    return values


def _date_problem(response):
    for value in response.values(b"date"):
        try:
            text = value.decode("latin-1")
            datetime.datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT")
        except ValueError:
            return f"captured Date cannot be parsed: {_show(value)}"
    return None


def _body_difference(got, want):
    if got == want:
        return None
    at = _common_prefix(got, want)
    return (
        f"body differs at byte {at} (captured {len(got)}, must be {len(want)}): "
        f"captured {_show(got[at:])}, must be {_show(want[at:])}"
    )


def _common_prefix(one, other) -> int:
    # By halves: bodies have tens of megabytes, and only slices compare fast.
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _show(raw, limit=60) -> str:
    return repr(raw[:limit]) + ("..." if len(raw) > limit else "")
