"""What linters from elsewhere say about deploy/: run by script/test-deploy, in an
environment that has them."""

import glob
import importlib.util
import json
import os
import re
import sys

import botocore.session
import botocore.validate
import jsonschema
import parliament
import yaml

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DEPLOY = os.path.join(TOP, "deploy")


def task_definition(path):
    """As RegisterTaskDefinition takes it: names, types, what is required."""
    model = botocore.session.get_session().get_service_model("ecs")
    shape = model.operation_model("RegisterTaskDefinition").input_shape
    with open(path) as f:
        report = botocore.validate.ParamValidator().validate(json.load(f), shape)
    return [report.generate_report()] if report.has_errors() else []


def compose(path):
    # found, and not imported: it wants libraries of its time
    package = importlib.util.find_spec("compose").submodule_search_locations[0]
    with open(os.path.join(package, "config", "compose_spec.json")) as f:
        schema = json.load(f)
    with open(path) as f:
        # as docker compose does before it validates
        text = re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", f.read())
    errors = jsonschema.Draft7Validator(schema).iter_errors(yaml.safe_load(text))
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in errors]


def policy(path):
    with open(path) as f:
        findings = parliament.analyze_policy_string(f.read()).findings
    return [str(f) for f in findings]


def main():
    failed = 0
    for check, files in ((task_definition, ["ecs/proxy.json", "ecs/sidecar.json"]),
                         (policy, ["ecs/task-role-policy.json"]),
                         (compose, glob.glob("compose*.yaml", root_dir=DEPLOY))):
        assert files
        for name in files:
            for error in check(os.path.join(DEPLOY, name)):
                print(f"{name}: {error}")
                failed = 1
    sys.exit(failed)


if __name__ == "__main__":
    main()
