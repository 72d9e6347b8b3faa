"""Fixtures: see t/README.md."""

import itertools
import os
import shutil
import tempfile

import pytest

from rig import nginx as rig_nginx
from rig.cluster import KafkaCluster
from rig.kafka import KafkaBroker
from rig.probe import Probe
from rig.security import SecureBroker, self_signed
from rig.launcher import Launcher
from rig.stack import Stack
from rig.source import Source
from rig.tcp_fault import TcpFault

_topics = itertools.count(1)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true",
                     help="also run the tests marked long")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="needs --long"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Lets a fixture's teardown know how its test has ended."""
    outcome = yield
    setattr(item, f"report_{call.when}", outcome.get_result())


@pytest.fixture
def workdir(request):
    """A directory with a short path (a Unix socket's has at most 107 bytes),
    which stays if the test fails."""
    path = tempfile.mkdtemp(prefix="cap-", dir="/tmp")
    yield path
    report = getattr(request.node, "report_call", None)
    if report is not None and report.passed:
        shutil.rmtree(path, ignore_errors=True)
    else:
        print(f"left for you to look at: {path}")


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """The Kafka broker of the whole session: automatic creation of topics is
    off. A test that stops it must start it again, which broker.start() does."""
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()  # nobody needs its data any more


@pytest.fixture(scope="session")
def three_brokers(tmp_path_factory):
    cluster = KafkaCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(three_brokers):
    """Three Kafka brokers (rig/cluster.py), of which a test may stop any: the
    next one gets all three."""
    for broker in three_brokers.brokers.values():
        broker.fault.heal()
    three_brokers.start()
    return three_brokers


@pytest.fixture
def fault():
    """A TcpFault (rig/tcp_fault.py) without a target yet; own_broker(fault=fault)
    puts it before a broker."""
    fault = TcpFault()
    fault.start()
    yield fault
    fault.close()


@pytest.fixture
def own_broker(workdir):
    """A factory of brokers for one test: own_broker(auto_create=True,
    users={"name": "password"}, properties={...}, fault=...)."""
    with _closing() as close:
        def make(**options):
            name = f"kafka{len(close)}"
            broker = KafkaBroker(os.path.join(workdir, name), **options)
            close.append(broker.kill)
            broker.start()
            return broker
        yield make


@pytest.fixture
def probe(workdir):
    """A factory of Probe (rig/probe.py): probe(kafka__client__id="x", env={...})
    starts sidecar/kafka.c alone with this configuration, "__" being a dot."""
    probes = []

    def make(env=None, **conf):
        directory = os.path.join(workdir, f"p{len(probes)}")
        os.mkdir(directory)
        probes.append(Probe(directory, {k.replace("__", "."): v
                                        for k, v in conf.items()}, env))
        return probes[-1]
    yield make
    for p in probes:
        p.close()


@pytest.fixture(scope="session")
def secure_broker(tmp_path_factory):
    """A broker with a listener for each way to authenticate
    (rig/security.py). It needs ten ports, of which another program may take one
    before the broker does: then it is tried once more, with others."""
    def make():
        return SecureBroker(str(tmp_path_factory.mktemp("secure") / "kafka"))
    broker = make()
    try:
        try:
            broker.start(180)
        except AssertionError:
            if "Address already in use" not in broker.process.log_text():
                raise
            broker.kill()
            broker = make()
            broker.start(180)
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def new_topic(broker):
    """A factory of topics: new_topic(partitions=1, config={...}) -> its name."""
    def make(partitions=1, config=None):
        broker.start()
        name = f"t{os.getpid()}-{next(_topics)}"
        broker.create_topic(name, partitions, config)
        return name
    return make


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate, key): files of a self-signed one for source.test."""
    return self_signed(str(tmp_path_factory.mktemp("tls")), "source.test",
                       "DNS:source.test")


@pytest.fixture
def topic(request, new_topic):
    """The name of a topic that no other test uses, with 4 partitions or as many
    as @pytest.mark.partitions(N) says."""
    marker = request.node.get_closest_marker("partitions")
    return new_topic(marker.args[0] if marker else 4)


@pytest.fixture
def source():
    """The source cluster; set source.answer to choose what it answers."""
    source = Source()
    source.start()
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def stack(request, workdir):
    """A factory of Stack (rig/stack.py): stack(**options) starts a source, NGINX
    with the module, and a sidecar, wired up. What the test does not give is
    taken from the fixtures source, broker and topic."""
    with _closing() as close:
        def make(**options):
            options.setdefault("source", request.getfixturevalue("source"))
            if "broker" not in options:
                options["broker"] = request.getfixturevalue("broker")
                options["broker"].start()
            if "topic" not in options:
                options["topic"] = request.getfixturevalue("topic")
            # the path has only ten bytes more than workdir's
            stack = Stack(os.path.join(workdir, f"s{len(close)}"), **options)
            close.append(stack.close)
            stack.start()
            return stack
        yield make


@pytest.fixture
def launcher(workdir):
    """A factory of started Launchers (rig/launcher.py): launcher(*flags,
    **options); start=False leaves that to the test."""
    os.chmod(workdir, 0o755)  # root's NGINX gives its workers another user
    with _closing() as close:
        def make(*args, start=True, **options):
            l = Launcher(os.path.join(workdir, f"l{len(close)}"), args,
                         **options)
            close.append(l.close)
            if start:
                l.start()
            return l
        yield make


@pytest.fixture
def nginx(workdir):
    """A factory of NGINX alone: nginx(server=..., http=..., workers=...,
    module=False)."""
    with _closing() as close:
        def make(**options):
            n = rig_nginx.Nginx(os.path.join(workdir, f"n{len(close)}"), **options)
            close.append(n.close)
            n.start()
            return n
        yield make


@pytest.fixture
def check_config(workdir):
    """check_config(http=..., server=..., main=...) -> (return code, stderr) of
    `nginx -t` with these snippets."""
    def check(**snippets):
        return rig_nginx.check_config(
            workdir, rig_nginx.render(rig_nginx.free_port(), **snippets))
    return check


class _closing(list):
    """Calls all that was appended, last first, even when some of it fails."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        errors = []
        for close in reversed(self):
            try:
                close()
            except BaseException as e:
                errors.append(e)
        for e in errors[1:]:
            print(f"also: {e}")
        if errors:
            raise errors[0]
