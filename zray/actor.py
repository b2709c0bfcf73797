"""``zray.actor``: what Ray has under ``ray.actor``."""

from zray.api.actor import ActorClass, ActorHandle, ActorMethod, exit_actor, save_checkpoint

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "exit_actor", "save_checkpoint"]
