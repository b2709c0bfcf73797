"""Messages that exist only in a cluster of several nodes: membership, tasks and objects of other nodes.

The rules are those of ``messages.py``. Words: a task is *away* at the node where it was submitted, its
*origin*, while another node runs it as a *guest*. An object is *shared* once its reference left its node.
"""

from __future__ import annotations

from zray.protocol.base import Message
from zray.protocol.messages import (
    Demand,
    FromGlobal,
    JobContext,
    Refused,
    Submit,
    TaskRecord,
    ToGlobal,
    Value,
)
from zray.protocol.strategies import Labels

# What a node tells the shard of a shared object (ShareUpdate.kind).
HOLD = 0  # something on the node needs it
DROP = 1  # nothing on the node needs it any more
EXPECT = 2  # a task of the node will make it; afterwards the node follows its lineage
COPY = 3  # the node has it: inline in ShareUpdate.value, or of ShareUpdate.value.size bytes in its store
UNCOPY = 4  # the node has it no more
WANT = 5  # look up or subscribe: one ObjectFound, now or as soon as there is a copy
HOME = 6  # it was made, and the node follows its lineage: what a snapshot says instead of EXPECT
REFUSE = 7  # the node was to make it again and does not: its job has ended, and nobody else there needs it
COMING = 8  # the node has it, and will say where once its lineage is acknowledged

# --- node -> directory of a shard ----------------------------------------------------------------


class ShareUpdate(Message, frozen=True):
    """One fact about one shared object and the node that says it."""

    kind: int
    object_id: bytes
    value: Value | None = None
    copies: int = 0  # with COPY: the sender keeps it while anybody needs it, as one of so many


class ShareUpdates(Message, frozen=True, tag=160):
    """Facts in the order in which they came to hold; acknowledged by ``ShareAcked``.

    ``snapshot``: the first of a new stream; what the sender said in former streams is void.
    """

    stream: int
    sequence: int
    updates: tuple[ShareUpdate, ...]
    snapshot: bool = False


# --- directory of a shard -> node ----------------------------------------------------------------


class ShareAcked(Message, frozen=True, tag=161):
    """Every update up to and including ``sequence`` of this stream counts."""

    stream: int
    sequence: int


class ShareReset(Message, frozen=True, tag=162):
    """The directory does not know this stream, or lost its tables: start a new one with a snapshot."""

    stream: int


class ObjectFound(Message, frozen=True, tag=163):
    """Where a wanted object is: inline, or ``AT_NODE`` in the stores of ``nodes``; or its fault."""

    object_id: bytes
    value: Value
    nodes: tuple[bytes, ...] = ()


class FreeObjects(Message, frozen=True, tag=164):
    """No node holds these: copies may go, and so may the lineage that was kept for them."""

    object_ids: tuple[bytes, ...]


class Rebuild(Message, frozen=True, tag=165):
    """The last copy is lost and the receiver was chosen to run its maker again, as this attempt.

    ``refused`` is not empty if that is impossible: the sentence says why.
    """

    object_id: bytes
    attempt: int
    record: TaskRecord | None = None
    refused: str = ""


class KeepCopy(Message, frozen=True, tag=166):
    """Have a copy, and keep it as one of so many while anybody needs it; ``COPY`` says that it is there."""

    object_id: bytes
    value: Value
    nodes: tuple[bytes, ...]
    copies: int


class CopiesCounted(Message, frozen=True, tag=167):
    """So many nodes keep a copy, the receiver among them, and no other one is asked at present."""

    object_id: bytes
    copies: int


# --- node <-> node -------------------------------------------------------------------------------


class Claim(Message, frozen=True, tag=170):
    """Host -> origin: a task was placed here; answered by ``Grant`` or ``Deny``."""

    task_id: bytes


class Input(Message, frozen=True):
    """An input of a granted task: inline, or ``AT_NODE`` in the stores of ``nodes``."""

    object_id: bytes
    value: Value
    nodes: tuple[bytes, ...] = ()


class Grant(Message, frozen=True, tag=171):
    """Origin -> host: run this attempt. What it takes and borrows is kept here until it has ended."""

    spec: Submit
    attempt: int
    job_id: bytes
    inputs: tuple[Input, ...] = ()
    home: bytes = b""  # the node of the job's driver
    number: int = 0  # of this grant; a repetition has the same
    hops: int = 0  # how often the task was placed before


class Deny(Message, frozen=True, tag=172):
    """Origin -> host: the task is not to run there (any more)."""

    task_id: bytes


class Ended(Message, frozen=True, tag=173):
    """Host -> origin: how an attempt ended; repeated until ``Taken``.

    ``crashed``: its worker was lost, ``values`` is empty, and the origin decides whether it runs again.
    ``offloaded``: it was not started, ``values`` is empty, and another node is to have it.
    """

    task_id: bytes
    attempt: int
    values: tuple[Value, ...]
    failed: bool = False
    crashed: bool = False
    exit_code: int = 0
    run_ns: int = 0
    offloaded: bool = False


class Taken(Message, frozen=True, tag=174):
    """Origin -> host: the end of an attempt was heard and all that its values contain is held."""

    task_id: bytes
    attempt: int


class JobOver(Message, frozen=True, tag=175):
    """Node -> node: a job has ended; so do its guests."""

    job_id: bytes


class Pull(Message, frozen=True, tag=176):
    """Send ``size`` bytes of a large object from ``start`` on, over the data link."""

    object_id: bytes
    start: int
    size: int


class PullFailed(Message, frozen=True, tag=177):
    """The object is not in this store."""

    object_id: bytes


class Chunk(Message, frozen=True, tag=178):
    """Bytes of a large object, on the data link: in a frame of their own behind this one's batch."""

    object_id: bytes
    start: int
    data: bytes = b""  # only where no frame can follow, such as in the simulator


class AskRawLink(Message, frozen=True, tag=285):
    """Say where a connection for the bytes of chunks can be made to you; answered by ``OfferRawLink``.

    ``node_id`` is the other node: whom to ask in the word of a process, who asks in what it is told.
    """

    node_id: bytes


class OfferRawLink(Message, frozen=True, tag=286):
    """Connect to this endpoint within a few seconds, once; an empty one: chunks come another way.

    ``node_id`` as in ``AskRawLink``. Who connects shows the ticket, who listens answers with the receipt.
    """

    node_id: bytes
    endpoint: str
    ticket: bytes
    receipt: bytes


class Declined(Message, frozen=True, tag=179):
    """Host -> origin: it does not run the task of this grant, which it did not ask for (any more)."""

    task_id: bytes
    number: int


# --- global scheduler -> node --------------------------------------------------------------------


class Offload(Message, frozen=True, tag=191):
    """Others are idle: give up to so many queued tasks away, which are placed once more."""

    tasks: int


# --- membership ----------------------------------------------------------------------------------


class Members(Message, frozen=True, tag=180):
    """Who is alive, as ``(node, endpoint)``. Whoever was and is not any more is dead, for ever."""

    epoch: int
    nodes: tuple[tuple[bytes, str], ...]


class ListNodes(Message, frozen=True, tag=275):
    """Node -> first shard: which nodes there are; answered by ``NodeList`` with the same token."""

    token: int


class NodeRow(Message, frozen=True):
    """What is known of one node; ``free`` and ``backlog`` of its last report, if it is alive."""

    node_id: bytes
    host: str
    pid: int
    endpoint: str
    labels: Labels
    total: Demand
    free: Demand
    backlog: int
    alive: bool


class NodeList(Message, frozen=True, tag=276):
    """Answer to ``ListNodes``: the living, then the newest of the dead, without ``left_out`` of them."""

    token: int
    rows: tuple[NodeRow, ...]
    left_out: int = 0


# --- node <-> global scheduler -----------------------------------------------------------------------


class AskScheduler(Message, frozen=True, tag=133):
    """Node -> global scheduler: are you there? Answered by ``SchedulerHere`` with the same token."""

    token: int


class SchedulerHere(Message, frozen=True, tag=281):
    """There is a global scheduler beside this shard. Token 0: it answers ``NodeHello``."""

    token: int = 0


# --- whoever has the key <-> node ------------------------------------------------------------------


class Probe(Message, frozen=True, tag=277):
    """Can the receiver connect to these tcp endpoints? Answered by ``Probed``."""

    token: int
    endpoints: tuple[str, ...]


class Probed(Message, frozen=True, tag=278):
    """Answer to ``Probe``: one sentence per endpoint, empty if it can be connected to."""

    token: int
    problems: tuple[str, ...]


# --- a node <-> the process that hosts it --------------------------------------------------------


class AskPeer(Message, frozen=True, tag=181):
    """Say something of yourself: a report, or what ``Tell`` asks your processes; ``PeerAnswer`` answers."""

    number: int
    what: str


class PeerAnswer(Message, frozen=True, tag=182):
    """Answer to ``AskPeer``: a JSON document."""

    number: int
    body: bytes


class LinkPeer(Message, frozen=True, tag=185):
    """Another node is alive, reachable at its endpoint."""

    node_id: bytes
    endpoint: str


class UnlinkPeer(Message, frozen=True, tag=186):
    """Another node is dead: nothing is sent to it and nothing is heard from it any more."""

    node_id: bytes


class BuriedAlive(Message, frozen=True, tag=187):
    """This node was declared dead: its process must begin anew, with an empty state and another id."""


class LinkLost(Message, frozen=True, tag=190):
    """The link of a peer to this process was lost: its process is gone, or it links again soon."""

    peer: bytes


class SendChunk(Message, frozen=True, tag=188):
    """Read these bytes of an object, in the arena at ``offset`` or in its file, and send them.

    Answered by one ``ChunkSent``, whatever becomes of it; until then the bytes stay what they are.
    """

    node_id: bytes
    object_id: bytes
    kind: int
    offset: int
    start: int
    size: int


class ReceiveInto(Message, frozen=True, tag=189):
    """Chunks of this object belong in the arena at ``offset``, or in its file; ``size`` 0: nowhere."""

    object_id: bytes
    kind: int
    offset: int
    size: int


class ChunkArrived(Message, frozen=True, tag=184):
    """These bytes are written where ``ReceiveInto`` said."""

    object_id: bytes
    start: int
    size: int


class ChunkSent(Message, frozen=True, tag=287):
    """A ``SendChunk`` is over: its bytes are sent, or never will be, and nobody reads them any more."""

    node_id: bytes
    object_id: bytes
    start: int


class Knock(Message, frozen=True, tag=279):
    """Connect to these endpoints and hang up; answered by ``Knocked`` with the same token and asker."""

    asker: bytes
    token: int
    endpoints: tuple[str, ...]


class Knocked(Message, frozen=True, tag=280):
    """What came of ``Knock``, one sentence per endpoint."""

    asker: bytes
    token: int
    problems: tuple[str, ...]


class ReadLog(Message, frozen=True, tag=283):
    """Read so many bytes of a log file of the session; without a name: say which there are."""

    token: int
    name: str
    start: int  # negative: from the end
    size: int


class LogRead(Message, frozen=True, tag=282):
    """What came of ``ReadLog``, as a JSON document."""

    token: int
    body: bytes


FromDirectory = ShareAcked | ShareReset | ObjectFound | FreeObjects | Rebuild | KeepCopy | CopiesCounted
FromPeer = (
    Claim | Grant | Deny | Declined | Ended | Taken | JobOver | Pull | PullFailed | AskPeer | PeerAnswer
    | AskRawLink | OfferRawLink
)  # fmt: skip
OfHost = (
    LinkPeer
    | UnlinkPeer
    | LinkLost
    | BuriedAlive
    | SendChunk
    | ReceiveInto
    | ChunkArrived
    | ChunkSent
    | Knock
    | Knocked
    | ReadLog
    | LogRead
)

FromScheduler = FromGlobal | Offload | SchedulerHere
ToClusterNode = FromDirectory | FromPeer | FromScheduler | Members | JobContext | NodeList | Probe
ToDirectory = ShareUpdates | Members | ListNodes
ToScheduler = ToGlobal | AskScheduler
OnDataLink = Chunk | PullFailed
ToDoctor = Probed | Refused
"""What a node of a cluster, a shard with its directory or with a global scheduler, and ``zray doctor`` accept
beside ``messages.py``."""
