"""Exchanges whose request and response overlap, or do not end: gRPC by grpc_pass,
uploads that are answered early, server-sent events."""

import threading
from concurrent import futures

import pytest

from path.fidelity import row
from path.session import (Session, assert_balanced, assert_captured, marked,
                          settled)
from refconsumer import http, pb
from refconsumer.verify import verify_topic
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

FIDELITY = "gRPC, streams, early responses"

grpc = pytest.importorskip("grpc")


class Calls:
    """A gRPC server of untyped bytes; `forever` ends what never ends else."""

    def __init__(self):
        self.forever = threading.Event()
        self.port = free_port()
        handlers = grpc.method_handlers_generic_handler("test.S", {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "Lines": grpc.unary_stream_rpc_method_handler(self.lines),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Early": grpc.stream_stream_rpc_method_handler(self.early),
            "Endless": grpc.unary_stream_rpc_method_handler(self.endless),
            "Silent": grpc.unary_unary_rpc_method_handler(self.silent)})
        self.server = grpc.server(futures.ThreadPoolExecutor(16))
        self.server.add_generic_rpc_handlers((handlers,))
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port

    def unary(self, request, context):
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        return b"re:" + request

    def upload(self, requests, context):
        return b"%d" % sum(len(r) for r in requests)

    def lines(self, request, context):
        yield from (b"%d" % i for i in range(int(request)))

    def chat(self, requests, context):
        for request in requests:
            yield b"re:" + request

    def early(self, requests, context):
        yield b"enough:" + next(requests)

    def endless(self, request, context):
        yield b"first"
        self.forever.wait(20)

    def silent(self, request, context):
        self.forever.wait(20)
        return b""


@pytest.fixture
def calls():
    made = Calls()
    made.server.start()
    yield made
    made.forever.set()
    made.server.stop(None).wait()


def paths(result):
    return [x.request.split(b" ")[1].split(b"/")[2].decode()
            for x in result.exchanges]


def messages(body):
    """gRPC's, out of a body."""
    out, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at + 1:at + 5], "big")
        out.append(body[at + 5:at + 5 + size])
        at += 5 + size
    return out


@row("gRPC by `grpc_pass`: unary calls", captured="all of it, with the trailers "
     "(grpc-status)", replayed="the request as HTTP/1.1, chunked",
     limits="the target must take gRPC's bytes over HTTP/1.1")
@row("gRPC: streams of the client, of the server, in both directions",
     captured="all of it; what the server said before the client's end stands "
     "behind it", replayed="the whole request at once, then the response",
     limits="256 KiB are held until the client's end; of a larger response only the "
     "beginning is recorded: lost(response)")
@row("gRPC: a call that the server ends before its client does",
     ends="unread_body")
@row("gRPC: a call that its client cancels, or whose deadline passes, after its "
     "request's end", ends="truncated",
     limits="captured where the server's own answer comes before the reset")
@row("gRPC: a stream that its client cancels before its end", ends="unread_body")
def test_grpc(stack, source, calls):
    port = free_port()
    s = stack(server=f"listen 127.0.0.1:{port} http2;"
                     f"location /test.S/ {{ grpc_pass 127.0.0.1:{calls.port}; }}")
    go, never = threading.Event(), threading.Event()

    def talk(*words, event=go):
        yield words[0]
        assert event.wait(20)
        yield from words[1:]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        def call(kind, name):
            return getattr(channel, kind)(f"/test.S/{name}")
        for i in range(3):
            assert call("unary_unary", "Unary")(b"%d" % i) == b"re:%d" % i
        with pytest.raises(grpc.RpcError):
            call("unary_unary", "Unary")(b"fail")
        assert call("stream_unary", "Upload")(iter(
            [pattern(10_000, i) for i in range(20)])) == b"200000"
        assert len(list(call("unary_stream", "Lines")(b"100"))) == 100

        answers = call("stream_stream", "Chat")(talk(b"a", b"b", b"c"))
        assert next(answers) == b"re:a"
        go.set()
        assert list(answers) == [b"re:b", b"re:c"]
        whole = 7

        early = call("stream_stream", "Early")(talk(b"a", b"b", event=never))
        assert list(early) == [b"enough:a"]
        s.wait_for_status(lambda st: st["total"]["filtered"]["unread_body"] == 1)

        cut = call("unary_stream", "Endless")(b"x")
        assert next(cut) == b"first"
        cut.cancel()
        s.wait_for_status(lambda st: st["total"]["truncated"] == 1)

        chat = call("stream_stream", "Chat")(talk(b"a", b"b", event=never))
        assert next(chat) == b"re:a"
        chat.cancel()
        s.wait_for_status(lambda st: st["total"]["filtered"]["unread_body"] == 2)

        with pytest.raises(grpc.RpcError) as late:
            call("unary_unary", "Silent")(b"x", timeout=0.3)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        status = assert_balanced(s.wait_for_status(settled(whole + 4)))
        never.set()
    assert status["total"]["captured"] == whole + 2
    assert status["total"]["truncated"] in (1, 2)
    calls.forever.set()
    calls.server.stop(None).wait()

    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert sorted(paths(result)) == sorted(
        ["Unary"] * 4 + ["Upload", "Lines", "Chat", "Endless", "Silent"])
    for x, name in zip(result.exchanges, paths(result)):
        request = http.parse_request(x.request)
        if name in ("Endless", "Silent"):
            continue
        response = http.parse_response(x.response, b"POST")
        status = dict(response.trailers or response.headers)[b"grpc-status"]
        said, got = messages(request.body), messages(response.body)
        if said == [b"fail"]:
            assert status == b"5" and not got
            continue
        assert status == b"0"
        if name == "Upload":
            assert said == [pattern(10_000, i) for i in range(20)]
            assert got == [b"200000"]
        elif name == "Chat":
            assert said == [b"a", b"b", b"c"]
        if name in ("Chat", "Unary"):
            assert got == [b"re:" + word for word in said]


@row("an upload with `proxy_request_buffering off` that is answered before its end, "
     "and goes on to it", captured="all of it, the response behind the request",
     replayed="the whole request, then the response",
     limits="observations of the response have the time of the request's end; "
     "256 KiB are held of an exchange, an eighth of `capture_buffer` of a worker: "
     "beyond that, lost(response)")
@pytest.mark.parametrize("wait, failure", [
    ("off", "forward"), ("mutating", "forward"), ("mutating", "refuse")])
def test_an_early_response_follows_its_request(stack, source, wait, failure):
    more = threading.Event()
    source.early = lambda q: True
    source.answer = lambda q: Response(body=pattern(90_000), hold_body=more,
                                       hold_at=40_000)
    s = stack(wait=wait, location="proxy_request_buffering off;"
              f"proxy_buffering off; capture_on_failure {failure};")
    with Session(s) as c:
        for n, options in enumerate((
                {"body": pattern(50_000)}, {"chunks": [pattern(50_000)]}), 1):
            more.clear()
            raw, mark = marked("POST", "/early", **options)
            c.client.send(raw[:30_000])
            while len(c.client._buffer) < 40_000:
                assert c.client._fill(), "the response has ended"
            before = s.status()["total"]["bytes"]
            c.client.send(raw[30_000:])
            # the rest of the request, and behind it what was held; a response
            # that ends while the request is held costs the client's connection
            s.wait_for_status(
                lambda st: st["total"]["bytes"] >= before + 20_000 + 40_000
                and (wait == "off" or st["total"]["waits"]["acked"] == n))
            more.set()
            c.received("POST", raw, mark)
        waits = s.wait_for_status(settled(2))["total"]["waits"]
        assert waits["held"] == waits["acked"] == (2 if wait != "off" else 0)
    assert_captured(s.drain(), [c])


@row("server-sent events and other responses without an end",
     captured="what came so far, at most 1 s after the first byte that is not yet "
     "in a record", replayed="the request", limits="the response is complete, or "
     "named as cut, when the connection ends")
def test_an_endless_response_is_flushed_every_second(stack, source, broker, topic):
    """By the broker's own times: none of a record's observations is older than
    flush.time; half a second more is for a machine under load."""
    hold = threading.Event()
    source.answer = lambda q: Response(
        headers=[("Content-Type", "text/event-stream")], hold_body=hold,
        body=b"data: 1\n\n" + b"data: 2\n\n", hold_at=9, until_close=True)
    s = stack(location="proxy_buffering off;")
    with Session(s) as c:
        raw, mark = marked("GET", "/events")
        c.client.send(raw)
        wait_until(lambda: b"data: 1" in c.client._buffer or c.client._fill())
        wait_until(lambda: any(b"data: 1" in r.value for r in s.records()), 10,
                   "the first event in the topic")
        records, created = s.records(), broker.created(topic)
        for r in records:
            first = pb.decode(r.value).observations[0].ts_ns
            age = created[r.partition, r.offset] - first
            assert -1e7 < age < 1.5e9, f"{age / 1e9} s"
        hold.set()
        c.received("GET", raw, mark)
        s.wait_for_status(settled(1))
    assert_captured(s.drain(), [c])
