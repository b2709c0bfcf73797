"""Methods of actors that run again if they raise: ``@zray.method(max_task_retries=, retry_exceptions=)``.

They run in their actor, at once and inside the same call: what the first try did to the actor stays done.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from zray.runtime.actor_class import METHOD_OPTIONS, SPECIAL_METHODS

Policy = tuple[int, tuple[type[BaseException], ...]]
"""How often a method runs again (-1: without end), and after which exceptions."""


def policies_of(cls: type) -> dict[str, Policy]:
    """By name, of those methods that have one."""
    found: dict[str, Policy] = {}
    for name in dir(cls):
        attribute = inspect.getattr_static(cls, name)
        options = getattr(getattr(attribute, "__func__", attribute), METHOD_OPTIONS, None) or {}
        wanted = options.get("retry_exceptions")
        if wanted:
            classes = (Exception,) if wanted is True else tuple(wanted)
            found[name] = options["max_task_retries"], classes
    return found


def retried(method: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    """The method with its policy around it."""
    retries, classes = policy
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def again_async(*args: Any, **kwargs: Any) -> Any:
            tried = 0
            while True:
                try:
                    return await method(*args, **kwargs)
                except classes:
                    if tried == retries:
                        raise
                tried += 1

        return again_async

    @functools.wraps(method)
    def again(*args: Any, **kwargs: Any) -> Any:
        tried = 0
        while True:
            try:
                return method(*args, **kwargs)
            except classes:
                if tried == retries:
                    raise
            tried += 1

    return again


def method_of(actor: Any, name: str, policies: dict[str, Policy]) -> Callable[..., Any]:
    """What runs when callers ask for method ``name`` of an actor, with its policy around it."""
    if name in SPECIAL_METHODS:
        return functools.partial(SPECIAL_METHODS[name], actor)
    method: Callable[..., Any] = getattr(actor, name)
    return retried(method, policies[name]) if name in policies else method
