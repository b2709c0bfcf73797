"""The event loop of an actor with coroutine methods. Its constructor runs in it, too, as all of its calls do.

So a constructor may use ``asyncio.create_task``, open what belongs to one thread (a connection of sqlite),
or be a coroutine function.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.runtime.worker_end import end_worker

if TYPE_CHECKING:  # 60 ms that only the actors pay that need them
    import asyncio

    from zray.runtime.client import Client

log = logging.getLogger("zray.worker")

Execute = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class ActorLoop:
    """A loop that runs in a thread of its own until the process ends.

    Args:
        client: the worker's link.
    Attributes:
        loop: the loop.
        thread_id: int, ``threading.get_ident()`` of its thread.
    """

    def __init__(self, client: Client) -> None:
        import asyncio

        self.client = client
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, name="zray-actor-loop", daemon=True)
        thread.start()
        assert thread.ident is not None
        self.thread_id = thread.ident

    def construct(self, execute: Execute, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an instance in the loop, and wait for it; raises what its constructor raises."""
        import asyncio

        made = asyncio.run_coroutine_threadsafe(_made(execute, cls, args, kwargs), self.loop)
        instance, error = made.result()
        if error is not None:
            raise error
        return instance

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException as error:  # SystemExit or KeyboardInterrupt of a coroutine that is no call
            log.exception("a coroutine ended the event loop of the actor, and so the actor")
            end_worker(self.client, error)  # its calls would hang


async def _made(
    execute: Execute, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    constructor: Any = inspect.getattr_static(cls, "__init__")
    allocate: Any = cls.__new__
    try:
        if not inspect.iscoroutinefunction(constructor):
            return execute(cls, args, kwargs), None
        instance = allocate(cls) if allocate is object.__new__ else allocate(cls, *args, **kwargs)
        await execute(constructor, (instance, *args), kwargs)
        return instance, None
    except BaseException as error:  # as a value: SystemExit would end the loop
        return None, error
