"""The event loop of an actor with coroutine methods. Its constructor runs in it, as all of its calls do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from zray.runtime.actor_code import Execute, Outcome, made
from zray.runtime.worker_end import end_worker

if TYPE_CHECKING:  # 60 ms that only the actors pay that need them
    import asyncio

    from zray.runtime.client import Client

log = logging.getLogger("zray.worker")


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
        instance, error = self.finish(made(execute, cls, args, kwargs))
        if error is not None:
            raise error
        return instance

    def finish(self, coroutine: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run a coroutine in the loop, and wait for it, in another thread."""
        import asyncio

        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException as error:  # SystemExit or KeyboardInterrupt of a coroutine that is no call
            log.exception("a coroutine ended the event loop of the actor, and so the actor")
            end_worker(self.client, error)  # its calls would hang
