"""What the control store and the global scheduler cost per task, from the machines that ship.

``sim/costs.json`` charges per message, and a message with lineage holds hundreds of records. Here what two
simulated nodes say to these machines is caught, and pumped through new ones, with the codec around them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec.structs import asdict

from sim.costs import Costs, default_costs
from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import pump
from zray.protocol.cluster import Members
from zray.protocol.codec import batch_decoder, encode_batch
from zray.protocol.messages import (
    Forward,
    NodeHello,
    NodeReport,
    RecordTasks,
    ReleaseLineage,
    ToGlobal,
    ToShard,
)

TO_STORE = (NodeHello, RecordTasks, ReleaseLineage)
TO_SCHEDULER = (Members, NodeReport, Forward)
REPETITIONS = 5

Batch = list[tuple[bytes, Any]]


class ListeningCosts(Costs, frozen=True, kw_only=True):
    """The usual costs; every batch that a node or shard pumps is remembered."""

    heard: list[Batch]

    def of_turn(self, batch: Batch, *, slept: bool) -> int:
        """One turn with this batch."""
        self.heard.append(list(batch))
        return Costs.of_turn(self, batch, slept=slept)


class RecordCosts(Costs, frozen=True):
    """The usual costs, and one for every record of lineage inside a message."""

    record_ns: int = 0

    def of_turn(self, batch: Batch, *, slept: bool) -> int:
        """One turn with this batch."""
        records = sum(len(message.records) for _, message in batch if type(message) is RecordTasks)
        return Costs.of_turn(self, batch, slept=slept) + records * self.record_ns


class PerTask(NamedTuple):
    """Nanoseconds of one processor."""

    record_ns: int
    """One record in the control store: decoded, kept, logged, released."""
    forward_ns: int
    """One forwarded task in the global scheduler: decoded, placed, sent."""

    def costs(self) -> RecordCosts:
        """The shipped costs with these."""
        shipped = asdict(default_costs())
        shipped["handlers"] = {**shipped["handlers"], "Forward": self.forward_ns}
        return RecordCosts(**shipped, record_ns=self.record_ns)


def listening() -> ListeningCosts:
    """Costs for the run that is listened to."""
    return ListeningCosts(**asdict(default_costs()), heard=[])


def per_task(local: ListeningCosts, forwarding: ListeningCosts) -> PerTask:
    """What was heard, pumped again.

    Args:
        local: of a run in which tasks stay on their nodes.
        forwarding: of one in which every task is forwarded.
    """
    batches = _only(local.heard, TO_STORE)
    records = sum(len(m.records) for batch in batches for _, m in batch if type(m) is RecordTasks)
    store_ns = _pumped_ns(_new_store, batches, ToShard)
    batches = _only(forwarding.heard, TO_SCHEDULER)
    forwards = sum(type(message) is Forward for batch in batches for _, message in batch)
    scheduler_ns = _pumped_ns(lambda: GlobalScheduler(config=Config()), batches, ToGlobal | Members)
    return PerTask(store_ns // max(1, records), scheduler_ns // max(1, forwards))


def _only(heard: Sequence[Batch], types: tuple[type, ...]) -> list[Batch]:
    """The batches of one kind of machine."""
    found = [[pair for pair in batch if type(pair[1]) in types] for batch in heard]
    return [batch for batch in found if batch]


def _new_store() -> ControlShard:
    return ControlShard(cluster_id=b"measured-cluster", shard=0, shard_count=1, config=Config())


def _pumped_ns(new: Callable[[], Any], batches: Sequence[Batch], spoken: Any) -> int:
    """Median processor time of a machine for all batches, with decoding them and encoding what follows."""
    decode = batch_decoder(spoken)
    frames = [[(source, encode_batch([message])) for source, message in batch] for batch in batches]
    taken = []
    for _ in range(REPETITIONS):
        machine = new()
        started = time.process_time_ns()
        for number, batch in enumerate(frames):
            decoded = [(source, message) for source, frame in batch for message in decode(frame)]
            pump(machine, decoded, number * 1_000_000)
            encode_batch([message for _, message in machine.out])
            machine.out.clear()
        taken.append(time.process_time_ns() - started)
    return int(statistics.median(taken))
