"""What a cluster's owner would refuse: rights, missing limits and probes, selectors that select nothing, open ports."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.unit.deploy.charts import CASES, CHART, NAMESPACE, Object, containers, of_kind, pod_templates, render

PLAIN = tuple(case for case in CASES if not case.startswith("kuberay"))
UCX = range(5100, 5200)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@pytest.mark.parametrize("case", CASES)
def test_images_are_pinned(case: str) -> None:
    for name, container in containers(case).items():
        image = container["image"]
        assert "@sha256:" in image or image.rpartition(":")[2] not in ("", "latest", image), name


@pytest.mark.parametrize("case", CASES)
def test_nothing_has_rights(case: str) -> None:
    assert not of_kind(case, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    (account,) = of_kind(case, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for name, template in pod_templates(case).items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["serviceAccountName"] == account["metadata"]["name"], name
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name
    for name, container in containers(case).items():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and "privileged" not in security, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["capabilities"]["drop"] == ["ALL"], name
        assert security["capabilities"].get("add", []) in ([], ["IPC_LOCK"]), name


@pytest.mark.parametrize("case", CASES)
def test_resources_are_set_and_devices_are_not_shared(case: str) -> None:
    for name, container in containers(case).items():
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= requests.keys() and "memory" in limits, name
        devices = (requests.keys() | limits.keys()) - {"cpu", "memory"}
        assert {key: requests.get(key) for key in devices} == {key: limits.get(key) for key in devices}, name


def test_a_gpu_worker_gets_its_devices_and_a_router_none() -> None:
    for name, container in containers("gpu-rdma").items():
        devices = container["resources"]["limits"].keys() - {"memory"}
        assert devices == ({"nvidia.com/gpu", "rdma/hca"} if name.endswith("/worker") else set()), name
        added = container["securityContext"]["capabilities"].get("add", [])
        assert added == (["IPC_LOCK"] if name.endswith("/worker") else []), name


@pytest.mark.parametrize("case", PLAIN)
def test_probes_and_the_time_to_leave(case: str) -> None:
    """Ray's pods get their probes from the operator; what runs once needs none."""
    for name, template in pod_templates(case).items():
        if name.startswith("Pod/"):
            continue
        (container,) = template["spec"]["containers"]
        names = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in names, name
        ready = "/health" if container["name"] == "router" else "/ready"
        assert container["readinessProbe"]["httpGet"]["path"] == ready
        assert container["livenessProbe"]["httpGet"]["path"] == "/live"
        grace_s = template["spec"]["terminationGracePeriodSeconds"]
        if container["name"] == "router":
            assert grace_s > int(container["lifecycle"]["preStop"]["exec"]["command"][1]) + 4
        else:
            (drain,) = (word for word in container["args"] if word.startswith("--drain-grace="))
            assert grace_s > int(drain.partition("=")[2]) + 5  # STOP_TIMEOUT_S of a worker


@pytest.mark.parametrize("case", CASES)
def test_every_mount_has_its_volume_and_what_is_written_has_a_place(case: str) -> None:
    for name, template in pod_templates(case).items():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert len(volumes) == len(template["spec"]["volumes"]), name
        for container in template["spec"]["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert {mount["name"] for mount in mounts.values()} == volumes.keys(), name
            assert "/tmp" in mounts
            if container["name"] in ("worker", "ray-worker", "ray-head"):
                assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory", name
    claims = {each["metadata"]["name"] for each in of_kind(case, "PersistentVolumeClaim")}
    assert claims == ({"baton-cache"} if case == "kuberay" else set())


@pytest.mark.parametrize("case", CASES)
def test_the_cluster_key_is_only_in_its_secret(case: str) -> None:
    secrets = of_kind(case, "Secret")
    assert len(secrets) == (0 if case == "gpu-rdma" else 1)
    names = {"baton-cluster-key"} if case == "gpu-rdma" else {secret["metadata"]["name"] for secret in secrets}
    users = 0
    for name, container in containers(case).items():
        for entry in container.get("env", []):
            if entry["name"] == "BATON_CLUSTER_KEY":
                users += 1
                assert entry.keys() == {"name", "valueFrom"} and entry["valueFrom"]["secretKeyRef"]["name"] in names, (
                    name
                )
    assert users == (2 if case.startswith("kuberay") else 3)


@pytest.mark.parametrize("case", CASES)
def test_selectors_select(case: str) -> None:
    templates = pod_templates(case)
    for each in of_kind(case, "Deployment", "StatefulSet"):
        assert selects(each["spec"]["selector"], each["spec"]["template"]["metadata"]["labels"])
    for service in of_kind(case, "Service"):
        chosen = [
            one for one in templates.values() if selects({"matchLabels": service["spec"]["selector"]}, labels(one))
        ]
        assert chosen, service["metadata"]["name"]
        for pod in chosen:
            names = {port["name"] for one in pod["spec"]["containers"] for port in one["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for budget in of_kind(case, "PodDisruptionBudget"):
        chosen = [one for one in templates.values() if selects(budget["spec"]["selector"], labels(one))]
        assert len(chosen) == 1, budget["metadata"]["name"]
    for monitor in of_kind(case, "ServiceMonitor"):
        chosen = [
            one for one in of_kind(case, "Service") if selects(monitor["spec"]["selector"], one["metadata"]["labels"])
        ]
        assert [one["metadata"]["name"] for one in chosen] == ["baton"]
    for monitor in of_kind(case, "PodMonitor"):
        chosen = [name for name, one in templates.items() if selects(monitor["spec"]["selector"], labels(one))]
        assert chosen == ["StatefulSet/baton-prefill", "StatefulSet/baton-decode"]
    scaled = of_kind(case, "HorizontalPodAutoscaler", "ScaledObject")
    there = {(one["kind"], one["metadata"]["name"]): one for one in of_kind(case, "Deployment", "StatefulSet")}
    for one in scaled:
        target = there[one["spec"]["scaleTargetRef"]["kind"], one["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "two would set it"
    assert len(scaled) == (3 if case == "gpu-rdma" else 0)


def labels(template: Object) -> dict[str, str]:
    found: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return found


# --------------------------------------------------------------------------------------------------- network policies

ELSEWHERE = {"namespace": "elsewhere", "app": "stranger"}
PROMETHEUS = {"namespace": "monitoring", "app": "prometheus"}
CLIENT = {"namespace": "chat", "team": "chat"}


def peer_matches(peer: Object, labels: dict[str, str]) -> bool:
    """`labels` are the pod's, and its namespace as `namespace`; of namespaces only the name and `team` are known."""
    spaces = {"kubernetes.io/metadata.name": labels.get("namespace", NAMESPACE), "team": labels.get("team", "")}
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], spaces):
            return False
    elif labels.get("namespace", NAMESPACE) != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), labels)


def ports_of(rule: Object) -> Iterator[range]:
    for port in rule["ports"]:
        yield range(port["port"], port.get("endPort", port["port"]) + 1)


def allows(case: str, source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """May `source` open a TCP connection to `port` of `target`, as the policies of both say?"""

    def passes(me: dict[str, str], other: dict[str, str], direction: str, key: str) -> bool:
        own = [one["spec"] for one in of_kind(case, "NetworkPolicy") if selects(one["spec"]["podSelector"], me)]
        own = [spec for spec in own if direction in spec["policyTypes"]]
        if not own or me.get("namespace", NAMESPACE) != NAMESPACE:
            return True
        return any(
            any(port in one for one in ports_of(rule))
            and (key not in rule or any(peer_matches(peer, other) for peer in rule[key]))
            for spec in own
            for rule in spec[direction.lower()]
        )

    return passes(source, target, "Egress", "to") and passes(target, source, "Ingress", "from")


def pods(case: str) -> dict[str, dict[str, str]]:
    known = {name.partition("baton-")[2]: labels(one) for name, one in pod_templates(case).items()}
    return {"prefill": known["prefill"], "decode": known["decode"], "router": known["router"]}


def open_ports(case: str, source: dict[str, str], target: dict[str, str]) -> set[int]:
    return {port for port in INTERESTING if allows(case, source, target, port)}


INTERESTING = {22, 443, 5000, 5001, 5002, 5003, 5004, 5099, *UCX, 5200, 6379, 8000, 8001, 8002, 8265, 10250}


@pytest.mark.parametrize("case", ["default", "gpu-rdma"])
def test_ports_that_are_used_are_open_and_no_others(case: str) -> None:
    known = pods(case)
    router, workers = known["router"], [known["prefill"], known["decode"]]
    for worker in workers:
        assert open_ports(case, router, worker) == {5001}
        for other in workers:
            assert open_ports(case, worker, other) == {5003, *UCX}
        assert open_ports(case, PROMETHEUS, worker) == {5002}
        assert open_ports(case, ELSEWHERE, worker) == open_ports(case, CLIENT, worker) == set()
        assert open_ports(case, worker, router) == set()
    stranger = {8000, 8001} if case == "default" else set()
    assert open_ports(case, CLIENT, router) == {8000, 8001}
    assert open_ports(case, ELSEWHERE, router) == stranger
    assert open_ports(case, PROMETHEUS, router) == ({8000, 8001} if case == "default" else {8000})


def test_a_ray_cluster_is_open_inside_and_only_its_doors_are_outside() -> None:
    (policy,) = of_kind("kuberay", "NetworkPolicy")
    inside = {"baton/ray": "true"}
    rules: list[Any] = policy["spec"]["ingress"]
    assert [rule["ports"] for rule in rules if not rule.get("from")] == [
        [{"protocol": "TCP", "port": 8000}, {"protocol": "TCP", "port": 8001}]
    ]
    (everything,) = (rule for rule in rules if "ports" not in rule)
    assert [peer["podSelector"]["matchLabels"] | inside for peer in everything["from"]] == [
        peer["podSelector"]["matchLabels"] for peer in everything["from"]
    ]
    head, workers = (labels(pod_templates("kuberay")[f"RayJob/baton/{name}"]) for name in ("head", "workers"))
    assert selects(policy["spec"]["podSelector"], head) and selects(policy["spec"]["podSelector"], workers)


@pytest.mark.parametrize("case", CASES)
def test_names_are_unique_and_in_the_release(case: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in render(case)]
    assert len(set(names)) == len(names)
    assert all(name.startswith("baton") for _, name in names)
    assert all(each["metadata"]["labels"]["app.kubernetes.io/instance"] == "baton" for each in render(case))


def test_prometheus_without_an_operator_finds_the_pods_by_name() -> None:
    """deploy/prometheus/prometheus.yaml asks for service records of the chart's headless services, and labels what
    those answer as the rules want it.
    """
    config = yaml.safe_load((CHART.parents[1] / "prometheus" / "prometheus.yaml").read_text())
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind("default", "Service")}
    rules = {}
    for job in config["scrape_configs"]:
        (record,) = job["dns_sd_configs"][0]["names"]
        port, protocol, service, *domain = record.split(".")
        assert (protocol, domain) == ("_tcp", [NAMESPACE, "svc", "cluster", "local"])
        assert services[service]["clusterIP"] == "None"
        assert port.removeprefix("_") in {each["name"] for each in services[service]["ports"]}
        rules[job["job_name"]] = {each["target_label"]: each["regex"] for each in job["relabel_configs"]}
    sets = {each["metadata"]["name"]: each["spec"]["serviceName"] for each in of_kind("default", "StatefulSet")}
    found = set()
    for name, service in sets.items():
        address = f"{name}-3.{service}.{NAMESPACE}.svc.cluster.local.:5002"
        matches = {label: re.fullmatch(regex, address) for label, regex in rules["baton-worker"].items()}
        found.add(tuple(match[1] for match in matches.values() if match))
    assert found == {("baton-prefill-3", "prefill"), ("baton-decode-3", "decode")}
    assert rules["baton-router"].keys() == {"router"}
