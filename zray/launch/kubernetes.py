"""``zray kubernetes``: manifests of a cluster, as one JSON list that ``kubectl apply -f -`` takes.

    Secret       NAME-key    the key of the cluster
    StatefulSet  NAME-gcs    the shards of the control store, each with a volume for its log; headless Service
    Deployment   NAME-head   one node without CPUs, for drivers; headless Service
    Deployment   NAME-nodes  all other nodes; or a DaemonSet: one on each machine

Decided here, since a container is not a machine: a node is told its CPUs and its memory, which it would read
from the machine otherwise; the arena is anonymous shared memory, which counts as memory of the container and
not of /dev/shm, so it has a share of the limit and needs no volume; the session (sockets, spilled objects) is
an ``emptyDir`` of its own; and the key is copied, because a mounted secret belongs to root and may be read by
a group, which a key file may not. Nothing runs as root.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any, NamedTuple

from zray.ids import ID_BYTES
from zray.launch.sizes import ARENA_SHARE, size_bytes
from zray.runtime.node_options import CLUSTER_NAME

Manifest = dict[str, Any]

GCS_PORT = 6480
NODE_PORT = 6490
"""Control; bulk is at the next one."""
USER_ID = 1000
GRACE_S = 60
"""How long a node may take to end before it is killed."""
SECRET_DIR = "/etc/zray"
KEY_DIR = "/run/zray"
STATE_DIR = "/var/lib/zray"
_KEY_FILE = "cluster.key"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
# A copy that belongs to this user alone; then become the program.
_WITH_KEY = f'umask 077 && cp {SECRET_DIR}/{_KEY_FILE} "$ZRAY_KEY_FILE" && exec "$@"'
_GCS_ANSWERS = f'exec zray wait-for-nodes 0 --address "tcp://$POD_IP:{GCS_PORT}" --timeout 5'


class KubernetesCluster(NamedTuple):
    """What ``zray kubernetes`` was told."""

    name: str
    image: str
    """With zray, and all that tasks import."""
    key: bytes | None
    """Content of the key file; ``None``: the secret is made by other means."""
    cluster_id: bytes
    nodes: int = 2
    daemon_set: bool = False
    """One node on each machine, and not ``nodes`` of them."""
    cpus: int = 1
    """Of each node."""
    memory: str = "2G"
    gpus: int = 0
    head_cpus: int = 0
    """That tasks may use on the head."""
    head_memory: str = "2G"
    shards: int = 1
    gcs_memory: str = "1G"
    gcs_storage: str = "2G"
    storage_class: str | None = None
    spill: str = "10G"
    """Of disk, for each node."""
    namespace: str | None = None


def cluster_id_of(public_key: bytes) -> bytes:
    """An id for the cluster with this key: the same each time its manifests are made."""
    return hashlib.sha256(b"zray kubernetes " + public_key).digest()[:ID_BYTES]


def check_names(name: str, image: str) -> None:
    """Refuse what cannot name a cluster or an image.

    Raises:
        ValueError: with what is allowed.
    """
    if not re.fullmatch(CLUSTER_NAME, name):
        raise ValueError(f"--name cannot be {name!r}: 1 to 40 letters a-z, digits and hyphens are allowed")
    if not _IMAGE.fullmatch(image):
        raise ValueError(f"--image cannot be {image!r}: letters, digits and ._/:@- are allowed")


def manifests(cluster: KubernetesCluster) -> Manifest:
    """All of them, as one list.

    Raises:
        ValueError: for a value that makes no sense, with what is allowed.
    """
    check_names(cluster.name, cluster.image)
    items = [
        *([_secret(cluster)] if cluster.key is not None else []),
        _headless_service(cluster, "gcs", {"gcs": GCS_PORT}),
        _gcs(cluster),
        _headless_service(cluster, "head", {"control": NODE_PORT, "bulk": NODE_PORT + 1}),
        _head(cluster),
        _nodes(cluster),
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


# --- the objects ---------------------------------------------------------------------------------


def _secret(cluster: KubernetesCluster) -> Manifest:
    assert cluster.key is not None
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(cluster, "key"),
        "type": "Opaque",
        "data": {_KEY_FILE: base64.b64encode(cluster.key).decode()},
    }


def _headless_service(cluster: KubernetesCluster, part: str, ports: dict[str, int]) -> Manifest:
    """Names for pods; they must resolve before a pod is ready, or none would ever become it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(cluster, part),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": _labels(cluster, part),
            "ports": [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports.items()],
        },
    }


def _gcs(cluster: KubernetesCluster) -> Manifest:
    container = _container(cluster, "gcs", _resources(1, cluster.gcs_memory, 0))
    container["command"][2] += f' --shard "${{POD_NAME##*-}}/{cluster.shards}"'
    container["args"] = [
        "zray-gcs", "--listen", f"tcp://$(POD_IP):{GCS_PORT}", "--data-dir", f"{STATE_DIR}/log",
        "--sync", "group", "--cluster-id", cluster.cluster_id.hex(),
    ]  # fmt: skip
    container |= _probes(["sh", "-c", _GCS_ANSWERS])
    container["ports"] = [{"name": "gcs", "containerPort": GCS_PORT}]
    claim_spec: Manifest = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": _quantity(cluster.gcs_storage)}},
    }
    if cluster.storage_class:
        claim_spec["storageClassName"] = cluster.storage_class
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _metadata(cluster, "gcs"),
        "spec": {
            "serviceName": f"{cluster.name}-gcs",
            "replicas": cluster.shards,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": _labels(cluster, "gcs")},
            "template": _pod(cluster, "gcs", container, volumes=[]),
            "volumeClaimTemplates": [{"metadata": {"name": "state"}, "spec": claim_spec}],
        },
    }


def _head(cluster: KubernetesCluster) -> Manifest:
    template = _node_pod(cluster, "head", cluster.head_cpus, cluster.head_memory, 0)
    spec = {"replicas": 1, "strategy": {"type": "Recreate"}, **_selected(cluster, "head", template)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(cluster, "head"),
        "spec": spec,
    }


def _nodes(cluster: KubernetesCluster) -> Manifest:
    template = _node_pod(cluster, "nodes", cluster.cpus, cluster.memory, cluster.gpus)
    spec = _selected(cluster, "nodes", template)
    kind = "DaemonSet" if cluster.daemon_set else "Deployment"
    if not cluster.daemon_set:
        spec["replicas"] = cluster.nodes
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": _metadata(cluster, "nodes"), "spec": spec}


# --- their parts ---------------------------------------------------------------------------------


def _labels(cluster: KubernetesCluster, part: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "zray",
        "app.kubernetes.io/instance": cluster.name,
        "app.kubernetes.io/component": part,
    }


def _metadata(cluster: KubernetesCluster, part: str) -> Manifest:
    found: Manifest = {"name": f"{cluster.name}-{part}", "labels": _labels(cluster, part)}
    if cluster.namespace:
        found["namespace"] = cluster.namespace
    return found


def _selected(cluster: KubernetesCluster, part: str, template: Manifest) -> Manifest:
    return {"selector": {"matchLabels": _labels(cluster, part)}, "template": template}


def _node_pod(cluster: KubernetesCluster, part: str, cpus: int, memory: str, gpus: int) -> Manifest:
    """A pod that is a node of the cluster."""
    container = _container(cluster, "node", _resources(max(1, cpus), memory, gpus))
    stores = [f"tcp://{cluster.name}-gcs-{n}.{cluster.name}-gcs:{GCS_PORT}" for n in range(cluster.shards)]
    container["args"] = [
        "zray", "start", "--block",
        *(word for store in stores for word in ("--address", store)),
        "--node-ip-address", "$(POD_IP)", "--node-port", str(NODE_PORT),
        "--num-cpus", str(cpus), "--num-gpus", str(gpus),
        "--object-store-memory", str(int(size_bytes(memory) * ARENA_SHARE)),
        "--resources", f'{{"memory": {size_bytes(memory)}}}',
    ]  # fmt: skip
    container |= _probes(["zray", "status"])
    container["ports"] = [
        {"name": "control", "containerPort": NODE_PORT},
        {"name": "bulk", "containerPort": NODE_PORT + 1},
    ]
    state = {"name": "state", "emptyDir": {"sizeLimit": _quantity(cluster.spill)}}
    return _pod(cluster, part, container, volumes=[state])


def _pod(cluster: KubernetesCluster, part: str, container: Manifest, volumes: list[Manifest]) -> Manifest:
    """A pod of one container; every pod has the key."""
    secret = {"secretName": f"{cluster.name}-key", "defaultMode": 0o440}
    return {
        "metadata": {"labels": _labels(cluster, part)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # they would set variables that begin with ZRAY_
            "terminationGracePeriodSeconds": GRACE_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "secret", "secret": secret},
                {"name": "key", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                *volumes,
            ],
        },
    }


def _container(cluster: KubernetesCluster, name: str, resources: Manifest) -> Manifest:
    return {
        "name": name,
        "image": cluster.image,
        "command": ["sh", "-c", _WITH_KEY, "zray"],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "ZRAY_KEY_FILE", "value": f"{KEY_DIR}/{_KEY_FILE}"},
            {"name": "ZRAY_TMPDIR", "value": STATE_DIR},
            {"name": "ZRAY_ADDRESS", "value": "auto"},  # a driver that is started in a pod joins its node
        ],
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "secret", "mountPath": SECRET_DIR, "readOnly": True},
            {"name": "key", "mountPath": KEY_DIR},
            {"name": "state", "mountPath": STATE_DIR},
        ],
    }


def _resources(cpus: int, memory: str, gpus: int) -> Manifest:
    """Requests equal to limits: a node that is throttled or killed is worse than one that waits for room."""
    amounts: dict[str, Any] = {"cpu": str(cpus), "memory": _quantity(memory)}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {"requests": amounts, "limits": dict(amounts)}


def _probes(command: list[str]) -> Manifest:
    """Each starts a Python, so they are rare; a busy node is not a dead one, so they are patient."""

    def probe(period_s: int, failures: int) -> Manifest:
        return {
            "exec": {"command": command},
            "periodSeconds": period_s,
            "timeoutSeconds": 10,
            "failureThreshold": failures,
        }

    return {"startupProbe": probe(5, 36), "readinessProbe": probe(15, 2), "livenessProbe": probe(30, 4)}


def _quantity(text: str) -> str:
    """An amount of bytes as Kubernetes writes it."""
    return f"{size_bytes(text) >> 20}Mi"
