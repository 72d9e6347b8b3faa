"""/live and /ready, as a supervisor and a load balancer ask them."""

import urllib.error
import urllib.request

from rig.process import free_port
from rig.prometheus import scrape
from rig.sidecar import Sidecar
from rig.status import wait_until


def get(at, path, method="GET"):
    request = urllib.request.Request(f"http://{at}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_live_is_the_process_and_ready_the_topic(workdir, own_broker):
    """Neither depends on a worker being there: NGINX may start later. `live` does
    not depend on Kafka: a restart would not bring it back, and it would give up
    what is in memory."""
    broker = own_broker()
    at = f"127.0.0.1:{free_port()}"
    s = Sidecar(workdir, {"listen": f"unix:{workdir}/s", "metrics.listen": at,
                          "topic": "t", "kafka.bootstrap.servers": broker.bootstrap})
    s.start()
    wait_until(lambda: "topic t does not exist" in get(at, "/ready")[1], 60)
    assert get(at, "/ready")[0] == 503
    assert get(at, "/live") == (200, "live\n")
    assert get(at, "/live", "HEAD") == (200, "")
    broker.create_topic("t", 1)
    wait_until(lambda: get(at, "/ready") == (200, "ready\n"), 60)
    assert scrape(f"http://{at}/metrics")["capture_kafka_reachable"] == 1
    broker.kill()
    wait_until(lambda: scrape(f"http://{at}/metrics")["capture_kafka_reachable"] == 0,
               60, "the brokers' end")
    # brokers that are away for a while are no reason to take NGINX out of service
    assert get(at, "/ready") == (200, "ready\n")
    assert get(at, "/live") == (200, "live\n")
    broker.start()
    wait_until(lambda: scrape(f"http://{at}/metrics")["capture_kafka_reachable"] == 1,
               120, "the brokers' return")
    s.close()
    try:
        get(at, "/live")
    except OSError:
        return
    raise AssertionError("a sidecar that has ended answers")
