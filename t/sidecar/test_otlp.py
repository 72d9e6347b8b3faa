"""Metrics by OTLP: what dashboards for the Java Capture Proxy read."""

import signal
import socket
import time

import grpc
import pytest

from rig.otlp import Collector
from rig.sidecar import check
from rig.source import Response
from rig.status import wait_until

COUNTER, UPDOWN, HISTOGRAM = "counter", "updown", "histogram"

# What the Java proxy's instruments are: kind, unit.
INSTRUMENTS = {
    "captureConnectionCount": (COUNTER, ""),
    "captureConnectionExceptionCount": (COUNTER, ""),
    "captureConnectionDuration": (HISTOGRAM, "ms"),
    "activeConnection": (UPDOWN, "count"),
    "unregistered": (COUNTER, "count"),
    "removed": (COUNTER, "count"),
    "gatheringRequestCount": (COUNTER, ""),
    "gatheringRequestExceptionCount": (COUNTER, ""),
    "gatheringRequestDuration": (HISTOGRAM, "ms"),
    "blockingRequest": (COUNTER, "count"),
    "captureSuppressed": (COUNTER, "count"),
    "fullRequest": (COUNTER, "count"),
    "bytesRead": (COUNTER, "bytes"),
    "gatheringResponseCount": (COUNTER, ""),
    "gatheringResponseExceptionCount": (COUNTER, ""),
    "gatheringResponseDuration": (HISTOGRAM, "ms"),
    "bytesWritten": (COUNTER, "bytes"),
    "kafkaCommitCount": (COUNTER, ""),
    "kafkaCommitExceptionCount": (COUNTER, ""),
    "kafkaCommitDuration": (HISTOGRAM, "ms"),
}

CUMULATIVE = 2


@pytest.fixture
def collector():
    c = Collector()
    yield c
    c.close()


def kind_of(metric):
    """Its kind, after a look at what all of them must have."""
    data = getattr(metric, metric.WhichOneof("data"))
    assert data.aggregation_temporality == CUMULATIVE
    assert len(data.data_points) == 1
    point = data.data_points[0]
    assert not point.attributes
    assert 0 < point.start_time_unix_nano <= point.time_unix_nano
    assert abs(point.time_unix_nano / 1e9 - time.time()) < 60
    if metric.HasField("histogram"):
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert sum(point.bucket_counts) == point.count
        assert list(point.explicit_bounds) == sorted(set(point.explicit_bounds))
        return HISTOGRAM
    return COUNTER if data.is_monotonic else UPDOWN


def exchanges(s):
    """Two that are held, one that is not, one that is left out, on a connection
    of their own; of one a worker says how long its source took."""
    with s.client() as client:
        for method, path in (("POST", "/a"), ("POST", "/b"), ("GET", "/slow"),
                             ("GET", "/bypass")):
            body = b"x" * 1000 if method == "POST" else b""
            assert client.request(method, path, body=body).status == 200


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_the_collector_gets_the_java_proxys_instruments(stack, source, collector,
                                                         way):
    def answer(request):
        if request.target == "/slow":
            time.sleep(0.2)  # a source that takes its time
        return Response(body=b"y" * 500)
    source.answer = answer
    at = {"grpc": f"http://127.0.0.1:{collector.grpc_port}",
          "http": f"http://127.0.0.1:{collector.http_port}/v1/metrics"}[way]
    s = stack(wait="mutating", sidecar_conf={
        "otlp.endpoint": at, "otlp.interval": "100ms"},
        http="map $uri $skip { /bypass 1; }", location="capture_bypass $skip;")
    exchanges(s)
    wait_until(lambda: collector.value("captureConnectionCount") == 1, 20)
    wait_until(lambda: collector.value("gatheringResponseCount") == 3, 20)

    assert "does not take metrics" not in s.sidecar.log_text()
    resource = collector.requests[-1].resource_metrics[0]
    assert {a.key: a.value.string_value for a in resource.resource.attributes} \
        == {"service.name": "capture"}
    assert resource.scope_metrics[0].scope.name == "captureProxy"
    found = collector.metrics()
    assert {name: (kind_of(m), m.unit) for name, m in found.items()} == INSTRUMENTS

    value = collector.value
    assert value("activeConnection") == 0
    assert value("unregistered") == value("removed") == 1
    assert value("fullRequest") == value("gatheringRequestCount") == 3
    assert value("gatheringRequestDuration") == 3
    assert value("gatheringResponseDuration") == 3
    assert value("blockingRequest") == 2
    assert value("captureSuppressed") == 1
    assert value("kafkaCommitExceptionCount") == 0
    assert value("kafkaCommitDuration") == value("kafkaCommitCount") >= 3
    for name in ("gatheringRequestExceptionCount",
                 "gatheringResponseExceptionCount",
                 "captureConnectionExceptionCount"):
        assert value(name) == 0
    assert 2000 < value("bytesRead") < 3000
    assert 1500 < value("bytesWritten") < 3000
    slow = found["gatheringResponseDuration"].histogram.data_points[0]
    assert 200 <= slow.sum < 60000
    assert sum(n for n, bound in zip(slow.bucket_counts,
                                     [*slow.explicit_bounds, float("inf")])
               if bound > 200) >= 1


def test_the_last_values_are_sent_at_the_end(stack, collector):
    s = stack(sidecar_conf={
        "otlp.endpoint": f"http://127.0.0.1:{collector.grpc_port}",
        "otlp.interval": "1h"})
    exchanges(s)
    s.drain()
    assert len(collector.requests) == 1
    assert collector.value("fullRequest") == 4
    assert collector.value("captureConnectionCount") == 1


def test_a_collector_that_refuses_is_told_of_once_and_again_when_it_is_well(
        stack, collector):
    collector.refuse = grpc.StatusCode.UNAVAILABLE
    s = stack(sidecar_conf={
        "otlp.endpoint": f"http://127.0.0.1:{collector.grpc_port}",
        "otlp.interval": "100ms"})
    wait_until(lambda: "does not take metrics: gRPC status 14" in
               s.sidecar.log_text(), 20)
    collector.refuse = None
    wait_until(lambda: "takes metrics again" in s.sidecar.log_text(), 20)
    assert collector.value("fullRequest") == 0
    assert s.sidecar.log_text().count("does not take metrics") == 1


@pytest.mark.parametrize("dead", ["nobody", "silent"])
def test_a_dead_collector_costs_nothing(stack, dead):
    """Neither an exchange nor, at the end, more than two seconds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if dead == "silent":
            listener.listen(16)
        s = stack(wait="mutating", sidecar_conf={
            "otlp.endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "otlp.interval": "100ms"})
        exchanges(s)
        s.wait_for_status(lambda st: st["total"]["captured"] == 4)
        if dead == "nobody":
            wait_until(lambda: "does not take metrics" in s.sidecar.log_text(), 20)
        assert s.status()["total"]["waits"]["timed_out"] == 0
        s.nginx.stop(graceful=True)
        begun = time.monotonic()
        assert s.sidecar.stop() == 0
        assert time.monotonic() - begun < 15  # a machine may be busy
        assert s.sidecar.check_totals()["captured"] == 4


def test_an_endpoint_of_traces_is_warned_of_once(stack):
    s = stack(sidecar_conf={"otlp.traces.endpoint": "http://127.0.0.1:4317"})
    lines = [line for line in s.sidecar.log_text().splitlines() if "traces" in line]
    assert len(lines) == 1 and lines[0].startswith("[warn]")
    assert "makes no spans" in lines[0]


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_headers_are_sent_and_read_again_and_never_shown(stack, collector, workdir,
                                                         way):
    at = {"grpc": f"http://127.0.0.1:{collector.grpc_port}",
          "http": f"http://127.0.0.1:{collector.http_port}/v1/metrics"}[way]
    file = f"{workdir}/headers"
    with open(file, "w") as f:
        f.write("Authorization=Bearer%20first-5ecret, x-tenant = a=b\n")
    s = stack(sidecar_conf={
        "otlp.endpoint": at, "otlp.interval": "100ms", "log.level": "debug",
        "otlp.headers": f"${{file:{file}}}"})

    def sent(name):
        return collector.headers and collector.headers[-1].get(name)
    wait_until(lambda: sent("authorization") == "Bearer first-5ecret", 20)
    assert sent("x-tenant") == "a=b"
    # what is not right keeps what was
    with open(file, "w") as f:
        f.write("Bearer third-5ecret\n")
    s.sidecar.process.send(signal.SIGHUP)
    wait_until(lambda: "HUP: the values stay as they were: otlp.headers: give "
               "name=value" in s.sidecar.log_text(), 20)
    assert sent("authorization") == "Bearer first-5ecret"
    with open(file, "w") as f:
        f.write("Authorization=Bearer%20second-5ecret\n")
    s.sidecar.process.send(signal.SIGHUP)
    wait_until(lambda: sent("authorization") == "Bearer second-5ecret", 20)
    assert sent("x-tenant") is None
    if way == "grpc":
        collector.refuse = grpc.StatusCode.UNAUTHENTICATED
        collector.said = "Bearer second-5ecret is not known"
        wait_until(lambda: "gRPC status 16" in s.sidecar.log_text(), 20)
    assert "5ecret" not in s.sidecar.log_text()


def test_headers_in_an_open_file_are_warned_of(workdir):
    rc, said = check(workdir, {
        "listen": f"unix:{workdir}/s", "kafka.bootstrap.servers": "127.0.0.1:1",
        "otlp.headers": "authorization=5ecret"})
    assert rc == 0 and "otlp.headers is a secret" in said and "5ecret" not in said


def test_no_secret_gets_into_the_url(workdir):
    rc, said = check(workdir, {
        "listen": f"unix:{workdir}/s", "kafka.bootstrap.servers": "127.0.0.1:1",
        "otlp.endpoint": "http://me:hunter2@127.0.0.1:4317"})
    assert rc == 1 and "otlp.endpoint" in said
