"""After repeated failures a request that would wait takes its failure mode at once,
until a probe succeeds."""

from rig.tcp_fault import TO_TARGET

from fault.test_wait import waiting


def test_a_circuit_breaker_spares_the_waits(scene, shaky):
    s = waiting(scene, shaky, "forward", "500ms")

    def waits(name):
        return s.stack.status()["total"]["waits"][name]
    with s.load(mutating=1, rate=250) as load:
        load.more(200)
        shaky.fault.hold(TO_TARGET)
        load.more(1000)
        # from here on nothing is acknowledged
        held, skipped = waits("held"), waits("skipped")
        load.more(1000)
        held, skipped = waits("held") - held, waits("skipped") - skipped
        shaky.fault.heal()
        load.more(200)
    print(f"{held} waited, {skipped} did not")
    assert skipped > 200
    assert held < skipped / 2
    s.assert_clean(s.counts())
