"""The forms of capture_status: what people, programs and Prometheus get."""

import re
from html.parser import HTMLParser

import pytest

from rig.client import Client
from rig.prometheus import check_metrics, parse, promtool
from rig.status import capture_status

URI = "/capture_status"
BROWSER = ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,"
           "*/*;q=0.8")
PROMETHEUS = ("application/openmetrics-text;version=1.0.0,"
              "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")


def ask(port, uri=URI, accept=None, method="GET"):
    with Client(port) as client:
        return client.request(method, uri, headers=[("Host", "x")] + (
            [("Accept", accept)] if accept else []))


class Page(HTMLParser):
    """Its tables as rows of text, its verdicts; every element must be closed."""

    VOID = {"meta"}

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.verdicts, self.seen = [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "p" and "verdict" in dict(attrs).get("class", ""):
            self.verdicts.append([dict(attrs)["class"], ""])
            self.open[-1] = "verdict"

    def handle_endtag(self, tag):
        assert self.open.pop() in (tag, "verdict"), tag

    def handle_data(self, data):
        if "verdict" in self.open:
            self.verdicts[-1][1] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.mark.parametrize("uri,accept,kind", [
    (URI, None, "application/json"),
    (URI, "*/*", "application/json"),
    (URI, "application/json", "application/json"),
    (URI, BROWSER, "text/html; charset=utf-8"),
    (URI, PROMETHEUS, "text/plain; version=0.0.4; charset=utf-8"),
    (URI + "?format=html", None, "text/html; charset=utf-8"),
    (URI + "?format=json", BROWSER, "application/json"),
    (URI + "?format=prometheus", "text/html",
     "text/plain; version=0.0.4; charset=utf-8"),
])
def test_who_asks_gets_its_form(nginx, uri, accept, kind):
    n = nginx(server=f"location = {URI} {{ capture_status; }}")
    answer = ask(n.port, uri, accept)
    assert (answer.status, answer.header("content-type")) == (200, kind)
    head = ask(n.port, uri, accept, "HEAD")
    assert head.header("content-type") == kind
    # times and pids do not change here, so neither does the length
    assert head.header("content-length") == str(len(answer.body))


def test_an_unknown_form_is_refused(nginx):
    n = nginx(server=f"location = {URI} {{ capture_status; }}")
    for format in ("xml", "", "jso", "jsonn"):
        assert ask(n.port, f"{URI}?format={format}").status == 400


def test_without_capture_the_page_says_so(nginx):
    n = nginx(server=f"location = {URI} {{ capture_status; }}")
    page = Page(ask(n.port, accept=BROWSER).body.decode())
    assert page.verdicts == [["verdict bad", "Nothing is captured: no location "
                              "has capture on."]]


def test_all_is_well_at_a_glance(rig):
    r = rig()
    for _ in range(3):
        r.get()
    r.exchanges(3)
    r.total(seen=3, captured=3)
    page = Page(ask(r.port, accept=BROWSER).body.decode())
    assert [v for _, v in page.verdicts] == [
        "Every worker has its sidecar, and nothing is lost."]
    assert page.verdicts[0][0] == "verdict"
    assert not {"script", "img", "link", "iframe", "object"} & page.seen
    head, worker, exited, total = page.rows
    assert head == ["", "linked", "seen", "captured", "filtered", "lost",
                    "pending", "pool"]
    assert re.fullmatch(r"worker \d+", worker[0])
    assert worker[1:7] == ["yes", "3", "3", "0", "0", "0"]
    assert re.fullmatch(r"\d+% of [5-8] MiB", worker[7])
    assert total == ["all", "", "3", "3", "0", "0", "0", ""]


def test_a_worker_without_a_sidecar_and_what_it_loses_are_shown(rig):
    r = rig(sidecar=False)
    r.get()
    r.total(seen=1, unlinked=1)
    page = Page(ask(r.port, accept=BROWSER).body.decode())
    assert page.verdicts == [
        ["verdict bad", "1 of 1 workers have no sidecar: what they serve is lost."],
        ["verdict bad", "1 exchanges are lost: the target will not get them, or "
         "not all of them."]]
    assert page.rows[1][1] == "NO"
    assert ["unlinked", "1"] in page.rows


def metrics_of(status):
    """What the text for Prometheus must say where the JSON says this."""
    total = status["total"]
    want = {f"exchanges_{name}": total[name] for name in ("pending",)}
    want |= {f"exchanges_{name}_total": total[name]
             for name in ("captured", "truncated", "left", "untold",
                          "maybe_doubled")}
    want["exchanges_seen_total"] = total["seen"] + total["left"]
    for name in ("filtered", "lost"):
        want |= {f'exchanges_{name}_total{{reason="{k}"}}': v
                 for k, v in total[name].items()}
    want |= {f'waits_total{{result="{k}"}}': v
             for k, v in total["waits"].items() if k != "ms"}
    want["wait_seconds_total"] = total["waits"]["ms"] / 1000
    want["connections_total"] = total["connections"]
    want["captured_bytes_total"] = total["bytes"]
    want["doorbells_total"] = total["doorbells"]
    want["workers"] = len(status["workers"])
    want["workers_linked"] = sum(w["linked"] for w in status["workers"])
    want["worker_processes"] = status["worker_processes"]
    want["strangers"] = len(status["strangers"])
    for name, key in (("pool_blocks", "blocks"),
                      ("pool_blocks_used", "blocks_used"),
                      ("uncaptured_requests", "uncaptured"),
                      ("excluded_requests", "excluded")):
        want[name] = sum(w[key] for w in status["workers"])
    return {f"capture_nginx_{name}": value for name, value in want.items()}


@pytest.mark.parametrize("linked", [True, False])
def test_prometheus_gets_what_json_says(rig, linked):
    r = rig(sidecar=linked, location="capture_bypass $http_x_skip;")
    r.get()
    with Client(r.port) as client:
        client.request("GET", "/", headers=[("Host", "x"), ("X-Skip", "1")])
    r.total(seen=2, bypass=1, **{"captured" if linked else "unlinked": 1})
    text = ask(r.port, accept=PROMETHEUS).body.decode()
    assert parse(text) == metrics_of(capture_status(r.port))
    found = parse(text)
    assert found['capture_nginx_exchanges_filtered_total{reason="bypass"}'] == 1
    assert found["capture_nginx_workers_linked"] == linked
    if promtool():
        assert check_metrics(text) == ""
