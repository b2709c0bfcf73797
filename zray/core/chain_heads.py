"""Which replica of each shard a node speaks to: the head of its chain, as far as the node has heard.

Replicas tell who asked them of every new epoch; the newest one counts. A shard that is not replicated has one
address for ever and nothing of this happens.
"""

from __future__ import annotations

from zray.core.machine import Address
from zray.protocol.messages import ChainEpoch


class ChainHeads:
    """The heads by shard, in ``heads``: one list, shared with whoever sends to shards.

    Args:
        shards: the first address of each shard.
        replicas: all addresses of each shard; empty: they are not replicated.
    """

    def __init__(self, shards: tuple[Address, ...], replicas: tuple[tuple[Address, ...], ...]) -> None:
        self.heads = list(shards)
        self.replicas = [dict.fromkeys(chain) for chain in replicas]
        self.epochs = [0] * len(shards)

    def everybody(self) -> list[Address]:
        """Who is greeted at the start: any replica can name the head."""
        if not self.replicas:
            return list(self.heads)
        return [address for chain in self.replicas for address in chain]

    def others(self) -> list[Address]:
        """Replicas that are not heads: asked now and then, in case the news of a new head was lost."""
        return [address for address in self.everybody() if address not in self.heads]

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
