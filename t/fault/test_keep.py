"""NGINX's workers are replaced while the sidecar is dead or hangs, under the load of 200
connections: with a keeper of descriptors that costs nothing."""

import pytest

SHORT = 2
LONG = 50


def reload(s, i):
    s.nginx.reload(60, http=s.nginx.snippets["http"] + f"# {i}\n")


def upgrade(s, _):
    s.nginx.upgrade(60)


def without(s, replace, i, load):
    s.sidecar.kill9()
    load.more(5)
    replace(s, i)
    load.more(5)
    s.sidecar.start()


def stopped(s, replace, i, load):
    """Shorter than a new worker waits for its WELCOME."""
    s.sidecar.pause()
    try:
        replace(s, i)
        load.more(5)
    finally:
        s.sidecar.resume()


def storm(scene, meanwhile, replace, times):
    s = scene(workers=2, keeper=True, daemon=replace is upgrade,
              sidecar_conf={"settle.time": "500ms"})
    with s.load(timeout=120) as load:
        load.more(100)
        for i in range(times):
            meanwhile(s, replace, i, load)
            s.stack.wait_linked()
            load.more(20)
        load.more(100)
    counts = s.counts(120)
    assert counts.total("lost") == 0, counts
    s.assert_clean(counts)


MEANWHILE = pytest.mark.parametrize("meanwhile", [without, stopped])
REPLACE = pytest.mark.parametrize("replace", [reload, upgrade])


@MEANWHILE
@REPLACE
@pytest.mark.partitions(6)
@pytest.mark.timeout(180)
def test_workers_replaced_while_the_sidecar_is_away(scene, meanwhile, replace):
    storm(scene, meanwhile, replace, SHORT)


@pytest.mark.long
@MEANWHILE
@REPLACE
@pytest.mark.partitions(6)
@pytest.mark.timeout(1800)
def test_workers_replaced_often_while_the_sidecar_is_away(scene, meanwhile, replace):
    storm(scene, meanwhile, replace, LONG)
