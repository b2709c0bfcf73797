"""How a driver finds the node of this machine when it is told where the control store is."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from zray.config import Config
from zray.core.membership import GRAVES
from zray.errors import ClusterUnavailableError
from zray.ids import random_id
from zray.protocol.codec import batch_decoder
from zray.protocol.messages import (
    TABLE_KV,
    TABLE_NODE,
    ChainEpoch,
    FromGlobal,
    FromShard,
    NodeHello,
    TablePage,
    TableScan,
)
from zray.runtime.endpoints import knock, local_part
from zray.runtime.transport import Transport

NODES_MAX = 10_000
KEY_DOUBT = " (is ZRAY_KEY_FILE, or --key-file, the key of that cluster?)"
_PEER = b"peer"


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


def _ask(endpoint: str, question: TableScan, config: Config) -> Any:
    """The first message that comes back."""
    timeout_s = config.init_timeout_ns / 1e9
    deadline = time.monotonic() + timeout_s
    transport = Transport(random_id(), batch_decoder(FromShard | FromGlobal), config)
    try:
        transport.connect(_PEER, endpoint)
        transport.send(_PEER, [question])
        while True:
            for _, message in transport.receive(1):
                return message
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                doubt = "" if endpoint.startswith("ipc://") else KEY_DOUBT
                what = f"something listens at {endpoint}{doubt}, but it does not answer like zray"
                raise ClusterUnavailableError(what, timeout_s)
            if not transport.readable():
                transport.wait(max(1, int(left_s * 1000)))
    finally:
        transport.close(linger_ms=0)
