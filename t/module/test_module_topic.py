"""capture_topic: a connectionId belongs to one destination, which its slot names."""

from collections import Counter

import pytest

from fake_sidecar import KEPT
from rig.client2 import Client2
from rig.nginx import http2
from rig.process import free_port
from rig.source import Response, pattern
from rig.status import wait_until

PLACES = """
    location /a/ { capture_topic a; proxy_pass http://source; }
    location /b/ { capture_topic b; proxy_pass http://source; }
    location /var/ { capture_topic $arg_t; proxy_pass http://source; }
    location /default/ { capture_topic default; proxy_pass http://source; }
    location /none/ { capture_topic ""; proxy_pass http://source; }
"""


def topics(r, n):
    """{target: (topic, connectionId)}"""
    return {x.request.split(b" ", 2)[1].decode():
            (x.connection.topic, x.connection.id) for x in r.exchanges(n)}


def test_each_place_has_its_destination_and_a_connection_one_id_for_each(
        rig, source):
    r = rig(server=PLACES)
    with r.client() as c:
        for i in range(3):
            for place in ("/a/", "/", "/b/", "/default/", "/none/"):
                assert c.request("POST", f"{place}{i}", body=b"x").status == 200
        found = topics(r, 15)
        assert not any(k.end for k in r.sidecar.connections)
    for target, (topic, _) in found.items():
        assert topic == {"a": "a", "b": "b"}.get(target[1:2], ""), target
    assert Counter(found.values()) == {
        ("a", found["/a/0"][1]): 3, ("b", found["/b/0"][1]): 3,
        ("", found["/0"][1]): 9}
    assert {k.end for k in r.closed(3)} == {"CLOSE"}
    assert len(r.sidecar.connections) == 3
    assert r.link.topics() == ["a", "b"]     # before anyone asked for them
    r.total(seen=15, captured=15)


def test_servers_and_http_pass_it_on_and_a_place_overrides_it(rig, source):
    r = rig(http="capture_topic outer;",
            server="""capture_topic $http_x_t;
            location /in/ { proxy_pass http://source; }
            location /of/ { capture_topic own; proxy_pass http://source; }""")
    with r.client() as c:
        c.request("GET", "/in/", [("Host", "a"), ("X-T", "said")])
        c.request("GET", "/of/", [("Host", "a"), ("X-T", "said")])
        c.request("GET", "/in/0")
    assert [t for t, _ in topics(r, 3).values()] == ["said", "own", ""]


def test_a_variable_is_asked_once_a_request(rig, source):
    """The later hops of an internal redirect change nothing."""
    r = rig(http="map $uri $by { ~^/x a; ~^/@ c; default b; }",
            server="""capture_topic $by;
            location /x { proxy_pass http://source;
                          proxy_intercept_errors on; error_page 404 /@; }
            location /@ { capture_topic c; return 200 "page"; }""")
    source.answer = lambda q: Response(404)
    with r.client() as c:
        assert c.request("GET", "/x").status == 404
        assert c.request("GET", "/y").status == 404
    assert [t for t, _ in topics(r, 2).values()] == ["a", "b"]


@pytest.mark.parametrize("value", ["a/b", "a%20b", "x" * 64, "%C3%A4", "a%00"])
def test_what_is_no_name_is_lost_and_the_connection_goes_on(rig, source, value):
    r = rig(http="map $arg_t $decoded { default $arg_t; }", server=PLACES)
    with r.client() as c:
        assert c.request("GET", f"/var/1?t=b").status == 200
        assert c.request("GET", f"/var/2?t={value}").status == 200
        assert c.request("GET", f"/var/3?t=b").status == 200
    found = topics(r, 2)
    assert found["/var/1?t=b"] == found["/var/3?t=b"]
    r.total(seen=3, captured=2, no_topic=1)
    lines = r.log(3)
    assert "[lost(no_topic)]" in lines[1], lines


def test_what_has_no_destination_is_refused_where_that_is_wanted(rig, source):
    r = rig(server=PLACES, wait="mutating", http="capture_on_failure refuse;")
    with r.client() as c:
        assert c.request("POST", "/var/?t=a", body=b"1").status == 200
    with r.client() as c:
        assert c.request("POST", "/var/?t=a/b", body=b"2").status == 503
    assert [q.body for q in source.requests] == [b"1"]
    r.total(seen=2, captured=1, refused=1)


def test_names_are_bounded_and_those_of_the_configuration_are_always_there(
        rig, source):
    r = rig(server=PLACES)
    with r.client() as c:
        for i in range(30):
            assert c.request("GET", f"/var/{i}?t=n{i}").status == 200
        assert c.request("GET", "/a/").status == 200
        assert c.request("GET", "/b/").status == 200
        assert c.request("GET", "/var/x?t=n3").status == 200
        found = topics(r, 25)
    assert r.link.topics() == ["a", "b", *(f"n{i}" for i in range(22))]
    assert found["/a/"][0] == "a" and found["/b/"][0] == "b"
    assert found["/var/x?t=n3"] == found["/var/3?t=n3"]
    r.total(seen=33, captured=25, no_topic=8)


def test_a_name_that_begins_like_another_is_another(rig, source):
    r = rig(server=PLACES)
    with r.client() as c:
        for name in ("ab", "a", "abc", "", "default", "defaul"):
            c.request("GET", f"/var/{name}?t={name}")
    assert [t for t, _ in topics(r, 6).values()] == [
        "ab", "a", "abc", "", "", "defaul"]


def test_an_id_that_is_given_up_is_followed_by_another_of_that_destination(
        rig, source):
    """As a sidecar does where it does not permit the name."""
    r = rig(server=PLACES)
    with r.client() as c:
        for _ in range(2):
            c.request("GET", "/a/")
            c.request("GET", "/b/")
        r.exchanges(4)
        given_up, = [k for k in r.sidecar.connections if k.topic == "a"]
        r.link.abandon(given_up)
        c.request("GET", "/a/new")
        c.request("GET", "/b/old")
        found = topics(r, 6)
    assert found["/a/new"][0] == "a" and found["/a/new"][1] != given_up.id
    assert found["/b/old"] == found["/b/"]


def test_a_new_link_gets_the_names_again(rig, source):
    r = rig(server=PLACES)
    with r.client() as c:
        c.request("GET", "/var/?t=z")
        c.request("GET", "/b/1")
        r.exchanges(2)
        r.sidecar.links[0].u32[KEPT >> 2] = 1     # the pool stays the sidecar's
        r.sidecar.links[0].hang_up()
        wait_until(lambda: len(r.sidecar.links) == 2 and r.sidecar.up, 15,
                   "another link")
        r.linked()
        c.request("GET", "/b/2")
        c.request("GET", "/var/2?t=z")
        found = topics(r, 4)
    assert r.sidecar.links[1].topics() == ["a", "b", "z"]
    assert found["/b/2"][0] == "b" and found["/b/2"][1] != found["/b/1"][1]


def test_streams_take_a_lane_of_their_destination(rig, source):
    """FakeSidecar fails where two exchanges of one connectionId overlap."""
    port = free_port()
    r = rig(server=f"{http2(port)} {PLACES}")
    places = ("/a/", "/b/", "/")
    with Client2(port) as c:
        for turn in range(4):
            open_ = [c.start("POST", f"{p}{turn}/{i}", end=False)
                     for i in range(5) for p in places]
            for stream in open_:
                c.data(stream, pattern(5000, stream))
            for stream in open_:
                assert c.receive(stream).status == 200
        found = topics(r, 60)
    for target, (topic, _) in found.items():
        assert topic == {"a": "a", "b": "b"}.get(target[1:2], ""), target
    for topic in ("a", "b", ""):
        assert 1 <= len({i for t, i in found.values() if t == topic}) <= 5
    r.total(seen=60, captured=60)
