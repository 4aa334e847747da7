"""The chart with TLS: certificates reach every process that needs them, and nothing asks in plain text any more."""

import pytest

from tests.unit.deploy.charts import Object, containers, fleet_config, pod_templates, render

TLS = ("tls", "kuberay-tls")
"""Values files with TLS: plain with somebody else's secrets, and Ray with cert-manager."""
CLUSTER, CLIENT = "/etc/baton/cluster-tls", "/etc/baton/client-tls"


def mounts(container: Object) -> dict[str, Object]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def secrets(case: str) -> dict[str, dict[str, str]]:
    """By pod: the name of the secret in each volume."""
    return {
        name: {v["name"]: v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v}
        for name, template in pod_templates(case).items()
    }


def test_every_process_gets_what_it_needs_and_no_more() -> None:
    both = {"cluster-tls": "baton-inside", "client-tls": "baton-doors"}
    worker = {"cluster-tls": "baton-inside"}
    assert secrets("tls") == {
        "Deployment/baton-router": both,
        "StatefulSet/baton-prefill": worker,
        "StatefulSet/baton-decode": worker,
        "Pod/baton-doctor": {"client-tls": "baton-doors"},
    }
    made = secrets("kuberay-tls")
    assert made["RayJob/baton/head"] == {"cluster-tls": "baton-cluster-tls", "client-tls": "baton-client-tls"}
    assert made["RayJob/baton/workers"] == {"cluster-tls": "baton-cluster-tls"}
    assert made["RayJob/baton/submitter"] == {}


@pytest.mark.parametrize("case", TLS)
def test_certificates_are_mounted_read_only_and_whole(case: str) -> None:
    """A file mounted by itself (subPath) would never change."""
    found = [m for c in containers(case).values() for path, m in mounts(c).items() if path in (CLUSTER, CLIENT)]
    assert found and all(mount["readOnly"] and "subPath" not in mount for mount in found)


def test_flags_name_what_is_mounted() -> None:
    for name, container in containers("tls").items():
        if "doctor" not in name:
            assert f"--cluster-tls={CLUSTER}" in container["args"], name
            assert (f"--tls-cert={CLIENT}/tls.crt" in container["args"]) is (name.endswith("/router")), name
    tls = fleet_config("kuberay-tls").tls
    assert (tls.cluster, tls.cert, tls.key) == (CLUSTER, f"{CLIENT}/tls.crt", f"{CLIENT}/tls.key")


def test_probes_scrapers_and_the_doctor_speak_tls() -> None:
    router = containers("tls")["Deployment/baton-router/router"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert router[probe]["httpGet"]["scheme"] == "HTTPS"
    (monitor,) = (each for each in render("tls") if each["kind"] == "ServiceMonitor")
    assert [each["scheme"] for each in monitor["spec"]["endpoints"]] == ["https"]
    doctor = containers("tls")["Pod/baton-doctor/doctor"]["args"]
    assert f"--tls-ca={CLIENT}/ca.crt" in doctor and any(word.startswith("--url=https://") for word in doctor)
    (volume,) = (v for v in pod_templates("tls")["Pod/baton-doctor"]["spec"]["volumes"] if v["name"] == "client-tls")
    assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt"], "not the key"


def test_the_certificates_that_are_asked_for() -> None:
    found = {each["metadata"]["name"]: each["spec"] for each in render("kuberay-tls") if each["kind"] == "Certificate"}
    assert found["baton-cluster-tls"]["dnsNames"] == ["baton"], "the name that peers are verified by"
    assert set(found["baton-cluster-tls"]["usages"]) >= {"server auth", "client auth"}
    assert found["baton-cluster-tls"]["issuerRef"] == {"name": "baton-authority", "kind": "Issuer"}
    assert found["baton-client-tls"]["issuerRef"] == {"name": "public", "kind": "ClusterIssuer"}
    assert {"baton.serving.svc", "llm.example.org"} <= set(found["baton-client-tls"]["dnsNames"])


def test_without_tls_nothing_changes() -> None:
    for template in pod_templates("default").values():
        assert not [volume for volume in template["spec"]["volumes"] if "tls" in volume["name"]]
    assert not [word for c in containers("default").values() for word in c.get("args", ()) if "tls" in word]
    assert not [each for each in render("default") if each["kind"] in ("Issuer", "Certificate")]
