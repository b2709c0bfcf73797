"""Simulated workers and drivers: what ``zray.runtime.worker`` and a user's program do, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sim.checkpoints import SimCheckpoints
from sim.process import Process, Steps
from sim.programs import (
    ACTORS,
    InterruptError,
    Packed,
    Program,
    ProgramError,
    error_in,
    pack,
    pack_error,
    refs_in,
    unpack_args,
)
from zray import ids
from zray.core.actors import SERVER_SUFFIX
from zray.core.cancellation import cancelled_value
from zray.core.client import ARGS_IN_LAST_DEP
from zray.core.machine import Address, bound_handlers
from zray.core.task_context import TaskContext
from zray.core.worker import WorkerMachine
from zray.protocol.base import InGroup
from zray.protocol.messages import (
    ACTOR,
    DRIVER,
    ERROR,
    EXTENT,
    INLINE,
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
    Recall,
    Reply,
    Run,
    Value,
)
from zray.protocol.user_messages import CancelCall, Interrupt, RepeatCall, SeeGpus

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.hosts import SimNode


class SimWorker(Process):
    """Run what the node sends, one task at a time, or be one actor."""

    def __init__(self, cluster: Cluster, address: Address, node: SimNode, pid: int, slot: int) -> None:
        super().__init__(cluster, address, node, ids.NIL_ID)
        self.pid = pid
        self.slot = slot
        self.work = WorkerMachine(self.machine)
        self.functions: dict[bytes, bytes] = {}
        self.actor: Any = None
        self.actor_id = b""
        self.actor_in_group: InGroup | None = None
        self.checkpoints: SimCheckpoints | None = None
        self.kept: list[bytes] = []  # refs in the actor's own state, each held once
        self.current_returns = 0  # return objects of what runs
        self.lent_since_ns = 0
        self.lent_ns = 0  # of the current task
        self.crash_when_creating = False
        self.handlers.update(bound_handlers(self.work))
        self.handlers.update(
            {
                Run: self.on_run,
                Call: self.on_call,
                PrepareLease: self.on_prepare_lease,
                LeasedRun: self.on_call,
                ExportFunction: self.on_export,
                JobContext: self.on_job,
                Recall: self.on_recall,
                SeeGpus: self.on_see_gpus,
                RepeatCall: self.on_repeat,
                Interrupt: self.on_cancel,
                CancelCall: self.on_cancel,
            }
        )

    def main(self) -> Steps:
        """Serve until the node says to end."""
        self.out.append((self.node, Hello(PROTOCOL_VERSION, WORKER, self.pid, ids.NIL_ID, "sim")))
        yield from self.wait_until(lambda: self.welcome is not None)
        work = self.work
        while work.runs or work.calls or not work.exiting:
            if not work.runs and not work.calls:
                work.note_idle()
                yield from self.wait_until(self._has_work)
                continue
            if work.runs:
                yield from self._run_task(work.runs.popleft())
            else:
                yield from self._serve(*work.calls.popleft())
            if (work.runs or work.calls) and work.note_result(self.kernel.now_ns):
                self.send_all()
        yield from self._spend()
        self.say_goodbye()

    def ended(self) -> None:
        """Exit with code 0."""
        self.host.worker_ended(self, 0)

    def _has_work(self) -> bool:
        return bool(self.work.runs or self.work.calls or self.work.exiting)

    def check(self) -> None:
        """Those of a worker, too."""
        super().check()
        self.work.check()

    def crashes_when_creating(self) -> bool:
        """Die between the room and the bytes."""
        if self.crash_when_creating:
            self.kernel.after(0, self._crash_now)
        return self.crash_when_creating

    def _crash_now(self, _: None) -> None:
        self.host.worker_ended(self, -9)

    # --- what the node says ------------------------------------------------------------------------

    def on_run(self, now_ns: int, source: Address, message: Run) -> None:
        """A task; its extents are looked at from now on."""
        for ready in message.deps:
            if ready.value.kind == EXTENT:
                self.host.memory.look(self.address, ready.object_id, ready.value)
        self.work.on_run(now_ns, source, message)

    def on_prepare_lease(self, now_ns: int, source: Address, message: PrepareLease) -> None:
        """Submitters may send tasks from now on."""
        self.cluster.network.attach(self.address + SERVER_SUFFIX, self.receive)
        self.work.on_prepare_lease(now_ns, source, message)

    def on_call(self, now_ns: int, source: Address, message: Call | LeasedRun) -> None:
        """A method call, or a task straight from its submitter."""
        if source != self.node:  # which passes on calls from other nodes
            self.routes[source] = self.address + SERVER_SUFFIX
        self.work.on_call(now_ns, source, message)

    def on_export(self, now_ns: int, source: Address, message: ExportFunction) -> None:
        """Code."""
        self.functions[message.function_id] = message.code

    def on_job(self, now_ns: int, source: Address, message: JobContext) -> None:
        """How to import, which nothing here needs."""

    def on_see_gpus(self, now_ns: int, source: Address, message: SeeGpus) -> None:
        """Which GPUs, which nothing here uses."""

    def on_recall(self, now_ns: int, source: Address, message: Recall) -> None:
        """Give back what was not started."""
        self._look_away(self.work.return_queued())

    def on_repeat(self, now_ns: int, source: Address, message: RepeatCall) -> None:
        """A former process of the actor ran this call."""
        assert self.checkpoints is not None
        self.checkpoints.machine.on_repeat(message)

    def on_cancel(self, now_ns: int, source: Address, message: Interrupt | CancelCall) -> None:
        """A task was cancelled: it is taken out of the queue, or its code sees an interrupt."""
        queued = list(self.work.runs)
        if self.work.withdraw(source, message) and not self.actor_id and not self.context.is_cancelled:
            self.context.is_cancelled = True
            self.kernel.after(0, self.interrupt, self.context)
        left = dict.fromkeys(run.task_id for run in self.work.runs)
        self._look_away(run for run in queued if run.task_id not in left)

    def _look_away(self, runs: Iterable[Run]) -> None:
        """What the machine says of inputs that nobody is going to see also holds for the modelled memory."""
        for run in runs:
            for ready in run.deps:
                if ready.value.kind == EXTENT:
                    self.host.memory.look_away(self.address, ready.object_id, ready.value)

    def before_waiting(self) -> bool:
        """The running task waits: its CPUs and what is queued behind it are for others."""
        if self.work.current == ids.NIL_ID:
            return False
        self._look_away(self.work.block(self.work.current))
        self.lent_since_ns = self.kernel.now_ns
        return True

    def after_waiting(self) -> None:
        """The task goes on."""
        self.lent_ns += self.kernel.now_ns - self.lent_since_ns
        self.work.unblock(self.work.current)

    # --- tasks -------------------------------------------------------------------------------------

    def _run_task(self, run: Run) -> Steps:
        values, run_ns, failed = yield from self._attempt(run)
        self.work.done(run, values, run_ns, failed=failed)
        self.let_go()

    def _attempt(self, run: Run) -> Steps:
        """Run a task: (the values of its return objects, run time, whether it failed)."""
        kind = self.work.descriptors[run.descriptor_id]
        self.host.cells[self.slot] = self.work.current = run.task_id
        self.current_returns = kind.num_returns
        self.set_context(TaskContext(run.task_id, kind.name, run.attempt, kind.demand, kind.in_group))
        self.cluster.judge.attempt_started(self.address, run.task_id, run.attempt)
        if kind.in_group is not None:
            self.cluster.judge.groups.used(self.node, kind.in_group.group_id)
        self._debt_ns += self.costs.run_ns
        started_ns, self.lent_ns = self.kernel.now_ns, 0
        failed = False
        try:
            values = yield from self._execute(run, kind)
        except InterruptError:
            failed = True
            values = (cancelled_value(run.task_id),) * kind.num_returns
        except ProgramError as error:
            failed = True
            values = (Value(ERROR, pack_error(error)),) * kind.num_returns
        except _InputFailedError as error:
            failed = True
            values = (error.value,) * kind.num_returns
        yield from self._spend()
        now_ns = self.kernel.now_ns
        self.work.current = ids.NIL_ID
        self.cluster.task_ended(
            self.address, kind.name, run.task_id, started_ns, now_ns, self.lent_ns, run.attempt
        )
        return values, now_ns - started_ns, failed

    def _execute(self, run: Run, kind: Describe) -> Steps:
        views = {ready.object_id: ready.value for ready in run.deps}
        try:
            inputs = yield from self._inputs(run)
            if run.args == ARGS_IN_LAST_DEP:
                args, refs = unpack_args(inputs.pop(), inputs)
            else:
                args, refs = unpack_args(run.args, inputs)
            self.take_up(refs)
            if kind.kind == ACTOR:
                return (yield from self._construct(run, kind, args))
            result = self.cluster.functions[self.functions[kind.function_id].decode()](*args)
            if hasattr(result, "send"):
                result = yield from self.drive(result)
            return (yield from self._pack(run.task_id, kind.num_returns, result))
        finally:
            self.give_back(views)

    def _inputs(self, run: Run) -> Steps:
        later = self.work.inputs_to_fetch(run)
        fetched = (yield from self._fetch_inputs(later)) if later else {}
        inputs = []
        for ready in run.deps:
            if ready.object_id in fetched:
                inputs.append(fetched[ready.object_id])
            else:
                inputs.append(self.data_of(ready.object_id, ready.value))
        return inputs

    def _fetch_inputs(self, object_ids: list[bytes]) -> Steps:
        """The data of inputs that did not come along."""
        self.take_up(object_ids)
        taken = yield from self.fetch(object_ids)
        try:
            failed = self.work.failed_input(taken.values())
            if failed is not None:
                raise _InputFailedError(failed)
            return {object_id: self.data_of(object_id, taken[object_id]) for object_id in object_ids}
        finally:
            self.give_back(taken)

    def _construct(self, run: Run, kind: Describe, args: list[Any]) -> Steps:
        code = self.functions[kind.function_id].decode()
        made = (self.cluster.functions.get(code) or ACTORS[kind.name])(*args)
        self.actor = (yield from self.drive(made)) if hasattr(made, "send") else made
        self.actor_id, self.actor_in_group = run.task_id, kind.in_group
        self.cluster.judge.actor_made(run.task_id, run.attempt)
        self._keep_state()
        if kind.checkpoint_interval >= 0:
            self.checkpoints = SimCheckpoints(self, kind)
            if run.attempt:
                yield from self.checkpoints.restore()
        self.cluster.network.attach(self.address + SERVER_SUFFIX, self.receive)
        return (Value(INLINE, pack(None).data),)

    def _keep_state(self) -> None:
        """Hold what the actor's state refers to, before the handles of the call go."""
        kept = list(dict.fromkeys(refs_in(getattr(self.actor, "kept", ()))))
        for object_id in kept:
            if object_id not in self.kept:
                self.objects.hold(object_id)
        for object_id in self.kept:
            if object_id not in kept:
                self.objects.drop(object_id)
        self.kept = kept

    def _pack(self, task_id: bytes, num_returns: int, result: Any, holder: Address = b"") -> Steps:
        results = [result] if num_returns == 1 else list(result or ())
        values = []
        for object_id, one in zip(ids.return_ids(task_id, num_returns), results, strict=True):
            values.append((yield from self._pack_one(object_id, pack(one), holder)))
        return tuple(values)

    def _pack_one(self, object_id: bytes, packed: Packed, holder: Address) -> Steps:
        if packed.contained:
            self.machine.share(packed.contained)
            if holder:
                yield from self.acquire_for(holder, packed.contained)
        if packed.total_bytes <= self.machine.inline_bytes_max:
            return Value(INLINE, packed.data, 0, 0, packed.contained)
        written = yield from self.store(object_id, packed, holder)
        return self.machine.large_result(
            object_id, packed.total_bytes, packed.contained, seals=bool(holder) and written
        )

    # --- direct calls ------------------------------------------------------------------------------

    def _serve(self, source: Address, message: Call | LeasedRun | EndLease) -> Steps:
        if isinstance(message, Call):
            yield from self._run_call(source, message)
        elif isinstance(message, EndLease):
            self.work.end_lease(message)
        elif self.work.is_wanted(message):
            yield from self._run_leased(source, message)

    def _run_leased(self, source: Address, message: LeasedRun) -> Steps:
        spec = message.spec
        run = Run(spec.task_id, spec.attempt, spec.descriptor_id, spec.args)
        (value,), run_ns, failed = yield from self._attempt(run)
        self.work.leased_done(source, message, value, run_ns, failed=failed)
        self.let_go()

    # --- actor calls -------------------------------------------------------------------------------

    def arguments_of(self, call: Call) -> Steps:
        """What a call is given; handles in it are the running context's."""
        inputs = list((yield from self._fetch_inputs(list(call.deps))).values()) if call.deps else []
        data = inputs.pop() if call.args == ARGS_IN_LAST_DEP else call.args
        args, refs = unpack_args(data, inputs)
        self.take_up(refs)
        return args

    def _run_call(self, source: Address, call: Call) -> Steps:
        checkpoints = self.checkpoints
        answer = None if checkpoints is None else checkpoints.machine.take_answer(call)
        if answer is not None:  # it ran before this process was made, and only its reply was lost
            self.out.append((source, Reply(call.task_id, answer)))
            return
        self.work.current, self.current_returns = call.task_id, call.num_returns
        self.set_context(TaskContext(call.task_id, call.method, in_group=self.actor_in_group))
        self._debt_ns += self.costs.run_ns
        started_ns, self.lent_ns = self.kernel.now_ns, 0
        acquires = self.objects.acquires
        values: tuple[Value, ...]
        try:
            args = yield from self.arguments_of(call)
            self.cluster.judge.call_applied(self.actor_id, call, self.address)
            result = getattr(self.actor, call.method)(*args)
            if hasattr(result, "send"):
                result = yield from self.drive(result)
            values = yield from self._pack(call.task_id, call.num_returns, result, source)
        except ProgramError as error:
            values = (Value(ERROR, pack_error(error)),) * call.num_returns
        except _InputFailedError as error:
            self.cluster.judge.call_applied(self.actor_id, call, self.address)
            values = (error.value,) * call.num_returns
        self._keep_state()
        if checkpoints is not None:
            yield from checkpoints.note(call, values)
        elif self.objects.acquires != acquires:
            yield from self.confirm_acquired()
        yield from self._spend()
        self.work.current = ids.NIL_ID
        self.out.append((source, Reply(call.task_id, values)))
        now_ns = self.kernel.now_ns
        self.cluster.task_ended(self.address, call.method, call.task_id, started_ns, now_ns, self.lent_ns)
        self.let_go()


class _InputFailedError(Exception):
    def __init__(self, value: Value) -> None:
        super().__init__(str(error_in(value)))
        self.value = value


class SimDriver(Process):
    """Run one program, then let go of everything.

    Args:
        number: which driver of the cluster.
        program: makes the generator of operations.
    """

    def __init__(
        self, cluster: Cluster, address: Address, node: SimNode, *, number: int, root_task: bytes,
        program: Callable[[], Program],
    ) -> None:  # fmt: skip
        self.number = number
        self.root_task = root_task
        self.program = program
        self.result: Any = None
        self.finished_ns: int | None = None
        self.gone = False
        super().__init__(cluster, address, node, root_task)

    def main(self) -> Steps:
        """Say hello, run the program, let go, and leave when the cluster is to end."""
        self.out.append((self.node, Hello(PROTOCOL_VERSION, DRIVER, 1000 + self.number, self.root_task)))
        yield from self.wait_until(lambda: self.welcome is not None)
        try:
            self.result = yield from self.drive(self.program())
        except ProgramError as error:
            self.result = error
        yield from self._spend()
        self.finished_ns = self.kernel.now_ns
        self.let_go()
        self.cluster.driver_finished(self)
        yield from self.wait_until(lambda: self.cluster.ending)
        self.say_goodbye()

    def ended(self) -> None:
        """The process is over."""
        self.cluster.driver_gone(self)
