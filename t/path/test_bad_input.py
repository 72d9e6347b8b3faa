"""Wrong topics and wrong peers: a clear line, a retry, and nothing else
disturbed. (Wrong directives: t/module; wrong keys: t/sidecar.)"""

import os
import socket
import struct

import pytest
from rig.source import Response
from rig.status import wait_until

from path.session import Session, assert_balanced, assert_captured, settled

HELLO = struct.Struct("<IHHIIQ160s")  # wire/hello.h: cap_message
MAGIC, KIND_HELLO, KIND_REFUSE = 0x31704143, 1, 3


def capture_one(s):
    with Session(s) as c:
        c.request("GET", "/")
        assert_balanced(s.wait_for_status(settled(1), 60))
    return c


def test_a_missing_topic_is_created_where_the_broker_does_that(
        stack, own_broker):
    broker = own_broker(auto_create=True,
                        properties={"num.partitions": 3})
    s = stack(broker=broker, topic="made")
    c = capture_one(s)
    assert_captured(s.drain(), [c])
    log = s.sidecar.log_text()
    assert "made" in log and "3 partitions" in log, log


def test_a_missing_topic_is_waited_for_where_the_broker_does_not(
        stack, broker, new_topic):
    """Nothing is lost while the pool holds it: the topic may come."""
    name = f"late{os.getpid()}"
    s = stack(topic=name)
    wait_until(lambda: name in said(s, "warn", "error"), 20, "a clear line")
    with Session(s) as c:
        c.request("GET", "/")
        assert_balanced(s.wait_for_status(
            lambda st: st["total"]["pending"] == 1))
        broker.create_topic(name, 2)
        s.wait_for_status(settled(1), 60)
    assert_captured(s.drain(), [c])


def test_a_topic_that_is_not_permitted_is_named_and_retried(
        stack, own_broker):
    broker = own_broker(users={"proxy": "secret-word"})
    broker.create_topic("closed", 2)
    s = stack(broker=broker, topic="closed", sidecar_conf={
        "kafka.bootstrap.servers": broker.sasl_bootstrap,
        "kafka.security.protocol": "SASL_PLAINTEXT",
        "kafka.sasl.mechanism": "PLAIN",
        "kafka.sasl.username": "proxy",
        "kafka.sasl.password": "secret-word"})
    wait_until(lambda: "closed" in said(s, "warn", "error"), 20, "a clear line")
    with Session(s) as c:
        c.request("GET", "/")
        s.wait_for_status(lambda st: st["total"]["pending"] == 1)
        broker.permit("proxy", "closed")
        s.wait_for_status(settled(1), 60)
    assert_captured(s.drain(), [c])
    assert "secret-word" not in s.sidecar.log_text()


def said(s, *levels):
    return "\n".join(line for line in s.sidecar.log_text().splitlines()
                     if line.startswith(tuple(f"[{x}]" for x in levels)))


@pytest.fixture
def captured(stack):
    """A stack that works, and must still work after the test."""
    s = stack()
    yield s
    c = capture_one(s)
    assert_captured(s.drain(), [c])


def knock(s):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(10)
    peer.connect(s.socket)
    return peer


def hello(version=1, magic=MAGIC, kind=KIND_HELLO):
    return HELLO.pack(magic, kind, version, 0, os.getpid(), 0, b"")


def ends(peer):
    """The other side closes; returns what it said before."""
    said = b""
    try:
        while piece := peer.recv(4096):
            said += piece
    except ConnectionResetError:
        pass
    return said


def test_a_client_that_is_no_worker_is_turned_away(captured):
    for message in (b"GET / HTTP/1.1\r\n\r\n", b"", hello(magic=1),
                    hello() + b"more", hello(kind=2)):
        with knock(captured) as peer:
            if message:
                peer.send(message)
            else:
                peer.shutdown(socket.SHUT_WR)
            ends(peer)


def test_a_worker_without_descriptors_is_turned_away(captured):
    with knock(captured) as peer:
        peer.send(hello())
        ends(peer)


def test_a_worker_with_wrong_descriptors_is_turned_away(captured):
    """A pipe, a file that is not sealed, an empty memfd, one too many."""
    read, write = os.pipe()
    unsealed = os.memfd_create("x")
    os.ftruncate(unsealed, 1 << 20)
    for fds in ([read, write], [unsealed, write],
                [os.memfd_create("y"), write], [unsealed], [write] * 3):
        with knock(captured) as peer:
            socket.send_fds(peer, [hello()], fds)
            ends(peer)


def test_a_worker_of_another_version_is_told_so(captured):
    with knock(captured) as peer:
        fd = os.memfd_create("z")
        socket.send_fds(peer, [hello(version=99)], [fd, fd])
        answer = ends(peer)
    magic, kind, _, code, _, _, text = HELLO.unpack(answer)
    assert (magic, kind, code) == (MAGIC, KIND_REFUSE, 1)
    assert b"99" in text
    wait_until(lambda: "99" in captured.sidecar.log_text(), 10, "a log line")


def test_a_second_sidecar_does_not_take_a_socket_that_is_in_use(captured):
    from rig.sidecar import Sidecar
    second = Sidecar(os.path.join(captured.directory, "second"),
                     captured.sidecar.conf)
    second.start(wait=False)
    wait_until(lambda: not second.running(), 10, "the second one's end")
    assert "another" in second.log_text()


def test_a_topic_with_small_records_takes_large_exchanges(
        stack, source, broker):
    """max.message.bytes below a block: frames are split between records."""
    name = f"small{os.getpid()}"
    broker.create_topic(name, 1, {"max.message.bytes": "20000"})
    source.answer = lambda r: Response(body=b"abcdefgh" * 40000)
    s = stack(topic=name)
    with Session(s) as c:
        c.request("POST", "/_bulk", body=b"12345678" * 30000)
        assert_balanced(s.wait_for_status(settled(1), 60))
    records = s.drain()
    assert max(len(r.value) for r in records) <= 20000
    assert_captured(records, [c])
