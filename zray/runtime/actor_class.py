"""What a class says of the actors made from it, to whoever makes one and to whoever hosts it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

METHOD_OPTIONS = "__zray_method_options__"
"""Where ``@zray.method`` leaves its options on a function."""


class ActorExitRequest(BaseException):
    """Raised by ``exit_actor()``: the actor ends once the calls that run have ended."""


def _leave(actor: Any) -> None:
    raise ActorExitRequest


SPECIAL_METHODS: dict[str, Callable[..., Any]] = {
    "__ray_ready__": lambda actor: True,
    "__ray_call__": lambda actor, function, *args, **kwargs: function(actor, *args, **kwargs),
    "__ray_terminate__": _leave,
}
"""What Ray lets callers do to every actor: ask whether it is made, run a function on it, end it."""


def is_async(cls: type) -> bool:
    """Whether a class has coroutine methods: all of its calls run in an event loop then."""
    return any(
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        for _, function in inspect.getmembers(cls, inspect.isfunction)
    )


SAVE, LOAD = "__zray_save__", "__zray_load__"
"""The methods of an actor that can be saved: ``save() -> state`` and ``load(state)``."""


def is_saved(cls: type) -> bool:
    """Whether the class has checkpoints.

    Raises:
        TypeError: if it can be saved but not loaded, or the other way round.
    """
    has = [name for name in (SAVE, LOAD) if callable(getattr(cls, name, None))]
    if len(has) == 1:
        raise TypeError(
            f"actor class {cls.__name__} has {has[0]}(); a checkpoint needs both {SAVE}() and {LOAD}()"
        )
    return bool(has)


def groups_of(cls: type) -> dict[str, str]:
    """Method -> the concurrency group that it was declared in."""
    groups = {}
    for name in dir(cls):
        attribute = inspect.getattr_static(cls, name)
        options = getattr(getattr(attribute, "__func__", attribute), METHOD_OPTIONS, None)
        if options and options.get("concurrency_group"):
            groups[name] = options["concurrency_group"]
    return groups
