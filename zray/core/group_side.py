"""Placement groups as a node sees them: its bundles, and the requests of its processes.

Handlers of the composite machine in ``core/node.py``, which each pass a message to the room that decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from zray.core.bundles import Bundles
from zray.core.checks import problem_of_group
from zray.core.group_requests import GroupRequests
from zray.core.machine import Address, Handler
from zray.protocol.group_messages import (
    AskBundles,
    CreateGroup,
    FindGroup,
    GroupAnswer,
    GroupGone,
    GroupRequest,
    GroupWaits,
    HoldBundles,
    ListGroups,
    RemoveGroup,
)
from zray.protocol.messages import DRIVER, Warn

if TYPE_CHECKING:
    from zray.core.node import Node


class GroupSide:
    """The two rooms of one node."""

    def __init__(self, node: Node) -> None:
        self.bundles = Bundles(node.out, scheduler=node.scheduler)
        self.requests = GroupRequests(
            node.out,
            shards=node.shards,
            questions_max=node.config.table_writes_max,
        )
        self.node = node
        node.scheduler.on_job_over = self.requests.job_over

    def flush(self, now_ns: int) -> None:
        """Before tasks are dispatched; what others could place here now they hear at once."""
        self.bundles.flush()
        if self.bundles.changed:
            self.bundles.changed = False
            self.node.report_at_ns = now_ns


def on_group_request(node: Node, now_ns: int, source: Address, message: GroupRequest) -> None:
    """A process asks for a placement group, or after one."""
    client = node.known(source)
    if client is None:
        return
    if isinstance(message, CreateGroup):
        job_id = client.job_id if client.worker is None else client.worker.job_id
        job = node.scheduler.jobs.get(job_id)
        home = job.home if job is not None and job.home else node.identity.node_id
        message = replace(message, spec=replace(message.spec, job_id=job_id, home=home))
        problem = problem_of_group(message.spec)
        if problem:
            node.out.append((source, GroupAnswer(message.token, False, detail=problem)))
            return
    node.groups.requests.ask(now_ns, source, message)


def on_coordinator(node: Node, now_ns: int, source: Address, message: Any) -> None:
    """The coordinator speaks; whoever else does changes nothing."""
    if not node.shards or source != node.shards[0]:
        return
    node.now_ns = node.scheduler.now_ns = now_ns
    bundles = node.groups.bundles
    match message:
        case GroupAnswer():
            node.groups.requests.on_answer(source, message)
        case HoldBundles():
            bundles.on_hold(source, message)
        case AskBundles():
            bundles.on_ask(source, message)
        case GroupGone():
            bundles.on_gone(message)
        case GroupWaits():
            _warn(node, message)


def _warn(node: Node, message: GroupWaits) -> None:
    for address, client in node.clients.items():
        if client.role == DRIVER and client.job_id == message.job_id:
            node.out.append((address, Warn(message.text)))


HANDLERS: dict[type[Any], Handler] = {
    **dict.fromkeys((CreateGroup, RemoveGroup, FindGroup, ListGroups), on_group_request),
    **dict.fromkeys((GroupAnswer, HoldBundles, AskBundles, GroupGone, GroupWaits), on_coordinator),
}
