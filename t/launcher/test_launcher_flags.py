"""Each flag of the Java proxy, as deployers use it, says in `--print-config` what
NGINX and the sidecar are told; a mistake is refused by its name and its value."""

import base64
import json
import re

import pytest

from rig.launcher import run

HEAD = ["--destinationUri", "http://source.test:9200", "--listenPort", "9200"]
KAFKA = ["--kafkaConnection", "b1:9092,b2:9092"]
BASE = HEAD + KAFKA


def show(*args, env=None):
    """(both configurations, warnings)"""
    rc, out, err = run(*args, "--print-config", env=env)
    assert rc == 0, err
    return out, err


def refused(*args, env=None):
    rc, out, err = run(*args, "--print-config", env=env)
    assert rc == 2, out + err
    return err


# ---- the table of flags ----

TAKEN = [
    # destinationUri
    (["--destinationUri", "http://s"], ["server s:80;", "proxy_pass http://source;"]),
    (["--destinationUri", "https://s"],
     ["server s:443;", "proxy_pass https://source;", "proxy_ssl_verify on;",
      "proxy_ssl_server_name on;", 'proxy_ssl_name "s";']),
    (["--destinationUri", "HTTP://s:1/"], ["server s:1;"]),
    (["--destinationUri", "http://[::1]:5"], ["server [::1]:5;"]),
    (["--listenPort", "1234"], [":1234 "]),
    (["--destinationUri", "https://s", "--insecureDestination"],
     ["proxy_ssl_verify off;", "proxy_ssl_server_name on;"]),
    # TLS
    (["--sslCertChainFile", "/c.pem", "--sslKeyFile", "/k.pem"],
     ['ssl_certificate "/c.pem";', 'ssl_certificate_key "/k.pem";', " ssl so_"]),
    (["--sslCertChainFile", "/c", "--sslKeyFile", "/k", "--sslTrustCertFile",
      "/t.pem", "--requireClientAuth"],
     ['ssl_client_certificate "/t.pem";', "ssl_verify_client on;"]),
    (["--sslCertChainFile", "/c", "--sslKeyFile", "/k", "--sslTrustCertFile",
      "/t.pem"], ["ssl_verify_client optional;"]),
    # Kafka
    (["--kafkaBrokers", "a:1"], ["kafka.bootstrap.servers = a:1"]),
    (["--kafkaConnection", "a:1,b:2"], ["kafka.bootstrap.servers = a:1,b:2"]),
    ([], ["topic = logging-traffic-topic",
          "kafka.client.id = HttpCaptureProxyProducer"]),
    (["--kafkaTopic", "t-1"], ["topic = t-1"]),
    (["--kafkaClientId", "me"], ["kafka.client.id = me"]),
    (["--kafkaAuthType", "none"], []),
    (["--kafkaAuthType", "ssl"], ["kafka.security.protocol = ssl"]),
    (["--kafkaAuthType", "scram-sha-512", "--kafkaUserName", "u",
      "--kafkaPassword", "p"],
     ["kafka.security.protocol = sasl_ssl", "kafka.sasl.mechanism = SCRAM-SHA-512",
      "kafka.sasl.username = u", "kafka.sasl.password = (not shown)"]),
    (["--kafkaAuthType", "msk-iam"],
     ["kafka.security.protocol = sasl_ssl", "kafka.sasl.mechanism = OAUTHBEARER",
      "token.source = aws-msk-iam"]),
    (["--enableMSKAuth"], ["token.source = aws-msk-iam"]),
    (["--enableMSKAuth", "--kafkaAuthType", "msk-iam"],
     ["token.source = aws-msk-iam"]),
    (["--kafkaListenerName", "l", "--kafkaSecretName", "s"], []),
    # capture
    ([], ["record.size = 1048076", "capture on;", "capture_wait mutating;",
          "capture_wait_timeout 10s;", "capture_on_failure forward;"]),
    (["--maxTrafficBufferSize", "1048576"], ["record.size = 1048076"]),
    (["--maxTrafficBufferSize", "65536"], ["record.size = 65536"]),
    (["--numThreads", "3"], ["worker_processes 3;"]),
    (["--destinationConnectionPoolSize", "7"], ["keepalive 7;"]),
    ([], ["keepalive 128;", "keepalive_timeout 30000ms;"]),
    (["--destinationConnectionPoolTimeout", "PT1M30.5S"],
     ["keepalive_timeout 90500ms;", "keepalive_time 90500ms;"]),
    (["--destinationConnectionPoolTimeout", "P1DT1H"],
     ["keepalive_timeout 90000000ms;"]),
    (["--setHeader", "Host", "x.example"], ['proxy_set_header Host "x.example";']),
    (["--setHeader", "A", "1", "--setHeader", "B", "2", "--setHeader", "a", "3"],
     ['proxy_set_header A "3";', 'proxy_set_header B "2";']),
    (["--setHeader", "A", 'a "$host" \\n;}'],
     ['proxy_set_header A "a \\"${dollar}host\\" \\\\n;}";']),
    (["--suppressCaptureForHeaderMatch", "User-Agent", ".*ELB.*"],
     ['map "$http_user_agent"', '"~\\\\A(?:.*ELB.*)\\\\z" 1;',
      "capture_bypass $capture_suppressed_1;"]),
    (["--suppressCaptureForHeaderMatch", "a", "x",
      "--suppressCaptureForHeaderMatch", "A", "y"],
     ["(?:x)", "(?:y)", "capture_bypass $capture_suppressed_1 $capture_suppressed_2;"]),
    (["--suppressCaptureForMethod", "GET|HEAD"],
     ['map "$request_method"', "(?:GET|HEAD)"]),
    (["--suppressCaptureForUriPath", "/_cat/.*"], ['map "$request_uri"']),
    (["--suppressMethodAndPath", "GET /x.*"],
     ['map "$request_method $request_uri"', "(?:GET /x.*)"]),
    (["--suppressCaptureForMethod", ""], []),
    # the launcher's own
    (["--capture-buffer", "16m"], ["capture_buffer 16m;"]),
    (["--status-listen", "127.0.0.1:9"], ["listen 127.0.0.1:9;", "capture_status;"]),
    (["--metrics-listen", "127.0.0.1:9"], ["metrics.listen = 127.0.0.1:9"]),
    (["--shutdown-timeout", "10s"], ["drain.time = 3000ms"]),
    (["--nginx-module", "/m.so"], ['load_module "/m.so";']),
]


def replacing(args):
    """BASE without what `args` give themselves."""
    base = list(BASE)
    for name in [a for a in args if a.startswith("--")]:
        name = {"--kafkaBrokers": "--kafkaConnection"}.get(name, name)
        if name in base:
            i = base.index(name)
            del base[i:i + 2]
    return base + args


@pytest.mark.parametrize("args,lines", TAKEN, ids=lambda v: " ".join(v)[:60])
def test_a_flag_is_taken(args, lines):
    out, _ = show(*replacing(args))
    for line in lines:
        assert line in out, out


def test_equal_signs_are_taken_too():
    assert show("--destinationUri=http://s:1", "--listenPort=5", *KAFKA)[0] \
        .count("server s:1;") == 1


def test_a_trace_directory_takes_kafkas_place():
    out, _ = show(*HEAD, "--traceDirectory", "/trace")
    assert "export.path = /trace" in out
    assert "export.format = protocap" in out
    assert "kafka." not in out


def test_without_capture_there_is_only_a_proxy():
    out, _ = show(*HEAD, "--noCapture")
    assert "capture" not in re.sub(r"#.*|/run/capture-proxy", "", out)
    assert "proxy_pass http://source;" in out


REFUSED = [
    (KAFKA + ["--listenPort", "1"], ["--destinationUri is missing"]),
    (KAFKA + ["--destinationUri", "http://s"], ["--listenPort is missing"]),
    (replacing(["--destinationUri", "http://s/path"]), ["/path"]),
    (replacing(["--destinationUri", "http://s?q"]), ["?q"]),
    (replacing(["--destinationUri", "ftp://s"]), ["ftp://s", "https://"]),
    (replacing(["--destinationUri", "http://u:p@s"]), ["--setHeader Authorization"]),
    (replacing(["--destinationUri", "http://s:0"]), ["http://s:0"]),
    (replacing(["--destinationUri", "http://s:99999"]), ["http://s:99999"]),
    (replacing(["--destinationUri", "http://s;}"]), ["http://s;}"]),
    (replacing(["--destinationUri", "http://"]), ["http://"]),
    (replacing(["--listenPort", "0"]), ["--listenPort 0"]),
    (replacing(["--listenPort", "70000"]), ["--listenPort 70000"]),
    (replacing(["--listenPort", "x"]), ["--listenPort x"]),
    (HEAD, ["there is none"]),
    (BASE + ["--noCapture"], ["there are more"]),
    (BASE + ["--traceDirectory", "/x"], ["there are more"]),
    (HEAD + ["--noCapture", "--traceDirectory", "/x"], ["there are more"]),
    (BASE + ["--sslCertChainFile", "/c"], ["--sslKeyFile is missing"]),
    (BASE + ["--sslKeyFile", "/c"], ["--sslCertChainFile is missing"]),
    (BASE + ["--sslCertChainFile", "/c", "--sslKeyFile", "/k",
             "--requireClientAuth"], ["--sslTrustCertFile or"]),
    (BASE + ["--sslCertChainFile", "/c", "--sslKeyFile", "/k",
             "--sslTrustCertFile", "/t", "--sslTrustCertPemEnvVar", "PEM"],
     ["give one of them"]),
    (BASE + ["--sslCertChainFile", "/c", "--sslKeyFile", "/k",
             "--sslTrustCertPemEnvVar", "NOT_THERE"], ["NOT_THERE", "empty"]),
    (BASE + ["--sslTrustCertFile", "/t"], ["need TLS"]),
    (BASE + ["--kafkaAuthType", "plain"], ["--kafkaAuthType plain", "msk-iam"]),
    (BASE + ["--enableMSKAuth", "--kafkaAuthType", "ssl"], ["contradict"]),
    (BASE + ["--kafkaAuthType", "scram-sha-512"],
     ["--kafkaUserName", "CAPTURE_PROXY_KAFKA_PASSWORD"]),
    (BASE + ["--kafkaPropertyFile", "/not/there"], ["/not/there", "No such file"]),
    (HEAD + ["--traceDirectory", "relative"], ["absolute"]),
    (BASE + ["--maxTrafficBufferSize", "100"], ["--maxTrafficBufferSize 100"]),
    (BASE + ["--maxTrafficBufferSize", "1k"], ["1k", "number"]),
    (BASE + ["--numThreads", "-1"], ["-1"]),
    (BASE + ["--destinationConnectionPoolTimeout", "30"], ["30", "PT30S"]),
    (BASE + ["--destinationConnectionPoolTimeout", "PT"], ["PT", "ISO-8601"]),
    (BASE + ["--setHeader", "A b", "c"], ["A b"]),
    (BASE + ["--setHeader", "A", "b\nc"], ["control character"]),
    (BASE + ["--setHeader", "Content-Length", "1"], ["Content-Length"]),
    (BASE + ["--setHeader", "A"], ["--setHeader", "missing"]),
    (BASE + ["--suppressCaptureForMethod", "("], ["--suppressCaptureForMethod ("]),
    (BASE + ["--suppressCaptureForHeaderMatch", "a.b", "x"], ["a.b"]),
    (BASE + ["--sslConfigFile", "x.yml"], ["--sslCertChainFile"]),
    (BASE + ["--kafkaTopik", "x"], ["--kafkaTopik", "the nearest is --kafkaTopic"]),
    (BASE + ["stray"], ["stray"]),
    (BASE + ["--kafkaTopic", "a", "--kafkaTopic", "b"], ["already given"]),
    (BASE + ["--kafkaBrokers", "a:1"], ["already given by --kafkaConnection"]),
    (BASE + ["--shutdown-timeout", "25"], ["25s"]),
    (BASE + ["--status-listen", "1; }"], ["--status-listen"]),
    (BASE + ["--capture-buffer", "1m; }"], ["--capture-buffer"]),
    (BASE + ["--otelMetricsCollectorEndpoint", "localhost:4317"],
     ["--otelMetricsCollectorEndpoint", "http://localhost:4317"]),
    (BASE + ["--otelTraceCollectorEndpoint", "x"], ["--otelTraceCollector"]),
]


@pytest.mark.parametrize("args,says", REFUSED, ids=lambda v: " ".join(v)[-60:])
def test_a_mistake_is_refused(args, says):
    err = refused(*args)
    for words in says:
        assert words in err, err


def test_one_start_shows_all_mistakes():
    err = refused("--listenPort", "x", "--kafkaTopik", "t", "--noCapture",
                  "--traceDirectory", "/x")
    for words in ("--listenPort x", "--kafkaTopik", "--destinationUri",
                  "exactly one"):
        assert words in err, err


WARNED = [
    (["--suppressCaptureForUriPath", "/_cat/*"], "shell's pattern"),
    (["--suppressMethodAndPath", "GET /_cat*"], "shell's pattern"),
    (["--suppressCaptureForMethod", "[a-z&&[^b]]"], "&&"),
    (["--kafkaAuthType", "scram-sha-512", "--kafkaUserName", "u",
      "--kafkaPassword", "geheim"], "CAPTURE_PROXY_KAFKA_PASSWORD"),
    (["--kafkaUserName", "u"], "--kafkaUserName"),
    (["--maxTrafficBufferSize", "29000000"], "1048076 bytes at most"),
    (["--otelTraceCollectorEndpoint", "http://l:4317"], "no spans are made"),
    (["--otel-trace-collector-endpoint", "http://l:4317",
      "--otel-metrics-collector-endpoint", "http://l:4317"], "no spans are made"),
    (["--destinationUri", "https://10.0.0.1"], "against a name"),
    (["--sslCertChainFile", "/c", "--sslKeyFile", "/k", "--sslTrustCertFile",
      "/t"], "--requireClientAuth"),
    (["--setHeader", "X-A", ""], "does not get the header"),
]


@pytest.mark.parametrize("args,says", WARNED, ids=lambda v: " ".join(v)[:60]
                         if isinstance(v, list) else "")
def test_a_trap_is_warned_of_once(args, says):
    out, err = show(*replacing(args))
    assert err.count("warning") == 1, err
    assert says in err, err
    assert "geheim" not in out + err


@pytest.mark.parametrize("pattern", ["/_cat/.*", "GET|HEAD", "[^/]*", "(a|b)*",
                                     ".*", "\\d*x", "a.*b.*"])
def test_a_regular_expression_is_no_trap(pattern):
    assert "shell's" not in show(*BASE, "--suppressCaptureForUriPath", pattern)[1]


def test_the_metrics_collector_is_the_sidecars():
    out, err = show(*BASE, "--otelMetricsCollectorEndpoint", "http://l:4317")
    assert "otlp.endpoint = http://l:4317" in out and "warning" not in err


def test_secrets_are_in_no_dump():
    out, err = show(*BASE, "--kafkaAuthType", "scram-sha-512", "--kafkaUserName",
                    "u", "--setHeader", "Authorization", "Basic geheim2",
                    env={"CAPTURE_PROXY_KAFKA_PASSWORD": "geheim1"})
    assert "geheim" not in out + err, out + err
    assert 'proxy_set_header Authorization "(not shown)";' in out


# ---- variables ----

@pytest.mark.parametrize("name,value,line", [
    ("CAPTURE_PROXY_DESTINATION_URI", "http://v:7", "server v:7;"),
    ("CAPTURE_PROXY_LISTEN_PORT", "777", ":777 "),
    ("CAPTURE_PROXY_KAFKA_TOPIC", "vt", "topic = vt"),
    ("CAPTURE_PROXY_KAFKA_BROKERS", "v:1", "kafka.bootstrap.servers = v:1"),
    ("CAPTURE_PROXY_KAFKA_CONNECTION", "v:1", "kafka.bootstrap.servers = v:1"),
    ("CAPTURE_PROXY_ENABLE_M_S_K_AUTH", "true", "token.source = aws-msk-iam"),
    ("CAPTURE_PROXY_SSL_CERT_CHAIN_FILE", "/vc", 'ssl_certificate "/vc";'),
    ("CAPTURE_PROXY_SUPPRESS_CAPTURE_FOR_URI_PATH", "/v", "(?:/v)"),
    ("CAPTURE_PROXY_NUM_THREADS", "9", "worker_processes 9;"),
    ("CAPTURE_PROXY_STATUS_LISTEN", "127.0.0.1:8", "listen 127.0.0.1:8;"),
    # of both names of its flag
    ("CAPTURE_PROXY_OTEL_METRICS_COLLECTOR_ENDPOINT", "http://v:1",
     "otlp.endpoint = http://v:1"),
])
def test_each_flag_is_a_variable_as_well(name, value, line):
    given = {"CAPTURE_PROXY_DESTINATION_URI": "http://s",
             "CAPTURE_PROXY_LISTEN_PORT": "1",
             "CAPTURE_PROXY_SSL_KEY_FILE": "/k" if "CERT" in name else ""}
    if "KAFKA_B" not in name and "KAFKA_C" not in name:
        given["CAPTURE_PROXY_KAFKA_BROKERS"] = "b:1"
    out, _ = show(env={**given, name: value})
    assert line in out, out


def test_every_flag_of_one_value_has_its_variable_in_the_help_pages():
    """The rule, on all names: none is forgotten."""
    _, out, _ = run("--help-docs")
    rows = re.findall(r"^\| `--([\w-]+)[^|]*(?:\|[^|]*){2}\| (\S+) \|$", out, re.M)
    assert len(rows) > 35, out
    for name, variable in rows:
        rule = "CAPTURE_PROXY_" + re.sub(
            "([A-Z])", r"_\1", name).replace("-", "_").upper()
        assert variable in (f"`{rule}`", "none"), name
        assert (variable == "none") == (name in (
            "setHeader", "suppressCaptureForHeaderMatch"))


def test_the_command_line_wins_over_a_variable():
    out, _ = show(*BASE, "--kafkaTopic", "flag",
                  env={"CAPTURE_PROXY_KAFKA_TOPIC": "variable"})
    assert "topic = flag" in out


def test_a_variable_that_does_not_parse_is_refused():
    err = refused(*HEAD[:2], *KAFKA, env={"CAPTURE_PROXY_LISTEN_PORT": "x"})
    assert "CAPTURE_PROXY_LISTEN_PORT x" in err
    err = refused(*BASE, env={"CAPTURE_PROXY_ENABLE_M_S_K_AUTH": "maybe"})
    assert "CAPTURE_PROXY_ENABLE_M_S_K_AUTH maybe: give true or false" in err


def test_a_switch_that_says_false_is_off():
    assert "aws" not in show(*BASE, env={
        "CAPTURE_PROXY_ENABLE_M_S_K_AUTH": "false"})[0]


def test_lists_have_no_variable():
    out, err = show(*BASE, env={"CAPTURE_PROXY_SET_HEADER": "Host"})
    assert "CAPTURE_PROXY_SET_HEADER: a list has no variable" in err


@pytest.mark.parametrize("env,which", [
    ({"KAFKA_PASSWORD": "one"}, "one"),
    ({"KAFKA_PASSWORD": "one", "CAPTURE_PROXY_KAFKA_PASSWORD": "two"}, "two")])
def test_the_password_has_two_variables(launcher, env, which):
    """The file shows which was taken; that nobody else can read it is of
    test_launcher_life.py."""
    l = launcher("--destinationUri", "http://127.0.0.1:1", "--kafkaConnection",
                 "127.0.0.1:1", "--kafkaAuthType", "scram-sha-512",
                 "--kafkaUserName", "u", "--shutdown-timeout", "2s", env=env)
    with open(f"{l.directory}/r/sidecar.conf") as f:
        assert f"kafka.sasl.password = {which}\n" in f.read()


# ---- JSON ----

DOCUMENT = {"destinationUri": "http://j:8", "listenPort": 9200,
            "kafkaConnection": "b:1"}


def encoded(document):
    return base64.b64encode(json.dumps(document).encode()).decode()


def print_json(document, form=json.dumps, env=None):
    return run("---INLINE-JSON", form(document),
               env={"CAPTURE_PROXY_PRINT_CONFIG": "true", **(env or {})})


@pytest.mark.parametrize("form", [json.dumps, encoded,
                                  lambda d: "\n " + json.dumps(d, indent=1),
                                  lambda d: encoded(d).rstrip("=")])
def test_inline_json_or_its_base64(form):
    rc, out, err = print_json(
        {**DOCUMENT, "insecureDestination": True, "numThreads": 4,
         "suppressCaptureForHeaderMatch": ["a", "x", "b", "y"],
         "setHeader": ["Host", "h"], "kafkaTopic": ""}, form)
    assert rc == 0, err
    for line in ("server j:8;", ":9200 ", "worker_processes 4;",
                 'proxy_set_header Host "h";', "(?:x)", "(?:y)",
                 "topic = logging-traffic-topic"):
        assert line in out, out


def test_a_json_file(workdir):
    for text in (json.dumps(DOCUMENT), encoded(DOCUMENT)):
        with open(f"{workdir}/f.json", "w") as f:
            f.write(text)
        rc, out, err = run("---JSON-FILE", f"{workdir}/f.json",
                           env={"CAPTURE_PROXY_PRINT_CONFIG": "true"})
        assert rc == 0 and "server j:8;" in out, err
    rc, _, err = run("---JSON-FILE", f"{workdir}/none.json")
    assert rc == 2 and "none.json" in err


@pytest.mark.parametrize("headers", [
    ["Host", "h.example", "X-A", "a: b"], ["Host: h.example", "X-A:a: b"]])
def test_headers_as_pairs_and_as_the_schema_has_them(headers):
    rc, out, err = print_json({**DOCUMENT, "setHeader": headers})
    assert rc == 0, err
    assert 'proxy_set_header Host "h.example";' in out
    assert 'proxy_set_header X-A "a: b";' in out


def test_variables_are_below_the_json():
    rc, out, err = print_json({**DOCUMENT, "kafkaTopic": "json"}, env={
        "CAPTURE_PROXY_KAFKA_TOPIC": "variable",
        "CAPTURE_PROXY_KAFKA_CLIENT_ID": "variable"})
    assert "topic = json" in out and "kafka.client.id = variable" in out, err


@pytest.mark.parametrize("document,says", [
    ({**DOCUMENT, "kafkaTopik": "x"}, "the nearest is JSON key kafkaTopic"),
    ({**DOCUMENT, "insecureDestination": "maybe"}, "true or false"),
    ({**DOCUMENT, "numThreads": 1.5}, "whole number"),
    ({**DOCUMENT, "kafkaTopic": 5}, "give a string"),
    ({**DOCUMENT, "kafkaTopic": ["x"]}, "give a string"),
    ({**DOCUMENT, "setHeader": ["Host"]}, "pairs"),
    ({**DOCUMENT, "setHeader": ["Host: a", "b"]}, "Name: value"),
    ({**DOCUMENT, "setHeader": "Host: a"}, "list of strings"),
    ([1], "no object"),
])
def test_json_mistakes_are_refused(document, says):
    rc, _, err = print_json(document)
    assert rc == 2 and says in err, err


def test_what_is_no_json_is_refused():
    for text in ('{"a": ', "%%%", '{"a": 1} x'):
        rc, _, err = run("---INLINE-JSON", text)
        assert rc == 2 and "JSON" in err, err
    rc, _, err = run("---INLINE-JSON", "{}", "--listenPort", "1")
    assert rc == 2 and "no other flag" in err, err


def test_null_is_not_given():
    rc, out, err = print_json({**DOCUMENT, "kafkaTopic": None,
                               "setHeader": None})
    assert rc == 0 and "topic = logging-traffic-topic" in out, err


# ---- help ----

def test_help_names_every_flag_of_the_table():
    rc, out, err = run("--help")
    assert rc == 0 and err == ""
    flags = re.findall(r"^  (--\S+)", out, re.M)
    assert len(flags) > 35
    for args, _ in TAKEN:
        for flag in (a for a in args if a.startswith("--")):
            assert flag in out, flag
    assert max(map(len, out.splitlines())) <= 80


# ---- Kafka's property file ----

def properties(workdir, text, *args):
    with open(f"{workdir}/client.properties", "w") as f:
        f.write(text)
    return run(*BASE, "--kafkaConfigFile", f"{workdir}/client.properties", *args,
               "--print-config")


@pytest.mark.parametrize("text,lines", [
    ("ssl.truststore.type=PEM\nssl.truststore.location=/t/ca.crt\n",
     ["kafka.ssl.ca.location = /t/ca.crt"]),
    ("security.protocol=SSL", ["kafka.security.protocol = ssl"]),
    ("sasl.mechanism : PLAIN\nsasl.jaas.config = org.apache.kafka.common.security"
     '.plain.PlainLoginModule required \\\n   username="a\\\\"b" password="p w";',
     ['kafka.sasl.mechanism = PLAIN', 'kafka.sasl.username = a"b',
      "kafka.sasl.password = (not shown)"]),
    ("# c\n! c\n\nbatch.size 65536\ncompression.type=zs\\\n  td",
     ["kafka.batch.size = 65536", "kafka.compression.type = zstd"]),
    ("client.id=\\u0078y", ["kafka.client.id = xy"]),
    ("send.buffer.bytes=1000", ["kafka.socket.send.buffer.bytes = 1000"]),
    ("ssl.keystore.type=PEM\nssl.keystore.location=/k\nssl.key.password=p",
     ["kafka.ssl.certificate.location = /k", "kafka.ssl.key.location = /k",
      "kafka.ssl.key.password = (not shown)"]),
    ("ssl.keystore.type=PKCS12\nssl.keystore.location=/k\nssl.keystore.password=p",
     ["kafka.ssl.keystore.location = /k",
      "kafka.ssl.keystore.password = (not shown)"]),
    ("ssl.endpoint.identification.algorithm=",
     ["kafka.ssl.endpoint.identification.algorithm = none"]),
    ("sasl.jaas.config=software.amazon.msk.auth.iam.IAMLoginModule required;\n"
     "sasl.client.callback.handler.class=software.amazon.msk.auth.iam."
     "IAMClientCallbackHandler\nsasl.mechanism=AWS_MSK_IAM\n"
     "security.protocol=SASL_SSL", ["token.source = aws-msk-iam"]),
    ("acks=all\nenable.idempotence=true\nkey.serializer=x", []),
    ("acks=-1", []),
    ("bootstrap.servers=other:1", ["kafka.bootstrap.servers = b1:9092,b2:9092"]),
])
def test_a_property_is_translated(workdir, text, lines):
    rc, out, err = properties(workdir, text)
    assert rc == 0, err
    for line in lines:
        assert line + "\n" in out, out


@pytest.mark.parametrize("text,says", [
    ("a=1\nacks=1", ":2: acks: 1 would weaken"),
    ("acks=0", "acks"), ("enable.idempotence=false", "enable.idempotence"),
    ("transactional.id=x", "transactional.id"),
    ("ssl.truststore.location=/x.jks", "convert it to PEM"),
    ("ssl.truststore.type=JKS\nssl.truststore.location=/x", "a JKS store"),
    ("sasl.jaas.config=com.sun.security.auth.module.Krb5LoginModule required;",
     "sasl.jaas.config"),
    ('sasl.jaas.config=x.ScramLoginModule required username="u";', "password"),
    ("sasl.login.callback.handler.class=my.Own", "no Java classes"),
])
def test_a_property_that_weakens_or_cannot_be_is_refused(workdir, text, says):
    rc, _, err = properties(workdir, text)
    assert rc == 2 and says in err, err


@pytest.mark.parametrize("name", ["linger.ms", "delivery.timeout.ms",
                                  "max.block.ms", "retries", "my.own.property",
                                  "partitioner.class"])
def test_a_property_without_equivalent_is_named_in_a_warning(workdir, name):
    rc, out, err = properties(workdir, f"{name}=5")
    assert rc == 0 and f"{name} is left out" in err, err
    assert f"kafka.{name}" not in out


def test_flags_win_over_properties(workdir):
    rc, out, err = properties(
        workdir, "client.id=file\nsecurity.protocol=PLAINTEXT\n",
        "--kafkaClientId", "flag", "--kafkaAuthType", "ssl")
    assert rc == 0, err
    assert "kafka.client.id = flag" in out
    assert "kafka.security.protocol = ssl" in out
    assert out.count("kafka.security.protocol") == 1


def test_the_password_of_a_property_file_is_not_shown(workdir):
    rc, out, err = properties(
        workdir, 'sasl.jaas.config=x.ScramLoginModule required username="u" '
        'password="geheim";\nsasl.mechanism=SCRAM-SHA-512\n')
    assert rc == 0 and "geheim" not in out + err, out + err
