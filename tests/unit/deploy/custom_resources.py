"""What the chart may say in objects of operators: of each kind the fields that it uses, and no others.

No package ships these kinds' schemas for Python, so the fields are written down here, from the operators' own
definitions (KubeRay 1.5, Prometheus operator, KEDA 2, cert-manager 1).
"""

from typing import Any

Schema = dict[str, Any]
ANY: Schema = {}
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "array", "items": STRING}
LABELS: Schema = {"type": "object", "additionalProperties": STRING}


def fields(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def listed(schema: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": schema}


def kind(api_version: str, spec: Schema) -> Schema:
    metadata = fields("name", "labels", name=STRING, labels=LABELS)
    return fields(
        "apiVersion", "kind", "spec", apiVersion={"const": api_version}, kind=STRING, metadata=metadata, spec=spec
    )


_RELABELING = fields("targetLabel", targetLabel=STRING, sourceLabels=STRINGS, replacement=STRING)
_SECRET_KEY = fields("name", "key", name=STRING, key=STRING)
_ENDPOINT = fields(
    "port",
    port=STRING,
    path=STRING,
    interval=STRING,
    scheme={"enum": ["http", "https"]},
    tlsConfig=fields("serverName", "ca", serverName=STRING, ca=fields("secret", secret=_SECRET_KEY)),
    relabelings=listed(_RELABELING),
)
_ISSUER = {
    "oneOf": [fields("selfSigned", selfSigned=fields()), fields("ca", ca=fields("secretName", secretName=STRING))]
}
_CERTIFICATE = fields(
    "secretName",
    "issuerRef",
    "privateKey",
    isCA=BOOLEAN,
    commonName=STRING,
    secretName=STRING,
    dnsNames=STRINGS,
    usages=listed({"enum": ["server auth", "client auth", "digital signature"]}),
    duration=STRING,
    renewBefore=STRING,
    privateKey=fields("algorithm", "size", algorithm=STRING, size=INTEGER, rotationPolicy={"const": "Always"}),
    issuerRef=fields("name", "kind", name=STRING, kind={"enum": ["Issuer", "ClusterIssuer"]}),
)
_SELECTOR = fields("matchLabels", matchLabels=LABELS)
_ALERT = fields("alert", "expr", "labels", "annotations", **{"for": STRING}, alert=STRING, expr=STRING,
                labels=LABELS, annotations=LABELS)  # fmt: skip
_RECORD = fields("record", "expr", record=STRING, expr=STRING, labels=LABELS)
_GROUP = fields("name", "rules", name=STRING, interval=STRING, rules=listed({"anyOf": [_ALERT, _RECORD]}))
_TRIGGER = fields(
    "type",
    "metadata",
    type={"const": "prometheus"},
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=fields("serverAddress", "query", "threshold", serverAddress=STRING, query=STRING, threshold=STRING),
)
_TARGET = fields("kind", "name", apiVersion=STRING, kind=STRING, name=STRING)
_HEAD = fields("rayStartParams", "template", serviceType=STRING, rayStartParams=LABELS, template=ANY)
_WORKERS = fields(
    "groupName",
    "rayStartParams",
    "template",
    groupName=STRING,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    rayStartParams=LABELS,
    template=ANY,
)
_CLUSTER = fields(
    "rayVersion",
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=fields("mode", mode={"enum": ["token", "disabled"]}),
    headGroupSpec=_HEAD,
    workerGroupSpecs=listed(_WORKERS),
)

SCHEMAS: dict[str, Schema] = {
    "Issuer": kind("cert-manager.io/v1", _ISSUER),
    "Certificate": kind("cert-manager.io/v1", _CERTIFICATE),
    "ServiceMonitor": kind(
        "monitoring.coreos.com/v1", fields("selector", "endpoints", selector=_SELECTOR, endpoints=listed(_ENDPOINT))
    ),
    "PodMonitor": kind(
        "monitoring.coreos.com/v1",
        fields("selector", "podMetricsEndpoints", selector=_SELECTOR, podMetricsEndpoints=listed(_ENDPOINT)),
    ),
    "PrometheusRule": kind("monitoring.coreos.com/v1", fields("groups", groups=listed(_GROUP))),
    "ScaledObject": kind(
        "keda.sh/v1alpha1",
        fields(
            "scaleTargetRef",
            "triggers",
            scaleTargetRef=_TARGET,
            minReplicaCount=INTEGER,
            maxReplicaCount=INTEGER,
            pollingInterval=INTEGER,
            cooldownPeriod=INTEGER,
            triggers=listed(_TRIGGER),
        ),
    ),
    "RayJob": kind(
        "ray.io/v1",
        fields(
            "entrypoint",
            "rayClusterSpec",
            entrypoint=STRING,
            suspend=BOOLEAN,
            shutdownAfterJobFinishes=BOOLEAN,
            backoffLimit=INTEGER,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
            submitterPodTemplate=ANY,
            rayClusterSpec=_CLUSTER,
        ),
    ),
}
