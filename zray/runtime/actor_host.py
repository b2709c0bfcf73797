"""An actor in its worker: which thread or coroutine runs which call.

A plain actor runs its calls one after the other in the worker's main thread. With ``max_concurrency`` or
concurrency groups they run in threads, and with coroutine methods in one event loop, as many at once as
``core/call_slots.py`` says. Calls start in the order in which they come; replies leave as calls end.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zray import ids
from zray.core.call_slots import CallSlots
from zray.core.cancellation import cancelled_value
from zray.core.machine import Address
from zray.core.stream_credits import StreamCredits
from zray.core.task_context import TaskContext
from zray.errors import TaskCancelledError
from zray.protocol import faults
from zray.protocol.messages import TASK, Call, Describe, Reply, Value
from zray.protocol.user_messages import DYNAMIC, STREAM, Cancel, CancelCall, Leaving, ReplyItem
from zray.runtime.actor_class import METHOD_OPTIONS, SHUT_DOWN, SPECIAL_METHODS, ActorExitRequest
from zray.runtime.actor_loop import ActorLoop
from zray.runtime.checkpoints import Checkpoints
from zray.runtime.client import Client
from zray.runtime.method_retries import policies_of, retried
from zray.runtime.results import NOTHING, Results
from zray.runtime.running import here
from zray.runtime.streaming import StreamMaker
from zray.runtime.worker_end import end_worker
from zray.serialize.values import format_user_traceback

if TYPE_CHECKING:  # 60 ms that only the actors pay that need them
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("zray.worker")

ATOMS = (type(None), bool, int, float)
NAMES_MAX = 1_000
"""Names of methods that are kept; callers may make up more."""

Execute = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
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
        self.name = descriptor.name
        self.demand, self.in_group = descriptor.demand, descriptor.in_group
        self.results = results
        self.credits = credits
        self.streams = StreamMaker(client, results, credits)
        self.arguments = arguments
        self.execute = execute
        self.wrap_items = wrap_items
        self.slots = CallSlots(
            descriptor.max_concurrency, dict(descriptor.concurrency_groups), _groups_of(type(actor))
        )
        self.checkpoints: Checkpoints | None = None  # of an actor that can be saved and has a life to lose
        self._retries = policies_of(type(actor))
        self.leaving = False
        self.current = ids.NIL_ID  # the call that a plain actor runs
        self.contexts: dict[bytes, TaskContext] = {}
        self._names: dict[str, str] = {}  # method -> what its calls are called
        self._spawned: dict[bytes, asyncio.Task[None]] = {}  # not begun yet: to cancel these would lose them
        self._coroutines: dict[bytes, asyncio.Task[None]] = {}
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
        if self.leaving:
            return  # its caller hears of the end
        answer = None if self.checkpoints is None else self.checkpoints.machine.take_answer(call)
        if answer is not None:  # it ran before this process was made, and only its reply was lost
            self.client.out.append((source, Reply(call.task_id, answer)))
            return
        if not self.slots.arrived(source, call):
            error = ValueError(f"actor class {self.name} has no concurrency group {call.group!r}")
            values = self.results.errors(call.task_id, TASK, self._name_of(call), call.num_returns, error)
            self.client.out.append((source, Reply(call.task_id, values)))
        elif self.is_concurrent:
            self._start_calls()

    def on_cancel(self, source: Address, message: CancelCall) -> None:
        """A caller takes a call back. One that runs ends only if it is a coroutine."""
        if message.recursive:
            self.client.leased.cancel_children(message.task_id)
            self.client.out.append((self.client.node, Cancel(message.task_id)))
        queued = self.slots.withdraw(message.task_id)
        if queued is not None:
            caller, call = queued
            values = (cancelled_value(call.task_id),) * call.num_returns
            self.client.out.append((caller, Reply(call.task_id, values)))
            return
        context = self.contexts.get(message.task_id)
        if context is None:
            return
        context.is_cancelled = True
        coroutine = self._coroutines.get(message.task_id)
        if coroutine is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(coroutine.cancel)

    def _start_calls(self) -> None:
        while (item := self.slots.next()) is not None:
            source, call = item
            self.contexts[call.task_id] = self._context_of(call)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._spawn, source, call)
            else:
                assert self._threads is not None
                self._threads.submit(self._run_in_thread, source, call)

    # --- one call ----------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no call runs, and none may start."""
        return not self.slots.running and (self.leaving or not self.slots.queued)

    def run_next(self) -> bool:
        """For a plain actor: run the next call, in this thread; false if there is none."""
        with self.client.lock:
            item = self.slots.next()
        if item is None:
            return False
        source, call = item
        self.current = call.task_id
        context = self.contexts[call.task_id] = self._context_of(call)
        self.client.set_context(context)
        self._run(source, call)
        return True

    def shut_down(self) -> None:
        """The actor ends in peace: let it say so, then let go of it, so that its ``__del__`` runs."""
        actor, self.actor = self.actor, None
        if not hasattr(type(actor), SHUT_DOWN):
            return
        try:
            result = self.execute(getattr(actor, SHUT_DOWN), (), {})
            if inspect.iscoroutine(result) and self._loop is not None:
                import asyncio

                asyncio.run_coroutine_threadsafe(result, self._loop).result()
        except BaseException as error:  # who watches the output may want to know; nobody waits for a value
            print(f"{self.name}.{SHUT_DOWN}() raised:\n{format_user_traceback(error)}", file=sys.stderr)

    def repeat(self, call: Call) -> None:
        """Run a call that has its reply once more, for its effect on the actor alone."""
        self.client.set_context(self._context_of(call))
        try:
            args, kwargs = self.arguments(call)
            result = self.execute(self._method_of(call.method), args, kwargs)
            if call.returns in (STREAM, DYNAMIC):
                deque(result, maxlen=0)
        except Exception as error:
            log.info("%s raised again: %r", self._name_of(call), error)

    def _run_in_thread(self, source: Address, call: Call) -> None:
        here.set(self.contexts[call.task_id])
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
            method = self._method_of(call.method)
            args, kwargs = self.arguments(call)
            result = self.execute(method, args, kwargs)
            del args, kwargs
            result, values = self._pack(source, call, result)
        except BaseException as error:
            values = self._errors(call, error)
        client.spans.note(self._name_of(call), call.task_id, started_ns, time.monotonic_ns())
        if self.checkpoints is not None and not self.leaving:
            values = self._record(self.checkpoints, call, values)
        elif self._told() != told:
            client.confirm_acquired()  # the caller lets go of its arguments when it has the reply
        self._reply(source, call, values)
        del result  # not before its message is in the outbox: what it holds must not be let go before

    def _record(self, checkpoints: Checkpoints, call: Call, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """The values of a call that the node has recorded, or the error of the checkpoint that was due."""
        try:
            checkpoints.note(call, values)
        except BaseException as error:
            error.add_note(f"{self._name_of(call)} itself ran; the checkpoint after it could not be saved")
            return self._errors(call, error)
        return values

    def _told(self) -> tuple[int, int]:
        """What the node was told that it must know before a caller has the reply: refs, output."""
        return self.client.objects.acquires, self.client.lines_told

    def _reply(self, source: Address, call: Call, values: tuple[Value, ...]) -> None:
        self.current = ids.NIL_ID
        with self.client.lock:
            self.contexts.pop(call.task_id, None)
            self.credits.close(call.task_id)
            self.slots.ended(call.task_id)
            self.client.out.append((source, Reply(call.task_id, values)))

    def _pack(self, source: Address, call: Call, result: Any) -> tuple[Any, tuple[Value, ...]]:
        name = self._name_of(call)
        if call.returns == STREAM:
            send = self._sender(source, call)
            self.streams.run(call.task_id, name, result, call.unconsumed_max, send, source)
            return None, NOTHING
        if call.returns == DYNAMIC:
            result = self.wrap_items(self.results.keep_items(call.task_id, name, result))
        return result, self.results.pack(call.task_id, name, call.num_returns, result, source)

    def _sender(self, source: Address, call: Call) -> Callable[[int, Value], None]:
        with self.client.lock:
            self.credits.open(call.task_id)
        out = self.client.out

        def send(index: int, value: Value) -> None:
            out.append((source, ReplyItem(call.task_id, index, value)))

        return send

    def _errors(self, call: Call, error: BaseException) -> tuple[Value, ...]:
        if isinstance(error, SystemExit) and error.code not in (None, 0):
            end_worker(self.client, error)  # no success: it is made again, if it may be, as after any crash
        if isinstance(error, ActorExitRequest | SystemExit):
            self._leave()
            reason = "it ended itself with exit_actor() or sys.exit()"
            cause = faults.fault_value(faults.ACTOR_DIED, ids.short(call.actor_id), reason)
            return (cause,) * call.num_returns
        return self.results.errors(call.task_id, TASK, self._name_of(call), call.num_returns, error)

    def _leave(self) -> None:
        with self.client.lock:
            self.leaving = True
            self.slots.withdraw_all()  # their callers hear of the end
            self.client.out.append((self.client.node, Leaving("exit_actor() or sys.exit()")))

    def _method_of(self, name: str) -> Callable[..., Any]:
        if name in SPECIAL_METHODS:
            return functools.partial(SPECIAL_METHODS[name], self.actor)
        method: Callable[..., Any] = getattr(self.actor, name)
        if self._retries and name in self._retries:
            return retried(method, self._retries[name])
        return method

    def _name_of(self, call: Call) -> str:
        name = self._names.get(call.method)
        if name is None:
            name = f"{self.name}.{call.method}"
            if len(self._names) < NAMES_MAX:
                self._names[call.method] = name
        return name

    def _context_of(self, call: Call) -> TaskContext:
        return TaskContext(call.task_id, self._name_of(call), call.attempt, self.demand, self.in_group)

    # --- coroutines --------------------------------------------------------------------------------

    def _spawn(self, source: Address, call: Call) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._run_async(source, call))
        self._spawned[call.task_id] = task  # the loop itself keeps no hard reference

    async def _run_async(self, source: Address, call: Call) -> None:
        import asyncio

        client = self.client
        context = self.contexts[call.task_id]
        here.set(context)
        told = self._told()
        result = None
        started_ns = time.monotonic_ns()
        try:
            with client.lock:  # from here on a cancellation finds it; one that came before left its mark
                self._coroutines[call.task_id] = self._spawned.pop(call.task_id)
                if context.is_cancelled:
                    raise asyncio.CancelledError
            method = self._method_of(call.method)
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
            values = self._errors(call, TaskCancelledError())
        except BaseException as error:
            values = self._errors(call, error)
        client.spans.note(self._name_of(call), call.task_id, started_ns, time.monotonic_ns())
        with client.lock:
            self._coroutines.pop(call.task_id, None)  # too late to cancel it
        if self._told() != told:
            try:
                await asyncio.to_thread(client.confirm_acquired)
            except asyncio.CancelledError:  # it came too late, and the reply must not come too early
                client.confirm_acquired()
        self._reply(source, call, values)
        with client.lock:
            self._start_calls()
            client.after_append()
        del result
        if self.leaving:
            client.wake()

    async def _pack_async(self, source: Address, call: Call, result: Any) -> tuple[Any, tuple[Value, ...]]:
        if call.returns == STREAM:
            send = self._sender(source, call)
            name = self._name_of(call)
            await self.streams.run_async(call.task_id, name, result, call.unconsumed_max, send, source)
            return None, NOTHING
        if type(result) in ATOMS:  # what takes no time needs no thread
            return self._pack(source, call, result)
        import asyncio

        return await asyncio.to_thread(self._pack, source, call, result)


def _groups_of(cls: type) -> dict[str, str]:
    """Method -> the concurrency group that it was declared in."""
    groups = {}
    for name in dir(cls):
        attribute = inspect.getattr_static(cls, name)
        options = getattr(getattr(attribute, "__func__", attribute), METHOD_OPTIONS, None)
        if options and options.get("concurrency_group"):
            groups[name] = options["concurrency_group"]
    return groups
