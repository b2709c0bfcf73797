"""Messages of replicated shards: what a log holds, and what replicas and their master say to each other.

The rules of ``messages.py`` hold here too. A chain is the replicas of one shard in order, head first; an
*epoch* is the reign of one list of members. Every message between replicas names its epoch, so that a replica
of an older one is fenced (I9). Paper, section 4.2.1.
"""

from __future__ import annotations

from zray.protocol.base import Message
from zray.protocol.local_messages import ClientGone
from zray.protocol.messages import (
    ChainEpoch,
    ChainMember,
    NodeHello,
    RecordEvents,
    RecordTasks,
    ReleaseLineage,
    TableCas,
    TableDelete,
    TablePut,
    ToGcs,
)

# --- in the log of a shard -----------------------------------------------------------------------


class ShardOpened(Message, frozen=True, tag=240):
    """From the host, after recovery: a new life of the shard begins. In the log it marks where."""


class ShardState(Message, frozen=True, tag=241):
    """First message of every log: whose it is, and what the tables rebuilt after it do not show."""

    cluster_id: bytes
    shard: int
    shard_count: int
    life: int
    truncated: int
    event_first: int  # number of the oldest event kept
    peers: tuple[tuple[bytes, int, int, int], ...]  # (address, incarnation, sequence acknowledged, seen)


Mutation = (
    ShardState | ShardOpened | NodeHello | RecordTasks | ReleaseLineage | TablePut | TableCas | TableDelete
    | RecordEvents | ClientGone
)  # fmt: skip


class Command(Message, frozen=True):
    """What one replica tells the next: this message of this source changed the shard."""

    source: bytes
    message: Mutation


class ChainPosition(Message, frozen=True, tag=242):
    """In the log of a replica: the commands before this one, up to the former position, are number ``have``.

    Everything up to ``committed`` was in all members then.
    """

    epoch: int
    have: int
    committed: int
    members: tuple[ChainMember, ...]
    master: int
    has_state: bool = True


class InFlight(Message, frozen=True, tag=243):
    """In a snapshot of a replica: commands that are in its tables and perhaps not in those of the next."""

    sequence: int
    commands: tuple[Command, ...]


class Logged(Message, frozen=True):
    """Effect for ``LOG``: this message changed the shard, and must be durable before what follows it."""

    source: bytes
    message: Mutation | ChainPosition | InFlight


class RewriteLog(Message, frozen=True, tag=244):
    """Effect for ``LOG``: the history is void; write a snapshot in its place before anything leaves."""


# --- replica -> master ---------------------------------------------------------------------------


class ReplicaHello(Message, frozen=True, tag=142):
    """Introduction and heartbeat of a replica: all that a master which starts anew must know of it."""

    version: int
    cluster_id: bytes
    shard: int
    shard_count: int
    incarnation: int
    endpoint: str
    host: str
    pid: int
    epoch: int  # the newest it knows; 0: none
    members: tuple[ChainMember, ...]  # of that epoch
    master: int  # life of the master that made it
    have: int
    committed: int
    has_state: bool  # its tables are those of a member
    address: bytes  # its own


class Admitted(Message, frozen=True, tag=145):
    """Tail -> master: nothing is committed any more without the joiner; or, not ``ok``, it is too slow."""

    epoch: int
    joiner: ChainMember
    ok: bool = True


# --- master -> replica (and ChainEpoch) ----------------------------------------------------------


class Admit(Message, frozen=True, tag=144):
    """Master -> tail: give your state to this replica, then let it follow you."""

    epoch: int
    joiner: ChainMember
    master: int


# --- replica <-> replica -------------------------------------------------------------------------


class Replicate(Message, frozen=True, tag=146):
    """Towards the tail: the commands of one number; number 0 only asks for ``ReplicaAck``."""

    epoch: int
    sequence: int
    commands: tuple[Command, ...] = ()


class ReplicaAck(Message, frozen=True, tag=147):
    """Towards the head: the sender has everything up to ``have``, the tail up to ``committed``."""

    epoch: int
    have: int
    committed: int


class StatePiece(Message, frozen=True, tag=148):
    """Tail -> joiner: the next piece of the tables as they were at ``sequence``."""

    epoch: int
    number: int
    sequence: int
    commands: tuple[Command, ...]
    last: bool = False


class PieceTaken(Message, frozen=True, tag=149):
    """Joiner -> tail: this many pieces are here."""

    epoch: int
    pieces: int


# --- a master and the process that hosts it ------------------------------------------------------


class ReplicaLost(Message, frozen=True, tag=150):
    """This life of a replica is over: its process is gone."""

    address: bytes
    incarnation: int


ReplicaLinks = ChainEpoch | Admit | Replicate | ReplicaAck | StatePiece | PieceTaken
ToReplica = ToGcs | ReplicaLinks
ToMaster = ReplicaHello | Admitted
ToLog = ChainPosition | InFlight | RewriteLog | ReplicaLost
"""What never crosses a socket."""
