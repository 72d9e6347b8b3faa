"""Requests through capture-proxy with the argument lists of the deployments are in
the topic as the contract wants them, and reach the source as they were sent."""

import base64
import json
import os
import threading
import time

import pytest

from path.session import Session, assert_captured, marked, settled
from rig.client import build_request
from rig.process import accepts, free_port
from rig.security import self_signed
from rig.source import Response, Source, pattern
from rig.status import wait_until


def echo(request):
    return Response(headers=[("X-Method", request.method), ("Server", "theirs"),
                             ("Date", "Thu, 01 Jan 1970 00:00:00 GMT")],
                    body=b"%s %d\n" % (request.target.encode("latin-1"),
                                       len(request.body)))


@pytest.fixture
def tls_source(certificate):
    s = Source(echo, tls=certificate)
    s.start()
    yield s
    s.close()


def session(l, tell=lambda: None):
    """The client session of t/path, through a launcher."""
    with Session(l) as c:
        c.request("GET", "/")
        c.request("PUT", "/index/_doc/1?refresh=true", body=b'{"a":1}')
        c.request("POST", "/_bulk", body=b'{"index":{}}\n{"b":2}\n')
        c.request("HEAD", "/index")
        c.request("POST", "/_bulk", chunks=[b"a", pattern(70000), b"def"])
        c.request("DELETE", "/index/_doc/1")
        c.request("POST", "/empty", body=b"")
        c.request("PUT", "/big", body=pattern(3 << 20))
        tell()
    return c


def finished(l, broker, topic, sessions, **options):
    """Ends it in order: all is in the topic."""
    assert l.stop() == 0, l.log_text()
    return assert_captured(broker.read_topic(topic), sessions, **options)


def test_the_argument_list_of_ecs(launcher, tls_source, certificate, broker,
                                  topic):
    """CDK's: TLS on both sides with self-signed certificates, the collector's
    endpoints, and captureProxyExtraArgs at the end."""
    broker.start()
    l = launcher(
        "--destinationUri", f"https://127.0.0.1:{tls_source.port}",
        "--insecureDestination", "--sslCertChainFile", certificate[0],
        "--sslKeyFile", certificate[1], "--kafkaConnection", broker.bootstrap,
        "--otelTraceCollectorEndpoint", "http://localhost:4317",
        "--otelMetricsCollectorEndpoint", "http://localhost:4317",
        "--kafkaTopic", topic, "--setHeader", "Host", "my-cluster.es.example",
        "--suppressCaptureForHeaderMatch", "user-agent",
        ".*ELB-HealthChecker.*", tls=certificate[0],
        env={"JDK_JAVA_OPTIONS": "-Xmx1g"})
    l.wait_linked()
    with l.client() as check:
        check.request("GET", "/", headers=[("User-Agent", "ELB-HealthChecker/2.0"),
                                           ("Host", "x")])
    c = session(l)
    waits = l.wait_for_status(settled(9))["total"]["waits"]
    # every request but GET and HEAD has waited for Kafka
    assert waits["held"] == waits["acked"] == 6, waits
    result = finished(l, broker, topic, [c])
    # the source got the header that was set, the record has the client's
    assert {r.header("host") for r in tls_source.requests} \
        == {"my-cluster.es.example"}
    assert all(b"source.test" in e.request for e in result.exchanges)
    assert "no spans are made" in l.log_text()
    assert "otlp: metrics go to http://localhost:4317/" in l.log_text()


def test_the_json_of_the_kubernetes_workflow(launcher, source, certificate,
                                             broker, topic, workdir):
    """Base64 JSON, TLS from a mounted secret, the property file, and the
    password as a variable that may be there."""
    source.answer = echo
    broker.start()
    with open(f"{workdir}/client.properties", "w") as f:
        f.write("ssl.truststore.type=PEM\n"
                f"ssl.truststore.location={certificate[0]}\n")
    os.makedirs(f"{workdir}/proxy-tls")
    for name, file in (("tls.crt", certificate[0]), ("tls.key", certificate[1])):
        os.symlink(file, f"{workdir}/proxy-tls/{name}")
    probe = launcher(start=False, own=False)
    document = {
        "destinationUri": f"http://localhost:{source.port}",
        "insecureDestination": False, "listenPort": probe.port,
        "numThreads": 1, "kafkaConnection": broker.bootstrap,
        "kafkaTopic": topic, "kafkaAuthType": "none", "kafkaUserName": "",
        "kafkaPropertyFile": f"{workdir}/client.properties",
        "kafkaListenerName": "tls", "kafkaSecretName": "s",
        "sslCertChainFile": f"{workdir}/proxy-tls/tls.crt",
        "sslKeyFile": f"{workdir}/proxy-tls/tls.key",
        "maxTrafficBufferSize": 1048576,
        "destinationConnectionPoolSize": 0,
        "destinationConnectionPoolTimeout": "PT30S",
        "setHeader": ["X-Added: yes"],
        "suppressCaptureForHeaderMatch": []}
    text = base64.b64encode(json.dumps(document).encode()).decode()
    l = launcher("---INLINE-JSON", text, own=False, port=probe.port,
                 tls=certificate[0],
                 env={"CAPTURE_PROXY_KAFKA_PASSWORD": "unused"})
    l.wait_linked()
    c = session(l)
    l.wait_for_status(settled(8))
    finished(l, broker, topic, [c])
    assert {r.header("x-added") for r in source.requests} == {"yes"}


# ---- the table of behaviour without a flag ----

@pytest.fixture
def proxy(launcher, source):
    """capture-proxy in front of `source`, without capture."""
    return lambda *args, **options: launcher(
        "--destinationUri", f"http://127.0.0.1:{source.port}", "--noCapture",
        *args, **options)


def test_host_uri_and_headers_pass_untouched(proxy, source):
    """SigV4 signs them: a changed byte is a refused request."""
    l = proxy()
    target = "/a%2Fb//c/%7Euser/..%2e/x?q=%20a+b&c=%C3%A9&&"
    sent = [("Host", "search-x.eu.es.example:443"), ("X_Under_Score", "1"),
            ("X.Dotted", "2"), ("Accept-Encoding", "gzip, br"),
            ("Authorization", "AWS4-HMAC-SHA256 Credential=a/b"),
            ("X-Amz-Date", "20260101T000000Z"), ("X-Empty", ""),
            ("X-Twice", "1"), ("X-Twice", "2")]
    with l.client() as c:
        assert c.request("GET", target, headers=sent).status == 200
    (got,) = source.requests
    assert got.target == target
    for name, value in sent:
        assert (name, value) in got.headers, got.headers
    assert len([n for n, _ in got.headers if n == "X-Twice"]) == 2


def test_set_header_replaces_every_header_of_that_name(proxy, source):
    l = proxy("--setHeader", "host", "my.example", "--setHeader", "X-Key",
              'a $http_host "\\n" ${x}')
    with l.client() as c:
        c.request("GET", "/", headers=[("Host", "h"), ("x-key", "1"),
                                       ("X-KEY", "2")])
    (got,) = source.requests
    assert [v for n, v in got.headers if n.lower() == "host"] == ["my.example"]
    assert [v for n, v in got.headers if n.lower() == "x-key"] \
        == ['a $http_host "\\n" ${x}']


def test_the_sources_own_headers_pass(proxy, source):
    headers = [("Server", "theirs"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
               ("X-Accel-Redirect", "/internal"), ("X-Accel-Limit-Rate", "1"),
               ("Location", f"http://127.0.0.1:{source.port}/next"),
               ("Set-Cookie", "a=b"), ("Cache-Control", "no-store")]
    source.answer = lambda r: Response(status=201, headers=headers, body=b"x")
    with proxy().client() as c:
        answer = c.request("GET", "/")
    assert answer.status == 201
    for header in headers:
        assert header in answer.headers, answer.headers


def test_a_100_mb_bulk_streams_through(proxy, source):
    """The source has its first bytes before its last are sent, and nothing is
    written to a file."""
    l = proxy()
    size = 100 << 20
    head = build_request("POST", "/_bulk", [("Host", "h"),
                                            ("Content-Length", str(size))])
    piece = pattern(1 << 20)
    with l.client(timeout=60) as c:
        c.sock.sendall(head + piece)
        wait_until(lambda: source.requests and len(source.requests[0].body) > 0,
                   15, "the first bytes at the source")
        for _ in range(99):
            c.sock.sendall(piece)
        assert c.receive("POST").status == 200
    assert len(source.requests[0].body) == size


def test_a_large_response_streams_through(proxy, source):
    source.answer = lambda r: Response(body=pattern(30 << 20))
    with proxy().client() as c:
        assert c.request("GET", "/").body == pattern(30 << 20)


def test_large_header_blocks_pass(proxy, source):
    with proxy().client() as c:
        for size in (8192, 60000):
            assert c.request("GET", "/", headers=[
                ("Host", "h"), ("X-Long", "x" * size)]).status == 200
        assert c.request("GET", "/" + "u" * 60000).status == 200
    assert [len(r.header("x-long") or "") for r in source.requests] \
        == [8192, 60000, 0]


def test_nothing_has_a_time_limit(proxy):
    """What the configuration says: a test cannot wait for an hour."""
    l = proxy()
    with open(f"{l.directory}/r/nginx.conf") as f:
        conf = f.read()
    for name in ("client_header_timeout", "client_body_timeout", "send_timeout",
                 "keepalive_timeout", "proxy_read_timeout",
                 "proxy_send_timeout"):
        assert f"{name} 24h;" in conf
    for words in ("so_keepalive=on", "keepalive_requests 1000000000",
                  "proxy_next_upstream off", "proxy_ignore_client_abort on",
                  "client_max_body_size 0", "proxy_request_buffering off"):
        assert words in conf


@pytest.mark.long
@pytest.mark.timeout(180)
def test_what_takes_longer_than_nginx_would_let_it(proxy, source):
    """80 s: each of its own limits is 60 s or 75 s."""
    hold = threading.Event()
    source.answer = lambda r: Response(hold=hold if r.target == "/late" else None)
    l = proxy()
    with l.client() as late, l.client() as slow, l.client() as idle, \
            l.client() as half:
        assert idle.request("GET", "/").status == 200
        late.send(build_request("GET", "/late", [("Host", "h")]))
        slow.send(build_request("PUT", "/slow", [("Host", "h"),
                                                 ("Content-Length", "2")]) + b"a")
        half.send(b"GET /half HTTP/1.1\r\nHo")
        wait_until(lambda: source.requests, 10, "the request at the source")
        assert not hold.wait(80)
        hold.set()
        slow.send(b"b")
        half.send(b"st: h\r\n\r\n")
        idle.send(build_request("GET", "/idle", [("Host", "h")]))
        for c in (late, slow, half, idle):
            assert c.receive().status == 200
    assert {r.target for r in source.requests} \
        == {"/", "/late", "/slow", "/half", "/idle"}


def test_a_request_is_forwarded_once(proxy, source):
    """Also a GET on a connection that was used before, which NGINX would send
    again by itself."""
    with proxy("--numThreads", "1").client() as c:
        assert c.request("GET", "/").status == 200
        source.answer = lambda r: Response(raw=b"", close=True)
        assert c.request("GET", "/x").status == 502
        assert c.request("PUT", "/x", body=b"1").status == 502
    assert len(source.requests) == 3


def test_a_client_that_leaves_does_not_take_its_request_with_it(proxy, source):
    """The source sees its connection end otherwise, and may give up its work."""
    hold = threading.Event()
    source.answer = lambda r: (
        Response(hold=hold) if r.method == "POST" else Response())
    c = (l := proxy("--numThreads", "1")).client()
    c.send(build_request("POST", "/_update_by_query", [("Host", "h")], b"{}"))
    wait_until(lambda: source.requests, 10, "the request at the source")
    c.reset()
    with l.client() as other:   # the worker has seen the client leave by then
        assert other.request("GET", "/").status == 200
    hold.set()
    wait_until(lambda: len(source.answered) == 2, 15, "both answers")
    assert source.left == []


def test_upgrade_passes(proxy, source):
    source.answer = lambda r: Response(
        raw=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: " +
        r.header("upgrade").encode() + b"\r\nConnection: Upgrade\r\n\r\nhello")
    with proxy().client() as c:
        answer = c.request("GET", "/socket", headers=[
            ("Host", "h"), ("Connection", "Upgrade"), ("Upgrade", "websocket")])
        assert answer.status == 101
        assert c.receive_some(5) == b"hello"
    assert source.requests[0].header("connection").lower() == "upgrade"


def test_connections_to_the_source_are_used_again(proxy, source):
    l = proxy("--numThreads", "1")
    for _ in range(5):
        with l.client() as c:
            c.request("GET", "/")
            c.request("POST", "/", body=b"x")
    assert source.connections == 1


def test_100_continue_works(proxy, source):
    """NGINX answers it by itself: the source is not asked."""
    hundred = b"HTTP/1.1 100 Continue\r\n\r\n"
    with proxy().client() as c:
        c.send(build_request("POST", "/", [("Host", "h"), ("Expect", "100-continue"),
                                           ("Content-Length", "3")]))
        assert c.receive_some(len(hundred)) == hundred
        c.send(b"abc")
        answer = c.receive("POST")
    assert answer.status == 200 and not answer.interim
    (got,) = source.requests
    assert bytes(got.body) == b"abc" and got.header("expect") is None


def test_trace_and_connect_are_refused(proxy, source):
    l = proxy()
    # 405 where NGINX knows what is right after CONNECT, which differs
    for raw, statuses in ((b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", (405,)),
                          (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", (400, 405))):
        with l.client() as c:
            c.send(raw)
            assert c.receive().status in statuses
    assert source.requests == []


# ---- TLS ----

def test_the_sources_certificate_is_verified_unless_told_otherwise(
        launcher, workdir, certificate):
    """Its name is asked for (SNI), and must be in it."""
    crt, key = self_signed(workdir, "local", "DNS:localhost")
    source = Source(tls=(crt, key))
    source.start()
    uri = ["--destinationUri", f"https://localhost:{source.port}", "--noCapture"]
    try:
        for args, env, status in (
                ([], {"SSL_CERT_FILE": crt}, 200),
                ([], {"SSL_CERT_FILE": certificate[0]}, 502),
                (["--insecureDestination"], {"SSL_CERT_FILE": certificate[0]},
                 200)):
            l = launcher(*uri, *args, env=env)
            with l.client() as c:
                assert c.request("GET", "/").status == status, l.log_text()
            assert l.stop() == 0
    finally:
        source.stop()
    assert set(source.names) == {"localhost"}


@pytest.mark.parametrize("by", ["file", "variable"])
def test_client_certificates_are_required(proxy, workdir, certificate, by):
    import ssl
    self_signed(workdir, "someone", "DNS:someone")
    with open(f"{workdir}/someone.crt") as f:
        pem = f.read()
    how, env = ((["--sslTrustCertFile", f"{workdir}/someone.crt"], {})
                if by == "file" else
                (["--sslTrustCertPemEnvVar", "CLIENTS_PEM"],
                 {"CLIENTS_PEM": pem}))
    l = proxy("--sslCertChainFile", certificate[0], "--sslKeyFile",
              certificate[1], "--requireClientAuth", *how, env=env)

    def ask(*chain):
        context = ssl.create_default_context(cafile=certificate[0])
        context.check_hostname = False
        if chain:
            context.load_cert_chain(*chain)
        c = type(l).client(l)
        c.sock = context.wrap_socket(c.sock)
        with c:
            return c.request("GET", "/").status
    assert ask(f"{workdir}/someone.crt", f"{workdir}/someone.key") == 200
    assert ask() == 400
    assert ask(*certificate) == 400


# ---- where records go ----

def test_a_trace_directory_gets_a_file_for_each_record(launcher, source, workdir):
    source.answer = echo
    os.makedirs(f"{workdir}/trace", mode=0o700)
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--traceDirectory", f"{workdir}/trace")
    l.wait_linked()
    with Session(l) as c:
        c.request("POST", "/_bulk", body=b"{}\n")
        l.wait_for_status(settled(1))
    assert l.stop() == 0, l.log_text()
    names = os.listdir(f"{workdir}/trace")
    assert names and all(n.endswith(".protocap") for n in names), names


@pytest.mark.long
def test_without_kafka_a_request_goes_on_after_10_s(launcher, source):
    """The Java proxy's default: forwarded late rather than never. Reads do not
    wait at all."""
    l = launcher("--destinationUri", f"http://127.0.0.1:{source.port}",
                 "--kafkaConnection", f"127.0.0.1:{free_port()}",
                 "--shutdown-timeout", "2s")
    l.wait_linked()
    with l.client() as c:
        start = time.monotonic()
        assert c.request("GET", "/").status == 200
        assert time.monotonic() - start < 5
        assert c.request("POST", "/", body=b"x").status == 200
        assert 9 < time.monotonic() - start < 25


def test_suppressed_requests_are_not_in_the_topic(launcher, source, broker,
                                                  topic):
    """Whole matches, on the method, the URI with its query, both, and headers;
    a pair does not replace another of the same header."""
    broker.start()
    l = launcher(
        "--destinationUri", f"http://127.0.0.1:{source.port}",
        "--kafkaBrokers", broker.bootstrap, "--kafkaTopic", topic,
        "--suppressCaptureForMethod", "HEAD|OPTIONS",
        "--suppressCaptureForUriPath", "/_cat/[a-z]+\\?v",
        "--suppressMethodAndPath", "GET /_cluster/.*",
        "--suppressCaptureForHeaderMatch", "User-Agent", "a+",
        "--suppressCaptureForHeaderMatch", "user-agent", "b|",
        "--numThreads", "1")
    l.wait_linked()
    with Session(l) as c:
        for method, target, agent in (
                ("HEAD", "/", None), ("GET", "/_cat/x?v", None),
                ("GET", "/_cluster/health", None), ("GET", "/", "aaa"),
                ("GET", "/", "b")):
            raw, _ = marked(method, target,
                            [("User-Agent", agent)] if agent else ())
            c.client.send(raw)
            assert c.client.receive(method).status == 200
        for method, target, agent in (
                ("GET", "/_cat/x?v=1", None), ("POST", "/_cluster/x", None),
                ("GET", "/", "aab"), ("GET", "/head", "c"), ("GET", "/", None)):
            c.request(method, target, [("User-Agent", agent)] if agent else ())
        status = l.wait_for_status(settled(10))
    assert status["total"]["filtered"]["bypass"] == 5
    finished(l, broker, topic, [c])


def test_a_port_that_is_taken_ends_it_with_1(launcher, source):
    l = launcher("--destinationUri", "http://127.0.0.1:1", "--noCapture",
                 port=source.port, start=False)
    l.allowed = [r"\[EMERG\].*(bind|still could not bind)"]
    l.start(wait=False)
    assert l.process.wait(30) == 1
    assert "Address already in use" in l.log_text()
    assert accepts(source.port)
