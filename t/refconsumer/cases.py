"""Named streams, each one topic, and what must come of them.

The streams are committed in streams/*.b64; `python -m refconsumer.cases`
writes them anew. The first twenty-five carry the names of the streams that
the original Java producer made of the same bytes (the folder that
CAPTURE_GOLDEN names), so one table judges both: that producer breaks some
rules of docs/record-contract.md, and the table says which.
"""

import base64
import pathlib
from dataclasses import dataclass, field

from .build import Producer

STREAMS = pathlib.Path(__file__).parent / "streams"

GET = b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n"
GET_Z = GET.replace(b"/a", b"/z")
POST = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PUT_HEAD = (
    b"PUT /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
)
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
    b"Trailer: X-T\r\n\r\n3\r\nabc\r\n"
)
LAST_CHUNK = b"0\r\nX-T: 1\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
H2_HEADERS = b"\x00\x00\x05\x01\x04\x00\x00\x00\x01hello"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n"
)
SWITCHING = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n"
WS_IN, WS_OUT = b"\x81\x05hello", b"\x81\x02hi"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
LF_ONLY = b"GET / HTTP/1.1\nHost: h\n\n"
LEADING = b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"
SEGMENTED = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 700\r\n\r\n" + b"z" * 700
SEGMENTED_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"y" * 500
UPLOAD = b"PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n" + b"u" * 3000


def long_line(length):
    """A GET whose request line has that many bytes."""
    return b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n" % (b"u" * (length - 14))


def long_headers(total):
    """A GET whose header lines have that many bytes together."""
    return b"GET / HTTP/1.1\r\nHost: h\r\nX: %s\r\n\r\n" % (b"v" * (total - 10))


@dataclass
class Case:
    """make: what the producer does; the rest: what the consumer makes of it."""

    make: callable
    exchanges: list = field(default_factory=list)
    forgotten: list = field(default_factory=list)
    exceptions: list = field(default_factory=list)
    violations: set = field(default_factory=set)

    @property
    def values(self):
        return self.make(Producer()).values


def _two_exchanges(producer):
    producer.exchange(GET, OK).read(POST).eom().flush()
    return producer.write(OK).close()


def _expect(producer):
    producer.read(PUT_HEAD).write(b"HTTP/1.1 100 Continue\r\n\r\n").read(b"abc").eom()
    return producer.flush().write(OK).close()


def _preface(producer):
    producer.read(PREFACE).eom((-1, -1)).write(SETTINGS)
    return producer.read(H2_HEADERS).write(b"frame").close()


def _websocket(producer):
    producer.exchange(UPGRADE, SWITCHING).read(WS_IN).write(WS_OUT)
    return producer.read(WS_IN).close()


def _drop_between(producer):
    producer.read(POST).eom().flush()
    producer.write(OK).read(b"GET /a?x=").drop().read(POST).eom().flush()
    return producer.write(OK).close()


def _segmented(producer):
    producer.read_segment(SEGMENTED[:358]).flush()
    producer.read_segment(SEGMENTED[358:714]).flush()
    producer.read_segment(SEGMENTED[714:]).segment_end().eom().flush()
    producer.write_segment(SEGMENTED_OK[:356]).flush()
    return producer.write_segment(SEGMENTED_OK[356:]).segment_end().close()


def _upload(producer):
    producer.read(UPLOAD[:1000]).flush().read(UPLOAD[1000:2000]).flush()
    producer.read(UPLOAD[2000:]).eom().flush().write(OK[:20]).flush()
    return producer.write(OK[20:]).close()


def _abandoned(producer):
    producer.exchange(POST, OK).flush().read(UPLOAD[:1000]).flush()
    return producer.exception("capture lost: pool full").close()


CASES = {
    "01_connect_close_only": Case(lambda p: p.close()),
    "02_GET_keepalive_then_POST": Case(_two_exchanges, [(GET, OK), (POST, OK)]),
    "03_GET_partial_then_close": Case(
        lambda p: p.read(GET[:20]).close(), forgotten=[("close", GET[:20])]
    ),
    "04_pipelined_2_GETs_in_one_read": Case(
        lambda p: p.read(GET * 2).eom((19, 13)).write(OK).write(OK).close(),
        [(GET * 2, OK * 2)],
        violations={"request_leftover", "response_leftover"},
    ),
    "05_pipelined_1_5": Case(
        lambda p: p.exchange(GET + GET[:10], OK)
        .read(GET[10:]).eom((19, 13)).write(OK).close(),
        [(GET + GET[:10], OK), (GET[10:], OK)],
        violations={"request_leftover", "request_malformed", "eom_lengths"},
    ),
    "06_pipelined_separate_reads_before_responses": Case(
        lambda p: p.read(GET).eom().read(GET_Z).eom().write(OK).write(OK).close(),
        [(GET, b""), (GET_Z, OK * 2)],
        violations={"response_missing", "response_leftover"},
    ),
    "07_Expect_100": Case(
        _expect, [(PUT_HEAD + b"abc", OK)], violations={"write_before_eom", "expect"}
    ),
    "08_chunked_w_trailers": Case(
        lambda p: p.read(CHUNKED).read(LAST_CHUNK).eom().flush().write(OK).close(),
        [(CHUNKED + LAST_CHUNK, OK)],
    ),
    "09_HTTP_2_preface_one_read": Case(
        _preface,
        [(PREFACE, SETTINGS)],
        forgotten=[("close", H2_HEADERS)],
        violations={
            "http2_preface", "eom_lengths", "write_before_eom", "response_malformed",
        },
    ),
    "10_HTTP_2_preface_split": Case(
        lambda p: p.read(PREFACE[18:]).write(SETTINGS).read(H2_HEADERS).close(),
        forgotten=[("close", PREFACE[18:] + H2_HEADERS)],
        violations={"write_before_eom"},
    ),
    "11_long_URI_5000": Case(
        lambda p: p.read(long_line(5014)).write(OK).read(GET).write(OK).close(),
        forgotten=[("close", long_line(5014) + GET)],
        violations={"write_before_eom"},
    ),
    "12_line_exactly_4096": Case(
        lambda p: p.exchange(long_line(4096), OK).close(), [(long_line(4096), OK)]
    ),
    "13_line_4097": Case(
        lambda p: p.read(long_line(4097)).write(OK).close(),
        forgotten=[("close", long_line(4097))],
        violations={"write_before_eom"},
    ),
    "14_headers_sum_8192": Case(
        lambda p: p.exchange(long_headers(8192), OK).close(), [(long_headers(8192), OK)]
    ),
    "15_headers_sum_8193": Case(
        lambda p: p.read(long_headers(8193)).write(OK).read(GET).write(OK).close(),
        forgotten=[("close", long_headers(8193) + GET)],
        violations={"write_before_eom"},
    ),
    "16_LF_only_lines": Case(
        lambda p: p.exchange(LF_ONLY, OK).close(),
        [(LF_ONLY, OK)],
        violations={"request_malformed"},
    ),
    "17_leading_CRLF": Case(
        lambda p: p.exchange(LEADING, OK).close(),
        [(LEADING, OK)],
        violations={"request_malformed"},
    ),
    "18_websocket": Case(
        _websocket,
        [(UPGRADE, SWITCHING)],
        forgotten=[("close", WS_IN * 2)],
        violations={"response_interim", "write_before_eom"},
    ),
    "19_drop_whole_in_one_read": Case(
        lambda p: p.read(POST).eom().flush().write(OK).close(), [(POST, OK)]
    ),
    "20_drop_split": Case(
        lambda p: p.read(b"GET /a?x=").drop()
        .read(POST).eom().flush().write(OK).close(),
        [(POST, OK)],
        forgotten=[("requestDropped", b"GET /a?x=")],
    ),
    "21_drop_split_after_captured": Case(
        _drop_between,
        [(POST, OK), (POST, OK)],
        forgotten=[("requestDropped", b"GET /a?x=")],
    ),
    "22_drop_POST_w_body_in_later_reads": Case(
        lambda p: p.exchange(GET, OK).close(), [(GET, OK)]
    ),
    "23_segmenting_buf_400_POST_body_700": Case(
        _segmented, [(SEGMENTED, SEGMENTED_OK)], violations={"first_not_read"}
    ),
    "25_exception": Case(
        lambda p: p.read(b"GET /a?x=").exception().close(),
        forgotten=[("connectionException", b"GET /a?x=")],
        exceptions=["Connection reset by peer"],
    ),
    "26_interim_103_after_EOM": Case(
        lambda p: p.exchange(GET, HINTS).write(OK).close(),
        [(GET, HINTS + OK)],
        violations={"response_interim"},
    ),
    # From here on without a golden counterpart: what this product writes.
    "40_upload_over_records": Case(_upload, [(UPLOAD, OK)]),
    "41_abandoned_after_loss": Case(
        _abandoned,
        [(POST, OK)],
        forgotten=[("connectionException", UPLOAD[:1000])],
        exceptions=["capture lost: pool full"],
    ),
}

FIRST_OWN = "40"


def lines_of(values) -> str:
    return "".join(base64.b64encode(value).decode() + "\n" for value in values)


def write_streams(folder=STREAMS):
    for name, case in CASES.items():
        (folder / f"{name}.b64").write_text(lines_of(case.values), encoding="ascii")


if __name__ == "__main__":
    write_streams()
