"""What a class says of the actors made from it, to whoever makes one and to whoever hosts it."""

from __future__ import annotations

import inspect

METHOD_OPTIONS = "__zray_method_options__"
"""Where ``@zray.method`` leaves its options on a function."""


class ActorExitRequest(BaseException):
    """Raised by ``exit_actor()``: the actor ends once the calls that run have ended."""


def is_async(cls: type) -> bool:
    """Whether a class has coroutine methods: all of its calls run in an event loop then."""
    return any(
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        for _, function in inspect.getmembers(cls, inspect.isfunction)
    )
