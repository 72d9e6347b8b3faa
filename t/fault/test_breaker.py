"""After repeated failures a request that would wait takes its failure mode at once,
until a probe succeeds."""

import time

from rig.tcp_fault import TO_TARGET

from fault.test_wait import waiting


def test_a_circuit_breaker_spares_the_waits(scene, shaky):
    s = waiting(scene, shaky, "forward", "500ms")
    # at a rate that no machine's clients queue at: what is slow has waited
    with s.load(mutating=1, rate=250) as load:
        load.more(200)
        shaky.fault.hold(TO_TARGET)
        load.more(1000)
        begin = time.monotonic_ns()
        load.more(1000)
        end = time.monotonic_ns()
        shaky.fault.heal()
        load.more(200)
    # all that were asked while nothing was acknowledged
    asked = [a for a in load.asked if begin < a.sent_ns < end - 1_000_000_000]
    slow = [a for a in asked if a.took > 0.45]
    assert len(asked) > 200
    assert len(slow) < len(asked) / 2, f"{len(slow)} of {len(asked)} waited"
    s.assert_clean(s.counts())
