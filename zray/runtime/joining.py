"""How a driver finds the node of this machine when it is told where the control store is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from zray.config import Config
from zray.core.machine import Address
from zray.core.membership import GRAVES
from zray.errors import ClusterUnavailableError
from zray.ids import random_id
from zray.protocol.cluster import FromScheduler
from zray.protocol.codec import batch_decoder
from zray.protocol.messages import (
    TABLE_KV,
    TABLE_NODE,
    ChainEpoch,
    FromShard,
    NodeHello,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)
from zray.runtime.endpoints import knock, local_part, replica_address
from zray.runtime.transport import Transport

NODES_MAX = 10_000
KEY_DOUBT = " (is ZRAY_KEY_FILE, or --key-file, the key of that cluster?)"
ANSWERS_S = 0.5
"""How long replicas may take to answer; those that are dead never do."""
RETRY_MS = 20


def node_of_control_store(endpoint: str, config: Config) -> NodeHello | None:
    """The newest living node of this machine in the cluster of the control store at ``endpoint``.

    Returns:
        ``None`` if who answers there speaks for zray and is no control store, so it must be a node.
    Raises:
        ClusterUnavailableError: if what listens there does not answer like zray, or the cluster has no
            node on this machine.
    """
    question = TableScan(1, TABLE_NODE, b"", NODES_MAX)
    answer = _ask(endpoint, question, config)
    if isinstance(answer, ChainEpoch):  # another replica of the shard is the head
        answer = _ask(answer.members[0].endpoint, question, config)
    if not isinstance(answer, TablePage):
        return None
    decode = msgspec.msgpack.Decoder(NodeHello).decode
    nodes = [decode(value) for _, value in answer.entries]
    nodes.sort(key=lambda node: node.incarnation, reverse=True)
    for node in nodes:
        if _is_here(node):
            return node
    raise ClusterUnavailableError(
        f"the control store at {endpoint} answers, but its cluster has no node on this machine; start one "
        f"with: zray start --address {endpoint}",
        0.0,
    )


def living_nodes(endpoint: str, config: Config) -> list[NodeHello]:
    """The nodes that the control store at ``endpoint`` knows and does not count as dead.

    Args:
        endpoint: of the first shard; those of its replicas with commas between them.
    Raises:
        ClusterUnavailableError: if no control store answers there.
    """
    dead = {key[len(GRAVES) :] for key in _keys(endpoint, TABLE_KV, GRAVES, config)}
    nodes = _keys(endpoint, TABLE_NODE, b"", config)
    decode = msgspec.msgpack.Decoder(NodeHello).decode
    return [decode(value) for key, value in nodes.items() if key not in dead]


def _keys(endpoint: str, table: int, prefix: bytes, config: Config) -> dict[bytes, bytes]:
    """The entries of a table whose keys begin with ``prefix``."""
    found: dict[bytes, bytes] = {}
    after, more = prefix, True
    while more:
        page = _ask(endpoint, TableScan(1, table, after, NODES_MAX), config)
        if not isinstance(page, TablePage):
            raise ClusterUnavailableError(f"what listens at {endpoint} is no control store", 0.0)
        inside = {key: value for key, value in page.entries if key.startswith(prefix)}
        found |= inside
        more = page.more and len(inside) == len(page.entries)
        after = page.entries[-1][0] if page.entries else after
    return found


def _is_here(node: NodeHello) -> bool:
    endpoint = local_part(node.endpoint)
    if not endpoint.startswith("ipc://"):
        return False
    try:
        return knock(endpoint) in (node.pid, 0)
    except OSError:
        return False


def members_of_chain(shard: int, endpoints: str, config: Config) -> list[int]:
    """The numbers of the replicas that are in the chain of a shard, the head first.

    Replicas that are not the head tell; a head that nobody else speaks of is alone.

    Args:
        endpoints: of all replicas by number, with commas between them.
    Raises:
        ClusterUnavailableError: if none of them answers.
    """
    numbers = {replica_address(shard, number): number for number in range(len(endpoints.split(",")))}
    newest: ChainEpoch | None = None
    heads: list[int] = []
    with _asking(shard, endpoints, config) as transport:
        for source, message in _answers(transport, list(numbers), TableGet(1, TABLE_KV, b""), ANSWERS_S):
            if isinstance(message, TableReply):
                heads.append(numbers[source])
            elif isinstance(message, ChainEpoch) and (newest is None or message.epoch > newest.epoch):
                newest = message
    if newest is not None:
        return [numbers[member.address] for member in newest.members]
    if not heads:
        raise ClusterUnavailableError(f"no replica of shard {shard} answers at {endpoints}", ANSWERS_S)
    return heads[:1]


@contextlib.contextmanager
def _asking(shard: int, endpoints: str, config: Config) -> Iterator[Transport]:
    """A transport with links to all replicas of a shard."""
    transport = Transport(random_id(), batch_decoder(FromShard | FromScheduler), config)
    try:
        for number, endpoint in enumerate(endpoints.split(",")):
            transport.connect(replica_address(shard, number), endpoint)
        yield transport
    finally:
        transport.close(linger_ms=0)


def _answers(
    transport: Transport, asked: list[Address], question: Any, timeout_s: float
) -> Iterator[tuple[Address, Any]]:
    """What comes back from those who are asked, until each has answered or the time is over."""
    deadline = time.monotonic() + timeout_s
    for address in asked:
        transport.send(address, [question])
    open_questions = dict.fromkeys(asked)
    while open_questions and (left_s := deadline - time.monotonic()) > 0:
        if not transport.readable():
            transport.wait(max(1, int(left_s * 1000)))
        for source, message in transport.receive(len(asked)):
            open_questions.pop(source, None)
            yield source, message


def _ask(endpoints: str, question: TableScan, config: Config) -> Any:
    """The first answer; of replicas that of the head, which is asked for until there is one."""
    timeout_s = config.init_timeout_ns / 1e9
    deadline = time.monotonic() + timeout_s
    several = "," in endpoints
    with _asking(0, endpoints, config) as transport:
        asked = [replica_address(0, number) for number in range(endpoints.count(",") + 1)]
        while (left_s := deadline - time.monotonic()) > 0:
            for _, message in _answers(transport, asked, question, ANSWERS_S if several else left_s):
                if not several or not isinstance(message, ChainEpoch):
                    return message
            transport.wait(RETRY_MS)
    doubt = "" if endpoints.startswith("ipc://") else KEY_DOUBT
    what = f"something listens at {endpoints}{doubt}, but it does not answer like zray"
    raise ClusterUnavailableError(what, timeout_s)
