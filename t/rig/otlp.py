"""An OpenTelemetry collector: takes metrics by gRPC and by HTTP, and keeps them.

Real gRPC and the project's own schema, so that nothing of the sidecar's encoder is
taken for granted."""

import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as api


class Collector:
    """Two servers on free ports; each request that came is in `requests`.

    refuse    a grpc.StatusCode: such is the answer of gRPC's, with the text `said`
    """

    def __init__(self):
        self.requests = []
        self.headers = []  # of each request, {name: value}
        self.refuse = None
        self.said = "not today"
        collector = self

        class Metrics(api.MetricsServiceServicer):
            def Export(self, request, context):
                if collector.refuse is not None:
                    context.abort(collector.refuse, collector.said)
                collector.headers.append(dict(context.invocation_metadata()))
                collector.requests.append(request)
                return service.ExportMetricsServiceResponse()

        class Http(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                good = (self.path == "/v1/metrics" and
                        self.headers["Content-Type"] == "application/x-protobuf")
                if good:
                    collector.headers.append(
                        {n.lower(): v for n, v in self.headers.items()})
                    collector.requests.append(
                        service.ExportMetricsServiceRequest.FromString(body))
                self.send_response(200 if good else 400)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self._grpc = grpc.server(futures.ThreadPoolExecutor(2))
        api.add_MetricsServiceServicer_to_server(Metrics(), self._grpc)
        self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
        self.http_port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def close(self):
        self._grpc.stop(0).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def metrics(self):
        """{name: Metric} of the last request."""
        return {m.name: m for r in self.requests[-1].resource_metrics
                for s in r.scope_metrics for m in s.metrics}

    def value(self, name):
        """Of a sum: its number; of a histogram: how many were observed."""
        m = self.metrics()[name]
        point = getattr(m, m.WhichOneof("data")).data_points[0]
        return point.count if m.HasField("histogram") else point.as_int
