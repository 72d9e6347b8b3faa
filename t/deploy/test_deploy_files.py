"""deploy/: each file is well-formed, what it runs is accepted, and its numbers fit
together. Linters from elsewhere: script/test-deploy."""

import glob
import json
import os
import re
import subprocess

import pytest
import yaml

from path.test_conf_examples import put_in_place
from rig.nginx import check_config
from rig.process import TOP
from rig.sidecar import BINARY, check

DEPLOY = os.path.join(TOP, "deploy")


def files(*ends):
    return sorted(os.path.relpath(f, DEPLOY) for f in glob.glob(
        f"{DEPLOY}/**", recursive=True) if f.endswith(ends))


def read(name):
    with open(os.path.join(DEPLOY, name)) as f:
        return f.read()


def objects(name):
    return {(o["kind"], o["metadata"]["name"]): o
            for o in yaml.safe_load_all(read(name))}


def containers(name):
    return {c["name"]: c for c in json.loads(read(name))["containerDefinitions"]}


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def value(text, pattern):
    return re.search(pattern, text, re.M)[1]


@pytest.fixture
def pod():
    return objects("kubernetes/sidecar/nginx.yaml")[
        "Deployment", "nginx"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", files(".json"))
def test_json_is_well_formed(name):
    assert json.loads(read(name))


@pytest.mark.parametrize("name", files(".yaml"))
def test_yaml_is_well_formed(name):
    assert all(yaml.safe_load_all(read(name)))


@pytest.mark.parametrize("directory", ["proxy", "sidecar", "sidecar-spool"])
def test_a_kustomization_names_every_file_beside_it_and_every_image(directory):
    at = f"kubernetes/{directory}"
    k = yaml.safe_load(read(f"{at}/kustomization.yaml"))
    files_of_it = [r for r in k["resources"] if not r.startswith("../")]
    assert all(os.path.isdir(f"{DEPLOY}/{at}/{r}")
               for r in set(k["resources"]) - set(files_of_it))
    named = {*files_of_it, *(p["path"] for p in k.get("patches", []))}
    for generator in k.get("configMapGenerator", []):
        named |= set(generator["files"])
    assert named == set(os.listdir(f"{DEPLOY}/{at}")) - {"kustomization.yaml"}
    images = set()
    for name in files_of_it:
        images |= set(re.findall(r"^ *image: (.*)$", read(f"{at}/{name}"), re.M))
    assert images == {i["name"] for i in k.get("images", [])}
    maps = set(re.findall(r"configMap:\n *name: (.*)", "".join(
        read(f"{at}/{name}") for name in files_of_it)))
    assert maps == {g["name"] for g in k.get("configMapGenerator", [])
                    if "behavior" not in g}


@pytest.mark.parametrize("name", files(".conf"))
def test_what_it_configures_is_accepted(name, workdir, monkeypatch):
    text = read(name)
    if "http {" in text:
        text = text.replace("server source:9200", "server 127.0.0.1:9200")
        # put_in_place brings these itself
        text = re.sub(r"^ *(pid|\w+_temp_path) .*\n", "", text, flags=re.M)
        rc, err = check_config(workdir, put_in_place(text, workdir))
    else:
        monkeypatch.setenv("KAFKA_BROKERS", "b-1.x.kafka.eu-west-1.amazonaws.com:9098")
        rc, err = check(workdir, text)
    assert rc == 0 and "warn" not in err, err


def test_in_the_pod_each_has_its_time_to_end(pod):
    nginx, = pod["containers"]
    sidecar = read("kubernetes/sidecar/capture-sidecar.conf")
    before = int(nginx["lifecycle"]["preStop"]["exec"]["command"][1])
    requests = seconds(value(read("kubernetes/sidecar/nginx.conf"),
                             r"^worker_shutdown_timeout (\w+);"))
    drain = seconds(value(sidecar, r"^drain.time = (\w+)$"))
    assert before + requests + drain < pod["terminationGracePeriodSeconds"]


def test_in_the_pod_both_have_the_group_and_the_directory_of_the_socket(pod):
    nginx, = pod["containers"]
    sidecar, = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert pod["securityContext"]["fsGroup"] == 1000
    assert (nginx["securityContext"]["runAsUser"]
            != sidecar["securityContext"]["runAsUser"])
    sockets = {value(read(f"kubernetes/sidecar/{f}"), r"(unix:[\w./]+)")
               for f in ("nginx.conf", "capture-sidecar.conf")}
    assert sockets == {"unix:/run/capture/sidecar.sock"}
    for c in (nginx, sidecar):
        assert {"name": "socket", "mountPath": "/run/capture"} in c["volumeMounts"]


def test_the_spool_fits_its_volume_and_nothing_else_changes():
    plain, spooled = (read(f"kubernetes/{d}/capture-sidecar.conf")
                      for d in ("sidecar", "sidecar-spool"))
    assert spooled.startswith(plain)
    size = int(value(spooled, r"^spool.size = (\d+)g$"))
    patch = objects("kubernetes/sidecar-spool/spool.yaml")["Deployment", "nginx"]
    spec = patch["spec"]["template"]["spec"]
    room = spec["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"][
        "resources"]["requests"]["storage"]
    assert size < int(room.removesuffix("Gi"))
    mount = spec["initContainers"][0]["volumeMounts"][0]["mountPath"]
    assert value(spooled, r"^spool.path = (.*)$").startswith(mount + "/")


def restricted(spec, container):
    """PodSecurity's profile of that name, the part that a container can break."""
    s = {**spec["securityContext"], **container["securityContext"]}
    return (s["runAsNonRoot"] is True and s["runAsUser"] != 0
            and s["seccompProfile"]["type"] == "RuntimeDefault"
            and s["allowPrivilegeEscalation"] is False
            and s["capabilities"] == {"drop": ["ALL"]}
            and s["readOnlyRootFilesystem"] is True)


@pytest.mark.parametrize("name,of", [
    ("kubernetes/proxy/proxy.yaml", "capture-proxy"),
    ("kubernetes/sidecar/nginx.yaml", "nginx")])
def test_pods_are_restricted(name, of):
    spec = objects(name)["Deployment", of]["spec"]["template"]["spec"]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for c in [*spec.get("initContainers", []), *spec["containers"]]:
        assert restricted(spec, c), c["name"]
    assert all(v.keys() & {"emptyDir", "secret", "configMap"}
               for v in spec["volumes"])


def test_in_the_task_both_have_the_group_and_the_directory_of_the_socket():
    both = containers("ecs/sidecar.json")
    nginx, sidecar = both["nginx"], both["capture-sidecar"]
    assert nginx["user"].split(":")[1] == sidecar["user"].split(":")[1]
    assert nginx["user"] != sidecar["user"]
    assert nginx["mountPoints"] == sidecar["mountPoints"]
    # ended in the other order than started
    assert nginx["dependsOn"] == [
        {"containerName": "capture-sidecar", "condition": "START"}]
    default = value(subprocess.run([BINARY, "--help-config"], text=True, check=True,
                                   capture_output=True).stdout,
                    r"^drain.time = .*\(default (\w+)\)")
    assert seconds(default) < sidecar["stopTimeout"]
    assert seconds(default) < seconds(value(
        read("systemd/capture-sidecar.service"), r"^TimeoutStopSec=(\w+)$"))


def test_the_policy_has_what_the_docs_say():
    with open(os.path.join(TOP, "docs", "kafka.md")) as f:
        said = set(re.findall(r'"(kafka-cluster:\w+)"', f.read()))
    write, read_too = json.loads(read("ecs/task-role-policy.json"))["Statement"]
    assert set(write["Action"]) == said
    assert "kafka-cluster:ReadData" in read_too["Action"]
    assert set(read_too["Resource"]) < set(write["Resource"])


def test_the_images_files_are_where_the_task_looks_for_them():
    command = containers("ecs/sidecar.json")["capture-sidecar"]["command"]
    name = os.path.basename(command[1])
    assert os.path.exists(os.path.join(DEPLOY, "image", name))
    with open(os.path.join(TOP, "Dockerfile")) as f:
        assert f"deploy/image/{name} /etc/capture/" in " ".join(f.read().split())


def test_the_images_bases_are_pinned_by_digest():
    """Each FROM of the Dockerfile is a stage, or an argument that ends in one."""
    with open(os.path.join(TOP, "Dockerfile")) as f:
        text = f.read()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
    stages = set(re.findall(r"^FROM .* AS (\w+)$", text, re.M)) | {"scratch"}
    bases = re.findall(r"^FROM (?:--platform=\S+ )?(\S+)", text, re.M)
    assert len(bases) == 5
    for base in bases:
        while (name := re.fullmatch(r"\$\{(\w+)\}", base)):
            base = arguments[name[1]]
        assert base in stages or re.fullmatch(
            r"debian:\w+-\d{8}-slim@sha256:[0-9a-f]{64}", base), base
