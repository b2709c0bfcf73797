"""The manifests: valid by the schemas of Kubernetes, and pointing at each other where they say so."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from zray.launch.kubernetes import KubernetesCluster, cluster_id_of, manifests

CLUSTER = KubernetesCluster(
    name="lab", image="registry.example.org/team/app:1.2", key=b"secret", cluster_id=cluster_id_of(b"public")
)
LARGE = CLUSTER._replace(
    daemon_set=True, cpus=8, memory="16G", gpus=2, head_cpus=2, shards=3, storage_class="fast",
    namespace="ml", key=None,
)  # fmt: skip
VERSIONS = ("1.25", "1.28", "1.31", "latest")


def items(cluster: KubernetesCluster) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects by kind and name."""
    found = manifests(cluster)["items"]
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


def pods(cluster: KubernetesCluster) -> list[dict[str, Any]]:
    return [
        item["spec"]["template"] for item in items(cluster).values() if "template" in item.get("spec", {})
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cluster", [CLUSTER, LARGE], ids=["small", "large"])
def test_every_object_is_valid_by_its_strict_schema(cluster: KubernetesCluster, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="the extra dev has kubernetes-validate")
    asked = validator.latest_version() if version == "latest" else version
    for item in manifests(cluster)["items"]:
        validator.validate(item, asked, strict=True)


def test_the_validator_would_notice() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="the extra dev has kubernetes-validate")
    item = items(CLUSTER)["Deployment", "lab-nodes"]
    item["spec"]["template"]["spec"]["contaners"] = []
    with pytest.raises(validator.ValidationError):
        validator.validate(item, validator.latest_version(), strict=True)


def test_the_parts_of_a_small_and_a_large_cluster() -> None:
    assert list(items(CLUSTER)) == [
        ("Secret", "lab-key"), ("Service", "lab-gcs"), ("StatefulSet", "lab-gcs"), ("Service", "lab-head"),
        ("Deployment", "lab-head"), ("Deployment", "lab-nodes"),
    ]  # fmt: skip
    large = items(LARGE)
    assert ("Secret", "lab-key") not in large
    assert ("DaemonSet", "lab-nodes") in large
    assert {item["metadata"]["namespace"] for item in large.values()} == {"ml"}
    assert large["StatefulSet", "lab-gcs"]["spec"]["replicas"] == 3
    data = items(CLUSTER)["Secret", "lab-key"]["data"]
    assert base64.b64decode(data["cluster.key"]) == b"secret"


@pytest.mark.parametrize("cluster", [CLUSTER, LARGE], ids=["small", "large"])
def test_what_is_named_exists(cluster: KubernetesCluster) -> None:
    found = items(cluster)
    labels = [pod["metadata"]["labels"] for pod in pods(cluster)]
    for (kind, _), item in found.items():
        spec = item.get("spec", {})
        chosen = spec["selector"] if kind == "Service" else spec.get("selector", {}).get("matchLabels")
        if chosen is not None:
            assert labels.count(chosen) == 1, "a selector is for one kind of pod"
    assert ("Service", found["StatefulSet", "lab-gcs"]["spec"]["serviceName"]) in found
    claims = found["StatefulSet", "lab-gcs"]["spec"]["volumeClaimTemplates"]
    for pod in pods(cluster):
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in claims if "gcs" in container["name"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        secrets = [volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume]
        assert secrets == ["lab-key"]


def test_a_node_knows_what_its_container_has() -> None:
    (container,) = items(LARGE)["DaemonSet", "lab-nodes"]["spec"]["template"]["spec"]["containers"]
    arguments = container["args"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "16384Mi", "nvidia.com/gpu": "2"}
    assert arguments[arguments.index("--num-cpus") + 1] == "8"
    assert arguments[arguments.index("--num-gpus") + 1] == "2"
    assert int(arguments[arguments.index("--object-store-memory") + 1]) == int(0.3 * (16 << 30))
    stores = [word for word in arguments if word.startswith("tcp://")]
    assert stores == [f"tcp://lab-gcs-{number}.lab-gcs:6480" for number in range(3)]


def test_nothing_runs_as_root_or_gets_more_rights() -> None:
    for pod in pods(LARGE):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "Lab"}, "--name cannot be 'Lab'"),
        ({"name": "a" * 41}, "1 to 40 letters"),
        ({"image": "app; rm"}, "--image cannot be"),
        ({"memory": "lots"}, "'lots' is not an amount of memory"),
        ({"gcs_storage": "1"}, "at least 1M"),
    ],
)
def test_nonsense_is_refused(change: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        manifests(CLUSTER._replace(**change))  # type: ignore[arg-type]
