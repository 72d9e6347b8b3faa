"""Directives: a wrong one is a clear error of `nginx -t`; a module that is loaded
and not used leaves NGINX as it is."""

import os
import re

import pytest

from rig.client import Client, build_request
from rig.process import TOP
from rig.source import Response, pattern
from rig.status import capture_status, wait_until

SIDECAR = "capture_sidecar unix:/tmp/none.sock;"


@pytest.mark.parametrize("http, server, error", [
    ("capture_sidecar /tmp/x;", "", 'takes "unix:/path", not "/tmp/x"'),
    ("capture_sidecar tmp/x;", "", 'takes "unix:/path"'),
    ("capture_sidecar unix:tmp/x;", "", 'must begin with "/"'),
    ("capture_sidecar unix:;", "", 'must begin with "/"'),
    ("capture_sidecar unix;", "", 'takes "unix:/path"'),
    ("capture_sidecar '';", "", 'takes "unix:/path"'),
    ("capture_sidecar 127.0.0.1:9;", "", 'takes "unix:/path"'),
    (f"capture_sidecar unix:/{'x' * 107};", "", "a Unix socket's may have 107"),
    ("capture_sidecar;", "", 'invalid number of arguments in "capture_sidecar"'),
    ("capture_sidecar unix:/a b;", "", "invalid number of arguments"),
    (SIDECAR + SIDECAR, "", '"capture_sidecar" directive is duplicate'),
    ("", SIDECAR, '"capture_sidecar" directive is not allowed here'),
    ("", "capture on;", 'no "capture_sidecar" says'),
    ("set_real_ip_from 1.1.1.1;", "location / { if ($arg_a) { capture on; } }",
     'no "capture_sidecar" says'),
    (SIDECAR, "capture yes;", 'invalid value "yes" in "capture" directive'),
    (SIDECAR, "capture ON;", 'invalid value "ON"'),
    (SIDECAR, "capture '';", 'invalid value ""'),
    (SIDECAR, "capture;", "invalid number of arguments"),
    (SIDECAR, "capture on off;", "invalid number of arguments"),
    (SIDECAR, "capture on; capture on;", '"capture" directive is duplicate'),
    (SIDECAR, "capture off; capture on;", '"capture" directive is duplicate'),
    (SIDECAR, "capture $no_such_variable;", 'unknown "no_such_variable" variable'),
    (SIDECAR, "capture_bypass $no_such_variable;", 'unknown "no_such_variable"'),
    (SIDECAR, "capture_bypass;", "invalid number of arguments"),
    ("capture_buffer 1023k;", "", '"capture_buffer" must be at least 1m'),
    ("capture_buffer 0;", "", '"capture_buffer" must be at least 1m'),
    ("capture_buffer x;", "", '"capture_buffer" directive invalid value'),
    ("capture_buffer -1m;", "", '"capture_buffer" directive invalid value'),
    ("capture_buffer 2m; capture_buffer 2m;", "", "is duplicate"),
    ("", "capture_buffer 2m;", '"capture_buffer" directive is not allowed here'),
    (SIDECAR, "capture_include everything;", 'invalid value "everything"'),
    (SIDECAR, "capture_include;", "invalid number of arguments"),
    (SIDECAR, "capture_wait on;", 'invalid value "on" in "capture_wait"'),
    (SIDECAR, "capture_wait $no_such;", 'unknown "no_such" variable'),
    (SIDECAR, "capture_wait off mutating;", 'invalid value "off"'),
    (SIDECAR, "capture_wait $uri mutating;", 'invalid value "mutating"'),
    (SIDECAR, "capture_wait off; capture_wait off;", "is duplicate"),
    (SIDECAR, "capture_wait;", "invalid number of arguments"),
    (SIDECAR, "capture_wait_timeout 0;", '"capture_wait_timeout" must be more'),
    (SIDECAR, "capture_wait_timeout x;", "invalid value"),
    (SIDECAR, "capture_wait_timeout 1s; capture_wait_timeout 1s;",
     "is duplicate"),
    (SIDECAR, "capture_on_failure drop;", 'invalid value "drop"'),
    (SIDECAR, "capture_on_failure refuse; capture_on_failure forward;",
     "is duplicate"),
    (SIDECAR, "capture_topic a/b;", 'invalid name "a/b" in "capture_topic"'),
    (SIDECAR, "capture_topic 'a b';", 'invalid name "a b"'),
    (SIDECAR, f"capture_topic {'x' * 64};", "must be 1 to 63 letters"),
    (SIDECAR, "capture_topic;", "invalid number of arguments"),
    (SIDECAR, "capture_topic a b;", "invalid number of arguments"),
    (SIDECAR, "capture_topic a; capture_topic $uri;", "is duplicate"),
    (SIDECAR, "capture_topic $uri; capture_topic $uri;", "is duplicate"),
    (SIDECAR, "capture_topic $no_such;", 'unknown "no_such" variable'),
    (SIDECAR, "".join(f"location /{i} {{ capture_topic n{i}; }}"
                      for i in range(25)), '"capture_topic n24" is one name too many'),
    (SIDECAR, "capture_status;", '"capture_status" directive is not allowed here'),
    (SIDECAR, "location / { capture_status on; }", "invalid number of arguments"),
    (SIDECAR, "capture_no_such on;", 'unknown directive "capture_no_such"')])
def test_a_wrong_directive_is_a_clear_error(check_config, http, server, error):
    rc, stderr = check_config(http=http, server=server)
    assert rc == 1
    line, = re.findall(r".*\[emerg\].*", stderr)
    assert error in line


# a value that each directive cannot have; True: in http, else in the server
BAD_VALUES = {
    "capture": ("maybe", False),
    "capture_buffer": ("1k", True),
    "capture_bypass": ("", False),  # any text will do
    "capture_include": ("everything", False),
    "capture_max_request_body": ("much", False),
    "capture_max_response_body": ("much", False),
    "capture_on_failure": ("drop", False),
    "capture_redact_arg": ("''", False),
    "capture_redact_header": ("content-length", False),
    "capture_redact_json": ("a..b", False),
    "capture_redact_key": ("/nonexistent", True),
    "capture_sidecar": ("/tmp/x", True),
    "capture_status": ("maybe", False),
    "capture_topic": ("a/b", False),
    "capture_wait": ("maybe", False),
    "capture_wait_timeout": ("soon", False),
}


def directives():
    """The names in the module's table."""
    with open(os.path.join(TOP, "ngx_http_capture_module.c")) as f:
        table = re.search(r"ngx_command_t\s+ngx_http_capture_commands\[\] = \{(.*?)"
                          r"ngx_null_command", f.read(), re.S)
    return re.findall(r'ngx_string\("(\w+)"\)', table[1])


@pytest.mark.parametrize("name", directives())
def test_a_bad_value_of_each_directive_is_refused_by_its_name(check_config, name):
    assert name in BAD_VALUES, f"give {name} a value above that it cannot have"
    value, in_http = BAD_VALUES[name]
    line = f"{name} {value};".replace(" ;", ";")
    rc, stderr = check_config(
        http=line if in_http else SIDECAR,
        server="" if in_http else f"location /x {{ {line} }}")
    assert rc == 1
    said, = re.findall(r"\[emerg\].*", stderr)
    assert f'"{name}"' in said and "check.conf:" in said, said


def test_no_bad_value_is_of_a_directive_that_is_not_there():
    assert set(BAD_VALUES) == set(directives())


@pytest.mark.parametrize("http, server", [
    ("", ""), (SIDECAR, ""), (SIDECAR, "capture on;"), (SIDECAR, "capture off;"),
    ("", "capture off;"), ("", "location / { capture_status; }"),
    (SIDECAR + "capture on; capture_buffer 1m;", "capture off;"),
    (SIDECAR, "capture $arg_a$arg_b; capture_wait off; capture_bypass $arg_a $arg_b;"),
    (SIDECAR, "capture_include unreplayable not_forwarded; capture on;"),
    (SIDECAR, "capture_include off; capture on;"),
    (SIDECAR, f"capture on; capture_topic {'x' * 63};"),
    (SIDECAR, "capture on; capture_topic '';"),
    (SIDECAR, "capture on; capture_topic a$arg_a;"),
    (SIDECAR + "capture_topic a.b_C-9;", "".join(
        f"location /{i} {{ capture_topic n{i % 23}; }}" for i in range(50))),
    (f"capture_sidecar unix:/{'x' * 106};", "capture on;"),
    (SIDECAR + "log_format f '$capture_result$capture_connection_id"
     "$capture_wait_time'; access_log access.log f;", ""),
    (SIDECAR, "location / { if ($arg_a) { capture on; } }")])
def test_a_right_configuration_is_taken(check_config, http, server):
    rc, stderr = check_config(http=http, server=server)
    assert rc == 0, stderr
    assert not re.findall(r"\[(warn|error|alert)\]", stderr)


def test_a_module_that_is_loaded_and_not_used_changes_nothing(nginx, source):
    """Same bytes to client and source, no memory shared, no connection."""
    source.answer = lambda q: Response(body=pattern(100_000), headers=[("Date", "x")])
    http = (f"upstream source {{ server 127.0.0.1:{source.port}; keepalive 4; }}"
            "proxy_http_version 1.1; proxy_set_header Connection '';"
            "proxy_pass_header Date; proxy_set_header Host h; gzip on;")
    server = ("location / { proxy_pass http://source; }"
              "location /r { return 301 /x; }")
    seen = []
    for module, more in ((False, ""), (True, ""), (True, SIDECAR + "capture off;")):
        n = nginx(http=http + more, server=server, module=module)
        worker, = wait_until(n.workers, what="the worker")
        with open(f"/proc/{worker}/maps") as f:
            maps = f.read()
        assert "nginx-capture" not in maps
        shared = maps.count("/dev/zero (deleted)")
        answers = []
        with Client(n.port) as client:
            for method, target in (("GET", "/a"), ("POST", "/b"), ("HEAD", "/c")):
                client.send(build_request(method, target, [("Host", "x")],
                                          b"body" if method == "POST" else None))
                answer = client.receive(method)
                answers.append((answer.head, answer.body))
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            answers.append((client.receive().status,))
        requests = [bytes(q.raw) for q in source.requests]
        source.requests.clear()
        seen.append((answers, requests, shared))
    assert seen[0] == seen[1] == seen[2]


def test_status_alone_says_that_there_are_no_workers(nginx):
    n = nginx(server="location = /capture_status { capture_status; }")
    document = capture_status(n.port)
    assert document["workers"] == []
    assert document["total"]["seen"] == 0
    with Client(n.port) as client:
        assert client.request("POST", "/capture_status", body=b"x").status == 405
        answer = client.request("HEAD", "/capture_status")
        assert (answer.status, answer.header("content-type")) == (
            200, "application/json")


def test_a_server_without_capture_counts_nothing_beside_one_with(rig, source):
    from rig.process import free_port
    port = free_port()
    r = rig(http=f"server {{ listen 127.0.0.1:{port}; error_page 400 /e;"
                 f"location / {{ proxy_pass http://source; }} }}")
    with Client(port) as client:
        assert client.request("GET", "/").status == 200
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        client.receive()
    r.get()
    r.exchanges(1)
    r.total(seen=1, captured=1)


def test_a_bad_request_with_an_error_page_is_a_bad_request(rig, source):
    """The error page runs phases, but the first ones have never run."""
    r = rig(server="error_page 400 414 494 /sorry;"
                   "location /sorry { proxy_pass http://source; }")
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 40000 + b" HTTP/1.1\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40000 + b"\r\n"):
        with r.client() as client:
            client.send(raw)
            client.receive()
    assert not r.sidecar.exchanges
    r.total(seen=3, bad_request=3)
