"""How the code of an actor begins and ends, wherever it is hosted: in a worker, or in virtual time.

A host says where code runs; what is called, and what follows from what it raises, is decided here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from zray.runtime.actor_class import ActorExitRequest
from zray.runtime.exit_codes import exit_code_of
from zray.serialize.values import format_user_traceback

Execute = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Calls the user's code."""
Outcome = tuple[Any, BaseException | None]
"""What a coroutine returned, or raised."""

SHUT_DOWN = "__ray_shutdown__"
"""A method without arguments that an actor may have, called when it ends in peace: not when it is killed."""


async def outcome_of(awaitable: Awaitable[Any]) -> Outcome:
    """Errors as values: ``SystemExit`` would end the loop."""
    try:
        return await awaitable, None
    except BaseException as error:
        return None, error


async def made(execute: Execute, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """Make an instance of a class with coroutine methods, in its loop.

    So its constructor may use ``asyncio.create_task``, open what belongs to one thread (a connection of
    sqlite), or be a coroutine function.
    """
    return await outcome_of(_made(execute, cls, args, kwargs))


async def _made(execute: Execute, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    constructor: Any = inspect.getattr_static(cls, "__init__")
    allocate: Any = cls.__new__
    if not inspect.iscoroutinefunction(constructor):
        return execute(cls, args, kwargs)
    instance = allocate(cls) if allocate is object.__new__ else allocate(cls, *args, **kwargs)
    await execute(constructor, (instance, *args), kwargs)
    return instance


def ending_of(error: BaseException) -> int | None:
    """How an exception of one of its calls ends an actor: with this exit code; ``None``: not at all.

    With 0 it ends in peace and for good, once the calls that run have ended. Any other is a crash, at once,
    and it is made again if it may be.
    """
    if isinstance(error, ActorExitRequest):
        return 0
    return exit_code_of(error) if isinstance(error, SystemExit) else None


def shut_down(actor: Any, execute: Execute, finish: Callable[[Any], Outcome] | None) -> None:
    """Tell an actor that it ends in peace.

    Args:
        actor: the instance.
        execute: calls its code.
        finish: runs a coroutine in the loop of the actor, and waits for it; of one that has a loop.
    Raises:
        BaseException: what its code raised; for :func:`print_failed_farewell`.
    """
    if not hasattr(type(actor), SHUT_DOWN):
        return
    result = execute(getattr(actor, SHUT_DOWN), (), {})
    if inspect.iscoroutine(result) and finish is not None:
        _, error = finish(outcome_of(result))
        if error is not None:
            raise error


def print_failed_farewell(name: str, error: BaseException) -> None:
    """Whoever watches the output may want to know; nobody waits for a value."""
    print(f"{name}.{SHUT_DOWN}() raised:\n{format_user_traceback(error)}", file=sys.stderr)
