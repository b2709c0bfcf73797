"""Every message of zray, grouped by link.

Rules: a tag is a permanent integer; fields are appended, never removed, reordered or reused; every message
between processes is idempotent by ``(task_id, attempt)`` or by ``object_id``. A golden-bytes test freezes
the encoding. Ids are the 16 bytes of ``zray.ids``; sizes are bytes; resource amounts are whole numbers of
1/10,000 (``RESOURCE_UNIT``): sums of fractions stay exact. Small values travel inside messages as opaque
bytes (``Value.data``): machines carry them and never look.
"""

from __future__ import annotations

from zray.protocol.base import InGroup as InGroup
from zray.protocol.base import Message as Message
from zray.protocol.base import Value as Value
from zray.protocol.strategies import Labels, Strategy
from zray.protocol.user_messages import VALUES, UserDirect, UserFromNode, UserToNode
from zray.protocol.user_messages import Call as Call
from zray.protocol.user_messages import Reply as Reply

PROTOCOL_VERSION = 1
RESOURCE_UNIT = 10_000

Demand = tuple[tuple[str, int], ...]
"""Resources as ``((name, amount), ...)``, sorted by name, amounts in 1/RESOURCE_UNIT, none zero."""

# Where a value is (Value.kind).
INLINE = 0  # in Value.data
ERROR = 1  # an error value, in Value.data
EXTENT = 2  # in the node's arena at Value.offset
FILE = 3  # in the node's spill directory, file name = object id in hex
AT_NODE = 5  # sealed in the node's store; Get it to look at it
FAULT = 4  # a fault of the system, in Value.data (zray.protocol.faults)

# What a process is (Hello.role).
DRIVER = 0
WORKER = 1

# What a descriptor describes (Describe.kind).
TASK = 0
ACTOR = 1

# Life of an actor (ActorState.state).
ACTOR_PENDING = 0
ACTOR_ALIVE = 1
ACTOR_DEAD = 2
ACTOR_RESTARTING = 3


# --- driver or worker -> node -------------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """First message of a process. Its layout never changes, so that versions can be compared."""

    version: int
    role: int
    pid: int
    job_id: bytes  # root task id of the job; NIL_ID for a worker
    endpoint: str = ""  # where a worker takes direct calls
    sys_path: tuple[str, ...] = ()  # where the job's modules are found
    working_dir: str = ""


class Goodbye(Message, frozen=True, tag=2):
    """The sender leaves on purpose; everything it held may go."""


class Describe(Message, frozen=True, tag=3):
    """What many tasks have in common, sent once per link and named by content afterwards."""

    descriptor_id: bytes
    function_id: bytes
    name: str
    num_returns: int
    demand: Demand
    max_retries: int  # -1: without end
    kind: int = TASK
    retry_exceptions: bool = False
    retry_on: bytes = b""  # pickled tuple of the exceptions that are worth another attempt; empty: all
    returns: int = VALUES
    unconsumed_max: int = 0  # items a stream is ahead of its reader; 0: no bound
    max_calls: int = 0  # tasks after which a worker ends; 0: never
    max_restarts: int = 0  # of an actor; -1: without end
    max_concurrency: int = 1  # calls of an actor at once
    concurrency_groups: tuple[tuple[str, int], ...] = ()
    actor_name: tuple[str, str] = ("", "")  # namespace and name
    handle: bytes = b""  # of a named actor: with its id, all that others need to call it
    detached: bool = False  # the actor outlives its job
    environment: str = ""  # a runtime environment as canonical JSON
    checkpoint_interval: int = -1  # calls of an actor between checkpoints; 0: on demand; -1: it has none
    records_calls: bool = False  # what an actor did since its checkpoint is repeated when it is made again
    spread: bool = False  # every task goes to the node with the fewest tasks, wherever its inputs are
    strategy: Strategy | None = None  # which nodes it may run on
    in_group: InGroup | None = None  # ``demand`` then names resources of the group


class ExportFunction(Message, frozen=True, tag=4):
    """The pickled code of a function or class, sent once per link, named by its digest."""

    function_id: bytes
    code: bytes


class Submit(Message, frozen=True, tag=5):
    """Run this task. Its return ids follow from ``task_id``; the sender holds them from now on."""

    task_id: bytes
    parent_id: bytes
    descriptor_id: bytes
    args: bytes
    deps: tuple[bytes, ...] = ()  # objects whose values the task gets
    borrowed: tuple[bytes, ...] = ()  # refs pickled inside args: kept alive until the task ends
    attempt: int = 0  # a lease was lost with the attempts before it, which may have run


class Get(Message, frozen=True, tag=6):
    """Look up or subscribe: one ``ObjectReady`` per id, now or when it is sealed.

    Without ``fetch`` a large value is only announced (``AT_NODE``), not shown and not pinned.
    """

    object_ids: tuple[bytes, ...]
    fetch: bool = True


class Acquire(Message, frozen=True, tag=7):
    """The sender now holds these objects. ``token`` != 0 asks for ``Acked``."""

    object_ids: tuple[bytes, ...]
    token: int = 0


class Release(Message, frozen=True, tag=8):
    """The sender no longer holds these objects."""

    object_ids: tuple[bytes, ...]


class Unpin(Message, frozen=True, tag=9):
    """The sender no longer looks at the arena memory of these; one id per ``EXTENT`` it was sent."""

    object_ids: tuple[bytes, ...]


class Publish(Message, frozen=True, tag=10):
    """A value that lived in the sender alone and is now known to the node."""

    object_id: bytes
    value: Value


class Promise(Message, frozen=True, tag=11):
    """The sender will ``Publish`` these objects when the replies of its actor calls arrive."""

    object_ids: tuple[bytes, ...]


class Create(Message, frozen=True, tag=12):
    """Allocate room for a value; answered by ``Created`` or ``CreateFailed``."""

    object_id: bytes
    size: int
    holder: bytes = b""  # who holds the object; empty: the sender


class Seal(Message, frozen=True, tag=13):
    """The bytes are written and never change again."""

    object_id: bytes
    contained: tuple[bytes, ...] = ()
    is_error: bool = False


class Abort(Message, frozen=True, tag=14):
    """The sender gives up on an object it created and did not seal."""

    object_id: bytes


class WatchActor(Message, frozen=True, tag=15):
    """Answer with ``ActorState`` now and at every change."""

    actor_id: bytes


class KillActor(Message, frozen=True, tag=16):
    """End an actor at once."""

    actor_id: bytes
    no_restart: bool = True


class Query(Message, frozen=True, tag=17):
    """Ask the node for a report; answered by ``Answer`` with the same token."""

    token: int
    what: str


class HoldFor(Message, frozen=True, tag=18):
    """Keep these objects for ``holder``, before the sender lets go of them; asks for ``Acked``.

    With an empty holder: the sender has received what the actor ``giver`` handed to it, and holds it now.
    """

    holder: bytes
    object_ids: tuple[bytes, ...]
    token: int
    giver: bytes = b""


class LetGo(Message, frozen=True, tag=19):
    """The sender knows that an actor is dead: what it handed over and the sender did not take may go."""

    actor_id: bytes


class LeasedReply(Message, frozen=True, tag=211):
    """Worker to the submitter: a task of the lease ended with a small value that contains no refs."""

    lease_id: int
    task_id: bytes
    value: Value
    run_ns: int
    failed: bool = False


class TaskDone(Message, frozen=True, tag=20):
    """Worker: the attempt ended with these values (user errors included)."""

    task_id: bytes
    attempt: int
    values: tuple[Value, ...]
    run_ns: int
    failed: bool = False  # the user's code raised
    is_final: bool = False  # another attempt would be of no use


class Blocked(Message, frozen=True, tag=21):
    """Worker: the running task waits in ``get`` or ``wait``; its CPUs may be lent out."""

    task_id: bytes


class Unblocked(Message, frozen=True, tag=22):
    """Worker: the task goes on."""

    task_id: bytes


class Returned(Message, frozen=True, tag=23):
    """Worker: these tasks were sent to it and not started; it will not start them."""

    task_ids: tuple[bytes, ...]


class LeasedDone(Message, frozen=True, tag=24):
    """A task of a lease ended: its record, and from the worker its value for the node to keep.

    The submitter sends it later, without a value: that stays with it, or follows as ``Publish`` if ``kept``.
    """

    lease_id: int
    spec: Submit
    run_ns: int
    failed: bool
    kept: bool = True  # the submitter still refers to the return object
    value: Value | None = None


class ReturnLease(Message, frozen=True, tag=25):
    """Submitter: it needs a lease no more, and nothing that it sent with it is unanswered."""

    lease_id: int


class LeaseReady(Message, frozen=True, tag=26):
    """Worker: it listens for submitters."""


class LeaseEnded(Message, frozen=True, tag=27):
    """Worker: it takes no more tasks of this lease. ``last`` is its latest reply in it, if there was any."""

    lease_id: int
    last: LeasedReply | None = None


# --- node -> driver or worker -------------------------------------------------------------------


class Welcome(Message, frozen=True, tag=50):
    """Answer to ``Hello``."""

    version: int
    node_id: bytes
    arena_path: str
    arena_bytes: int
    spill_dir: str
    inline_bytes_max: int


class Refused(Message, frozen=True, tag=51):
    """The peer's message was not accepted; the link is of no use until it is mended."""

    reason: str  # one word: "version", "garbage", "unknown-peer", "closing"
    detail: str


class ObjectReady(Message, frozen=True, tag=52):
    """The value of an object. ``EXTENT`` pins it for the receiver, who owes one ``Unpin``."""

    object_id: bytes
    value: Value


class Created(Message, frozen=True, tag=53):
    """Write the value at ``offset`` of the arena (``EXTENT``), or into its own file (``FILE``)."""

    object_id: bytes
    kind: int
    offset: int


class CreateFailed(Message, frozen=True, tag=54):
    """The value can never be stored on this node."""

    object_id: bytes
    need_bytes: int
    capacity_bytes: int
    detail: str = ""


class ActorState(Message, frozen=True, tag=55):
    """Where an actor is. ``cause`` is what its calls end with once it is dead."""

    actor_id: bytes
    state: int
    address: bytes = b""
    endpoint: str = ""
    cause: Value | None = None


class Warn(Message, frozen=True, tag=56):
    """A sentence for the person at the driver."""

    text: str


class Credit(Message, frozen=True, tag=57):
    """The node absorbed this many of the receiver's tasks; the submission window opens by as many."""

    tasks: int


class Acked(Message, frozen=True, tag=58):
    """Answer to ``Acquire`` and ``HoldFor``."""

    token: int


class Answer(Message, frozen=True, tag=59):
    """Answer to ``Query``: a JSON document."""

    token: int
    body: bytes


class Run(Message, frozen=True, tag=60):
    """Worker: run this attempt. Dependencies come with their values, in order."""

    task_id: bytes
    attempt: int
    descriptor_id: bytes
    args: bytes
    deps: tuple[ObjectReady, ...] = ()
    job_id: bytes = b""


class Recall(Message, frozen=True, tag=61):
    """Worker: give back (``Returned``) every task that was sent and not started."""


class Exit(Message, frozen=True, tag=62):
    """Worker: end once the calls already here are done."""

    reason: str


class JobContext(Message, frozen=True, tag=63):
    """Worker: how to import the modules of a job."""

    job_id: bytes
    sys_path: tuple[str, ...]
    working_dir: str
    namespace: str = ""
    environment: str = ""  # what a task of the job runs in that asks for nothing else
    detached: bool = False  # it is that of a detached actor, and goes on when its home dies


class PrepareLease(Message, frozen=True, tag=80):
    """Worker: listen for submitters to which it may be leased."""


class EndLease(Message, frozen=True, tag=81):
    """Worker: take no more tasks of this lease and those before, and say so after the one that runs."""

    lease_id: int


class Lease(Message, frozen=True, tag=82):
    """Submitter: send lone tasks of this kind straight to this worker, one at a time."""

    lease_id: int
    descriptor_id: bytes
    address: bytes
    endpoint: str


class LeaseGone(Message, frozen=True, tag=83):
    """Submitter: the lease is over. What was sent with it did not run, except ``last`` or ``running``."""

    lease_id: int
    last: LeasedReply | None = None
    running: bytes = b""  # the task during which the worker was lost


# --- node -> GCS shard ---------------------------------------------------------------------------


class TaskRecord(Message, frozen=True):
    """Lineage of one task: all that is needed to run it again."""

    task_id: bytes
    parent_id: bytes
    descriptor_id: bytes
    args: bytes
    deps: tuple[bytes, ...]
    node_id: bytes
    attempt: int
    state: int
    actor_id: bytes = b""
    released: bool = False  # nobody needs it any more; kept for people to look at while there is room
    job_id: bytes = b""
    borrowed: tuple[bytes, ...] = ()


TASK_FINISHED = 0  # TaskRecord.state
TASK_FAILED = 1  # ended with a user's error or a lost worker
TASK_PENDING = 2


class NodeHello(Message, frozen=True, tag=100):
    """First message of a node to a shard. The layout of the first seven fields never changes."""

    version: int
    node_id: bytes
    incarnation: int
    pid: int
    host: str
    endpoint: str
    total: Demand
    labels: Labels = ()


class RecordTasks(Message, frozen=True, tag=101):
    """Write-behind lineage; acknowledged by ``Recorded`` with the same ``sequence``."""

    sequence: int
    records: tuple[TaskRecord, ...]


class ReleaseLineage(Message, frozen=True, tag=102):
    """These tasks will never be run again; no acknowledgement."""

    task_ids: tuple[bytes, ...]


class TablePut(Message, frozen=True, tag=103):
    """Write one key; acknowledged by ``TableReply``."""

    token: int
    table: int
    key: bytes
    value: bytes


class TableGet(Message, frozen=True, tag=104):
    """Read one key; answered by ``TableReply``."""

    token: int
    table: int
    key: bytes


class TableCas(Message, frozen=True, tag=105):
    """Write ``value`` only if the key holds ``expected`` (``None``: only if it is absent)."""

    token: int
    table: int
    key: bytes
    expected: bytes | None
    value: bytes


class TableDelete(Message, frozen=True, tag=106):
    """Delete one key; acknowledged by ``TableReply``."""

    token: int
    table: int
    key: bytes
    expected: bytes | None = None  # only if the key holds this


class TableSubscribe(Message, frozen=True, tag=107):
    """Look up or subscribe in one step (paper, figure 7b): the value now, or one ``TableChanged`` later."""

    token: int
    table: int
    key: bytes


class TableUnsubscribe(Message, frozen=True, tag=108):
    """Take a subscription back; no answer."""

    table: int
    key: bytes


class TableScan(Message, frozen=True, tag=109):
    """Up to ``limit`` entries with keys above ``after``; answered by ``TablePage``."""

    token: int
    table: int
    after: bytes
    limit: int


class RecordEvents(Message, frozen=True, tag=110):
    """Append opaque events to the bounded event table; no acknowledgement."""

    events: tuple[bytes, ...]


# Tables of a shard. The task table is written by RecordTasks only.
TABLE_OBJECT = 0
TABLE_TASK = 1
TABLE_FUNCTION = 2
TABLE_ACTOR = 3
TABLE_NODE = 4
TABLE_JOB = 5
TABLE_KV = 6
TABLE_EVENT = 7
TABLE_DESCRIPTOR = 8


# --- GCS shard -> node ---------------------------------------------------------------------------


class ShardWelcome(Message, frozen=True, tag=120):
    """Answer to ``NodeHello``."""

    version: int
    cluster_id: bytes
    shard: int
    shard_count: int


class Recorded(Message, frozen=True, tag=121):
    """Every record up to and including ``sequence`` is durable."""

    sequence: int


class TableReply(Message, frozen=True, tag=122):
    """Answer to a table request. ``ok`` is false for a missing key or a lost compare-and-set."""

    token: int
    ok: bool
    value: bytes | None = None  # what the key holds now


class TableChanged(Message, frozen=True, tag=123):
    """A subscribed key has a value now; the subscription is spent."""

    table: int
    key: bytes
    value: bytes


class TablePage(Message, frozen=True, tag=124):
    """Answer to ``TableScan``: entries in key order. ``more``: a page ends where its bytes did, ask on."""

    token: int
    entries: tuple[tuple[bytes, bytes], ...]
    more: bool = False


class ChainMember(Message, frozen=True):
    """One life of a replica, and where it listens."""

    address: bytes
    incarnation: int
    endpoint: str = ""


class ChainEpoch(Message, frozen=True, tag=143):
    """The members of a chain from this epoch on, head first. Passed on to who knows less."""

    shard: int
    epoch: int
    members: tuple[ChainMember, ...]
    master: int  # life of the master that decided it


# --- node <-> global scheduler (hosted by zray-gcs) ---------------------------------------------


class NodeReport(Message, frozen=True, tag=130):
    """Load of a node, sent when it changed and at least every heartbeat interval."""

    node_id: bytes
    incarnation: int
    total: Demand
    free: Demand
    backlog: int  # tasks kept and not started
    run_ns: int  # exponential average of recent run times
    bandwidth: int  # exponential average of transfers, bytes per second; 0: unknown
    epoch: int = 0  # of the newest ``Members`` it heard
    pulling: int = 0  # bytes of copies that it wants and has not got
    labels: Labels = ()


class Forward(Message, frozen=True, tag=131):
    """Local -> global: place this task. ``hops`` counts how often it was placed before."""

    spec: Submit
    descriptor: Describe
    hops: int
    inputs: tuple[tuple[bytes, int, tuple[bytes, ...]], ...] = ()  # (object, size, nodes that hold it)
    origin: bytes = b""  # where it was submitted, if that is not the sender
    run_ns: int = 0  # what such a task takes, where it ran before
    parked_ns: int = 0  # for how long another scheduler is known to have had it without a node for it
    kept: int = 0  # how many such tasks the sender has kept since its last report


class Withdraw(Message, frozen=True, tag=132):
    """Local -> global: the task was cancelled or its job is gone."""

    task_id: bytes


class Place(Message, frozen=True, tag=140):
    """Global -> local: keep this task."""

    spec: Submit
    descriptor: Describe
    hops: int
    origin: bytes = b""  # where it was submitted, if that is not the receiver


class Infeasible(Message, frozen=True, tag=141):
    """Global -> local: no node can run the task. It waits, unless ``verdict`` says why it has to end."""

    task_id: bytes
    name: str
    demand: Demand
    nodes: tuple[str, ...]  # one sentence each
    verdict: str = ""


# --- submitter <-> the worker that is leased to it -------------------------------------------------


class LeasedRun(Message, frozen=True, tag=210):
    """Run a task. The next one is sent once this one is answered."""

    lease_id: int
    spec: Submit


FromClient = (
    Hello | Goodbye | Describe | ExportFunction | Submit | Get | Acquire | Release | Unpin | Publish
    | Promise | Create | Seal | Abort | WatchActor | KillActor | Query | HoldFor | LetGo | TaskDone
    | Blocked | Unblocked | Returned | LeasedDone | ReturnLease | LeaseReady | LeaseEnded | UserToNode
)  # fmt: skip
ToClient = (
    Welcome | Refused | ObjectReady | Created | CreateFailed | ActorState | Warn | Credit | Acked
    | Answer | Run | Recall | Exit | JobContext | Describe | ExportFunction | PrepareLease | EndLease | Lease
    | LeaseGone | UserFromNode
)  # fmt: skip
ToShard = (
    NodeHello | RecordTasks | ReleaseLineage | TablePut | TableGet | TableCas | TableDelete | TableSubscribe
    | TableUnsubscribe | TableScan | RecordEvents
)  # fmt: skip
FromShard = ShardWelcome | Recorded | TableReply | TableChanged | TablePage | ChainEpoch | Refused
ToGlobal, FromGlobal = NodeReport | Forward | Withdraw, Place | Infeasible
Direct = Call | Reply | LeasedRun | LeasedReply | UserDirect
ToNode = FromClient | FromShard | FromGlobal  # what a node accepts
ToGcs = ToShard | ToGlobal  # a GCS shard
ToProcess = ToClient | Direct  # a driver or worker
