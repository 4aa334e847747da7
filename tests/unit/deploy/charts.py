"""The Helm chart, rendered by the real helm for each of its values files."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.fleet.config import FleetConfig, config_from

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "baton"
HELM = str(Path(sys.executable).parent / "helm")
CASES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
NAMESPACE = "serving"

Object = dict[str, Any]


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)


def values_file(case: str) -> str:
    return str(CHART / "ci" / f"{case}-values.yaml")


@cache
def render(case: str, *settings: str) -> tuple[Object, ...]:
    """Every object that the chart makes of a values file, with `settings` as of --set on top."""
    sets = [word for setting in settings for word in ("--set", setting)]
    rendered = helm("template", "baton", str(CHART), "--namespace", NAMESPACE, "--values", values_file(case), *sets)
    assert rendered.returncode == 0, rendered.stderr
    return tuple(each for each in yaml.safe_load_all(rendered.stdout) if each)


def of_kind(case: str, *kinds: str) -> list[Object]:
    return [each for each in render(case) if each["kind"] in kinds]


def pod_templates(case: str) -> dict[str, Object]:
    """By the name of what makes them: the pods that this chart asks for, operators' included."""
    found = {}
    for each in render(case):
        name, spec = f"{each['kind']}/{each['metadata']['name']}", each.get("spec", {})
        if each["kind"] in ("Deployment", "StatefulSet"):
            found[name] = spec["template"]
        elif each["kind"] == "Pod":
            found[name] = {"metadata": each["metadata"], "spec": spec}
        elif each["kind"] == "RayJob":
            cluster = spec["rayClusterSpec"]
            found[f"{name}/submitter"] = spec["submitterPodTemplate"]
            found[f"{name}/head"] = cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                found[f"{name}/{group['groupName']}"] = group["template"]
    return found


def containers(case: str) -> dict[str, Object]:
    return {
        f"{name}/{container['name']}": container
        for name, template in pod_templates(case).items()
        for container in template["spec"]["containers"]
    }


def fleet_config(case: str, *settings: str) -> FleetConfig:
    """What `baton up` serves in mode kuberay, as its own reader takes it."""
    (made,) = (
        each
        for each in render(case, *settings)
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "baton-config"
    )
    return config_from(yaml.safe_load(made["data"]["config.yaml"]))
