"""A worker process: run what the node sends, one task at a time, or be one actor.

User code runs in the main thread. What is run, and what is said of it when, is decided in ``core/worker.py``.
Before an attempt starts its id goes into the worker's *progress cell*, sixteen bytes of memory shared with
the node, so that after a crash the node knows exactly which task was running, although results travel in
batches.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from zray import ids
from zray.config import Config
from zray.core.client import ARGS_IN_LAST_DEP
from zray.core.machine import Address, bound_handlers
from zray.core.task_context import TaskContext
from zray.core.worker import WorkerMachine
from zray.errors import TaskCancelledError
from zray.protocol.messages import (
    ACTOR,
    ERROR,
    PROTOCOL_VERSION,
    WORKER,
    Call,
    Describe,
    EndLease,
    ExportFunction,
    Hello,
    JobContext,
    LeasedRun,
    PrepareLease,
    Run,
    Value,
)
from zray.protocol.user_messages import (
    DYNAMIC,
    STREAM,
    CancelCall,
    Interrupt,
    SeeGpus,
)
from zray.runtime import math_threads, output, own_client, visible_gpus
from zray.runtime.actor_class import is_async
from zray.runtime.actor_host import ActorHost
from zray.runtime.actor_loop import ActorLoop
from zray.runtime.checkpoints import Checkpoints
from zray.runtime.client import Client
from zray.runtime.environment import packages_of
from zray.runtime.results import NOTHING, InputFailedError, Results
from zray.runtime.streaming import StreamMaker
from zray.runtime.worker_end import bound_farewell, end_fork
from zray.serialize.functions import FunctionTable, load_args
from zray.serialize.values import load

if TYPE_CHECKING:
    from zray.runtime.taking_on import EnvironmentTaker

log = logging.getLogger("zray.worker")

CELL_BYTES = ids.ID_BYTES


class WorkerProcess:
    """The main thread of a worker.

    Args:
        worker_id: routing id, chosen by the node.
        node_id: routing id of the node.
        node_endpoint: where the node listens.
        call_endpoint: where this worker takes direct calls once it is an actor.
        session_path: the directory of the node, which keeps parts of environments there.
        cell: 16 writable bytes shared with the node.
        config: limits.
    """

    def __init__(
        self,
        worker_id: Address,
        node_id: Address,
        *,
        node_endpoint: str,
        call_endpoint: str,
        session_path: str,
        cell: memoryview,
        config: Config,
    ) -> None:
        self.worker_id = worker_id
        self.node_endpoint = node_endpoint
        self.call_endpoint = call_endpoint
        self.session_path = session_path
        self.cell = cell
        self.config = config
        self.client = Client(worker_id, node_id, root_task=ids.NIL_ID, config=config, role=WORKER)
        self.machine = WorkerMachine(self.client.machine)
        self.functions = FunctionTable()
        self.results = Results(self.client, config)
        self.credits = self.machine.credits
        self.streams = StreamMaker(self.client, self.results, self.credits)
        self.actor: ActorHost | None = None
        self.environment = ""  # the one that this process has taken on
        self._taker: EnvironmentTaker | None = None
        self.ran_before = False
        self._failed_for_good = False  # the last failure is none that another attempt is for
        self._interruptible = ids.NIL_ID  # the task whose code an interrupt may end
        self._to_interrupt = ids.NIL_ID
        self._main_thread = threading.get_ident()
        self._lending_thread = self._main_thread  # where the code runs whose CPUs others get while it waits

    def run(self) -> int:
        """Serve until the node says to end; the process's exit code."""
        client = self.client
        client.handlers.update(bound_handlers(self.machine))
        client.handlers.update(
            {
                Call: self._on_call,
                LeasedRun: self._on_call,
                PrepareLease: self._on_prepare_lease,
                ExportFunction: self._on_export,
                JobContext: self._on_job,
                Interrupt: self._on_cancel,
                CancelCall: self._on_cancel,
                SeeGpus: lambda _now_ns, _source, message: visible_gpus.see(message.numbers),
            }
        )
        client.before_waiting = self._lend
        client.after_waiting = self._take_back
        client.interrupts.gate = self._interrupted
        hello = Hello(PROTOCOL_VERSION, WORKER, os.getpid(), ids.NIL_ID, self.call_endpoint)
        client.connect(self.node_endpoint, hello, timeout_s=self.config.init_timeout_ns / 1e9)
        own_client.use(client, in_worker=True)
        output.redirect(client)
        while self._wait_for_work():
            self._do_one()
            while self._has_work():
                self._send_if_due()
                self._do_one()
        if self.actor is not None:
            client.wait_until(lambda: self.actor is None or self.actor.is_idle, None)
        bound_farewell(self.config.farewell_timeout_ns / 1e9)
        if self.actor is not None:
            self.actor.shut_down()
        atexit._run_exitfuncs()  # the process ends without the interpreter's own end
        output.flush()
        client.tell_all()
        if self.actor is not None and self.actor.leaving:  # of one without handles all calls have ended
            client.say_last_words()
        client.close()
        return 0

    def _do_one(self) -> None:
        if self.machine.runs:
            self._run_task(self.machine.runs.popleft())
        elif self.machine.calls:
            self._serve(*self.machine.calls.popleft())
        elif self.actor is not None and not self.actor.is_concurrent:
            self.actor.run_next()

    def _has_work(self) -> bool:
        if self.machine.runs or self.machine.calls:
            return True
        actor = self.actor
        return actor is not None and not actor.is_concurrent and actor.slots.may_start()

    def _is_over(self) -> bool:
        return self.machine.exiting or (self.actor is not None and self.actor.leaving)

    def _wait_for_work(self) -> bool:
        """False once there is nothing left to do, for ever."""
        if self._has_work():
            return True
        if not self._is_over():
            self.machine.note_idle()
            self.client.wait_until(lambda: self._has_work() or self._is_over(), None, may_lend=False)
        return self._has_work()

    def _send_if_due(self) -> None:
        """Results wait for company while there is more to run, but not for long."""
        if self.machine.note_result(time.monotonic_ns()):
            self.client.flush()

    # --- what the node says; called with the client's lock held ------------------------------------

    def _on_prepare_lease(self, now_ns: int, source: Address, message: PrepareLease) -> None:
        self.client.serve(self.call_endpoint)
        self.machine.on_prepare_lease(now_ns, source, message)

    def _on_call(self, now_ns: int, source: Address, message: Call | LeasedRun) -> None:
        if isinstance(message, LeasedRun):
            self.machine.on_call(now_ns, source, message)
        elif self.actor is not None:
            self.actor.on_call(source, message)

    def _on_cancel(self, now_ns: int, source: Address, message: Interrupt | CancelCall) -> None:
        """A task was cancelled: it is taken out of the queue, or its code sees KeyboardInterrupt."""
        if self.actor is not None and isinstance(message, CancelCall):
            self.actor.on_cancel(source, message)
        elif self.machine.withdraw(source, message) and self._to_interrupt != message.task_id:
            self._to_interrupt = message.task_id
            self.client.context.is_cancelled = True
            signal.pthread_kill(self._main_thread, signal.SIGINT)

    def _interrupted(self) -> bytes | None:
        """The task that SIGINT means: the one that runs, unless another was cancelled and has just ended."""
        if self._interruptible == ids.NIL_ID:
            return None
        return self._interruptible if self._to_interrupt in (ids.NIL_ID, self._interruptible) else None

    def _on_export(self, now_ns: int, source: Address, message: ExportFunction) -> None:
        self.functions.add(message.function_id, message.code)

    def _on_job(self, now_ns: int, source: Address, message: JobContext) -> None:
        self.client.root_task = message.job_id
        self.client.namespace = message.namespace
        if not self.environment:
            self.client.environment = message.environment
        sys.path.extend(path for path in message.sys_path if path not in sys.path)
        if message.working_dir:
            try:
                os.chdir(message.working_dir)
            except OSError as error:
                log.warning("cannot enter the driver's directory: %s", error)

    # --- waiting inside user code ------------------------------------------------------------------

    def _lend(self) -> bool:
        """The running task waits: its CPUs and what is queued behind it are for others."""
        running = self._running()
        if running == ids.NIL_ID or threading.get_ident() != self._lending_thread:
            return False
        with self.client.lock:
            self.machine.block(running)
        return True

    def _running(self) -> bytes:
        return self.machine.current if self.actor is None else self.actor.current

    def _take_back(self) -> None:
        with self.client.lock:
            self.machine.unblock(self._running())

    # --- tasks -------------------------------------------------------------------------------------

    def _run_task(self, run: Run) -> None:
        result, values, run_ns, failed = self._attempt(run)
        is_final = failed and self._failed_for_good
        with self.client.lock:
            self.machine.done(run, values, run_ns, failed=failed, is_final=is_final)
        if values and values[-1].kind == ERROR:
            self.results.sent(values)
        del result  # not before its message is in the outbox: what it holds must not be let go before

    def _attempt(self, run: Run) -> tuple[Any, tuple[Value, ...], int, bool]:
        """Run a task: (its result, the values of its return objects, run time, whether it failed)."""
        descriptor = self.machine.descriptors[run.descriptor_id]
        client = self.client
        self.cell[:] = run.task_id
        client.set_context(
            TaskContext(run.task_id, descriptor.name, run.attempt, descriptor.demand, descriptor.in_group)
        )
        with client.lock:  # who interrupts a task looks and signals under it: nothing meant for another comes
            self.machine.current, self._to_interrupt = run.task_id, ids.NIL_ID
        started_ns = time.monotonic_ns()
        failed = False
        result = None
        try:
            self._interruptible = run.task_id
            result, values = self._execute(run, descriptor)
            self._interruptible = ids.NIL_ID
        except BaseException as error:
            self._interruptible = ids.NIL_ID
            failed = True
            values = self._failure(run, descriptor, error)
        ended_ns = time.monotonic_ns()
        self.machine.current = ids.NIL_ID
        client.spans.note(descriptor.name, run.task_id, started_ns, ended_ns)
        return result, values, ended_ns - started_ns, failed

    def _failure(self, run: Run, descriptor: Describe, error: BaseException) -> tuple[Value, ...]:
        """The values of a task that raised; notes whether another attempt would be of use."""
        if isinstance(error, KeyboardInterrupt) and self._to_interrupt == run.task_id:
            error = TaskCancelledError()
        self._failed_for_good = False
        if descriptor.retry_on:
            worth_it = load(descriptor.retry_on, "retry_exceptions")
            self._failed_for_good = not isinstance(error, worth_it)
        count = descriptor.num_returns
        return self.results.errors(run.task_id, descriptor.kind, descriptor.name, count, error)

    def _execute(self, run: Run, descriptor: Describe) -> tuple[Any, tuple[Value, ...]]:
        try:
            if descriptor.environment != self.environment:
                self._take_on(descriptor.environment)
            if not self.ran_before:  # after the environment, which may say something else
                self.ran_before = True
                math_threads.limit(descriptor.demand)
            function: Any = self.functions.get(descriptor.function_id, descriptor.name)
        except BaseException:
            with self.client.lock:
                self.machine.look_away(run)
            raise
        args, kwargs = self._arguments(run)
        if descriptor.kind == ACTOR:
            identity = own_client.ActorIdentity(run.task_id, descriptor.actor_name, run.attempt, function)
            own_client.become_actor(identity)
            self._become_actor(*self._construct(function, args, kwargs), descriptor, run.attempt > 0)
            return None, NOTHING
        return self._pack(run, descriptor, self._call(function, args, kwargs))

    def _construct(
        self, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ActorLoop | None]:
        """The actor, and its loop if it has coroutine methods."""
        if not is_async(cls):
            return self._call(cls, args, kwargs), None
        loop = ActorLoop(self.client)
        self._lending_thread = loop.thread_id
        try:
            return loop.construct(self._call, cls, args, kwargs), loop
        finally:
            self._lending_thread = self._main_thread

    def _take_on(self, wanted: str) -> None:
        client = self.client
        with client.lock:  # what tasks that are submitted from here are unpacked from is kept for them
            for object_id in packages_of(wanted):
                client.objects.borrow(object_id)
        if self._taker is None:
            from zray.runtime.environment_cache import EnvironmentCache  # for those who have one
            from zray.runtime.taking_on import EnvironmentTaker

            cache = EnvironmentCache(
                os.path.join(self.session_path, "environments"), self.config.environments_bytes_max
            )
            self._taker = EnvironmentTaker(cache, self._fetch_once)
        self._taker.take_on(wanted)
        self.environment = client.environment = wanted

    def _fetch_once(self, object_ids: Sequence[bytes]) -> dict[bytes, bytes | memoryview]:
        try:
            return self._fetch_views(object_ids)
        finally:
            self.client.dropped.extend(object_ids)

    def _become_actor(self, actor: Any, loop: ActorLoop | None, descriptor: Describe, again: bool) -> None:
        """From now on this process is one actor."""
        self.actor = ActorHost(
            self.client,
            actor,
            descriptor,
            loop=loop,
            results=self.results,
            credits=self.credits,
            arguments=self._call_arguments,
            execute=self._call,
            wrap_items=self._wrap_items,
        )
        if descriptor.checkpoint_interval >= 0:
            checkpoints = self.actor.checkpoints = Checkpoints(self.client, actor, descriptor)
            self.actor.calls.checkpoints = checkpoints.machine
            own_client.on_save_wanted(checkpoints.machine.want)
            if again:
                checkpoints.restore(self._fetch_views, self.actor.repeat)
        if type(actor).__repr__ is not object.__repr__:
            output.entitle(actor)
        self.client.serve(self.call_endpoint)

    def _pack(self, run: Run, descriptor: Describe, result: Any) -> tuple[Any, tuple[Value, ...]]:
        """What a task returned or yields, as values; the first part must live until they are sent."""
        name = descriptor.name
        if descriptor.returns == STREAM:
            self._stream(run, name, result, descriptor.unconsumed_max)
            return None, NOTHING
        if descriptor.returns == DYNAMIC:
            result = self._wrap_items(self.results.keep_items(run.task_id, name, result))
        return result, self.results.pack(run.task_id, name, descriptor.num_returns, result)

    def _stream(self, run: Run, name: str, result: Any, unconsumed_max: int) -> None:
        def send(index: int, value: Value) -> None:
            self.machine.yielded(run, index, value)

        self.streams.run(run.task_id, name, result, unconsumed_max, send)

    def _wrap_items(self, object_ids: Sequence[bytes]) -> Any:
        """The user's handle of items that were put: a thing of the layer above."""
        return import_module("zray.api.generators").from_kept(self.client, object_ids)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The user's code. A process that it forks and that comes back out of it is no worker: it ends."""
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            if own_client.was_forked():
                end_fork(error)
            raise
        if own_client.was_forked():
            end_fork(None)
        return result

    def _arguments(self, run: Run) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not run.deps:
            return load_args(run.args, ())
        views = [self.client.view(ready.object_id, ready.value) for ready in run.deps]
        later = self.machine.inputs_to_fetch(run)
        try:
            if later:
                fetched = self._fetch_views(later)
                shown = zip(run.deps, views, strict=True)
                views = [fetched.get(ready.object_id, view) for ready, view in shown]
            return self._load_args(run.args, views)
        finally:
            self.client.dropped.extend(later)

    def _load_args(
        self, blob: bytes | memoryview, views: list[bytes | memoryview]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if blob == ARGS_IN_LAST_DEP:
            blob = views.pop()
        return load_args(blob, [load(view, "an argument") for view in views])

    # --- direct calls --------------------------------------------------------------------------------

    def _serve(self, source: Address, message: Call | LeasedRun | EndLease) -> None:
        if isinstance(message, EndLease):
            with self.client.lock:
                self.machine.end_lease(message)
        elif isinstance(message, LeasedRun) and self.machine.is_wanted(message):
            self._run_leased(source, message)

    def _run_leased(self, source: Address, message: LeasedRun) -> None:
        """A task straight from its submitter."""
        spec = message.spec
        run = Run(spec.task_id, spec.attempt, spec.descriptor_id, spec.args)
        result, (value,), run_ns, failed = self._attempt(run)
        with self.client.lock:
            self.machine.leased_done(source, message, value, run_ns, failed=failed)
        if failed:
            self.results.sent((value,))
        del result

    # --- actor calls -------------------------------------------------------------------------------

    def _call_arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not call.deps:
            return load_args(call.args, ())
        try:
            views = self._fetch_views(call.deps)
            return self._load_args(call.args, [views[object_id] for object_id in call.deps])
        finally:
            self.client.dropped.extend(call.deps)

    def _fetch_views(self, object_ids: Sequence[bytes]) -> dict[bytes, bytes | memoryview]:
        """The bytes of inputs that did not come along; the caller drops each id once, also after an error."""
        client = self.client
        with client.lock:
            for object_id in object_ids:
                client.objects.borrow(object_id)
        values = client.fetch(object_ids, None)
        assert values is not None
        failed = self.machine.failed_input(values.values())
        if failed is not None:
            client.give_back(values)
            raise InputFailedError(failed)
        return {object_id: client.view(object_id, value) for object_id, value in values.items()}
