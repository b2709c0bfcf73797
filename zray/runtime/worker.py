"""A worker process: run what the node sends, one task at a time, or be one actor.

User code runs in the main thread. Finished results gather until nothing is left to run, the batch is full
or the oldest has waited for ``done_linger_ns``. Before an attempt starts its id goes into the worker's
*progress cell*, sixteen bytes of memory shared with the node, so that after a crash the node knows exactly
which task was running, although results travel in batches.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from zray import ids
from zray.config import Config
from zray.core.actors import SERVER_SUFFIX
from zray.core.machine import Address
from zray.errors import ActorDiedError, TaskError, ZrayError
from zray.protocol.messages import (
    ACTOR,
    AT_NODE,
    ERROR,
    EXTENT,
    FAULT,
    INLINE,
    PROTOCOL_VERSION,
    TASK,
    WORKER,
    Abort,
    Blocked,
    Call,
    Describe,
    EndLease,
    Exit,
    ExportFunction,
    Hello,
    JobContext,
    LeasedDone,
    LeasedReply,
    LeasedRun,
    LeaseEnded,
    LeaseReady,
    PrepareLease,
    Recall,
    Reply,
    Returned,
    Run,
    Seal,
    TaskDone,
    Unblocked,
    Value,
)
from zray.runtime import own_client
from zray.runtime.client import ARGS_IN_LAST_DEP, Client
from zray.serialize.functions import FunctionTable, load_args
from zray.serialize.values import dump, dump_error, format_user_traceback, load

log = logging.getLogger("zray.worker")

CELL_BYTES = ids.ID_BYTES
RESULT_BYTES_MAX = 8 << 20
"""What the small results of one task, or copies of its error, take together in one message."""


class InputFailedError(Exception):
    """An argument's value is an error; the call ends with the same one."""

    def __init__(self, value: Value) -> None:
        super().__init__("an argument is an error")
        self.value = value


class WorkerProcess:
    """The main thread of a worker.

    Args:
        worker_id: routing id, chosen by the node.
        node_id: routing id of the node.
        node_endpoint: where the node listens.
        call_endpoint: where this worker takes direct calls once it is an actor.
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
        cell: memoryview,
        config: Config,
    ) -> None:
        self.worker_id = worker_id
        self.node_endpoint = node_endpoint
        self.call_endpoint = call_endpoint
        self.cell = cell
        self.config = config
        self.client = Client(worker_id, node_id, root_task=ids.NIL_ID, config=config, role=WORKER)
        self.runs: deque[Run] = deque()
        self.calls: deque[tuple[Address, Call | LeasedRun | EndLease]] = deque()
        self.ended_lease = 0  # tasks of this lease and those before are not run any more
        self.last_reply: LeasedReply | None = None
        self.functions = FunctionTable()
        self.descriptors: dict[bytes, Describe] = {}
        self.actor: Any = None
        self.actor_name = ""
        self.current = ids.NIL_ID  # the task that runs
        self.finished = 0  # results that wait in the outbox
        self.first_finished_ns = 0
        self.exiting = False
        self._main_thread = threading.get_ident()

    def run(self) -> int:
        """Serve until the node says to end; the process's exit code."""
        client = self.client
        client.handlers.update(
            {
                Run: lambda _source, message: self.runs.append(message),
                Call: self._on_call,
                PrepareLease: self._on_prepare_lease,
                LeasedRun: self._on_call,
                EndLease: lambda source, message: self.calls.append((source, message)),
                Describe: self._on_describe,
                ExportFunction: self._on_export,
                JobContext: self._on_job,
                Recall: lambda _source, _message: self._return_queued(),
                Exit: self._on_exit,
            }
        )
        client.before_waiting = self._lend
        client.after_waiting = self._take_back
        hello = Hello(PROTOCOL_VERSION, WORKER, os.getpid(), ids.NIL_ID, self.call_endpoint)
        client.connect(self.node_endpoint, hello, timeout_s=self.config.init_timeout_ns / 1e9)
        own_client.use(client, in_worker=True)
        while self._wait_for_work():
            if self.runs:
                self._run_task(self.runs.popleft())
            elif self.calls:
                self._serve(*self.calls.popleft())
            self._send_if_due()
        client.close()
        return 0

    def _wait_for_work(self) -> bool:
        """False once there is nothing left to do, for ever."""
        if self.runs or self.calls:
            return True
        if not self.exiting:
            self.finished = 0
            self.client.wait_until(lambda: bool(self.runs or self.calls or self.exiting), None)
        return bool(self.runs or self.calls)

    def _send_if_due(self) -> None:
        """Results wait for company while there is more to run, but not for long."""
        if not self.runs and not self.calls:
            return  # waiting for work sends everything
        now_ns = time.monotonic_ns()
        if self.finished == 0:
            self.first_finished_ns = now_ns
        self.finished += 1
        late = now_ns - self.first_finished_ns >= self.config.done_linger_ns
        if late or self.finished >= self.config.done_batch_max:
            self.finished = 0
            self.client.flush()

    # --- what the node says; called with the client's lock held ------------------------------------

    def _on_prepare_lease(self, source: Address, message: PrepareLease) -> None:
        if not self.client.servers:
            self.client.serve(self.worker_id + SERVER_SUFFIX, self.call_endpoint)
        self.client.out.append((self.client.node, LeaseReady()))

    def _on_call(self, source: Address, message: Call | LeasedRun) -> None:
        self.client.routes[source] = self.client.servers[0]
        self.calls.append((source, message))

    def _on_describe(self, source: Address, message: Describe) -> None:
        self.descriptors[message.descriptor_id] = message

    def _on_export(self, source: Address, message: ExportFunction) -> None:
        self.functions.add(message.function_id, message.code)

    def _on_job(self, source: Address, message: JobContext) -> None:
        self.client.root_task = message.job_id
        sys.path.extend(path for path in message.sys_path if path not in sys.path)
        if message.working_dir:
            try:
                os.chdir(message.working_dir)
            except OSError as error:
                log.warning("cannot enter the driver's directory: %s", error)

    def _on_exit(self, source: Address, message: Exit) -> None:
        self.exiting = True

    def _return_queued(self) -> None:
        given_back = []
        while self.runs:
            run = self.runs.popleft()
            given_back.append(run.task_id)
            self._look_away(run)
        if given_back:
            self.client.out.append((self.client.node, Returned(tuple(given_back))))

    def _look_away(self, run: Run) -> None:
        """The inputs that the node shows for a task are not going to be viewed."""
        for ready in run.deps:
            if ready.value.kind == EXTENT:
                self.client.note_unpinned(ready.object_id)

    # --- waiting inside user code ------------------------------------------------------------------

    def _lend(self) -> bool:
        """The running task waits: its CPUs and what is queued behind it are for others."""
        if self.current == ids.NIL_ID or threading.get_ident() != self._main_thread:
            return False
        with self.client.lock:
            self._return_queued()
            self.client.out.append((self.client.node, Blocked(self.current)))
        return True

    def _take_back(self) -> None:
        with self.client.lock:
            self.client.out.append((self.client.node, Unblocked(self.current)))

    # --- tasks -------------------------------------------------------------------------------------

    def _run_task(self, run: Run) -> None:
        result, values, run_ns, failed = self._attempt(run)
        with self.client.lock:
            done = TaskDone(run.task_id, run.attempt, values, run_ns, failed)
            self.client.out.append((self.client.node, done))
        del result  # not before its message is in the outbox: what it holds must not be let go before

    def _attempt(self, run: Run) -> tuple[Any, tuple[Value, ...], int, bool]:
        """Run a task: (its result, the values of its return objects, run time, whether it failed)."""
        descriptor = self.descriptors[run.descriptor_id]
        client = self.client
        self.cell[:] = run.task_id
        self.current = run.task_id
        client.set_context(run.task_id)
        started_ns = time.perf_counter_ns()
        failed = False
        result = None
        try:
            result, values = self._execute(run, descriptor)
        except BaseException as error:
            failed = True
            values = self._error_values(
                run.task_id, descriptor.kind, descriptor.name, descriptor.num_returns, error
            )
        run_ns = time.perf_counter_ns() - started_ns
        self.current = ids.NIL_ID
        return result, values, run_ns, failed

    def _execute(self, run: Run, descriptor: Describe) -> tuple[Any, tuple[Value, ...]]:
        try:
            function = self.functions.get(descriptor.function_id, descriptor.name)
        except BaseException:
            self._look_away(run)
            raise
        args, kwargs = self._arguments(run)
        result = self._call(function, args, kwargs)
        if descriptor.kind == ACTOR:
            self.actor, self.actor_name = result, descriptor.name
            if not self.client.servers:
                self.client.serve(self.worker_id + SERVER_SUFFIX, self.call_endpoint)
            return None, (Value(INLINE, dump(None).to_bytes()),)
        return result, self._pack(run.task_id, descriptor.name, descriptor.num_returns, result)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The user's code. A process that it forks and that comes back out of it is no worker: it ends."""
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            if os.getpid() != self.client.pid:
                _end_fork(error)
            raise
        if os.getpid() != self.client.pid:
            _end_fork(None)
        return result

    def _arguments(self, run: Run) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not run.deps:
            return load_args(run.args, ())
        views = [self.client.view(ready.object_id, ready.value) for ready in run.deps]
        later = [ready.object_id for ready in run.deps if ready.value.kind == AT_NODE]
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

    def _pack(
        self, task_id: bytes, name: str, num_returns: int, result: Any, holder: Address = b""
    ) -> tuple[Value, ...]:
        """The values of the return objects."""
        if num_returns == 1:
            return (self._pack_one(ids.first_return_id(task_id), name, result, holder),)
        if num_returns == 0:
            return ()
        results = list(result) if isinstance(result, Sequence) else [result]
        if len(results) != num_returns:
            raise ValueError(f"{name}() has num_returns={num_returns} and returned {len(results)} values")
        values: list[Value] = []
        inline_bytes_left = RESULT_BYTES_MAX
        object_ids = ids.return_ids(task_id, num_returns)
        try:
            for object_id, one in zip(object_ids, results, strict=True):
                values.append(self._pack_one(object_id, name, one, holder, inline_bytes_left))
                inline_bytes_left -= len(values[-1].data)
        except BaseException:
            self._abort(object_ids, values)
            raise
        return tuple(values)

    def _pack_one(
        self,
        object_id: bytes,
        name: str,
        result: Any,
        holder: Address,
        inline_bytes_left: int = RESULT_BYTES_MAX,
    ) -> Value:
        packed = dump(result, f"the return value of {name}()")
        client = self.client
        if packed.contained:
            with client.lock:
                client.objects.share(packed.contained)
            if holder:
                client.acquire_for(holder, packed.contained)
        if packed.total_bytes <= min(self.config.inline_bytes_max, inline_bytes_left):
            return Value(INLINE, packed.to_bytes(), 0, 0, packed.contained)
        written = client.store(object_id, packed, holder)
        if holder and written:
            with client.lock:
                client.out.append((client.node, Seal(object_id, packed.contained)))
        return Value(EXTENT, b"", 0, packed.total_bytes, packed.contained)

    def _abort(self, object_ids: Sequence[bytes], values: Sequence[Value]) -> None:
        """A later return value failed: the room of the earlier ones is given back before anybody retries."""
        client = self.client
        with client.lock:
            for object_id, value in zip(object_ids, values, strict=False):
                if value.kind == EXTENT:
                    client.out.append((client.node, Abort(object_id)))

    def _error_values(
        self, task_id: bytes, kind: int, name: str, count: int, error: BaseException
    ) -> tuple[Value, ...]:
        """One error for each of ``count`` return objects."""
        if isinstance(error, InputFailedError):
            return (error.value,) * count
        text = format_user_traceback(error)
        raised: ZrayError = TaskError(name, text, error)
        if kind == ACTOR:
            raised = ActorDiedError(ids.short(task_id), f"its constructor raised\n{text}", raised)
        data = dump_error(raised)
        if len(data) * count > RESULT_BYTES_MAX:
            small = TaskError(name, text[-(RESULT_BYTES_MAX // (8 * count)) :], None)
            small.add_note(f"the {type(error).__name__} itself takes {len(data)} bytes and was left out")
            data = dump_error(small)
        return (Value(ERROR, data),) * count

    # --- direct calls --------------------------------------------------------------------------------

    def _serve(self, source: Address, message: Call | LeasedRun | EndLease) -> None:
        if isinstance(message, Call):
            self._run_call(source, message)
        elif isinstance(message, LeasedRun):
            if (
                message.lease_id > self.ended_lease
            ):  # else it crossed the end of its lease, and runs elsewhere
                self._run_leased(source, message)
        else:
            self._end_lease(message.lease_id)

    def _end_lease(self, lease_id: int) -> None:
        last, self.last_reply = self.last_reply, None
        if last is not None and last.lease_id != lease_id:
            last = None
        self.ended_lease = lease_id
        with self.client.lock:
            self.client.out.append((self.client.node, LeaseEnded(lease_id, last)))

    def _run_leased(self, source: Address, message: LeasedRun) -> None:
        """A task straight from its submitter. Only a small value without refs goes straight back."""
        spec = message.spec
        run = Run(spec.task_id, spec.attempt, spec.descriptor_id, spec.args)
        result, (value,), run_ns, failed = self._attempt(run)
        client = self.client
        with client.lock:
            if value.kind == EXTENT or value.contained:
                self.last_reply = None
                done = LeasedDone(message.lease_id, spec, run_ns, failed, True, value)
                client.out.append((client.node, done))
            else:
                self.last_reply = LeasedReply(message.lease_id, spec.task_id, value, run_ns, failed)
                client.out.append((source, self.last_reply))
        del result

    # --- actor calls -------------------------------------------------------------------------------

    def _run_call(self, source: Address, call: Call) -> None:
        client = self.client
        name = f"{self.actor_name}.{call.method}"
        self.current = call.task_id
        client.set_context(call.task_id)
        acquires = client.objects.acquires
        result = None
        try:
            method: Callable[..., Any] = getattr(self.actor, call.method)
            args, kwargs = self._call_arguments(call)
            result = self._call(method, args, kwargs)
            del args, kwargs
            values = self._pack(call.task_id, name, call.num_returns, result, source)
        except BaseException as error:
            values = self._error_values(call.task_id, TASK, name, call.num_returns, error)
        if client.objects.acquires != acquires:
            client.confirm_acquired()  # the caller lets go of its arguments when it has the reply
        self.current = ids.NIL_ID
        with client.lock:
            client.out.append((source, Reply(call.task_id, values)))
        del result

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
        for value in values.values():
            if value.kind in (ERROR, FAULT):
                client.give_back(values)
                raise InputFailedError(value)
        return {object_id: client.view(object_id, value) for object_id, value in values.items()}


def _end_fork(error: BaseException | None) -> NoReturn:
    """End this process as the interpreter would, had it run only the user's code."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        print(format_user_traceback(error), file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)
