"""README, and the pages beside operations.md: their commands, as they stand, on an
NGINX that captures into a topic of a real broker."""

import grp
import os
import re
import shutil
import subprocess

import pytest

from rig.client import Client
from rig.nginx import BINARY, MODULE, check_config, render
from rig.pages import Block, Page, Shell
from rig.process import (BUILD, SANITIZED, TOP, accepts, alive, children,
                         free_port)
from rig.status import capture_status, wait_until

BUILT = "script/test begins with it"
IMAGES = "script/test-image builds the same with buildah"
PACKAGES = "script/test-packages, in clean systems"

# what does not end by itself is ended as its user would: by INT
CAPTURECTL = f"""
for word; do
    case $word in
        -f | --watch) exec timeout --preserve-status -s INT 2 {BUILD}/capturectl "$@" ;;
    esac
done
exec {BUILD}/capturectl "$@"
"""


class Used:
    """A stack with a few exchanges in its topic, and shells for a page's reader."""

    def __init__(self, stack, broker, topic, workdir):
        self.metrics = f"127.0.0.1:{free_port()}"
        self.topic, self.bootstrap = topic, broker.bootstrap
        self.stack = stack(sidecar_conf={"metrics.listen": self.metrics})
        self.node = f"127.0.0.1:{self.stack.port}"
        self.workdir = workdir
        self._shells = []
        with self.stack.client() as c:
            for target, body in (("/", None), ("/orders/_doc", b"{}")):
                assert c.request("POST" if body else "GET", target,
                                 body=body).status == 200
        self.stack.wait_for_status(lambda s: s["total"]["captured"] == 2)
        self.stack.wait_for_status(lambda s: s["total"]["pending"] == 0)

    def shell(self, stand_ins, at=None, **options):
        self._shells.append(Shell(
            os.path.join(self.workdir, f"sh{len(self._shells)}"), stand_ins,
            **options))
        self._shells[-1].run(Block("-", 1, "", f"cd {at or self.workdir}\n"))
        return self._shells[-1]

    def close(self):
        for shell in self._shells:
            shell.close()


@pytest.fixture
def used(stack, broker, topic, workdir):
    use = Used(stack, broker, topic, workdir)
    yield use
    use.close()


@pytest.mark.skipif(SANITIZED, reason="it uses what plain make has built")
@pytest.mark.timeout(400)     # another script/bootstrap may have the cache's lock
def test_readme_see_it_work(workdir):
    """The quick start, in the environment of somebody who has just got the tree."""
    page = Page("README.md", not_run={
        "client --TLS": "a picture", "script/bootstrap && make\n": "below",
        "load_module": "below", "listen = ": "below", "capture-sidecar": "below",
        "capture-proxy": "below", "build/capturectl": "below",
        "seen = captured": "a formula", "script/bootstrap   ": BUILT,
        "script/test ": "it is what runs this"})
    shell = Shell(workdir)
    shell.run(Block("-", 1, "", f"cd {TOP}\n"))
    said = shell.run(page.take("script/demo"), timeout=350)
    assert "the same\n" in said and "lost 0 + pending 0" in said, said
    page.finish()
    shell.finish()


NGINX_BEFORE = """
daemon off; pid nginx.pid; {user} {env}
events {{ }}
http {{
    access_log off;
    client_body_temp_path temp/a; proxy_temp_path temp/b; fastcgi_temp_path temp/c;
    {more}
    {server}
}}
"""
SERVER = "listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{source}; }}"


def test_readme_in_an_nginx_that_is_there(workdir, source, broker, topic):
    """Capture is put into an NGINX that serves, by what README says and no more."""
    page = Page("README.md")
    port = free_port()
    for name in ("temp", "run", "out"):
        os.mkdir(f"{workdir}/{name}")
    server = SERVER.format(port=port, source=source.port)
    more = "" if SANITIZED else "uwsgi_temp_path temp/d; scgi_temp_path temp/e;"
    before = NGINX_BEFORE.format(
        user="user root;" if os.geteuid() == 0 else "", more=more, server="{server}",
        env="env ASAN_OPTIONS; env UBSAN_OPTIONS;" if SANITIZED else "")
    broker.start()
    shell = Shell(f"{workdir}/sh", commands={
        "sudo": f'exec env DESTDIR={workdir}/out BUILD={BUILD} "$@"',
        "nginx": f'exec {BINARY} -p {workdir}/ -c nginx.conf -e error.log "$@"'},
        stand_ins={
            "modules/ngx_http_capture_module.so":
                f"{workdir}/out/usr/lib/nginx/modules/ngx_http_capture_module.so",
            "unix:/run/capture/": f"unix:{workdir}/run/",
            "www-data": grp.getgrgid(os.getegid()).gr_name,
            "broker1:9092,broker2:9092": broker.bootstrap,
            "logging-traffic-topic": topic,
            "-c FILE": f"-c {workdir}/sidecar.conf",
            "http://127.0.0.1/": f"http://127.0.0.1:{port}/"})

    def write(name, text):
        with open(f"{workdir}/{name}", "w") as f:
            f.write(text)
    write("nginx.conf", before.replace("{server}", f"server {{ {server} }}"))
    shell.run(Block("-", 1, "", f"nginx 2>{workdir}/out.log &\ncd {TOP}\n"))
    wait_until(lambda: accepts(port), 20, "NGINX's port")
    with open(f"{workdir}/nginx.pid") as f:
        old = children(int(f.read()))

    build, install = page.take("script/bootstrap && make\n").text.splitlines()
    assert build == "script/bootstrap && make"        # what script/test does, too
    if SANITIZED:      # what `make asan` has built
        os.makedirs(f"{workdir}/out/usr/lib/nginx/modules")
        shutil.copy(MODULE, f"{workdir}/out/usr/lib/nginx/modules")
    else:
        shell.run(Block("-", 1, "", install + "\n"))
    lines = shell.text(page.take("load_module"))
    head, _, rest = lines.partition("http {")
    _, first, more = before.partition("http {")
    write("nginx.conf", head + _ + first + (
        more.replace("{server}", rest.strip()[:-1].replace("...", server, 1))))
    write("sidecar.conf", shell.text(page.take("listen = "))
          + f"topic = {topic}\n")
    shell.stand_ins.pop("logging-traffic-topic")
    shell.unused.discard("logging-traffic-topic")

    block = page.take("capture-sidecar --check")
    shell.run(block)
    # until then they may take a connection, and not capture it
    wait_until(lambda: not alive(old), 20, "the old workers' end")
    wait_until(lambda: all(w["linked"] for w in capture_status(port)["workers"]),
               20, "the links")
    with Client(port) as c:
        assert c.request("POST", "/a", body=b"x").status == 200
    wait_until(lambda: capture_status(port)["total"]["captured"] == 1, 20,
               "the exchange is captured")
    shell.run(Block("-", 1, "", "nginx -s quit; kill %2; wait\n"))
    with open(f"{workdir}/error.log") as f:
        assert not re.search(r"\[(alert|emerg)\]", f.read())
    assert broker.read_topic(topic)
    shell.finish()


def test_readme_in_the_java_proxys_place(workdir, source, broker, topic, certificate):
    """README's and launcher.md's command lines, on other addresses."""
    broker.start()
    os.chmod(workdir, 0o755)
    for page, start in (("README.md", "capture-proxy --dest"),
                        ("docs/launcher.md", "capture-proxy --dest")):
        port = free_port()
        launcher = page != "README.md"
        shell = Shell(f"{workdir}/{port}", {
            "https://cluster.example:9200" if launcher else "https://cluster:9200":
                f"http://127.0.0.1:{source.port}",
            "--listenPort 9200": f"--listenPort {port}",
            "broker:9092": f"{broker.bootstrap} --kafkaTopic {topic}",
            **({"pub.pem": certificate[0], "key.pem": certificate[1]}
               if launcher else {})},
            env={"TMPDIR": workdir, "CAPTURE_PROXY_NGINX_BINARY": BINARY})
        block = Page(page).take(start)
        block.text = f"{block.text.rstrip()} &\n"          # it is to stay there
        shell.run(block)
        wait_until(lambda: accepts(port), 30, "its port")
        shell.run(Block("-", 1, "", f"curl -sfk {'https' if launcher else 'http'}"
                        f"://127.0.0.1:{port}/{port}\nkill %1\nwait %1\n"))
        shell.finish()
        assert [r.target for r in source.requests].count(f"/{port}") == 1
    assert len({r.key for r in broker.read_topic(topic)}) == 2


def test_readme_capturectl(used):
    page = Page("README.md")
    shell = used.shell({"NGINX:8080": used.node, "BROKERS": used.bootstrap,
                        "TOPIC": used.topic,
                        "build/capturectl": f"{BUILD}/capturectl"})
    block = page.take("build/capturectl")
    # one is still there while NGINX runs: its worker's connection
    said = shell.run(block)
    assert "POST /orders/_doc" in said, said
    shell.finish()


def test_launcher_page(workdir, source):
    page = Page("docs/launcher.md", not_run={
        "capture-proxy --dest": "test_readme_in_the_java_proxys_place",
        "docker build": IMAGES})
    port = free_port()
    shell = Shell(workdir, {"http://cluster:9200": f"http://127.0.0.1:{source.port}",
                            '"listenPort": 9200': f'"listenPort": {port}'},
                  env={"TMPDIR": workdir, "CAPTURE_PROXY_NGINX_BINARY": BINARY})
    json = shell.text(page.take("{")).replace("\n", " ")
    shell.run(Block("-", 1, "", f"capture-proxy ---INLINE-JSON '{json}' &\n"))
    wait_until(lambda: accepts(port), 30, "its port")
    shell.run(Block("-", 1, "", f"curl -sf http://127.0.0.1:{port}/\nkill %1\nwait %1\n"))
    assert source.requests[-1].header("host") == "cluster.example"
    page.finish()
    shell.finish()


def test_install_page():
    """Its commands need another system; each has a script that tests it there."""
    page = Page("docs/install.md", not_run={
        "script/package": PACKAGES, "systemctl edit": PACKAGES,
        'module "..."': "a message: t/module/test_build_module_for.py",
        "script/build-module-for": "t/module/test_build_module_for.py",
        "the worker's module": "a message: t/path/test_link_version.py",
        "docker build --target": IMAGES, "docker build -f": IMAGES})
    page.finish()
    for script in ("script/package", "script/build-module-for",
                   "deploy/image/nginx.Dockerfile"):
        assert os.path.exists(os.path.join(TOP, script))


def test_capturectl_page(used, new_topic, workdir):
    page = Page("docs/capturectl.md")
    shell = used.shell({
        "localhost:9092": used.bootstrap, "logging-traffic-topic": used.topic,
        "10.0.0.1:9145": used.metrics, "10.0.0.1:8080": used.node,
        "10.0.0.2:8080": used.node, "replay-again": new_topic(4)},
        commands={"capturectl": CAPTURECTL})
    # the page is made from the help: forms ("capturectl http [OPTION..."), and text
    examples = [b for b in page.blocks
                if b.text.startswith(("capturectl ", "source ", "#"))
                and not re.match(r"capturectl \w+ (\[OPTION|bash \|)", b.text)]
    assert len(examples) == 10, list(map(str, examples))
    for block in examples:
        said = shell.run(block)
        if "gaps" in block.text:
            assert said.endswith("complete\n"), said
    shell.finish()


def test_runbook_page(used, certificate, workdir):
    """Each entry's first look is a command that works: what it finds is nothing
    here, where all is well."""
    page = Page("docs/runbook.md")
    log = used.stack.sidecar.log
    java = f"exec java -Xmx128m -XX:TieredStopAtLevel=1 -cp '{TOP}/build/kafka/*'"
    with open(f"{workdir}/sidecar.conf", "w") as f:
        f.write(f"kafka.ssl.certificate.location = {certificate[0]}\n")
    shell = used.shell({
        "SIDECAR:9145": used.metrics, "NODE:8080": used.node,
        "SIDECAR-LOG": log, "SIDECAR-CONF": f"{workdir}/sidecar.conf",
        "NGINX-ERROR-LOG": os.path.join(used.stack.nginx.directory, "error.log"),
        "BROKERS": used.bootstrap, "-in FILE": f"-in {certificate[0]}",
        "SPOOL-PATH": workdir}, commands={
            "capturectl": CAPTURECTL,
            "systemctl": '[ "$*" = "status capture-sidecar" ]',
            "kafka-topics.sh": f'{java} org.apache.kafka.tools.TopicCommand "$@"'})
    blocks, page.left = page.left, []
    assert len(blocks) > 10
    for block in blocks:
        # a log without such lines: grep says 1, when it is the last
        nothing = "| tail" in block.text.split(";")[-1]
        shell.run(block, status=int(nothing and "kafka" not in block.text))
    page.finish()
    shell.finish()


def test_kafka_page(workdir):
    page = Page("docs/kafka.md", not_run={
        '"Action"': "a policy: t/sidecar/test_security.py, script/test-deploy"})
    password, conf = f"{workdir}/orders-password", f"{workdir}/sidecar.conf"
    for path, text in (password, "a"), (conf, (
            f"listen = unix:{workdir}/s\n"
            + page.take("# the default destination").text.replace(
                "/etc/capture/orders-password", password))):
        with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(text)
    done = subprocess.run([f"{BUILD}/capture-sidecar", "--check", "-c", conf],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    alerts = page.take("capture_kafka_certificate").text
    with open(os.path.join(TOP, "docs", "metrics.md")) as f:
        known = f.read()
    names = re.findall(r"capture_\w+", alerts)
    assert len(set(names)) == 2 and all(f"`{name}" in known for name in names)
    page.finish()


def test_security_page(workdir):
    """The configuration is one that NGINX takes."""
    page = Page("docs/security.md")
    with open(f"{workdir}/capture.key", "w") as f:
        f.write("ab" * 32)
    os.chmod(f"{workdir}/capture.key", 0o600)
    text = page.take("http {").text
    text = text.replace("/etc/nginx/capture.key", f"{workdir}/capture.key")
    inner = re.search(r"http \{\n(.*)server \{\n(.*)\.\.\.", text, re.S)
    rc, err = check_config(workdir, render(
        free_port(), http=inner[1] + f"capture_sidecar unix:{workdir}/s;",
        server=inner[2] + "proxy_pass_header Server;"))
    assert rc == 0, err
    page.finish()


def test_directives_page():
    Page("docs/directives.md", not_run={
        "load_module": "t/path/test_conf_examples.py"}).finish()


def test_migrating_page(used):
    page = Page("docs/migrating.md", not_run={
        "CAPTURE_JAVA_PROXY": "needs the Java proxy, built elsewhere"})
    shell = used.shell({}, env={
        "BROKERS": used.bootstrap, "TOPIC": used.topic, "STATUS": used.node,
        "OLD": str(used.stack.port)})
    linked, connections, gaps = page.take_under("From the Java proxy to this one")
    assert "CAPTURED" in shell.run(linked)
    assert shell.run(connections).strip() == "0"
    with used.stack.client() as c:
        assert c.request("GET", "/").status == 200
        assert shell.run(connections).strip() == "1"
    shell.run(gaps)
    shell.run(page.take("capturectl status"))
    page.finish()
    shell.finish()


def test_testing_page(used, workdir):
    page = Page("docs/testing.md", not_run={
        "script/test   ": "it is what runs this",
        "CAPTURE_SEED": "t/path/test_differential.py is one of the tests itself",
        "cd nginx-tests": "needs that suite's checkout: by hand",
        "CAPTURE_REPLAYER": "needs the Replayer, built elsewhere: by hand",
        "script/test-versions": "script/test --long"})
    file = f"{workdir}/topic.lines"
    shell = used.shell({"refconsumer FILE": f"refconsumer {file}",
                        "PYTHONPATH=t": f"PYTHONPATH={TOP}/t",
                        "build/venv": f"{TOP}/build/venv"})
    assert used.stack.drain()
    shell.run(Block("-", 1, "", f"capturectl export -b {used.bootstrap} "
                    f"-t {used.topic} --to {file}\n"))
    shell.run(page.take("PYTHONPATH"))
    page.finish()
    shell.finish()


def test_tests_page():
    Page("t/README.md", not_run={
        "script/test   ": "it is what runs this", "make && ": "script/test does both",
        "make asan": "script/test does both", "def test_": "an example, not a test",
        }).finish()


def test_bench_page(workdir):
    page = Page("bench/README.md")
    block = page.take("bench/run ")          # minutes, on a machine that is quiet
    shell = Shell(workdir)
    said = shell.run(Block("-", 1, "", f"{TOP}/bench/run --help\n"))
    asked = set(re.findall(r"--[a-z-]+", block.text)) - {"--help"}
    assert asked and asked <= set(re.findall(r"--[a-z-]+", said))
    page.finish()
    shell.finish()


STATES = ("tested", "emulated", "linted", "built", "instructions", "not supported",
          "never built", "the same")


def test_support_page_claims_what_scripts_show():
    """Each row has one of the page's words; who says that it was tested says where,
    and that is there."""
    with open(os.path.join(TOP, "docs", "support.md")) as f:
        rows = [[c.strip() for c in line.strip()[1:-1].split("|")]
                for line in f if re.match(r"\| *[^-|]", line)]
    states = []
    for row in rows:
        found = [c for c in row if c.startswith(STATES)]
        if not found:
            assert row[-1] == "by", row          # a table's head
            continue
        states.append(found[0])
        by = re.findall(r"`((?:script|t)/[\w./-]+)", row[-1])
        assert all(os.path.exists(os.path.join(TOP, path)) for path in by), row
        if found[0].startswith(("tested", "emulated", "linted", "the same")):
            assert by or "by hand" in found[0], row
    assert len(states) > 20
