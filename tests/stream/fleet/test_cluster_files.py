"""Files for clusters: Ray's launcher accepts one by its own schema; the other has what a fleet needs of Kubernetes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "configs" / "fleet"
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD = {"type": "object", "required": ["spec"]}
_COUNT = {"type": "integer", "minimum": 0}


def _table(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


# What KubeRay 1.5 takes in `spec` of a RayCluster (ray-operator/apis/ray/v1/raycluster_types.go), as far as it is used.
_SPEC = _table(
    ["headGroupSpec"],
    rayVersion={"type": "string", "pattern": r"^2\.(5[2-9]|[6-9]\d)\.\d+$"},  # with tokens
    authOptions=_table([], mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_table([], idleTimeoutSeconds=_COUNT, upscalingMode={"enum": ["Default", "Aggressive"]}),
    headGroupSpec=_table(["template"], rayStartParams=_TEXTS, template=_POD, labels=_TEXTS, resources=_TEXTS),
    workerGroupSpecs={
        "type": "array",
        "items": _table(
            ["groupName", "template", "minReplicas", "maxReplicas"],
            groupName={"type": "string"}, replicas=_COUNT, minReplicas=_COUNT, maxReplicas=_COUNT, numOfHosts=_COUNT,
            rayStartParams=_TEXTS, template=_POD, labels=_TEXTS, resources=_TEXTS,
        ),
    },
)  # fmt: skip


def test_ray_launcher_accepts_every_key() -> None:
    found = importlib.util.find_spec("ray")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("Ray is not installed")
    schema = json.loads((Path(found.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    head = " ".join(config["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_USAGE_STATS_ENABLED=0" in head


def test_kubernetes_cluster_has_a_token_and_closed_ports() -> None:
    documents: dict[str, Any] = {
        each["kind"]: each for each in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    }
    assert set(documents) == {"RayCluster", "Service", "NetworkPolicy"}
    spec = documents["RayCluster"]["spec"]
    jsonschema.validate(spec, _SPEC)
    assert documents["RayCluster"]["apiVersion"] == "ray.io/v1"
    assert spec["authOptions"]["mode"] == "token"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        assert not {"labels", "resources"} & group["rayStartParams"].keys(), "the operator refuses these"
        container = group["template"]["spec"]["containers"][0]
        values = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert values["RAY_USAGE_STATS_ENABLED"] == "0"
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    open_to_all = [rule for rule in documents["NetworkPolicy"]["spec"]["ingress"] if "from" not in rule]
    assert [port["port"] for rule in open_to_all for port in rule["ports"]] == [5560]
