"""What a well-formed message may still get wrong: contents that no zray ever sends.

A machine asks before it acts on a message that can carry nonsense; the sender is refused then, and nothing
changes. Messages of the hot path are not looked at here: they name things, and an unknown name is ignored.
"""

from __future__ import annotations

from itertools import pairwise

from zray.core.labels import LABELS_MAX, problem_of_rules
from zray.core.machine import Address
from zray.ids import ID_BYTES, is_put
from zray.protocol.cluster import Members
from zray.protocol.group_messages import STRATEGY_NAMES, GroupSpec
from zray.protocol.messages import (
    ACTOR,
    DRIVER,
    TASK,
    WORKER,
    Create,
    Demand,
    Describe,
    Hello,
    NodeReport,
)
from zray.protocol.user_messages import KeepCopies

COPIES_MAX = 64
"""Of one object, on as many nodes."""
BUNDLES_MAX = 1_000
"""Of one placement group."""
GROUP_NAME_CHARACTERS_MAX = 1_000
ACTOR_NAME_CHARACTERS_MAX = 1_000
"""Of the name and its namespace."""
NUM_RETURNS_MAX = 1_000_000
"""Return values of one task; each costs its node an entry at once."""


def problem_of_hello(message: Hello) -> str:
    """A sentence, or nothing if the introduction makes sense."""
    if message.role not in (DRIVER, WORKER):
        return f"there is no role {message.role}"
    if len(message.job_id) != ID_BYTES and message.role == DRIVER:
        return f"a job's id has {ID_BYTES} bytes, not {len(message.job_id)}"
    return ""


def problem_of_descriptor(message: Describe) -> str:
    """A sentence, or nothing if tasks could be like that."""
    if not 0 <= message.num_returns <= NUM_RETURNS_MAX:
        return f"{message.name}() returns {message.num_returns} values"
    if message.kind not in (TASK, ACTOR):
        return f"there is no kind {message.kind} of descriptor"
    if message.kind == ACTOR and message.num_returns != 1:
        return f"actor {message.name} returns {message.num_returns} values and not one, its handle"
    if message.max_retries < -1:
        return f"{message.name}() is tried again {message.max_retries} times"
    strategy = message.strategy
    if strategy is not None:
        if len(strategy.node_id) not in (0, ID_BYTES):
            return f"{message.name}() is to run on a node with an id of {len(strategy.node_id)} bytes"
        problem = problem_of_rules((*strategy.hard, *strategy.wanted))
        if problem:
            return problem
    in_group = message.in_group
    if in_group is not None and (len(in_group.group_id) != ID_BYTES or in_group.bundle >= BUNDLES_MAX):
        return f"{message.name}() is to run in bundle {in_group.bundle} of no placement group"
    return problem_of_demand(message.demand)


def problem_of_group(spec: GroupSpec) -> str:
    """A sentence, or nothing if a placement group could be like that."""
    if len(spec.group_id) != ID_BYTES:
        return f"an id has {ID_BYTES} bytes, not {len(spec.group_id)}"
    if not 0 <= spec.strategy < len(STRATEGY_NAMES):
        return f"there is no strategy {spec.strategy} of placement groups"
    if not 1 <= len(spec.bundles) <= BUNDLES_MAX:
        return f"a placement group has 1 to {BUNDLES_MAX} bundles, not {len(spec.bundles)}"
    if len(spec.name) + len(spec.namespace) > GROUP_NAME_CHARACTERS_MAX:
        return f"a name of a placement group has at most {GROUP_NAME_CHARACTERS_MAX} characters"
    for demand in spec.bundles:
        problem = problem_of_demand(demand)
        if problem or not demand:
            return problem or "a bundle asks for nothing"
    return ""


def problem_of_actor_name(namespace: str, name: str) -> str:
    """A sentence, or nothing if an actor may be called so."""
    if not name or len(name) + len(namespace) > ACTOR_NAME_CHARACTERS_MAX:
        return f"a name of an actor has 1 to {ACTOR_NAME_CHARACTERS_MAX} characters, its namespace included"
    if "\0" in name or "\0" in namespace:
        return "a name of an actor has no null character"
    return ""


def problem_of_copies(message: KeepCopies) -> str:
    """A sentence, or nothing if so many copies of such an object can be kept."""
    if len(message.object_id) != ID_BYTES or not is_put(message.object_id):
        return "copies are kept of what put() made, and of nothing else"
    if not 2 <= message.copies <= COPIES_MAX:
        return f"2 to {COPIES_MAX} copies of an object can be kept, not {message.copies}"
    return ""


def speaks_for_itself(source: Address, message: Members) -> bool:
    """Whether who passes on a table of the living is in it; nobody else has any reason to."""
    return any(node_id == source for node_id, _ in message.nodes)


def problem_of_demand(demand: Demand) -> str:
    """A sentence, or nothing if the amounts are positive and sorted by name, each name once."""
    before = ""
    for name, amount in demand:
        if amount <= 0 or name <= before:
            return f"no demand is {demand}"
        before = name
    return ""


def problem_of_report(message: NodeReport) -> str:
    """A sentence, or nothing if a node could be like that. What is free may be negative, for a while."""
    names = [name for name, _ in message.free]
    if any(later <= earlier for earlier, later in pairwise(names)):
        return f"nothing free is like {message.free}"
    load = message.backlog, message.run_ns, message.bandwidth, message.pulling
    if min(load) < 0:
        return f"a negative load: {load}"
    if len(message.labels) > LABELS_MAX:
        return f"a node with {len(message.labels)} labels"
    return problem_of_demand(message.total)


def problem_of_create(message: Create) -> str:
    """A sentence, or nothing if such an object may be asked for."""
    if message.size < 0:
        return f"an object of {message.size} bytes"
    return problem_of_id(message.object_id)


def problem_of_id(an_id: bytes) -> str:
    """A sentence, or nothing if it may be the id of a task or an object."""
    return "" if len(an_id) == ID_BYTES else f"an id has {ID_BYTES} bytes, not {len(an_id)}"
