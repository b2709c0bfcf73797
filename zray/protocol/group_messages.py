"""Messages about placement groups: resources of several nodes that are reserved together, or not at all.

The rules are those of ``messages.py``. Words: a *group* has *bundles*, each reserved on one node. A bundle is
*prepared* while the others are asked for, and *committed* once all are there: only then tasks may use it.
"""

from __future__ import annotations

from zray.protocol.base import Message
from zray.protocol.messages import Demand

# Where the bundles of a group go (GroupSpec.strategy).
PACK = 0  # on few nodes
SPREAD = 1  # on many nodes
STRICT_PACK = 2  # on one node, or nowhere
STRICT_SPREAD = 3  # each on a node of its own, or nowhere

STRATEGY_NAMES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
"""By number."""


class GroupSpec(Message, frozen=True):
    """What was asked for; it never changes."""

    group_id: bytes
    bundles: tuple[Demand, ...]
    strategy: int = PACK
    namespace: str = ""
    name: str = ""  # empty: it has none
    detached: bool = False  # it outlives its job
    job_id: bytes = b""  # filled in by the node, like ``home``
    home: bytes = b""  # the node of the job's driver


class GroupRow(Message, frozen=True):
    """A group in the table of the control store."""

    spec: GroupSpec
    places: tuple[bytes, ...]  # the node of each bundle; empty: it has none


class Bundle(Message, frozen=True):
    """One bundle on a node."""

    index: int
    demand: Demand
    committed: bool


# --- driver or worker -> node -> coordinator -----------------------------------------------------


class CreateGroup(Message, frozen=True, tag=320):
    """Reserve this; answered by ``GroupAnswer`` once the wish is durable, placed or not."""

    token: int
    spec: GroupSpec


class RemoveGroup(Message, frozen=True, tag=321):
    """Give a group up, with the tasks and actors in it; answered by ``GroupAnswer`` once that is durable."""

    token: int
    group_id: bytes


class FindGroup(Message, frozen=True, tag=322):
    """Which group has this name? Answered by ``GroupAnswer`` with its ``GroupSpec`` as body."""

    token: int
    namespace: str
    name: str


class ListGroups(Message, frozen=True, tag=323):
    """What is known of a group, or of all (empty). Answered by ``GroupAnswer`` with a JSON document."""

    token: int
    group_id: bytes = b""


class EndGroups(Message, frozen=True, tag=324):
    """Node: a job has ended, and so have its groups that are not detached. Answered once none is left."""

    token: int
    job_id: bytes


# --- coordinator -> node (-> driver or worker) ---------------------------------------------------


class GroupAnswer(Message, frozen=True, tag=325):
    """Answer to what is above; ``detail`` says why it is not ``ok``."""

    token: int
    ok: bool
    body: bytes = b""
    detail: str = ""


class HoldBundles(Message, frozen=True, tag=326):
    """Hold exactly these bundles of a group; none: let go of it and end what is in it.

    Versions only grow, over all groups and lives of the coordinator: one that is not higher than every one
    before it is void. Answered by ``BundlesHeld``, and sent again under a new version until then.
    """

    version: int
    group_id: bytes
    bundles: tuple[Bundle, ...] = ()


class AskBundles(Message, frozen=True, tag=327):
    """A new life of the coordinator asks what a node holds; answered by ``BundlesListed``."""

    version: int


class GroupGone(Message, frozen=True, tag=328):
    """There is no such group (any more): end what is in it or waits for it."""

    group_id: bytes


class GroupWaits(Message, frozen=True, tag=329):
    """No cluster like this one can ever hold a group: tell the driver of its job."""

    job_id: bytes
    text: str


# --- node -> coordinator -------------------------------------------------------------------------


class BundlesHeld(Message, frozen=True, tag=330):
    """Answer to ``HoldBundles``. Not ``ok``: there is no room for the new ones, and none of them is held."""

    version: int
    group_id: bytes
    ok: bool


class BundlesListed(Message, frozen=True, tag=331):
    """Answer to ``AskBundles``: groups of which the node holds a bundle, and the highest version it heard."""

    version: int
    group_ids: tuple[bytes, ...]
    heard: int


GroupRequest = CreateGroup | RemoveGroup | FindGroup | ListGroups
ToGroupNode = GroupRequest | GroupAnswer | HoldBundles | AskBundles | GroupGone | GroupWaits
ToCoordinator = GroupRequest | EndGroups | BundlesHeld | BundlesListed
"""What a node, and the first shard, accept beside ``messages.py``; a process also takes ``GroupAnswer``."""
