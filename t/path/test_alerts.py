"""Each alert of deploy/prometheus/alerts.yml fires, on a real path in which that
has gone wrong, and no other one does.

What is scraped before and after becomes the input of promtool's rule tests: its
engine is Prometheus' own.
"""

import glob
import json
import os
import re
import subprocess
import threading
import time

import pytest

from rig.process import TOP, free_port
from rig.prometheus import check_metrics, fetch, parse, promtool
from rig.sidecar import Sidecar
from rig.source import Response, pattern
from rig.status import wait_until

RULES = os.path.join(TOP, "deploy", "prometheus", "alerts.yml")
DASHBOARDS = glob.glob(os.path.join(TOP, "deploy", "grafana", "*.json"))

pytestmark = pytest.mark.skipif(not promtool(),
                                reason="script/bootstrap --test brings promtool")

# What each test below makes fire.
WELL = set()
ALONE = {"CaptureLost", "CaptureWorkerUnlinked", "CaptureDown"}
HELD = {"CaptureSlowAcks", "CaptureWaitTimeouts", "CapturePoolFilling"}
RELEASED = {"CaptureSlowAcks"}
SPOOL = {"CaptureSpoolFilling", "CaptureNotReady"}
DOUBT = {"CaptureDoubt", "CaptureNotReady"}
CERTIFICATE = {"CaptureCertificateExpiring", "CaptureNotReady"}
TOKEN = {"CaptureTokenExpiring", "CaptureNotReady"}


def read(path):
    with open(path) as f:
        return f.read()


class Scraper:
    """What Prometheus would have: samples of both jobs, with their labels."""

    def __init__(self, metrics=None, nginx=None):
        self.urls = {"capture-sidecar": metrics and f"http://{metrics}/metrics",
                     "capture-nginx": nginx and
                     f"http://127.0.0.1:{nginx}/capture_status?format=prometheus"}

    def __call__(self):
        found = {}
        for job, url in self.urls.items():
            if url is None:
                continue
            labels = f'instance="a",job="{job}"'
            try:
                samples = parse(fetch(url)[1])
                found[f"up{{{labels}}}"] = 1
            except OSError:
                samples = {}
                found[f"up{{{labels}}}"] = 0
            for key, value in samples.items():
                name, _, own = key.partition("{")
                own = f"{own[:-1]}," if own else ""
                if name.endswith("_timestamp_seconds") and value > 0:
                    value -= time.time()  # there, time begins at 0
                    value += EVALUATED
                found[f"{name}{{{own}{labels}}}"] = value
        return found


EVALUATED = 240  # s; what was found after is there from 60 s on


def firing(workdir, before, after):
    """The names of alerts that fire some minutes after `before` became `after`."""
    def series(key):
        def times(value, n):  # promtool's notation has no infinity
            return f"_x{n}" if value is None else f"{min(value, 1e18):f}x{n}"
        return {"series": key, "values": f"{times(before.get(key), 3)} "
                                         f"{times(after.get(key), 20)}"}

    def holds(names):
        test = {
            "rule_files": [RULES], "evaluation_interval": "15s",
            "tests": [{
                "interval": "15s",
                "input_series": [series(k) for k in sorted({**before, **after})],
                "promql_expr_test": [{
                    "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{EVALUATED}s",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}',
                                     "value": 1} for name in sorted(names)]}]}]}
        path = os.path.join(workdir, "rules.test.yml")  # JSON is YAML
        with open(path, "w") as f:
            json.dump(test, f)
        done = subprocess.run([promtool(), "test", "rules", path], text=True,
                              capture_output=True)
        return done.returncode == 0, done.stdout + done.stderr

    good, said = holds(set())
    if good:
        return set()
    names = set(re.findall(r'alertname="(\w+)"', said.split("got:")[-1]))
    good, again = holds(names)
    assert names and good, again
    return names


@pytest.fixture
def fires(workdir):
    return lambda before, after: firing(workdir, before, after)


def test_nothing_fires_while_all_is_well(stack, fires):
    at = f"127.0.0.1:{free_port()}"
    s = stack(wait="mutating", workers=2, sidecar_conf={"metrics.listen": at})
    scrape = Scraper(at, s.port)
    before = scrape()
    with s.client() as client:
        for i in range(20):
            client.request("POST", f"/{i}", body=pattern(1000, i))
    s.wait_for_status(lambda st: st["total"]["captured"] == 20)
    after = scrape()
    assert after['capture_waits_total{result="acked",instance="a",'
                 'job="capture-sidecar"}'] == 20
    assert after['capture_wait_seconds_count{instance="a",'
                 'job="capture-sidecar"}'] == 20
    assert fires(before, after) == WELL
    for url in scrape.urls.values():
        assert check_metrics(fetch(url)[1]) == ""


def test_a_worker_without_a_sidecar_loses(stack, fires):
    at = f"127.0.0.1:{free_port()}"
    s = stack(start_sidecar=False)
    scrape = Scraper(at, s.port)
    before = scrape()
    with s.client() as client:
        client.request("GET", "/")
    s.wait_for_status(lambda st: st["total"]["lost"]["unlinked"] == 1)
    assert fires(before, scrape()) == ALONE


def test_kafka_that_does_not_answer(stack, own_broker, fault, fires):
    """First it is slow, then it is back; then the sidecar dies in the middle."""
    broker = own_broker(fault=fault)
    broker.create_topic("t", 1)
    at = f"127.0.0.1:{free_port()}"
    s = stack(broker=broker, topic="t", wait="mutating", buffer="1m",
              location="capture_wait_timeout 300ms;", sidecar_conf={
                  "metrics.listen": at, "settle.time": "2s",
                  "kafka.bootstrap.servers": fault.bootstrap})
    scrape = Scraper(at, s.port)
    sample = '{instance="a",job="capture-sidecar"}'

    def post(body=b"x"):
        with s.client() as client:
            assert client.request("POST", "/", body=body).status == 200

    wait_until(lambda: scrape()["capture_kafka_ready" + sample] == 1, 60)
    post()
    s.wait_for_status(lambda st: st["total"]["captured"] == 1)
    before = scrape()
    fault.hold("from_target")
    post()
    while scrape()["capture_pool_fullest_ratio" + sample] <= 0.6:
        with s.client() as client:
            client.request("GET", "/")
            client.request("POST", "/", body=pattern(60_000, 1))
    wait_until(lambda: scrape()["capture_pool_oldest_seconds" + sample] > 10, 60)
    held = scrape()
    assert held["capture_pool_time_to_full_seconds" + sample] > 0
    assert held["capture_inflight_records" + sample] > 0
    assert fires(before, held) == HELD

    fault.release("from_target")
    s.wait_for_status(lambda st: st["total"]["pending"] == 0, 60)
    released = scrape()
    assert released["capture_pool_oldest_seconds" + sample] == 0
    assert released["capture_pool_blocks_used" + sample] <= 1
    assert fires(held, released) == RELEASED

    fault.hold("from_target")
    post()
    wait_until(lambda: scrape()["capture_inflight_records" + sample] > 0, 30)
    s.sidecar.kill9()
    s.sidecar.start()
    wait_until(lambda: scrape()["capture_records_in_doubt" + sample] > 0, 30)
    doubt = scrape()
    assert fires(doubt, doubt) == DOUBT
    fault.release("from_target")
    s.wait_for_status(lambda st: st["total"]["pending"] == 0, 60)
    assert fires(doubt, scrape()) == WELL


def test_a_spool_that_fills(stack, workdir, fires):
    """Kafka was never there: nothing goes out."""
    at = f"127.0.0.1:{free_port()}"
    s = stack(buffer="1m", sidecar_conf={
        "metrics.listen": at, "spool.path": f"{workdir}/spool", "spool.size": "4m",
        "kafka.bootstrap.servers": f"127.0.0.1:{free_port()}"})
    scrape = Scraper(at, s.port)
    sample = '{instance="a",job="capture-sidecar"}'
    before = scrape()

    def filled():
        with s.client() as client:
            client.request("POST", "/", body=pattern(30_000, 1))
        now = scrape()
        return now["capture_spool_bytes" + sample] > 3 << 20 and now
    after = wait_until(filled, 60, "a spool that is filled")
    assert s.status()["total"]["captured"] == 0
    # what is in memory may be much or little of it, and is old by now or not
    assert SPOOL <= fires(before, after) <= SPOOL | {"CapturePoolFilling",
                                                     "CaptureSlowAcks"}
    s.sidecar.kill9()  # it would wait for Kafka


def lone_sidecar(workdir, **conf):
    """One without a broker, which needs none to tell when something expires."""
    at = f"127.0.0.1:{free_port()}"
    s = Sidecar(workdir, {"listen": f"unix:{workdir}/s", "metrics.listen": at,
                          "kafka.bootstrap.servers": f"127.0.0.1:{free_port()}",
                          **{k.replace("__", "."): v for k, v in conf.items()}})
    s.start()
    return s, Scraper(at)


@pytest.mark.parametrize("days,fired", [(5, CERTIFICATE), (30, CERTIFICATE - {
    "CaptureCertificateExpiring"})])
def test_a_certificate_that_expires(workdir, fires, days, fired):
    crt, key = f"{workdir}/crt.pem", f"{workdir}/key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", str(days),
                    "-subj", "/CN=client", "-keyout", key, "-out", crt],
                   check=True, capture_output=True)
    s, scrape = lone_sidecar(workdir, kafka__security__protocol="ssl",
                             kafka__ssl__certificate__location=crt,
                             kafka__ssl__key__location=key)
    assert fires(scrape(), scrape()) == fired
    s.process.kill()


@pytest.mark.parametrize("command,fired", [
    ("""/bin/echo {"access_token":"a.b.c","expires_in":50}""", TOKEN),
    ("""/bin/echo {"access_token":"a.b.c","expires_in":900}""",
     TOKEN - {"CaptureTokenExpiring"}),
    ("/bin/false", TOKEN)])
def test_a_token_that_expires_or_never_comes(workdir, fires, command, fired):
    s, scrape = lone_sidecar(
        workdir, kafka__security__protocol="sasl_plaintext",
        kafka__sasl__mechanism="OAUTHBEARER", token__source="command",
        token__command=command)
    before = scrape()
    before = {k: 0 if "token" in k else v for k, v in before.items()}
    wait_until(lambda: any(v > 0 for k, v in scrape().items() if re.match(
        "capture_kafka_(tokens|token_failures)_total", k)), 30, "a token, or none")
    assert fires(before, scrape()) == fired
    s.process.kill()


# ---- the files beside each other ----

def names_of_alerts():
    return re.findall(r"- alert: (\w+)", read(RULES))


def test_every_alert_is_fired_above():
    assert sorted(names_of_alerts()) == sorted(
        ALONE | HELD | RELEASED | SPOOL | DOUBT | CERTIFICATE | TOKEN)


def test_every_alert_has_an_entry_in_the_runbook():
    book = read(os.path.join(TOP, "docs", "runbook.md"))
    sections = re.split(r"^## ", book, flags=re.M)[1:]
    assert sorted(s.split("\n")[0] for s in sections) == sorted(names_of_alerts())
    for section in sections:
        for part in ("**What it means.**", "**First.**", "**Then.**"):
            assert section.count(part) == 1, section
    anchors = re.findall(r"runbook: docs/runbook\.md#(\w+)", read(RULES))
    assert anchors == [name.lower() for name in names_of_alerts()]


def known_metrics():
    """All that docs/metrics.md, which is made from the code, has."""
    known = set()
    for name, kind in re.findall(r"^\| `(capture_\w+)(?:\{\w+\})?` \| (\w+) ",
                                 read(os.path.join(TOP, "docs", "metrics.md")),
                                 re.M):
        known |= ({f"{name}_{end}" for end in ("bucket", "sum", "count")}
                  if kind == "histogram" else {name})
    return known


def expressions(node):
    """All of a dashboard's."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr":
                yield value.replace("$__rate_interval", "5m").replace(
                    "$__range", "1h")
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_alerts_and_dashboards_use_metrics_that_exist(workdir):
    assert len(DASHBOARDS) == 1
    asked = [e for path in DASHBOARDS for e in expressions(json.loads(read(path)))]
    assert len(asked) > 20
    used = set(re.findall(r"\bcapture_\w+", " ".join(
        [re.sub("#.*", "", read(RULES)), *asked])))
    assert used - known_metrics() == set()
    path = os.path.join(workdir, "asked.yml")
    with open(path, "w") as f:
        json.dump({"groups": [{"name": "asked", "rules": [
            {"record": f"asked:{i}", "expr": e} for i, e in enumerate(asked)]}]}, f)
    done = subprocess.run([promtool(), "check", "rules", path], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_for_prometheus_is_right():
    at = os.path.join(TOP, "deploy", "prometheus")
    done = subprocess.run([promtool(), "check", "config", "prometheus.yml"],
                          cwd=at, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
