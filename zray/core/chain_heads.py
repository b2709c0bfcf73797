"""Which replica of each shard a node speaks to: the head of its chain, as far as the node has heard.

Replicas tell who asked them of every new epoch; the newest one counts. A shard that is not replicated has one
address for ever and nothing of this happens.
"""

from __future__ import annotations

from zray.config import Config
from zray.core.machine import RUNTIME, Address, Effect
from zray.protocol.messages import ChainEpoch, Refused, ShardWelcome


class ChainHeads:
    """The heads by shard, in ``heads``: one list, shared with whoever sends to shards.

    Args:
        shards: the first address of each shard.
        replicas: all addresses of each shard; empty: they are not replicated.
    """

    def __init__(
        self, shards: tuple[Address, ...], replicas: tuple[tuple[Address, ...], ...], config: Config
    ) -> None:
        self.heads = list(shards)
        self.replicas = [dict.fromkeys(chain) for chain in replicas]
        self.epochs = [0] * len(shards)
        self._asked_ns = 0
        self._pause_ns = 10 * config.heartbeat_interval_ns

    def everybody(self) -> list[Address]:
        """Who is greeted at the start: any replica can name the head."""
        if not self.replicas:
            return list(self.heads)
        return [address for chain in self.replicas for address in chain]

    def others_due(self, now_ns: int) -> list[Address]:
        """Replicas that are not heads, once a second: the news of a new head may have been lost."""
        if not self.replicas or self._asked_ns + self._pause_ns > now_ns:
            return []
        self._asked_ns = now_ns
        return [address for address in self.everybody() if address not in self.heads]

    def check_place(self, shard: Address, message: ShardWelcome) -> list[Effect]:
        """Tell the host if a shard is not the one it should be: its records would not be found again."""
        expected = self.heads.index(shard), len(self.heads)
        if (message.shard, message.shard_count) == expected:
            return []
        found = f"{message.shard}/{message.shard_count}"
        detail = f"shard {found} answers where {expected[0]}/{expected[1]} should"
        return [(RUNTIME, Refused("shard", detail))]

    def follow(self, message: ChainEpoch) -> tuple[Address, Address]:
        """Speak to the head that was learnt from now on; the one before, and that one."""
        former, head = self.heads[message.shard], message.members[0].address
        self.heads[message.shard] = head
        return former, head

    def learn(self, source: Address, message: ChainEpoch) -> bool:
        """Whether a replica of the shard says something new about it; ``heads`` is not changed yet."""
        shard = message.shard
        if not 0 <= shard < len(self.replicas) or source not in self.replicas[shard] or not message.members:
            return False
        if message.epoch < self.epochs[shard]:
            return False
        is_news = message.epoch > self.epochs[shard]
        self.epochs[shard] = message.epoch
        for member in message.members:
            self.replicas[shard][member.address] = None
        return is_news or message.members[0].address == source
