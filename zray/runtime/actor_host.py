"""An actor in its worker: which thread or coroutine runs which call.

A plain actor runs its calls one after the other in the worker's main thread. With ``max_concurrency`` or
concurrency groups they run in threads, and with coroutine methods in one event loop, as many at once as
``core/call_slots.py`` says. Calls start in the order in which they come; replies leave as calls end.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zray import ids
from zray.core.machine import Address
from zray.core.own_calls import OwnCalls
from zray.core.stream_credits import StreamCredits
from zray.errors import TaskCancelledError
from zray.protocol.messages import ERROR, TASK, Call, Describe, Value
from zray.protocol.user_messages import DYNAMIC, STREAM, CancelCall
from zray.runtime.actor_class import groups_of
from zray.runtime.actor_code import Execute, ending_of, print_failed_farewell, shut_down
from zray.runtime.actor_loop import ActorLoop
from zray.runtime.checkpoints import Checkpoints
from zray.runtime.client import Client
from zray.runtime.method_retries import method_of, policies_of
from zray.runtime.results import NOTHING, Results
from zray.runtime.running import here
from zray.runtime.streaming import StreamMaker
from zray.runtime.worker_end import end_worker

if TYPE_CHECKING:  # 60 ms that only the actors pay that need them
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("zray.worker")

ATOMS = (type(None), bool, int, float)

LoadArguments = Callable[[Call], tuple[tuple[Any, ...], dict[str, Any]]]


class ActorHost:
    """The calls of the actor of this process.

    Args:
        client: the worker's link.
        actor: the instance.
        descriptor: of its creation task.
        loop: where its calls run, of an actor with coroutine methods.
        results: packs what calls return.
        credits: how far the readers of its streams are.
        arguments: loads the arguments of a call; may block.
        execute: calls the user's code.
        wrap_items: makes the value of a dynamic generator from the ids of its items.
    """

    def __init__(
        self,
        client: Client,
        actor: Any,
        descriptor: Describe,
        *,
        loop: ActorLoop | None,
        results: Results,
        credits: StreamCredits,
        arguments: LoadArguments,
        execute: Execute,
        wrap_items: Callable[[Sequence[bytes]], Any],
    ) -> None:
        self.client = client
        self.actor = actor
        self.results = results
        self.streams = StreamMaker(client, results, credits)
        self.arguments = arguments
        self.execute = execute
        self.wrap_items = wrap_items
        self.calls = OwnCalls(client.machine, credits, descriptor, groups_of(type(actor)))
        self.slots = self.calls.slots
        self.checkpoints: Checkpoints | None = None  # of an actor that can be saved and has a life to lose
        self._retries = policies_of(type(actor))
        self.current = ids.NIL_ID  # the call that a plain actor runs
        self._to_spawn: deque[tuple[Address, Call]] = deque()  # may start, and have no coroutine yet
        self._spawns_soon = False  # the loop was told of them
        self._spawned: dict[bytes, asyncio.Task[None]] = {}  # not begun yet: to cancel these would lose them
        self._coroutines: dict[bytes, asyncio.Task[None]] = {}
        self._actor_loop = loop
        self._loop = None if loop is None else loop.loop
        self._threads: ThreadPoolExecutor | None = None
        if loop is None and self.slots.limit > 1:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(self.slots.limit, thread_name_prefix="zray-actor")
        self.is_concurrent = self._loop is not None or self._threads is not None
        client.is_concurrent = self.is_concurrent

    # --- what callers say; called with the client's lock held --------------------------------------

    def on_call(self, source: Address, call: Call) -> None:
        """A call has come."""
        if not self.calls.arrived(source, call):
            error = ValueError(f"actor class {self.calls.name} has no concurrency group {call.group!r}")
            name = self.calls.name_of(call)
            self.calls.refuse(
                source, call, self.results.errors(call.task_id, TASK, name, call.num_returns, error)
            )
        elif self.is_concurrent:
            if call.returns == STREAM and call.task_id in self._coroutines and self._loop is not None:
                # A former run, whose reader is gone: this one begins when it has ended.
                self._loop.call_soon_threadsafe(self._coroutines[call.task_id].cancel)
            self._start_calls()

    def on_cancel(self, source: Address, message: CancelCall) -> None:
        """A caller takes a call back. One that runs ends only if it is a coroutine."""
        if self.calls.cancel(message) is None:
            return
        coroutine = self._coroutines.get(message.task_id)
        if coroutine is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(coroutine.cancel)

    def _start_calls(self) -> None:
        """Start what may start now. The loop is told once of many: that is a call of the system each time."""
        while (item := self.calls.start()) is not None:
            if self._loop is not None:
                self._to_spawn.append(item)
            else:
                assert self._threads is not None
                self._threads.submit(self._run_in_thread, *item)
        if self._to_spawn and self._loop is not None and not self._spawns_soon:
            self._spawns_soon = True
            self._loop.call_soon_threadsafe(self._spawn_all)

    # --- one call ----------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no call runs, and none may start."""
        return self.calls.is_idle

    @property
    def leaving(self) -> bool:
        """Whether the actor ended itself."""
        return self.calls.leaving

    def run_next(self) -> bool:
        """For a plain actor: run the next call, in this thread; false if there is none."""
        with self.client.lock:
            item = self.calls.start()
        if item is None:
            return False
        source, call = item
        self.current = call.task_id
        self.client.set_context(self.calls.contexts[call.task_id])
        self._run(source, call)
        return True

    def shut_down(self) -> None:
        """The actor ends in peace: let it say so, then let go of it, so that its ``__del__`` runs."""
        actor, self.actor = self.actor, None
        self.checkpoints = None  # which hold it, too
        try:
            shut_down(actor, self.execute, None if self._actor_loop is None else self._actor_loop.finish)
        except BaseException as error:
            print_failed_farewell(self.calls.name, error)

    def repeat(self, call: Call) -> None:
        """Run a call that has its reply once more, for its effect on the actor alone."""
        self.client.set_context(self.calls.context_of(call))
        try:
            args, kwargs = self.arguments(call)
            result = self.execute(self._method(call.method), args, kwargs)
            if call.returns in (STREAM, DYNAMIC):
                deque(result, maxlen=0)
        except Exception as error:
            log.info("%s raised again: %r", self.calls.name_of(call), error)

    def _run_in_thread(self, source: Address, call: Call) -> None:
        here.set(self.calls.contexts[call.task_id])
        self._run(source, call)
        with self.client.lock:
            self._start_calls()
        self.client.flush()
        self.client.wake()  # the main thread may wait for the last call

    def _run(self, source: Address, call: Call) -> None:
        client = self.client
        told = self._told()
        result = None
        started_ns = time.monotonic_ns()
        try:
            method = self._method(call.method)
            args, kwargs = self.arguments(call)
            result = self.execute(method, args, kwargs)
            del args, kwargs
            result, values = self._pack(source, call, result)
        except BaseException as error:
            values = self._errors(source, call, error)
        client.spans.note(self.calls.name_of(call), call.task_id, started_ns, time.monotonic_ns())
        if self.checkpoints is not None and not self.leaving:
            values = self._record(self.checkpoints, source, call, values)
        elif self._told() != told:
            client.confirm_acquired()  # the caller lets go of its arguments when it has the reply
        self._reply(source, call, values)
        del result  # not before its message is in the outbox: what it holds must not be let go before

    def _record(
        self, checkpoints: Checkpoints, source: Address, call: Call, values: tuple[Value, ...]
    ) -> tuple[Value, ...]:
        """The values of a call that the node has recorded, or the error of the checkpoint that was due."""
        try:
            checkpoints.note(call, values)
        except BaseException as error:
            self.results.sent(values)
            name = self.calls.name_of(call)
            error.add_note(f"{name} itself ran; the checkpoint after it could not be saved")
            return self._errors(source, call, error)
        return values

    def _told(self) -> tuple[int, int]:
        """What the node was told that it must know before a caller has the reply: refs, output."""
        return self.client.objects.acquires, self.client.lines_told

    def _reply(self, source: Address, call: Call, values: tuple[Value, ...]) -> None:
        self.current = ids.NIL_ID
        with self.client.lock:
            self.calls.ended(source, call, values)
        if values and values[-1].kind == ERROR:
            self.results.sent(values)

    def _pack(self, source: Address, call: Call, result: Any) -> tuple[Any, tuple[Value, ...]]:
        name = self.calls.name_of(call)
        if call.returns == STREAM:
            send = self._sender(source, call)
            self.streams.run(call.task_id, name, result, call.unconsumed_max, send, source)
            return None, NOTHING
        if call.returns == DYNAMIC:
            result = self.wrap_items(self.results.keep_items(call.task_id, name, result))
        return result, self.results.pack(call.task_id, name, call.num_returns, result, source)

    def _sender(self, source: Address, call: Call) -> Callable[[int, Value], None]:
        def send(index: int, value: Value) -> None:
            self.calls.yielded(source, call, index, value)

        return send

    def _errors(self, source: Address, call: Call, error: BaseException) -> tuple[Value, ...]:
        exit_code = ending_of(error)
        if exit_code:
            end_worker(self.client, error)
        if exit_code == 0:
            with self.client.lock:
                return self.calls.leave(call)
        name = self.calls.name_of(call)
        return self.results.errors(call.task_id, TASK, name, call.num_returns, error, source)

    def _method(self, name: str) -> Callable[..., Any]:
        return method_of(self.actor, name, self._retries)

    # --- coroutines --------------------------------------------------------------------------------

    def _spawn_all(self) -> None:
        assert self._loop is not None
        self._spawns_soon = False  # first: of what comes from now on the loop is told again
        while self._to_spawn:
            source, call = self._to_spawn.popleft()
            task = self._loop.create_task(self._run_async(source, call))
            self._spawned[call.task_id] = task  # the loop itself keeps no hard reference

    async def _run_async(self, source: Address, call: Call) -> None:
        import asyncio

        client = self.client
        context = self.calls.contexts[call.task_id]
        here.set(context)
        told = self._told()
        result = None
        started_ns = time.monotonic_ns()
        try:
            with client.lock:  # from here on a cancellation finds it; one that came before left its mark
                self._coroutines[call.task_id] = self._spawned.pop(call.task_id)
                if context.is_cancelled:
                    raise asyncio.CancelledError
            method = self._method(call.method)
            if call.deps:
                args, kwargs = await asyncio.to_thread(self.arguments, call)
            else:
                args, kwargs = self.arguments(call)
            result = self.execute(method, args, kwargs)
            if inspect.isawaitable(result):
                result = await result
            del args, kwargs
            result, values = await self._pack_async(source, call, result)
        except asyncio.CancelledError:
            values = self._errors(source, call, TaskCancelledError())
        except BaseException as error:
            values = self._errors(source, call, error)
        client.spans.note(self.calls.name_of(call), call.task_id, started_ns, time.monotonic_ns())
        self._coroutines.pop(call.task_id, None)  # too late to cancel it
        if self._told() != told:
            try:
                await asyncio.to_thread(client.confirm_acquired)
            except asyncio.CancelledError:  # it came too late, and the reply must not come too early
                client.confirm_acquired()
        with client.lock:  # once: the thread that reads the links wants it, too
            self.calls.ended(source, call, values)
            self._start_calls()
            client.after_append()
        self.results.sent(values)
        del result
        if self.leaving:
            client.wake()

    async def _pack_async(self, source: Address, call: Call, result: Any) -> tuple[Any, tuple[Value, ...]]:
        if call.returns == STREAM:
            send = self._sender(source, call)
            name = self.calls.name_of(call)
            await self.streams.run_async(call.task_id, name, result, call.unconsumed_max, send, source)
            return None, NOTHING
        if type(result) in ATOMS:  # what takes no time needs no thread
            return self._pack(source, call, result)
        import asyncio

        return await asyncio.to_thread(self._pack, source, call, result)
