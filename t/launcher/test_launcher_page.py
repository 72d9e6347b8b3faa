"""The tables of docs/launcher.md. Each row of them is a test here, or names the tests
that show it; a row that has none fails, and so does a test of a row that is not there.
(That the page is what the code says is script/gen-docs --check's.)"""

import ast
import base64
import glob
import json
import os
import re

import pytest

from rig.launcher import run
from rig.process import TOP
from rig.sidecar import check

PAGE = "docs/launcher.md"


def read_tables():
    """{heading: [[cell, ...], ...]} of the page, without the heads of the tables."""
    tables, heading, lines = {}, None, []
    with open(os.path.join(TOP, PAGE)) as f:
        for line in [*f.read().splitlines(), "## end"]:
            if line.startswith("|"):
                lines.append([c.strip().replace("\\|", "|")
                              for c in re.split(r"(?<!\\)\|", line)[1:-1]])
            elif lines:
                # two tables under one heading: the second by its first head
                key = heading if heading not in tables else lines[0][0]
                tables[key] = lines[2:]
                lines = []
            if line.startswith("#"):
                heading = line.strip("# ")
    return tables


TABLES = read_tables()
FLAG_TABLES = ["The source", "Clients", "Kafka", "What is captured",
               "Being watched", "Its own; the Java proxy has none of these"]


# ---- flags: each in every way that it can be given ----

PEM = {"PEM_OF_A_TEST": "-----BEGIN CERTIFICATE-----"}
TLS = {"sslCertChainFile": "/c", "sslKeyFile": "/k"}
SCRAM = {"kafkaAuthType": "scram-sha-512", "kafkaUserName": "u",
         "kafkaPassword": "p"}
KAFKA = {"kafkaConnection": "b1:9092"}


class Flag:
    """value: what it is given, by the type that it has in JSON. lines: what the
    configurations have with it, and not without it. beside: other flags that it
    needs; no_kafka: it stands in the place of --kafkaConnection. quiet: it changes
    nothing that is printed, as `quiet` says why."""

    def __init__(self, value, *lines, beside=None, no_kafka=False, warns=None,
                 quiet=None, env=None):
        assert bool(lines) != bool(quiet)
        self.value, self.lines, self.warns = value, lines, warns
        self.beside, self.env = beside or {}, env or {}
        self.no_kafka, self.quiet = no_kafka, quiet


NOT_PRINTED = "what is printed is for no directory and no program"

FLAGS = {
    "destinationUri": Flag("https://s:1", "server s:1;", "proxy_pass https://source;"),
    "insecureDestination": Flag(True, "proxy_ssl_verify off;",
                                beside={"destinationUri": "https://s"}),
    "destinationConnectionPoolSize": Flag(7, "keepalive 7;"),
    "destinationConnectionPoolTimeout": Flag(
        "PT1M", "keepalive_timeout 60000ms;", "keepalive_time 60000ms;"),
    "setHeader": Flag(["X-A", "1", "X-B", "2"], 'proxy_set_header X-A "1";',
                      'proxy_set_header X-B "2";'),
    "listenPort": Flag(777, ":777 "),
    "numThreads": Flag(77, "worker_processes 77;"),
    "sslCertChainFile": Flag("/c.pem", 'ssl_certificate "/c.pem";',
                             beside={"sslKeyFile": "/k"}),
    "sslKeyFile": Flag("/k.pem", 'ssl_certificate_key "/k.pem";',
                       beside={"sslCertChainFile": "/c"}),
    "sslTrustCertFile": Flag("/t.pem", 'ssl_client_certificate "/t.pem";',
                             beside={**TLS, "requireClientAuth": True}),
    "sslTrustCertPemEnvVar": Flag(
        "PEM_OF_A_TEST", 'ssl_client_certificate "/run/capture-proxy/clients.pem";',
        beside={**TLS, "requireClientAuth": True}, env=PEM),
    "requireClientAuth": Flag(True, "ssl_verify_client on;",
                              beside={**TLS, "sslTrustCertFile": "/t"}),
    "kafkaConnection": Flag("a:1,b:2", "kafka.bootstrap.servers = a:1,b:2",
                            no_kafka=True),
    "kafkaTopic": Flag("t-1", "topic = t-1"),
    "kafkaClientId": Flag("me", "kafka.client.id = me"),
    "kafkaAuthType": Flag("ssl", "kafka.security.protocol = ssl"),
    "enableMSKAuth": Flag(True, "token.source = aws-msk-iam",
                          "kafka.sasl.mechanism = OAUTHBEARER"),
    "kafkaUserName": Flag("me", "kafka.sasl.username = me", beside={
        k: v for k, v in SCRAM.items() if k != "kafkaUserName"}),
    "kafkaPassword": Flag("p", "kafka.sasl.password = (not shown)", beside={
        k: v for k, v in SCRAM.items() if k != "kafkaPassword"}),
    "kafkaPropertyFile": Flag("{workdir}/client.properties",
                              "kafka.client.rack = here"),
    "kafkaListenerName": Flag("l", quiet="taken, and without effect"),
    "kafkaSecretName": Flag("s", quiet="taken, and without effect"),
    "traceDirectory": Flag("/trace", "export.path = /trace", no_kafka=True),
    "noCapture": Flag(True, "proxy_pass http://source;", no_kafka=True),
    "maxTrafficBufferSize": Flag(65536, "record.size = 65536"),
    "suppressCaptureForHeaderMatch": Flag(
        ["a", "x", "b", "y"], 'map "$http_a"', "(?:x)", 'map "$http_b"', "(?:y)"),
    "suppressCaptureForMethod": Flag("GET|HEAD", 'map "$request_method"',
                                     "(?:GET|HEAD)"),
    "suppressCaptureForUriPath": Flag("/x.*", 'map "$request_uri"', "(?:/x.*)"),
    "suppressMethodAndPath": Flag("GET /x.*", 'map "$request_method $request_uri"',
                                  "(?:GET /x.*)"),
    "otelTraceCollectorEndpoint": Flag("http://l:4317", warns="no spans are made",
                                       quiet="no spans are made"),
    "otelMetricsCollectorEndpoint": Flag("http://l:4317",
                                         "otlp.endpoint = http://l:4317"),
    "metrics-listen": Flag("127.0.0.1:9", "metrics.listen = 127.0.0.1:9"),
    "status-listen": Flag("127.0.0.1:9", "listen 127.0.0.1:9;", "capture_status;"),
    "capture-buffer": Flag("16m", "capture_buffer 16m;"),
    "shutdown-timeout": Flag("10s", "drain.time = 3000ms"),
    # what it does: see SHOWN
    "resolve-interval": Flag("7s", quiet=NOT_PRINTED),
    "run-directory": Flag("/r", quiet=NOT_PRINTED),
    "nginx-binary": Flag("/none", quiet=NOT_PRINTED),
    "nginx-module": Flag("/m.so", 'load_module "/m.so";'),
    "sidecar-binary": Flag("/none", quiet=NOT_PRINTED),
    "print-config": Flag(True, "# ---- nginx.conf ----"),
}


def read_flag(cells):
    """(name, other name or None, whether it takes an argument, default, variable)"""
    first, default, _, variable = cells
    name, argument, other = re.fullmatch(
        r"`--([\w-]+)( [^`]+)?`(?: or `--([\w-]+)`)?", first).groups()
    return (name, other, argument, default.strip("`"),
            None if variable == "none" else variable.strip("`"))


ROWS = [read_flag(cells) for table in FLAG_TABLES for cells in TABLES[table]]


def test_every_flag_of_the_page_has_a_case():
    assert [row[0] for row in ROWS] == list(FLAGS)


def as_arguments(values):
    args = []
    for name, value in values.items():
        pairs = value if isinstance(value, list) else [value]
        for i in range(0, len(pairs), 2):
            args.append(f"--{name}")
            if value is not True:
                args += map(str, pairs[i:i + 2])
    return args


def as_text(value):
    return "true" if value is True else str(value)


def ways(name, other, value, variable, base):
    """(what it is, arguments, variables): every way to give the flag."""
    around, given = as_arguments(base), {name: value}
    yield "a flag", around + as_arguments(given), {}
    if other:
        yield "the other name", around + as_arguments({other: value}), {}
    if not isinstance(value, list) and value is not True:
        yield "with =", [*around, f"--{name}={value}"], {}
    if variable:
        yield "the variable", around, {variable: as_text(value)}
    document = json.dumps({**base, **given})
    yield "JSON", ["---INLINE-JSON", document], {}
    yield ("base64", ["---INLINE-JSON",
                      base64.b64encode(document.encode()).decode()], {})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_of_the_flags(row, workdir):
    name, other, argument, default, variable = row
    flag = FLAGS[name]
    with open(f"{workdir}/client.properties", "w") as f:
        f.write("client.rack = here\n")
    value = flag.value
    if isinstance(value, str):
        value = value.format(workdir=workdir)
    assert (value is True) == (argument is None)
    base = {"destinationUri": "http://source.test:9200", "listenPort": 9200,
            **({} if flag.no_kafka else KAFKA), **flag.beside}
    base.pop(name, None)
    show = {} if name == "print-config" else {"CAPTURE_PROXY_PRINT_CONFIG": "true"}

    def printed(args, env):
        return run(*args, env={**show, **flag.env, **env})

    said = set()
    for way, args, env in ways(name, other, value, variable, base):
        rc, out, err = printed(args, env)
        assert rc == 0, f"{way}: {err}"
        for line in flag.lines:
            assert line in out, f"{way}: {line}: {out}"
        if name != "kafkaPassword" and "kafkaPassword" not in base:
            assert err.count("warning") == bool(flag.warns), f"{way}: {err}"
        assert (flag.warns or "") in err
        said.add(out)
    assert len(said) == 1, "the ways of giving it differ"
    if name == "print-config":
        return

    rc, without, err = printed(as_arguments(base), {})
    if rc != 0:  # it is wanted, and by its name
        assert rc == 2 and (f"--{name}" in err or variable in err), err
    elif flag.lines:
        assert without not in said
        for line in flag.lines:
            assert line not in without, "it is there without the flag as well"
    else:
        assert without in said
    if default:
        assert rc == 0 and printed(
            as_arguments({**base, name: default}), {}) == (0, without, "")


@pytest.mark.parametrize("name", ["nginx-binary", "nginx-module", "sidecar-binary"])
def test_a_program_that_is_not_there(name):
    rc, _, err = run("--destinationUri", "http://s", "--listenPort", "1",
                     "--kafkaConnection", "b:1", f"--{name}", "/none/of/it")
    assert rc == 2 and f"/none/of/it is not there: give --{name}" in err, err


# ---- Kafka's properties ----

# those of which a number will not do
VALUES = {
    "client.id": "me", "security.protocol": "ssl",
    "sasl.kerberos.service.name": "kafka", "ssl.key.password": "p",
    "ssl.endpoint.identification.algorithm": "https", "compression.type": "lz4",
    "client.dns.lookup": "use_all_dns_ips", "client.rack": "r",
    "batch.size": "65536", "max.in.flight.requests.per.connection": "5"}
SECRET = {"ssl.key.password"}
PKCS12 = "ssl.keystore.type=PKCS12\nssl.keystore.location=/k.p12\n"
MSK = "software.amazon.msk.auth.iam.IAM"
# what the page says of it in words of its own: (text, line that there is then)
# and (text, what the refusal says)
SAID = {
    "sasl.mechanism": [
        ("sasl.mechanism=PLAIN", "kafka.sasl.mechanism = PLAIN"),
        ("sasl.mechanism=AWS_MSK_IAM", "token.source = aws-msk-iam")],
    "sasl.jaas.config": [
        ('sasl.jaas.config=x.ScramLoginModule required username="u" password="p";',
         "kafka.sasl.username = u"),
        ('sasl.jaas.config=x.PlainLoginModule required username="u" password="p";',
         "kafka.sasl.password = (not shown)"),
        (f"sasl.jaas.config={MSK}LoginModule required;",
         "token.source = aws-msk-iam")],
    "sasl.client.callback.handler.class": [
        (f"sasl.client.callback.handler.class={MSK}ClientCallbackHandler",
         "token.source = aws-msk-iam"),
        ("sasl.client.callback.handler.class=my.Own", None)],
    "sasl.login.callback.handler.class": [
        (f"sasl.login.callback.handler.class={MSK}ClientCallbackHandler",
         "token.source = aws-msk-iam"),
        ("sasl.login.callback.handler.class=my.Own", None)],
    "ssl.truststore.type": [
        ("ssl.truststore.type=PEM\nssl.truststore.location=/x",
         "kafka.ssl.ca.location = /x"),
        ("ssl.truststore.type=JKS\nssl.truststore.location=/x", None)],
    "ssl.truststore.location": [
        ("ssl.truststore.location=/x.pem\nssl.truststore.type=PEM",
         "kafka.ssl.ca.location = /x.pem"),
        ("ssl.truststore.location=/x.jks", None)],
    "ssl.truststore.certificates": [
        ("ssl.truststore.type=PEM\nssl.truststore.certificates=-----BEGIN",
         "kafka.ssl.ca.location = /run/capture-proxy/kafka-ca.pem")],
    "ssl.keystore.type": [
        ("ssl.keystore.type=PEM\nssl.keystore.location=/k",
         "kafka.ssl.key.location = /k"),
        (PKCS12, "kafka.ssl.keystore.location = /k.p12"),
        ("ssl.keystore.type=JKS\nssl.keystore.location=/k", None)],
    "ssl.keystore.location": [
        ("ssl.keystore.location=/k\nssl.keystore.type=PEM",
         "kafka.ssl.certificate.location = /k"),
        ("ssl.keystore.location=/k.jks", None)],
    "ssl.keystore.password": [
        (f"{PKCS12}ssl.keystore.password=p",
         "kafka.ssl.keystore.password = (not shown)")],
    "ssl.keystore.certificate.chain": [
        ("ssl.keystore.type=PEM\nssl.keystore.certificate.chain=-----BEGIN C\n"
         "ssl.keystore.key=-----BEGIN K",
         "kafka.ssl.certificate.location = /run/capture-proxy/kafka-cert.pem")],
    "ssl.keystore.key": [
        ("ssl.keystore.type=PEM\nssl.keystore.certificate.chain=-----BEGIN C\n"
         "ssl.keystore.key=-----BEGIN K",
         "kafka.ssl.key.location = /run/capture-proxy/kafka-key.pem")],
}
PROPERTIES = [(name.strip("`"), fate) for name, fate in TABLES["Kafka properties"]]


def with_properties(workdir, text):
    with open(f"{workdir}/client.properties", "w") as f:
        f.write(text + "\n")
    return run("--destinationUri", "http://s", "--listenPort", "1",
               "--kafkaConnection", "b:1", "--kafkaPropertyFile",
               f"{workdir}/client.properties", "--print-config")


def taken_line(name, fate):
    """What a property that is taken becomes; None: it is not one."""
    known = re.fullmatch(r"taken(?:, as `([\w.]+)`)?", fate)
    if known is None:
        return None
    value = "(not shown)" if name in SECRET else VALUES.get(name, "5000")
    return f"kafka.{known[1] or name} = {value}\n"


@pytest.mark.parametrize("name,fate", PROPERTIES, ids=lambda v: v[:40])
def test_a_row_of_the_properties(workdir, name, fate):
    def of(value):
        return with_properties(workdir, f"{name}={value}")

    if name in SAID:
        for text, line in SAID[name]:
            rc, out, err = with_properties(workdir, text)
            if line is None:
                store = ".".join(name.split(".")[:2])
                assert rc == 2 and store in err, err
            else:
                assert rc == 0 and f"{line}\n" in out, err + out
        return
    if name == "any other":
        name = "my.own"
    line = taken_line(name, fate)
    fixed = re.fullmatch(r"`(\w+)`; anything else is refused", fate)
    left_out = re.fullmatch(r"left out, with a warning(?:: (.*))?", fate)
    rc, out, err = of(fixed[1] if fixed else VALUES.get(name, "5000"))
    nothing = with_properties(workdir, "")
    if line:
        assert rc == 0 and line in out and err == "", err + out
        assert line not in nothing[1]
    elif fixed:
        assert (rc, out, err) == nothing
        rc, _, err = of("0")
        assert rc == 2 and name in err, err
    elif left_out:
        assert rc == 0 and out == nothing[1]
        assert err.count("warning") == 1 and f"{name} is left out" in err, err
        assert (left_out[1] or "") in err
    elif fate == "refused":
        assert rc == 2 and name in err, err
    else:
        assert fate == "not needed", f"what is {name}: {fate}?"
        assert (rc, out, err) == nothing


def test_the_sidecar_knows_every_property_that_is_taken(workdir):
    """By the names that they get: librdkafka has all of them."""
    taken = [name for name, fate in PROPERTIES
             if taken_line(name, fate) and name not in SECRET]
    assert len(taken) > 15
    rc, out, err = with_properties(workdir, "\n".join(
        f"{name}={VALUES.get(name, '5000')}" for name in taken))
    assert rc == 0 and err == "", err
    conf = out.split("# ---- sidecar.conf")[1].split("\n", 1)[1]
    rc, err = check(workdir, conf)
    assert rc == 0, err
    rc, err = check(workdir, conf.replace("kafka.client.rack", "kafka.client.rak"))
    assert rc != 0 and "rak" in err, err


# ---- what it does: the tests that show it ----

SHOWN = {
    "What it runs": {
        "the source gets the client's Host":
            ["test_host_uri_and_headers_pass_untouched"],
        "and the URI as the client has sent it":
            ["test_host_uri_and_headers_pass_untouched"],
        "a body of any size passes through as it comes":
            ["test_a_100_mb_bulk_streams_through"],
        "and so does a response": ["test_a_large_response_streams_through"],
        "no request is too slow": ["test_nothing_has_a_time_limit",
                                   "test_what_takes_longer_than_nginx_would_let_it"],
        "no connection is idle for too long": [
            "test_nothing_has_a_time_limit",
            "test_what_takes_longer_than_nginx_would_let_it"],
        "a line of a head may have 64 KiB": ["test_large_header_blocks_pass"],
        "headers of any name reach the source":
            ["test_host_uri_and_headers_pass_untouched"],
        "the source's own headers reach the client":
            ["test_the_sources_own_headers_pass"],
        "a request is sent to the source once": ["test_a_request_is_forwarded_once"],
        "and is finished when its client has left":
            ["test_a_client_that_leaves_does_not_take_its_request_with_it"],
        "WebSockets pass (and are not captured)": ["test_upgrade_passes"],
        "connections to the source are used again":
            ["test_connections_to_the_source_are_used_again"],
        "the source's address may change":
            ["test_a_source_that_appears_late_and_moves_under_load"],
    },
    "Its life": {
        "start": ["test_the_first_request_is_captured"],
        "TERM, INT": ["test_requests_in_work_are_finished_and_captured",
                      "test_a_request_that_does_not_end_has_a_deadline",
                      "test_a_second_signal_ends_nginx_at_once"],
        "HUP": ["test_hup_reloads"],
        "NGINX dies": ["test_nginxs_death_ends_all_of_it_with_1"],
        "the sidecar dies": [
            "test_the_sidecars_death_costs_no_client_and_it_comes_back",
            "test_a_workers_memory_outlives_worker_and_sidecar"],
        "capture-proxy is killed": ["test_children_do_not_outlive_a_killed_launcher"],
    },
    "exit status": {
        "0": ["test_requests_in_work_are_finished_and_captured"],
        "1": ["test_a_port_that_is_taken_ends_it_with_1",
              "test_nginxs_death_ends_all_of_it_with_1"],
        "2": ["test_one_start_shows_all_mistakes"],
        "3": ["test_a_sidecar_that_cannot_drain_is_exit_3"],
    },
    # flags that change nothing in what --print-config prints
    None: {
        "resolve-interval": ["test_a_source_that_appears_late_and_moves_under_load"],
        "run-directory": ["test_a_run_directory_of_its_own_is_removed"],
        "nginx-binary": ["test_a_program_that_is_not_there"],
        "sidecar-binary": ["test_a_program_that_is_not_there"],
    },
}


def test_every_table_of_the_page_is_one_of_these():
    assert set(TABLES) == {*FLAG_TABLES, "Kafka properties",
                           *(key for key in SHOWN if key)}


@pytest.mark.parametrize("table", SHOWN)
def test_a_row_has_its_tests(table):
    tests = {}
    for path in glob.glob(f"{TOP}/t/launcher/test_*.py"):
        with open(path) as f:
            tests |= {n.name: path for n in ast.walk(ast.parse(f.read()))
                      if isinstance(n, ast.FunctionDef)}
    rows = ([row[0] for row in ROWS if FLAGS[row[0]].quiet == NOT_PRINTED]
            if table is None else [cells[0] for cells in TABLES[table]])
    assert sorted(rows) == sorted(SHOWN[table])
    for row, names in SHOWN[table].items():
        assert names and set(names) <= set(tests), f"{row}: {names}"


@pytest.mark.parametrize("row", TABLES["What it runs"], ids=lambda row: row[0])
def test_what_the_page_says_of_nginx_conf_is_in_it(row):
    said = re.findall(r"`([^`]+)`", row[1])
    assert said or row[1] == "see below"
    rc, out, err = run("--destinationUri", "http://s", "--listenPort", "1",
                       "--kafkaConnection", "b:1", "--print-config")
    assert rc == 0, err
    for line in said:
        assert line in out, f"{line}: {out}"
