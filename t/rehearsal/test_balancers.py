"""The ways of the user's page, each walked under load: no client may have an error,
and what the proxy has served is in the topic, whole and once. docs/rerouting.md
says the same in words."""

import pytest

from rig.process import free_port
from rig.status import wait_until

from rehearsal.balancers import (ALB_MATCHER, FORWARDED, application,
                                 listener, target_group)
from rehearsal.conftest import finish, settled_counts


def drained(h, group):
    """Its connections end by themselves: clients close them, sooner or later."""
    wait_until(lambda: h.sessions(group) == 0, 60,
               "the end of the old connections", h.process.dead)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "passthrough"])
def test_nlb_to_alb_to_cluster(tls, haproxy, node, proxy, load, pem, broker, topic,
                               executions):
    """A target group for the Migration Assistant's ALB, tried out on a listener of
    its own, and then moved to the one that all clients use."""
    old, new = node(), node()
    l = proxy(new.port)
    real, test, own, alb = (free_port() for _ in range(4))
    certificate = pem if tls else None
    h = haproxy(
        application("own-alb", own, pem, {"cluster": (old.port, 1)})
        + application("alb", alb, pem, {"source": (l.port, 1)})
        + target_group("cluster", own, tls)
        + target_group("migration", alb, tls)
        + listener("real", real, certificate)
        + listener("test", test, certificate),
        {"real": "cluster", "test": "migration"})
    h.wait_health("alb", "source", "UP", 200)
    h.wait_health("migration", "target", "UP", 200)

    with load(test, ids="smoke") as smoke:
        smoke.more(20)
    assert new.served and not old.served
    with load(real, ids="all") as clients:
        clients.more(100)
        assert not any(id.startswith("all") for id in new.served)
        # detached from the test listener, and the real one forwards to it
        h.route("listeners", "test", "cluster")
        h.route("listeners", "real", "migration")
        drained(h, "cluster")
        before = len(old.served)
        clients.more(150)
        assert len(old.served) == before >= 100
    # an ALB mixes its clients' requests on the connections that it keeps
    finish(l, broker, topic, [smoke, clients], executions, new.served, FORWARDED,
           ["disordered"])


def test_nlb_to_cluster(haproxy, node, proxy, load, pem, broker, topic, executions):
    """A new listener, and the clients are told of it: a passthrough to the proxy, so
    that its certificate is what they verify, and their bytes are the topic's."""
    old, new = node(), node()
    l = proxy(new.port)
    first, second = free_port(), free_port()
    h = haproxy(
        target_group("cluster", old.port)
        + target_group("migration", l.port, tls=False)
        + listener("first", first, pem) + listener("second", second),
        {"first": "cluster", "second": "migration"})
    h.wait_health("migration", "target", "UP", 200)
    with load(second, ids="smoke") as smoke:
        smoke.more(20)
    with load(first, ids="all") as clients:
        clients.more(100)
        clients.port = second
        drained(h, "cluster")
        before = len(old.served)
        clients.more(150)
        assert len(old.served) == before >= 100
    finish(l, broker, topic, [smoke, clients], executions, new.served)


def test_no_load_balancer(node, proxy, load, broker, topic, executions, pair):
    """The name of the cluster leads to the proxy from now on, and connections to the
    old address end with their clients."""
    old, new = node(pair), node()
    l = proxy(new.port)
    with load(old.port, ids="all") as clients:
        clients.more(100)
        clients.port = l.port
        wait_until(lambda: old.open == 0, 60, "the end of the old connections")
        before = len(old.served)
        clients.more(150)
        assert len(old.served) == before >= 100
    finish(l, broker, topic, [clients], executions, new.served)


def test_weighted_switch_and_back(haproxy, node, proxy, target_proxy, load, pem,
                                  broker, topic, executions):
    """The listener with two weighted target groups: from the capturing proxy to the
    one that captures nothing, with some of the traffic first, then all of it; and
    back, as one does when the target is not good enough."""
    source, target = node(), node()
    l, without = proxy(source.port), target_proxy(target.port)
    alb = free_port()
    h = haproxy(application("alb", alb, pem, {"source": (l.port, 1),
                                              "target": (without.port, 0)}))
    for name in ("source", "target"):
        h.wait_health("alb", name, "UP", 200)

    def silent(name, node):
        """What it had begun is finished, and it gets nothing more."""
        wait_until(lambda: int(h.row("alb", name)["scur"]) == 0, 30, "its end")
        had = len(node.served)
        clients.more(100)
        assert len(node.served) == had

    with load(alb, ids="all") as clients:
        clients.more(100)
        assert not target.served
        before = len(source.served)
        h.weight("alb", "target", 1)
        clients.more(100)
        there, here = len(target.served), len(source.served) - before
        assert 0.25 < there / (there + here) < 0.75
        h.weight("alb", "source", 0)
        silent("source", source)
        h.weight("alb", "source", 1)
        h.weight("alb", "target", 0)
        silent("target", target)
    assert source.served | target.served == set(executions)
    finish(l, broker, topic, [clients], executions, source.served, FORWARDED,
           ["disordered"])
    assert without.stop() == 0


def test_a_proxy_is_replaced(haproxy, node, proxy, load, pem, broker, topic,
                             executions):
    """As a deployment does: another one is healthy, the old one is deregistered and
    has no requests any more, and then it gets TERM."""
    source = node()
    old, new = proxy(source.port), proxy(source.port)
    alb = free_port()
    h = haproxy(application("alb", alb, pem, {"old": (old.port, 1),
                                              "new": (new.port, 1)}))
    h.wait_health("alb", "new", "UP", 200)
    with load(alb, ids="all") as clients:
        clients.more(100)
        h.order("set server alb/old state drain")
        wait_until(lambda: int(h.row("alb", "old")["scur"]) == 0, 30, "its end")
        counts = settled_counts(old)
        assert counts.seen > 20
        assert old.stop() == 0, old.log_text()
        clients.more(100)
    finish(new, broker, topic, [clients], executions, source.served, FORWARDED,
           ["disordered"], counts)


@pytest.mark.parametrize("status", [200, 401])
def test_health_checks_of_both_kinds(status, haproxy, node, proxy, pem):
    """A source that wants a password answers 401: an ALB's matcher takes it, and an
    NLB's does not, unless it is set to. Without a source neither does."""
    source = node()
    source.health = status
    l = proxy(source.port)
    alb, nlb = free_port(), free_port()
    h = haproxy(
        application("alb", alb, pem, {"source": (l.port, 1)})
        + target_group("through-alb", alb)
        + target_group("to-proxy", l.port)
        + target_group("to-proxy-400s", l.port, matcher=ALB_MATCHER)
        + listener("nlb", nlb), {"nlb": "to-proxy"})
    h.wait_health("alb", "source", "UP", status)
    strict = "UP" if status == 200 else "DOWN"
    h.wait_health("to-proxy", "target", strict, status)
    h.wait_health("through-alb", "target", strict, status)
    h.wait_health("to-proxy-400s", "target", "UP", status)
    # none of it is in the way of the replay
    assert all(n == "bypass" or not v
               for n, v in l.status()["total"]["filtered"].items())
    assert l.status()["total"]["captured"] == 0
    if status == 200:
        source.stop()
        h.wait_health("alb", "source", "DOWN", 502)
        h.wait_health("to-proxy", "target", "DOWN", 502)
