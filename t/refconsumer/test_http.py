"""One message in strict HTTP/1.1, and the comparisons that path tests use."""

import pytest

from refconsumer import http
from refconsumer.cases import CHUNKED, GET, LAST_CHUNK, OK, POST, long_headers, long_line
from refconsumer.http import (
    HttpError,
    canonical_request,
    head_lengths,
    parse_request,
    parse_response,
    same_request,
    same_response,
)


def head(*lines):
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def chunked(*chunks):
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"


TE = b"Transfer-Encoding: chunked"
POST_CHUNKED = head(b"POST /c HTTP/1.1", b"Host: h", TE)


# ---- requests


def test_request_is_taken_apart():
    request = parse_request(POST)
    assert request.start_line == b"POST /b HTTP/1.1"
    assert request.method == b"POST"
    assert request.headers == [(b"Host", b"h"), (b"Content-Length", b"3")]
    assert request.body == b"abc"


def test_chunked_body_is_decoded():
    raw = POST_CHUNKED + b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n"
    request = parse_request(raw)
    assert request.chunked and request.body == b"abc0123456789"


@pytest.mark.parametrize(
    "raw",
    [
        GET,
        long_line(4096),
        long_headers(8192),
        CHUNKED + LAST_CHUNK,
        POST_CHUNKED.replace(b"chunked", b"Chunked") + chunked(b"a"),
    ],
)
def test_replayable_request_is_accepted(raw):
    parse_request(raw)


BAD_REQUESTS = {
    "line of 4097": (long_line(4097), "request_limits"),
    "headers of 8193": (long_headers(8193), "request_limits"),
    "preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2_preface"),
    "expect": (head(b"GET / HTTP/1.1", b"expect: 100-continue"), "expect"),
    "empty": (b"", "request_malformed"),
    "cut head": (GET[:-2], "request_malformed"),
    "LF lines": (b"GET / HTTP/1.1\nHost: h\n\n", "request_malformed"),
    "one LF line": (b"GET / HTTP/1.1\r\nA: b\nHost: h\r\n\r\n", "request_malformed"),
    "leading CRLF": (b"\r\n" + GET, "request_malformed"),
    "HTTP/0.9": (head(b"GET /"), "request_malformed"),
    "HTTP/2.0": (head(b"GET / HTTP/2.0"), "request_malformed"),
    "folded": (head(b"GET / HTTP/1.1", b"A: b", b" c"), "request_malformed"),
    "no colon": (head(b"GET / HTTP/1.1", b"Host"), "request_malformed"),
    "space before colon": (head(b"GET / HTTP/1.1", b"Host : h"), "request_malformed"),
    "pseudo header": (head(b"GET / HTTP/1.1", b":path: /"), "request_malformed"),
    "NUL in value": (head(b"GET / HTTP/1.1", b"A: \0"), "request_malformed"),
    "second request": (GET + GET, "request_leftover"),
    "body without length": (GET + b"abc", "request_leftover"),
    "body too long": (POST + b"d", "request_leftover"),
    "body too short": (POST[:-1], "request_framing"),
    "bad length": (head(b"POST / HTTP/1.1", b"Content-Length: +0"), "request_framing"),
    "two lengths": (
        head(b"POST / HTTP/1.1", b"Content-Length: 0", b"Content-Length: 0"),
        "request_framing",
    ),
    "length and chunked": (
        head(b"POST / HTTP/1.1", b"Content-Length: 5", TE) + chunked(),
        "request_framing",
    ),
    "other coding": (
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: gzip, chunked") + chunked(),
        "request_framing",
    ),
    "no last chunk": (POST_CHUNKED + b"1\r\na\r\n", "request_framing"),
    "no end of trailers": (POST_CHUNKED + b"0\r\n", "request_framing"),
    "chunk too short": (POST_CHUNKED + b"5\r\nabc\r\n0\r\n\r\n", "request_framing"),
    "chunk too long": (POST_CHUNKED + b"1\r\nabc\r\n0\r\n\r\n", "request_framing"),
    "chunk without CRLF": (POST_CHUNKED + b"1\r\naXX0\r\n\r\n", "request_framing"),
    "chunk size no number": (POST_CHUNKED + b"x\r\n\r\n", "request_framing"),
    "negative chunk size": (POST_CHUNKED + b"-1\r\n\r\n", "request_framing"),
    "chunk size line of 4097": (
        POST_CHUNKED + b"1;" + b"e" * 4095 + b"\r\na\r\n0\r\n\r\n",
        "request_framing",
    ),
    "bytes after last chunk": (POST_CHUNKED + chunked(b"a") + b"x", "request_leftover"),
}


@pytest.mark.parametrize("raw, rule", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_request_that_is_not_replayable_is_refused(raw, rule):
    with pytest.raises(HttpError) as error:
        parse_request(raw)
    assert error.value.rule == rule


# ---- responses

NO_BODY = head(b"HTTP/1.1 200 OK", b"Content-Length: 7")

GOOD_RESPONSES = {
    "length": (OK, b"GET", b"ok"),
    "chunked": (head(b"HTTP/1.1 200 OK", TE) + chunked(b"o", b"k"), b"GET", b"ok"),
    "HEAD with length": (NO_BODY, b"HEAD", b""),
    "HEAD with chunked": (head(b"HTTP/1.1 200 OK", TE), b"HEAD", b""),
    "204": (head(b"HTTP/1.1 204 No Content"), b"DELETE", b""),
    "304 with length": (head(b"HTTP/1.1 304 No", b"Content-Length: 7"), b"GET", b""),
    "empty reason": (head(b"HTTP/1.1 200 ", b"Content-Length: 0"), b"GET", b""),
    "CONNECT refused": (head(b"HTTP/1.1 405 No", b"Content-Length: 0"), b"CONNECT", b""),
}


@pytest.mark.parametrize(
    "raw, method, body", GOOD_RESPONSES.values(), ids=GOOD_RESPONSES.keys()
)
def test_final_response_is_accepted(raw, method, body):
    assert parse_response(raw, method).body == body


BAD_RESPONSES = {
    "nothing": (b"", b"GET", "response_missing"),
    "interim": (head(b"HTTP/1.1 100 Continue") + OK, b"GET", "response_interim"),
    "switching": (head(b"HTTP/1.1 101 Switching"), b"GET", "response_interim"),
    "tunnel": (head(b"HTTP/1.1 200 OK"), b"CONNECT", "tunnel"),
    "cut head": (OK[:20], b"GET", "response_malformed"),
    "no status": (head(b"HTTP/1.1 OK"), b"GET", "response_malformed"),
    "frames": (b"\0\0\0\4\r\n\r\n", b"GET", "response_malformed"),
    "cut body": (OK[:-1], b"GET", "response_framing"),
    "unframed": (head(b"HTTP/1.1 200 OK"), b"GET", "response_framing"),
    "two responses": (OK + OK, b"GET", "response_leftover"),
    "HEAD with body": (OK, b"HEAD", "response_leftover"),
    "304 with body": (head(b"HTTP/1.1 304 No") + b"x", b"GET", "response_leftover"),
}


@pytest.mark.parametrize(
    "raw, method, rule", BAD_RESPONSES.values(), ids=BAD_RESPONSES.keys()
)
def test_what_is_not_one_final_response_is_refused(raw, method, rule):
    with pytest.raises(HttpError) as error:
        parse_response(raw, method)
    assert error.value.rule == rule


# ---- lengths


@pytest.mark.parametrize(
    "raw, lengths",
    [
        (b"GET /x?y=1 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\nbody", (19, 13)),
        (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", (14, 0)),
        (b"GET / HTTP/1.1\nHost: h\n\n", (14, 7)),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", (14, 6)),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", None),
        (b"", None),
        (b"\r\n\r\n", None),
    ],
)
def test_head_lengths_count_no_terminators(raw, lengths):
    assert head_lengths(raw) == lengths


# ---- comparisons


def test_canonical_request_trims_and_leaves_expect_out():
    sent = (
        b"\r\n\nPUT  /a%20b?c HTTP/1.1\nhOsT:h\r\nX-Empty:\r\nEXPECT: 100-continue\r\n"
        b"x-a: \t 1  2 \t\r\nX-A:3\r\nContent-Length:  3\r\n\r\na\r\n"
    )
    assert canonical_request(sent) == (
        b"PUT  /a%20b?c HTTP/1.1\r\nhOsT: h\r\nX-Empty: \r\nx-a: 1  2\r\nX-A: 3\r\n"
        b"Content-Length: 3\r\n\r\na\r\n"
    )


def test_canonical_request_frames_a_chunked_body_as_one_chunk():
    sent = POST_CHUNKED + b"1;x=y\r\na\r\n2\r\nbc\r\n0\r\nX-T: 1\r\n\r\n"
    assert canonical_request(sent) == POST_CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"
    assert canonical_request(POST_CHUNKED + chunked()) == POST_CHUNKED + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        GET + GET,
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        head(b"GET / HTTP/1.1", b"A: b", b" c: d"),
        head(b"GET / HTTP/1.1", b"Host"),
    ],
)
def test_what_no_client_may_send_in_a_test_is_an_error(sent):
    with pytest.raises(HttpError):
        canonical_request(sent)


def test_same_request_accepts_other_chunk_boundaries():
    sent = POST_CHUNKED + chunked(b"a", b"bc")
    assert same_request(POST_CHUNKED + chunked(b"ab", b"c"), sent) is None
    assert same_request(canonical_request(sent), sent) is None


DIFFERENT_REQUESTS = {
    "spelling": (GET.replace(b"Host", b"host"), GET, "head line 2"),
    "order": (
        head(b"GET / HTTP/1.1", b"B: 1", b"A: 1"),
        head(b"GET / HTTP/1.1", b"A: 1", b"B: 1"),
        "head line 2",
    ),
    "line": (GET, GET.replace(b"/a", b"/b"), "head line 1"),
    "untrimmed": (GET.replace(b"Host: h", b"Host:  h"), GET, "head line 2"),
    "header missing": (GET.replace(b"X-A: 1\r\n", b""), GET, "head line 3"),
    "header added": (GET.replace(b"\r\n\r\n", b"\r\nY: 1\r\n\r\n"), GET, "head line 4"),
    "body": (POST[:-1] + b"d", POST, "body differs at byte 2 (captured 3, must be 3)"),
    "framing": (POST, POST_CHUNKED + chunked(b"abc"), "head line 1"),
    "malformed": (GET[:-1], GET, "captured request: the head has no end"),
    "two": (GET + GET, GET, "captured request: 40 bytes after its end"),
}


@pytest.mark.parametrize(
    "captured, sent, why", DIFFERENT_REQUESTS.values(), ids=DIFFERENT_REQUESTS.keys()
)
def test_same_request_says_what_differs(captured, sent, why):
    assert why in same_request(captured, sent)


def test_difference_far_into_a_large_body_is_found():
    length = 25_000_000
    start = head(b"POST / HTTP/1.1", b"Content-Length: %d" % length)
    sent = start + b"x" * length
    captured = bytearray(sent)
    captured[-7] = 0
    assert f"byte {length - 7} " in same_request(bytes(captured), sent)


DATED = head(
    b"HTTP/1.1 200 OK", b"Date: Mon, 23 Nov 2026 04:46:41 GMT", b"ETag: x",
    b"Set-Cookie: a", b"Set-Cookie: b", b"Content-Length: 2",
) + b"ok"


def test_same_response_leaves_hop_by_hop_headers_and_date_out():
    received = head(
        b"HTTP/1.1 200 Fine", b"Connection: close", b"etag: x", b"Set-Cookie: a",
        b"Set-Cookie: b", b"Content-Length: 2", b"Keep-Alive: 1",
        b"Date: Mon, 23 Nov 2026 04:46:59 GMT",
    )
    assert same_response(DATED, received, b"ok") is None


def test_same_response_decodes_the_body():
    captured = head(b"HTTP/1.1 200 OK", TE) + chunked(b"o", b"k")
    assert same_response(captured, head(b"HTTP/1.1 200 OK"), b"ok") is None


def test_same_response_ignores_named_headers():
    received = head(b"HTTP/1.1 200 OK", b"Content-Encoding: gzip")
    assert same_response(OK, received, b"ok") is not None
    ignore = (b"Content-Encoding", b"Content-Length")
    assert same_response(OK, received, b"ok", ignore=ignore) is None


def test_same_response_to_head_has_no_body():
    assert same_response(NO_BODY, NO_BODY, b"", method=b"HEAD") is None


OK_HEAD = head(b"HTTP/1.1 200 OK", b"Content-Length: 2")
DIFFERENT_RESPONSES = {
    "status": (OK, head(b"HTTP/1.1 201 OK", b"Content-Length: 2"), "captured status 200"),
    "header missing": (OK, OK_HEAD[:-2] + b"A: b\r\n\r\n", "header a: captured None"),
    "header added": (DATED, OK_HEAD, "header etag"),
    "value order": (
        DATED,
        head(
            b"HTTP/1.1 200 OK", b"ETag: x", b"Set-Cookie: b", b"Set-Cookie: a",
            b"Content-Length: 2",
        ),
        "header set-cookie",
    ),
    "date": (DATED.replace(b"Nov", b"Now"), OK_HEAD, "Date cannot be parsed"),
    "body": (OK[:-1] + b"!", OK_HEAD, "body differs at byte 1"),
    "cut": (OK[:-1], OK_HEAD, "captured response: body of 1 bytes"),
}


@pytest.mark.parametrize(
    "captured, received, why", DIFFERENT_RESPONSES.values(), ids=DIFFERENT_RESPONSES.keys()
)
def test_same_response_says_what_differs(captured, received, why):
    assert why in same_response(captured, received, b"ok")


def test_limits_are_the_contract_s():
    assert (http.MAX_REQUEST_LINE, http.MAX_HEADERS) == (4096, 8192)
