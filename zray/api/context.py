"""Who am I: job, node, task, actor, as code that runs in a task can ask."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zray.api import session
from zray.api.cluster import report
from zray.core.group_resources import plain_demand
from zray.core.resources import amounts_of
from zray.protocol.messages import Demand
from zray.runtime import own_client
from zray.runtime.environment import as_dict

if TYPE_CHECKING:
    from zray.api.actor import ActorHandle


class RuntimeContext:
    """What runs here, at the moment of each question."""

    def get_job_id(self) -> str:
        """The job's id, hex."""
        return session.current().root_task.hex()

    def get_node_id(self) -> str:
        """The node's id, hex."""
        welcome = session.current().welcome
        return "" if welcome is None else welcome.node_id.hex()

    def get_worker_id(self) -> str:
        """The id of this process, hex; the driver has one too."""
        return session.current().identity.hex()

    def get_task_id(self) -> str | None:
        """The id of the task or call, hex; ``None`` in a driver."""
        return session.current().context.task_id.hex() if own_client.in_worker() else None

    def get_task_name(self) -> str | None:
        """Its name; ``None`` in a driver."""
        return session.current().context.name if own_client.in_worker() else None

    def get_task_function_name(self) -> str | None:
        """The same: zray names a task after its function, unless it was given a name."""
        return self.get_task_name()

    def get_attempt_number(self) -> int:
        """How often it ran before, 0 for the first time."""
        return session.current().context.attempt

    def get_actor_id(self) -> str | None:
        """The actor whose code this is, hex; ``None`` outside actors."""
        return own_client.in_actor().hex() or None

    def get_actor_name(self) -> str | None:
        """The name that the actor was made with; ``None`` outside actors, empty without one."""
        identity = own_client.actor_identity()
        return None if identity is None else identity.name[1]

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up."""
        return session.current().namespace

    @property
    def current_actor(self) -> ActorHandle:
        """A handle of the actor whose code this is.

        Raises:
            RuntimeError: outside actors.
        """
        from zray.api.actor import own_handle

        return own_handle()

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor was made again after its process died; false outside actors."""
        identity = own_client.actor_identity()
        return identity is not None and identity.restarts > 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What the task holds, or its actor; empty in a driver."""
        return amounts_of(_own_demand())

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The accelerators of the task by kind."""
        return {"GPU": [str(gpu) for gpu in get_gpu_ids()]}

    def get_runtime_env_string(self) -> str:
        """The runtime environment as JSON, ``{}`` for none."""
        return session.current().environment or "{}"

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment."""
        return as_dict(session.current().environment)

    @property
    def gcs_address(self) -> str:
        """The address of the cluster."""
        return session.current_address()

    def get_node_labels(self) -> dict[str, str]:
        """The labels of the node."""
        return dict(report("node")["labels"])

    def get_placement_group_id(self) -> str | None:
        """The placement group that the task or actor is in, hex; ``None`` outside groups."""
        in_group = session.current().context.in_group
        return None if in_group is None else in_group.group_id.hex()

    @property
    def current_placement_group_id(self) -> str | None:
        """The same."""
        return self.get_placement_group_id()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what the task submits is in its placement group, too."""
        in_group = session.current().context.in_group
        return in_group is not None and in_group.captures

    def get_session_name(self) -> str:
        """What the directory of the node's session is called."""
        return os.path.basename(self.get_temp_dir())

    def get_temp_dir(self) -> str:
        """The directory of the node's session, with its log files."""
        welcome = session.current().welcome
        return "" if welcome is None else os.path.dirname(welcome.spill_dir)

    def get_resource_ids(self) -> dict[str, list[str]]:
        """The same as :meth:`get_accelerator_ids`."""
        return self.get_accelerator_ids()

    @property
    def job_id(self) -> str:
        """See :meth:`get_job_id`."""
        return self.get_job_id()

    @property
    def node_id(self) -> str:
        """See :meth:`get_node_id`."""
        return self.get_node_id()

    @property
    def task_id(self) -> str | None:
        """See :meth:`get_task_id`."""
        return self.get_task_id()

    @property
    def actor_id(self) -> str | None:
        """See :meth:`get_actor_id`."""
        return self.get_actor_id()

    def is_canceled(self) -> bool:
        """Whether somebody has taken the task or call back while it runs."""
        return session.current().context.is_cancelled

    def get(self) -> dict[str, Any]:
        """The ids as a dict."""
        found = {"job_id": self.get_job_id(), "node_id": self.get_node_id(), "namespace": self.namespace}
        if own_client.in_worker():
            found["task_id"] = self.get_task_id() or ""
        actor_id = self.get_actor_id()
        if actor_id:
            found["actor_id"] = actor_id
        return found


def _own_demand() -> Demand:
    """What the task asked for, in a placement group or not."""
    context = session.current().context
    return context.demand if context.in_group is None else plain_demand(context.demand, context.in_group)


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The runtime context of whatever code asks."""
    return _context


def get_gpu_ids() -> list[int | str]:
    """The GPUs of the task or actor, as ``CUDA_VISIBLE_DEVICES`` names them; none where it asked for none.

    Whole ones are its own; of a fraction it has a share of the one that is named.
    """
    from zray.runtime.visible_gpus import seen

    return [int(name) if name.isdigit() else name for name in seen()]
