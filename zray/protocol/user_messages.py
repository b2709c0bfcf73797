"""What users say of work that is under way, and hear of it: cancellation, streams, names, output.

The rules are those of ``zray.protocol.messages``, which gathers these under its own name.
"""

from __future__ import annotations

from zray.protocol.base import Message, Value

# Where output goes (Output.stream).
STDOUT = 1
STDERR = 2

# What a task or call returns (Describe.returns, Call.returns).
VALUES = 0
DYNAMIC = 1  # one object: refs to as many as its generator yields
STREAM = 2  # one object, which ends the stream; items are told one by one

# --- driver or worker -> node -------------------------------------------------------------------


class Cancel(Message, frozen=True, tag=35):
    """Do not run this task, or stop it; its return objects end with ``TaskCancelledError``."""

    task_id: bytes
    force: bool = False  # end the worker that runs it
    recursive: bool = True  # and whatever it submitted
    lease_id: int = 0  # the lease of the sender on which it runs, and of which the node knows no task


class Leaving(Message, frozen=True, tag=36):
    """Worker: its actor ends on purpose (``exit_actor()``, ``sys.exit()``) and is never restarted."""

    reason: str


class Yielded(Message, frozen=True, tag=37):
    """Worker: item ``index`` (from 0) of a generator. A repeated index is ignored."""

    task_id: bytes
    attempt: int
    index: int
    value: Value


class Consumed(Message, frozen=True, tag=38):
    """The sender has taken this many items of a stream in all; ``done``: it wants no more."""

    task_id: bytes
    items: int
    done: bool = False


class ClaimName(Message, frozen=True, tag=39):
    """Give a free name to an actor about to be made; answered by ``NameAnswer``."""

    token: int
    namespace: str
    name: str
    handle: bytes  # what ``FindName`` answers


class FindName(Message, frozen=True, tag=40):
    """Who has this name? Answered by ``NameAnswer``."""

    token: int
    namespace: str
    name: str


class ListNames(Message, frozen=True, tag=41):
    """Every name of a namespace, or of all (empty). Answered by ``NameAnswer``: names as JSON."""

    token: int
    namespace: str


class Output(Message, frozen=True, tag=42):
    """Worker: whole lines that its code printed."""

    stream: int
    name: str  # of the task or actor
    text: str


class JobOptions(Message, frozen=True, tag=43):
    """Driver: what holds for its whole job; follows ``Hello``."""

    namespace: str  # of the names of its actors
    environment: str = ""  # of its tasks and actors, as canonical JSON
    wants_output: bool = True  # show what its workers print


class SaveCheckpoint(Message, frozen=True, tag=44):
    """Worker: this object is the state of its actor after every call that it recorded so far."""

    object_id: bytes


class RecordCall(Message, frozen=True, tag=45):
    """Worker: its actor ran this call; sent before the reply. Without ``values`` it is not answered again."""

    call: Call
    values: tuple[Value, ...] = ()


class FindCheckpoint(Message, frozen=True, tag=46):
    """Worker: what is its actor to begin with? Answered by ``RepeatCall``s and ``CheckpointFound``."""

    token: int


class Told(Message, frozen=True, tag=47):
    """Answer to ``Tell``; with token 0 unasked, by a worker that ends: all of its spans and metrics."""

    token: int
    body: bytes


class KeepCopies(Message, frozen=True, tag=48):
    """Keep copies of what the sender has put, on ``copies`` nodes; answered by ``CopiesKept``."""

    token: int
    object_id: bytes
    copies: int


# --- node -> driver or worker -------------------------------------------------------------------


class StreamItem(Message, frozen=True, tag=64):
    """Item ``index`` of a generator is there; the receiver, who submitted it, holds it from now on."""

    task_id: bytes
    index: int


class Interrupt(Message, frozen=True, tag=65):
    """Worker: stop this task, which it runs or was sent."""

    task_id: bytes
    recursive: bool = True  # and those that it submitted past the node


class StreamCredit(Message, frozen=True, tag=66):
    """Worker: what ``Consumed`` said of a stream that it makes."""

    task_id: bytes
    items: int
    done: bool = False


class NameAnswer(Message, frozen=True, tag=67):
    """Answer to ``ClaimName``, ``FindName`` and ``ListNames``. ``ok`` is false for a name taken or free."""

    token: int
    ok: bool
    value: bytes = b""


class Printed(Message, frozen=True, tag=68):
    """Driver: output of a worker of its job."""

    stream: int
    name: str
    pid: int
    text: str
    ip: str = ""  # of the worker's node; empty: it is on this machine


class RepeatCall(Message, frozen=True, tag=69):
    """Worker: a former process of its actor ran this call. ``covered``: the checkpoint knows its effect."""

    call: Call
    values: tuple[Value, ...]
    covered: bool = False


class CheckpointFound(Message, frozen=True, tag=70):
    """Worker: the last checkpoint, empty for none. Every call to be repeated was sent before."""

    token: int
    object_id: bytes = b""


class Tell(Message, frozen=True, tag=71):
    """Say something of yourself as a JSON document: ``metrics``, ``spans`` or ``stacks``."""

    token: int
    what: str


class SeeGpus(Message, frozen=True, tag=72):
    """Worker: what it is sent from now on may use these GPUs of the node, by number, and no others."""

    numbers: tuple[int, ...]


class CopiesKept(Message, frozen=True, tag=73):
    """Answer to ``KeepCopies``: so many nodes keep one now. If they are too few, ``reason`` says why."""

    token: int
    copies: int
    reason: str = ""


class ReaderGone(Message, frozen=True, tag=74):
    """Actor: a process of your node that may have called you is dead, and reads no stream any more."""

    reader: bytes


class ResultsReady(Message, frozen=True, tag=75):
    """``ObjectReady`` of all return objects of a task in one, in order; none is in the arena or a file."""

    task_id: bytes
    values: tuple[Value, ...]


# --- caller <-> the worker of an actor -----------------------------------------------------------


class Call(Message, frozen=True, tag=200):
    """Run a method. Calls of one caller run in the order of ``sequence``."""

    task_id: bytes
    actor_id: bytes
    sequence: int
    method: str
    num_returns: int
    args: bytes
    deps: tuple[bytes, ...] = ()
    returns: int = VALUES
    group: str = ""  # concurrency group; empty: the method's own
    unconsumed_max: int = 0
    attempt: int = 0
    borrowed: tuple[bytes, ...] = ()  # refs pickled inside args


class Reply(Message, frozen=True, tag=201):
    """The values of a call. ``EXTENT`` values are on the actor's node; ask that node for them."""

    task_id: bytes
    values: tuple[Value, ...]


class ReplyItem(Message, frozen=True, tag=202):
    """Item ``index`` of a call that is a generator."""

    task_id: bytes
    index: int
    value: Value


class ConsumedItems(Message, frozen=True, tag=203):
    """The caller has taken this many items of a stream in all; ``done``: it wants no more."""

    task_id: bytes
    items: int
    done: bool = False


class CancelCall(Message, frozen=True, tag=204):
    """Do not start this call; a coroutine that runs is cancelled."""

    task_id: bytes
    recursive: bool = True


class LastWords(Message, frozen=True, tag=205):
    """From an actor that ends on purpose, to its callers and its node: nothing follows."""


class LastWordsHeard(Message, frozen=True, tag=206):
    """Answer to ``LastWords``: every reply before them has arrived where it was to go."""


UserToNode = (
    Cancel | Leaving | Yielded | Consumed | ClaimName | FindName | ListNames | Output | JobOptions
    | SaveCheckpoint | RecordCall | FindCheckpoint | Told | KeepCopies | LastWords
)  # fmt: skip
UserFromNode = (
    StreamItem | Interrupt | StreamCredit | NameAnswer | Printed | RepeatCall | CheckpointFound
    | Tell | SeeGpus | CopiesKept | ReaderGone | ResultsReady
)  # fmt: skip
UserDirect = ReplyItem | ConsumedItems | CancelCall | LastWords | LastWordsHeard
