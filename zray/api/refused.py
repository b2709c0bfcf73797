"""Names of Ray that zray does not have, and why: what an ``AttributeError`` says of them."""

from __future__ import annotations

_NOT_CORE = "it is not part of Ray Core"
_IDS = "ids are bytes and their hexadecimal text; see get_runtime_context()"
_PYTHON = "zray runs Python only"
_COMPILED = "graphs run through ordinary calls, which pass no scheduler"
_CLIENT = "a driver needs a node on its machine: `zray start --address`, then init(address)"

REFUSED: dict[str, dict[str, str]] = {
    "zray": {
        **dict.fromkeys(("data", "workflow", "widgets", "train", "tune", "serve", "rllib", "air"), _NOT_CORE),
        "autoscaler": "clusters have the nodes that are started: `zray up`, `zray slurm`, `zray kubernetes`",
        **dict.fromkeys(("client", "ClientBuilder"), _CLIENT),
        **dict.fromkeys(("cpp_function", "java_function", "java_actor_class", "Language"), _PYTHON),
        **dict.fromkeys(
            (
                "ActorClassID",
                "ActorID",
                "FunctionID",
                "JobID",
                "NodeID",
                "PlacementGroupID",
                "TaskID",
                "UniqueID",
                "WorkerID",
            ),
            _IDS,
        ),
        **dict.fromkeys(("LOCAL_MODE", "SCRIPT_MODE", "WORKER_MODE"), "see get_runtime_context()"),
        "LoggingConfig": "configure the logger 'zray' with the logging module",
        "internal": "an object is freed with its last ref",
    },
    "zray.actor": {"ActorClassInheritanceException": "to inherit from a remote class is a TypeError"},
    "zray.cluster_utils": {"AutoscalingCluster": "clusters have the nodes that are started"},
    "zray.dag": {
        "CollectiveOutputNode": _COMPILED,
        "DAGContext": _COMPILED,
        "DAGInputData": "an InputNode takes any arguments",
        **dict.fromkeys(
            (
                "BIND_INDEX_KEY",
                "COLLECTIVE_OPERATION_KEY",
                "DAGNODE_TYPE_KEY",
                "DAGOperationFuture",
                "GPUFuture",
                "IS_CLASS_METHOD_OUTPUT_KEY",
                "PARENT_CLASS_NODE_KEY",
                "PREV_CLASS_METHOD_CALL_KEY",
            ),
            _COMPILED,
        ),
        "plot": "a graph runs as tasks and calls: zray.timeline() shows them",
    },
    "zray.util": {
        "collective": _NOT_CORE,
        **dict.fromkeys(("connect", "disconnect"), _CLIENT),
        "get_node_instance_id": "zray asks no cloud provider; give nodes labels",
        "iter": "Ray has deprecated it; use generators",
        "pdb": "use `zray stack`, or a debugger that attaches to a process",
        "ray_debugpy": "use `zray stack`, or a debugger that attaches to a process",
    },
    "zray.util.accelerators": {"tpu": _NOT_CORE},
    "zray.util.debug": {
        "Suspect": "measure a process with tracemalloc",
        "reset_log_once": "choose another key",
    },
    "zray.util.placement_group": {
        "check_placement_group_index": "a strategy is checked when it is made",
        "validate_placement_group": "placement_group() checks its arguments",
    },
    "zray.util.multiprocessing": {"JoinableQueue": "use zray.util.queue.Queue"},
    "zray.util.serialization": {"StandaloneSerializationContext": "use zray.cloudpickle"},
    "zray.util.state": {
        "StateApiClient": "call the functions of this module",
        "list_cluster_events": "see `zray logs`",
        "list_runtime_envs": "see the runtime_env of list_jobs(), and list_workers()",
    },
}


def absent(module: str, name: str) -> AttributeError:
    """The error for a name that ``module`` does not have."""
    reason = REFUSED.get(module, {}).get(name)
    if reason is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    return AttributeError(f"{module} has no {name}: {reason}", name=name)
