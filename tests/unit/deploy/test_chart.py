"""The chart by helm's own lint, by its values schema, and every object that it renders by Kubernetes' schemas."""

import os
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from engine.server.main import parser as worker_parser
from router.__main__ import parser as router_parser
from tests.unit.deploy.charts import (
    CASES,
    CHART,
    Object,
    containers,
    fleet_config,
    helm,
    of_kind,
    pod_templates,
    render,
    values_file,
)
from tests.unit.deploy.custom_resources import SCHEMAS

KUBERNETES = ("1.29", "1.37")


@pytest.mark.parametrize("case", CASES)
def test_helm_lint_finds_nothing(case: str) -> None:
    linted = helm("lint", "--strict", str(CHART), "--values", values_file(case))
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "[WARNING]" not in linted.stdout and "[ERROR]" not in linted.stdout


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("mode=docker", "mode"),
        ("image.tag=latest", "tag"),
        ("image.digest=sha256:12", "digest"),
        ("router.replica=3", "replica"),
        ("workers.prefill.kvMemory=much", "kvMemory"),
        ("workers.gpu.count=-1", "count"),
        ("workers.decode.autoscaling.kind=magic", "kind"),
        ("monitoring.interval=often", "interval"),
        ("router.resources.requests=null", "requests"),
        ("ray.prefill=2", "prefill"),
    ],
)
def test_values_that_mean_nothing_are_refused(setting: str, where: str) -> None:
    rendered = helm("template", "baton", str(CHART), "--set", setting)
    assert rendered.returncode != 0 and where in rendered.stderr


def test_the_values_schema_knows_every_value_of_the_chart() -> None:
    def walk(values: Object, schema: Object, path: str) -> None:
        assert schema.get("additionalProperties") is False, path
        assert not values.keys() - schema["properties"].keys(), path
        assert not schema["properties"].keys() - values.keys() - {"global"}, path
        for name, value in values.items():
            below = schema["properties"][name]
            if isinstance(value, dict) and "properties" in below and name != "resources":
                walk(value, below, f"{path}.{name}")

    walk(
        yaml.safe_load((CHART / "values.yaml").read_text()),
        yaml.safe_load((CHART / "values.schema.json").read_text()),
        "values",
    )


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_one_of_kubernetes(case: str, version: str) -> None:
    """Strict: a field that Kubernetes does not know is an error. Pods inside of operators' objects are checked, too."""
    known = [each for each in render(case) if each["kind"] not in SCHEMAS]
    assert {"Service", "ServiceAccount", "Pod"} <= {each["kind"] for each in known}
    for each in known:
        kubernetes_validate.validate(each, version, strict=True)
    for name, template in pod_templates(case).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | template.get("metadata", {})}
        assert template["spec"]["containers"], name
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


def test_an_unknown_field_would_be_found() -> None:
    (service, *_) = of_kind("default", "Service")
    wrong = service | {"spec": service["spec"] | {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


def test_every_object_of_an_operator_is_as_its_definition_says() -> None:
    objects = [each for case in CASES for each in of_kind(case, *SCHEMAS)]
    assert {each["kind"] for each in objects} == SCHEMAS.keys()
    for each in objects:
        jsonschema.validate(each, SCHEMAS[each["kind"]])


@pytest.mark.parametrize("case", CASES)
def test_the_commands_are_ones_that_the_programs_take(case: str) -> None:
    """The real parsers read the real arguments, and what they listen on is what the pods name."""
    for name, container in containers(case).items():
        match container.get("args", []):
            case ["python", "-m", ("prefill_worker" | "decode_worker") as module, *flags]:
                read = worker_parser(module.removesuffix("_worker")).parse_args(flags)
                ports = {"grpc": read.port, "metrics": read.metrics_port, "pages": read.page_port}
            case ["python", "-m", "router", *flags]:
                read = router_parser().parse_args(flags)
                ports = {"http": read.port, "grpc": read.grpc_port}
                assert read.workers_dns and read.admin_host == "127.0.0.1"
            case _:
                continue
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports, name
        assert read.host == "$(POD_IP)"


def test_the_job_serves_a_config_that_baton_up_takes() -> None:
    """The real reader of CONFIG.yaml reads what is mounted where the job's words say."""
    (job,) = of_kind("kuberay", "RayJob")
    assert job["spec"]["entrypoint"] == "sh /etc/baton/config/run.sh"
    head = pod_templates("kuberay")["RayJob/baton/head"]["spec"]
    (mount,) = (each for each in head["containers"][0]["volumeMounts"] if each["mountPath"] == "/etc/baton/config")
    (volume,) = (each for each in head["volumes"] if each["name"] == mount["name"])
    assert volume["configMap"]["name"] == "baton-config" and mount["readOnly"]
    config = fleet_config("kuberay")
    assert (config.count_of("prefill"), config.count_of("decode")) == (1, 3)
    assert (config.name, config.served_name, config.routers.host) == ("baton", "model-8b", "0.0.0.0")
    assert config.engine_of("decode").device == "cuda" and config.pools["decode"].max_unavailable == 1
    assert config.autoscale is not None and config.autoscale.bounds["decode"].max == 3
    assert config.restart.max_restarts == 10, "what the chart has no value for is given in ray.config"


@pytest.mark.parametrize(("ends", "status"), [(("kill -9 $$", "exit 0"), 0), (("exit 2",), 2), (("exit 1",), 1)])
def test_a_controller_that_was_killed_has_a_successor(ends: tuple[str, ...], status: int, tmp_path: Path) -> None:
    """In the real shell; `baton up` ends as told, one time after the other."""
    (made,) = (each for each in of_kind("kuberay", "ConfigMap") if each["metadata"]["name"] == "baton-config")
    for number, end in enumerate(ends):
        (tmp_path / f"{number}").write_text(end)
    baton = tmp_path / "baton"
    baton.write_text(
        f'#!/bin/sh\necho "$@"\ncd {tmp_path}; next=$(ls [0-9] | head -1)\nend=$(cat $next); rm $next; eval "$end"\n'
    )
    baton.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run(
        ["sh", "-c", made["data"]["run.sh"]], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == status
    assert run.stdout.splitlines() == ["up /etc/baton/config/config.yaml --address auto"] * len(ends)


def test_gpus_of_the_worker_pods_are_used_unless_told_otherwise() -> None:
    """Ray may not know of them yet when the service starts."""
    for device, num_gpus, found in (("auto", 1, "cuda"), ("auto", 0, "auto"), ("cpu", 1, "cpu")):
        config = fleet_config("kuberay-tls", f"workers.device={device}", f"workers.gpu.count={num_gpus}")
        assert config.engine_of("decode").device == found


def test_a_chart_keeps_its_own_rules_and_dashboards() -> None:
    rendered = of_kind("gpu-rdma", "PrometheusRule")[0]["spec"]
    assert rendered == yaml.safe_load((CHART.parents[1] / "prometheus" / "rules.yaml").read_text())
    names = {each["metadata"]["name"] for each in of_kind("gpu-rdma", "ConfigMap")}
    boards = (CHART.parents[1] / "grafana" / "dashboards").glob("*.json")
    assert names == {f"baton-{path.stem}-dashboard" for path in boards} and len(names) == 5


def test_helm_packages_what_it_renders(tmp_path: object) -> None:
    packaged = helm("package", str(CHART), "--destination", str(tmp_path))
    assert packaged.returncode == 0, packaged.stderr
    archive = packaged.stdout.strip().rpartition(" ")[2]
    again = helm("template", "baton", archive, "--namespace", "serving", "--values", values_file("gpu-rdma"))
    assert again.returncode == 0 and list(render("gpu-rdma")) == [
        each for each in yaml.safe_load_all(again.stdout) if each
    ]
