"""A node acts on no message that no zray would send, whoever sends it and in whatever order."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from tests.chain_world import World
from tests.nonsense import invented, types_of
from zray.config import Config
from zray.core import checks
from zray.core.control_shard import ControlShard
from zray.core.global_scheduler import GlobalScheduler
from zray.core.identity import NodeIdentity
from zray.core.machine import pump
from zray.core.membership import Membership
from zray.core.node import Node
from zray.core.object_directory import ObjectDirectory
from zray.errors import RemoteProtocolError
from zray.protocol.chain import ToMaster, ToReplica
from zray.protocol.cluster import Members, ToClusterNode, ToDirectory, ToScheduler
from zray.protocol.codec import batch_decoder, decode_for_gcs, decode_for_node, encode_batch
from zray.protocol.messages import (
    ACTOR,
    DRIVER,
    PROTOCOL_VERSION,
    WORKER,
    Create,
    Describe,
    Hello,
    Refused,
    ToGcs,
    ToNode,
    Warn,
)

DRIVER_ADDRESS = b"driver"
PEER = b"p" * 16


@pytest.fixture
def node() -> Node:
    """A node with a driver and an idle worker."""
    identity = NodeIdentity(node_id=b"n" * 16, arena_bytes=1 << 20)
    found = Node(identity, total=(("CPU", 20_000),), shards=(b"gcs-0000",), config=Config())
    worker = found.pool.start(0)
    driver_hello = Hello(PROTOCOL_VERSION, DRIVER, 1, b"j" * 16)
    worker_hello = Hello(PROTOCOL_VERSION, WORKER, 2, b"")
    pump(found, [(DRIVER_ADDRESS, driver_hello), (worker.worker_id, worker_hello)], 1)
    found.out.clear()
    return found


@pytest.mark.parametrize("seed", range(25))
def test_no_nonsense_breaks_an_invariant(node: Node, seed: int) -> None:
    dice = random.Random(seed)
    types = types_of(ToNode | ToClusterNode)
    [worker_id] = node.pool.workers
    for now_ns in range(2, 300):
        with suppress(RemoteProtocolError, UnicodeEncodeError):
            batch = decode_for_node(encode_batch([invented(dice, dice.choice(types))]))
            source = dice.choice((DRIVER_ADDRESS, worker_id, b"stranger"))
            pump(node, [(source, message) for message in batch], now_ns)
            node.out.clear()
        if now_ns % 20 == 0:
            node.check()


@pytest.mark.parametrize("seed", range(40))
def test_no_nonsense_of_another_node_breaks_an_invariant(node: Node, seed: int) -> None:
    dice = random.Random(seed)
    types = types_of(ToClusterNode)
    pump(node, [(b"gcs-0000", Members(1, ((b"n" * 16, ""), (PEER, ""))))], 2)
    for now_ns in range(3, 300):
        with suppress(RemoteProtocolError, UnicodeEncodeError):
            batch = decode_for_node(encode_batch([invented(dice, dice.choice(types))]))
            if not any(isinstance(message, Members) for message in batch):
                pump(node, [(PEER, message) for message in batch], now_ns)
            node.out.clear()
        if now_ns % 20 == 0:
            node.check()


@pytest.mark.parametrize("seed", range(25))
def test_no_nonsense_breaks_a_shard_or_the_global_scheduler(seed: int) -> None:
    dice = random.Random(seed)
    types = types_of(ToGcs | ToDirectory | ToScheduler)
    config = Config()
    shard = ControlShard(cluster_id=b"c" * 16, shard=0, shard_count=1, config=config)
    directory = ObjectDirectory(config=config, record_of=shard.tasks.records.get)
    membership = Membership(store=b"gcs-0000", life=lambda: 0, config=config)
    machines: list[Any] = [shard, GlobalScheduler(config=config), directory, membership]
    for now_ns in range(2, 300 * 10**8, 10**8):
        with suppress(RemoteProtocolError, UnicodeEncodeError):
            batch = decode_for_gcs(encode_batch([invented(dice, dice.choice(types))]))
            for machine in machines:
                theirs = [(b"peer", message) for message in batch if type(message) in machine.HANDLERS]
                pump(machine, theirs, now_ns)
                machine.out.clear()
    for machine in machines:
        machine.check()
    assert encode_batch(list(shard.snapshot()))


@pytest.mark.parametrize("seed", range(25))
def test_no_nonsense_of_a_stranger_breaks_a_replica_or_the_master(seed: int) -> None:
    dice = random.Random(seed)
    world = World(2)
    world.settle(6)
    machines: list[Any] = [*world.replicas.values(), world.master]
    types = types_of(ToReplica | ToMaster)
    decode = batch_decoder(ToReplica | ToMaster)
    for now_ns in range(world.now_ns, world.now_ns + 300):
        with suppress(RemoteProtocolError, UnicodeEncodeError):
            batch = decode(encode_batch([invented(dice, dice.choice(types))]))
            for machine in machines:
                theirs = [(b"stranger", message) for message in batch if type(message) in machine.HANDLERS]
                pump(machine, theirs, now_ns)
                machine.out.clear()
                machine.check()
    assert {replica.epoch for replica in world.replicas.values()} == {1}
    world.settle(60)
    assert [world.tables(replica) for replica in world.chain()] == 2 * [world.tables(world.chain()[0])]


def descriptor(**changed: object) -> Describe:
    fields = {"num_returns": 1, "demand": (("CPU", 10_000),), "max_retries": 3, **changed}
    return Describe(b"d" * 16, b"f" * 16, "f", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [
        Hello(PROTOCOL_VERSION, 2, 1, b"j" * 16),
        Hello(PROTOCOL_VERSION, DRIVER, 1, b"short"),
        descriptor(num_returns=-1),
        descriptor(num_returns=checks.NUM_RETURNS_MAX + 1),
        descriptor(kind=7),
        descriptor(kind=ACTOR, num_returns=0),
        descriptor(max_retries=-2),
        descriptor(demand=(("CPU", 0),)),
        descriptor(demand=(("CPU", -1),)),
        descriptor(demand=(("GPU", 1), ("CPU", 1))),
        descriptor(demand=(("CPU", 1), ("CPU", 1))),
        Create(b"o" * 16, -1),
        Create(b"short", 1),
    ],
)
def test_nonsense_is_refused_and_logged(node: Node, message: object) -> None:
    pump(node, [(DRIVER_ADDRESS, message)], 2)
    [(source, refused), (_, warning)] = node.out
    assert (source, type(refused), refused.reason) == (DRIVER_ADDRESS, Refused, "garbage")
    assert isinstance(warning, Warn)
    assert refused.detail in warning.text
    node.check()


@pytest.mark.parametrize("message", [descriptor(), descriptor(num_returns=0), descriptor(demand=())])
def test_sense_is_not_refused(node: Node, message: Describe) -> None:
    assert checks.problem_of_descriptor(message) == ""
