"""``zray.actor``: what Ray has under ``ray.actor``."""

from typing import Any

from zray.api.actor import ActorClass, ActorHandle, ActorMethod, exit_actor, method, save_checkpoint
from zray.api.refused import absent
from zray.exceptions import AsyncioActorExit

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "AsyncioActorExit",
    "exit_actor",
    "method",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)
