"""The machines that live beside a shard: what every process that serves one hosts.

Beside every shard there is the directory of its shared objects; beside the first ones, as many as the
configuration says, a global scheduler; beside the first one also the membership and the coordinator of
placement groups, of which there must be one. All of them are soft: they die with the
life of the shard that they belong to, and the nodes say again what the next ones must know. In a chain they
live at the head, and what they say is a word of the shard, which leaves once the whole chain has confirmed
the head: so a shard has one of each, as far as anybody can hear (I9). See ``docs/decisions/0014-soft-state-
beside-a-chain.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.config import Config
from zray.core.control_shard import ControlShard
from zray.core.global_scheduler import GlobalScheduler
from zray.core.machine import Address
from zray.core.membership import Membership
from zray.core.object_directory import ObjectDirectory
from zray.core.placement import placement_of
from zray.core.placement_groups import PlacementGroups

if TYPE_CHECKING:
    from random import Random

KINDS: tuple[type[ObjectDirectory], type[GlobalScheduler], type[Membership], type[PlacementGroups]] = (
    ObjectDirectory,
    GlobalScheduler,
    Membership,
    PlacementGroups,
)


def has_scheduler(shard: int, config: Config) -> bool:
    """Whether there is a global scheduler beside the shard of that number."""
    return shard < max(1, config.global_schedulers)


def machines_beside(shard: ControlShard, address: Address, random: Random | None) -> list[Any]:
    """New machines for this life of ``shard``.

    Args:
        shard: the tables that they read; its configuration is theirs.
        address: where the shard is, for those of them that write to it.
        random: what a randomised placement policy draws from.
    """
    config = shard.config
    directory = ObjectDirectory(config=config, record_of=shard.record_of)
    if not has_scheduler(shard.shard, config):
        return [directory]
    scheduler = GlobalScheduler(
        config=config, policy=placement_of(config), random=random, returning=shard.life > 0
    )
    if shard.shard != 0:
        return [directory, scheduler]
    return [
        directory,
        scheduler,
        Membership(store=address, life=lambda: shard.life, config=config),
        PlacementGroups(store=address, life=lambda: shard.life, config=config),
    ]
