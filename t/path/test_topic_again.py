"""A topic that is deleted and made again, while a record is in doubt: what is not in
the new one may have been in the old one."""

import urllib.request

from rig.process import free_port
from rig.status import wait_until

from path.session import Session, settled


def test_what_was_made_for_another_topic_is_not_looked_for(
        stack, source, own_broker):
    broker = own_broker()
    broker.create_topic("again", 1)
    metrics = f"127.0.0.1:{free_port()}"
    s = stack(broker=broker, topic="again", sidecar_conf={
        "settle.time": "200ms", "metrics.listen": metrics})

    def in_flight():
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as r:
            return "\ncapture_inflight_records 1\n" in r.read().decode()
    with Session(s) as c:
        c.request("POST", "/1", body=b"1")
        s.wait_for_status(settled(1))
        broker.pause()
        c.request("POST", "/2", body=b"2")
        wait_until(in_flight, what="a record on its way")
        s.sidecar.kill9()
        broker.resume()
        broker.delete_topic("again")
        broker.create_topic("again", 1)
        for _ in range(5):          # so that the old place is in it
            broker.produce("again", b"of somebody else", b"key", 0)
        s.sidecar.start()
        c.request("POST", "/3", body=b"3")
        total = s.wait_for_status(settled(3), 60)["total"]
    assert total["captured"] == 3
    assert total["maybe_doubled"] == 1
    keys = [r.key.decode() for r in s.drain() if r.key != b"key"
            and b"-barrier-" not in r.key]
    assert keys and all(key.endswith(".1") for key in keys)
