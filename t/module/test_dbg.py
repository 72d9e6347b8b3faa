import sys
sys.path.insert(0,'/work/main/t/module')
from test_module_process import *
def test_dbg(rig):
    r = rig(workers=1, buffer="4m")
    with Load(r) as load:
        for i in range(3):
            load.more(10)
            r.nginx.reload(http=r.nginx.snippets["http"] + f"# {i}\n")
            wait_until(lambda: len(r.sidecar.links) == (i + 2), 15)
            wait_until(lambda: len(r.nginx.workers()) == 1, 15)
            st=r.status()
            print(i, "exch", len(r.sidecar.exchanges), "handed per link", [l.worker("handed") for l in r.sidecar.links],[l.worker("seen") for l in r.sidecar.links], "st", flat(st["total"]), "exited", flat(st["exited"]), [ (w["pid"],w["seen"]) for w in st["workers"]])
        load.more(10)
    r.caught_up()
    st=r.status()
    print("exch", len(r.sidecar.exchanges), "handed per link", [l.worker("handed") for l in r.sidecar.links],[l.worker("seen") for l in r.sidecar.links], "st", flat(st["total"]), "exited", flat(st["exited"]))
    print(sum(load.count))
    assert 0
