"""The proxy's own certificate rotates while clients that verify it work, as a secret of
Kubernetes does: nothing is cut, nothing is missing in the topic."""

import os
import shutil
import ssl

from fault.judge import judge
from fault.load import ANSWERED, UNSERVED
from launcher.test_launcher_life import content, served, swap
from rig.sidecar import totals_in
from rig.status import wait_until

from rehearsal.conftest import NAME


def test_a_secret_rotates_under_load(node, proxy, load, authority, broker, topic,
                                     executions, workdir):
    mount = f"{workdir}/proxy-tls"
    for name in ("one", "two", "three"):
        crt, key = authority.issue(f"rotated-{name}", f"DNS:{NAME},DNS:localhost")
        os.makedirs(f"{mount}/..{name}")
        shutil.copy(crt, f"{mount}/..{name}/tls.crt")
        shutil.copy(key, f"{mount}/..{name}/tls.key")
    os.symlink("..one", f"{mount}/..data")
    for name in ("tls.crt", "tls.key"):
        os.symlink(f"..data/{name}", f"{mount}/{name}")
    l = proxy(node().port, tls=(f"{mount}/tls.crt", f"{mount}/tls.key"))
    with load(l.port) as clients:
        clients.more(100)
        for name in ("two", "three"):
            swap(mount, f"..{name}")
            leaf = ssl.PEM_cert_to_DER_cert(content(f"{mount}/..{name}/tls.crt"))
            wait_until(lambda: ssl.PEM_cert_to_DER_cert(served(l.port)) == leaf, 30,
                       "the new certificate", l.process.dead)
            clients.more(200)
    assert l.stop() == 0, l.log_text()
    assert not clients.refused
    # one that meets the end of an idle connection was seen by nobody
    assert {a.end for a in clients.asked} <= {ANSWERED, UNSERVED}
    print(f"unserved: {clients.count(UNSERVED)} of {len(clients.asked)}")
    verdict = judge(broker.read_topic(topic), [clients], executions)
    verdict.assert_clean()
    # also those of workers that have ended since
    totals = totals_in(l.log_text())
    assert totals["seen"] == totals["captured"] == verdict.whole == clients.count()
