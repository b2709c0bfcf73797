"""Messages about actors that live on another node than where they were made, or are called from another.

The rules are those of ``messages.py``. Words: the *home* of an actor is the node of its creator, which
decides about its lives; its *host* is the node where the present *life* runs, numbered from 0; the
*successor* of a detached one becomes its home when the home dies. A call is *relayed* from the caller's
node, its *origin*, to the host. What nodes say of actors is *posted*: it arrives once and in order."""

from __future__ import annotations

from zray.protocol.base import Message, Value
from zray.protocol.cluster import Declined, Input
from zray.protocol.messages import Describe, JobContext, KillActor, Submit
from zray.protocol.user_messages import (
    Call,
    CancelCall,
    CheckpointFound,
    ConsumedItems,
    FindCheckpoint,
    Printed,
    RecordCall,
    RepeatCall,
    Reply,
    ReplyItem,
    SaveCheckpoint,
)


class ActorRow(Message, frozen=True):
    """What the actor table knows of an actor: ``state`` as in ``ActorState``, and where to ask for more."""

    actor_id: bytes
    state: int
    home: bytes
    host: bytes = b""  # of the present life; empty: it has none yet, or any more
    life: int = 0
    address: bytes = b""  # of its worker, for processes of the host
    name: str = ""  # of its class
    cause: Value | None = None  # what its calls end with once it is dead
    successor: bytes = b""  # of a detached actor: the node that becomes its home if its home dies
    detached: bool = False  # it may change its home; its row is written by compare-and-set only


# --- watcher -> home -----------------------------------------------------------------------------


class WatchFrom(Message, frozen=True, tag=262):
    """Tell the sender how the actor is, now and at every change."""

    actor_id: bytes


# --- home -> watcher -----------------------------------------------------------------------------


class ActorAt(Message, frozen=True, tag=263):
    """How an actor is and where. ``cause`` is what calls of a life that is over end with."""

    actor_id: bytes
    state: int
    life: int = 0
    host: bytes = b""
    cause: Value | None = None


# --- host -> home --------------------------------------------------------------------------------


class LifeEnded(Message, frozen=True, tag=264):
    """The process of a life is gone. ``leaving``: on purpose."""

    actor_id: bytes
    life: int
    exit_code: int
    leaving: bool = False


class ToPast(Message, frozen=True, tag=265):
    """What the worker of an actor says of checkpoints; the first two are answered by ``PastKept``."""

    actor_id: bytes
    life: int
    message: SaveCheckpoint | RecordCall | FindCheckpoint


# --- home -> host --------------------------------------------------------------------------------


class EndLife(Message, frozen=True, tag=266):
    """End a life: at once (``kill``), or after the calls that it has."""

    actor_id: bytes
    life: int
    kill: bool = True


class PastKept(Message, frozen=True, tag=267):
    """The home or successor has a checkpoint, a copy of its bytes included, a recorded call, or a will."""

    actor_id: bytes
    life: int
    object_id: bytes = b""  # the checkpoint, or the creation object for a will; empty: a recorded call


class FromPast(Message, frozen=True, tag=268):
    """What the worker of a new life is told of the former ones."""

    actor_id: bytes
    life: int
    message: RepeatCall | CheckpointFound


# --- home -> successor --------------------------------------------------------------------------------


class Will(Message, frozen=True, tag=274):
    """All that it takes to be the home of a detached actor; what its lives record follows as ``ToPast``.

    Answered by ``PastKept`` with the creation object, once the successor has copies of what the constructor
    takes.
    """

    actor_id: bytes
    life: int
    descriptor: Describe
    context: JobContext
    code: bytes
    spec: Submit | None = None  # of an actor that may be made again


class WillVoid(Message, frozen=True, tag=284):
    """The receiver is no successor (any more); or, with a cause, the actor is dead: its row will say so."""

    actor_id: bytes
    cause: Value | None = None


# --- origin -> host ------------------------------------------------------------------------------


class CallAway(Message, frozen=True, tag=269):
    """Run a call in this life, and in no other. What it takes and borrows is kept at the origin."""

    call: Call
    life: int
    inputs: tuple[Input, ...] = ()  # the values that are known already


class ReplyTaken(Message, frozen=True, tag=270):
    """The origin holds what came out of a call, or out of item ``index`` of it."""

    task_id: bytes
    attempt: int
    index: int = -1


# --- host -> origin ------------------------------------------------------------------------------


class ReplyAway(Message, frozen=True, tag=271):
    """The values of a call; large ones are ``AT_NODE``, at the host."""

    task_id: bytes
    attempt: int
    life: int
    values: tuple[Value, ...]


class ItemAway(Message, frozen=True, tag=272):
    """Item ``index`` of a call that is a generator."""

    task_id: bytes
    attempt: int
    life: int
    index: int
    value: Value


# --- node of a worker -> node of the driver of its job ---------------------------------------------


class OutputAway(Message, frozen=True, tag=273):
    """A worker of the sender printed: the driver of its job shows it."""

    job_id: bytes
    printed: Printed


# --- node <-> node -------------------------------------------------------------------------------

Post = (
    WatchFrom | ActorAt | LifeEnded | ToPast | EndLife | PastKept | FromPast | CallAway | ReplyTaken
    | ReplyAway | ItemAway | KillActor | CancelCall | ConsumedItems | Declined | OutputAway | Will | WillVoid
)  # fmt: skip
"""What is posted."""


class Posted(Message, frozen=True, tag=260):
    """A numbered message, from 1 on for each pair of nodes; repeated until ``PostTaken``."""

    number: int
    message: Post


class PostTaken(Message, frozen=True, tag=261):
    """Every post up to and including ``number`` has come."""

    number: int


Relayed = Call | Reply | ReplyItem | ConsumedItems | CancelCall
"""What a caller and an actor's worker say to their own node when the other is elsewhere."""
ToActorNode = Posted | PostTaken | Relayed
