"""Simulated workers and drivers: what ``zray.runtime.worker`` and a user's program do, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from sim.checkpoints import SimCheckpoints
from sim.hosted import CoroutineActor, LeaveError, UserActor
from sim.making import Making
from sim.process import Process
from sim.programs import (
    ACTORS,
    Emit,
    InterruptError,
    Packed,
    Partly,
    Program,
    ProgramError,
    error_in,
    pack,
    pack_error,
    refs_in,
    unpack_args,
    value_of,
)
from sim.strands import Steps
from zray import ids
from zray.core.actors import SERVER_SUFFIX
from zray.core.cancellation import cancelled_value
from zray.core.client import ARGS_IN_LAST_DEP
from zray.core.last_words import REPEAT_NS
from zray.core.machine import Address, bound_handlers
from zray.core.own_calls import OwnCalls
from zray.core.streams import item_id
from zray.core.task_context import TaskContext
from zray.core.worker import WorkerMachine
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
    Run,
    Value,
)
from zray.protocol.user_messages import CancelCall, Interrupt, RepeatCall, SeeGpus

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.hosts import SimNode


class SimWorker(Process):
    """Run what the node sends, one task at a time, or be one actor, with as many calls at once as it has."""

    def __init__(self, cluster: Cluster, address: Address, node: SimNode, pid: int, slot: int) -> None:
        super().__init__(cluster, address, node, ids.NIL_ID)
        self.pid = pid
        self.slot = slot
        self.work = WorkerMachine(self.machine)
        self.functions: dict[bytes, bytes] = {}
        self.actor: Any = None
        self.actor_id = b""
        self.hosted: OwnCalls | None = None
        self.kept: list[bytes] = []  # refs in the actor's own state, each held once
        self.making: dict[bytes, Making] = {}  # task or call -> what comes of it while it runs
        self._failed_for_good = False  # the last failure is none that another attempt is for
        self.lent_since_ns = 0
        self.lent_ns = 0  # of the current task
        self.crash_when_creating = False
        self.lender = self._main  # whose waits give the processor of the running task to others
        self.handlers.update(bound_handlers(self.work))
        self.handlers.update(
            {
                Run: self.on_run,
                Call: self.on_call,
                PrepareLease: self.on_prepare_lease,
                LeasedRun: self.on_leased,
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
        while self._has_work() or not self._is_over():
            if not self._has_work():
                work.note_idle()
                yield from self.wait_until(lambda: self._has_work() or self._is_over())
                continue
            yield from self._do_one()
            if self._has_work() and work.note_result(self.kernel.now_ns):
                self.send_all()
        hosted = self.hosted
        if hosted is not None and not hosted.is_idle:
            yield from self.wait_until(lambda: hosted.is_idle)
        if isinstance(self.actor, UserActor):
            yield from self._spend()
            self.send_all()
            self.bound_farewell()
            yield from self.drive(self.actor.farewell())
        yield from self._spend()
        if self.is_leaving:
            yield from self._say_last_words()
        self.say_goodbye()

    def _say_last_words(self) -> Steps:
        """Go on once everybody who called it and is still there has all of it, or the time is over."""
        farewells, kernel, there = self.machine.farewells, self.kernel, self.cluster.network.receivers
        next_ns = kernel.now_ns
        until_ns = next_ns + self.config.last_words_timeout_ns

        def all_heard_or_late() -> bool:
            return farewells.all_heard or kernel.now_ns >= next_ns

        farewells.say(self.routes)
        while not farewells.all_heard and kernel.now_ns < until_ns:
            for caller in [caller for caller in farewells.unheard if caller not in there]:
                farewells.heard_by(caller)
            next_ns = min(until_ns, kernel.now_ns + REPEAT_NS)
            kernel.at(next_ns, self.look)
            yield from self.wait_until(all_heard_or_late)
            farewells.repeat()

    def _do_one(self) -> Steps:
        if self.work.runs:
            yield from self._run_task(self.work.runs.popleft())
        elif self.work.calls:
            yield from self._serve(*self.work.calls.popleft())
        elif self.hosted is not None:
            item = self.hosted.start()
            assert item is not None
            self.work.current = item[1].task_id
            yield from self._run_call(*item)

    def bound_farewell(self) -> None:
        """What the user's code does from now on ends in time or is cut off."""
        self.kernel.after(self.config.farewell_timeout_ns, self._cut_off)

    def _cut_off(self, _: None) -> None:
        if self.frozen_until_ns > self.kernel.now_ns:
            self.kernel.at(self.frozen_until_ns, self._cut_off)
        elif self.alive:
            self.cluster.judge.process_ended()
            self.host.worker_ended(self, 1)

    def ended(self) -> None:
        """Exit with code 0."""
        self.host.worker_ended(self, 0)

    def _has_work(self) -> bool:
        if self.work.runs or self.work.calls:
            return True
        return self.hosted is not None and not self.is_concurrent and self.hosted.slots.may_start()

    def _is_over(self) -> bool:
        return self.work.exiting or self.is_leaving

    @property
    def thread_name(self) -> str:
        """As in a real worker."""
        return "zray-actor" if self.is_concurrent else super().thread_name

    @property
    def is_leaving(self) -> bool:
        """Whether it is an actor that ended itself."""
        return self.hosted is not None and self.hosted.leaving

    @property
    def is_concurrent(self) -> bool:
        """Whether it is an actor whose calls run beside each other."""
        if self.hosted is None:
            return False
        return self.hosted.slots.limit > 1 or isinstance(self.actor, CoroutineActor)

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

    def on_leased(self, now_ns: int, source: Address, message: LeasedRun) -> None:
        """A task straight from its submitter."""
        self._note_caller(source)
        self.work.on_call(now_ns, source, message)

    def on_call(self, now_ns: int, source: Address, message: Call) -> None:
        """A call of the actor that this is."""
        self._note_caller(source)
        if self.hosted is None:
            return
        if not self.hosted.arrived(source, message):
            error = Value(ERROR, pack_error(self.actor.refusal(message.group)))
            self.hosted.refuse(source, message, (error,) * message.num_returns)
        elif self.is_concurrent:
            self._start_calls()

    def _note_caller(self, source: Address) -> None:
        if source != self.node:  # which passes on calls from other nodes
            self.routes[source] = self.address + SERVER_SUFFIX

    def _start_calls(self) -> None:
        assert self.hosted is not None
        while (item := self.hosted.start()) is not None:
            self.begin(self._run_beside(*item), self.hosted.contexts[item[1].task_id])

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
        if self.hosted is not None and isinstance(message, CancelCall):
            if self.hosted.cancel(message) is not None and isinstance(self.actor, CoroutineActor):
                self.actor.cancel(message.task_id)
            return
        queued = list(self.work.runs)
        if self.work.withdraw(source, message) and not self.context.is_cancelled:
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
        if self.work.current == ids.NIL_ID or self._strand is not self.lender:
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
        self.work.done(run, values, run_ns, failed=failed, is_final=failed and self._failed_for_good)
        self.let_go()

    def _attempt(self, run: Run) -> Steps:
        """Run a task: (the values of its return objects, run time, whether it failed)."""
        kind = self.work.descriptors[run.descriptor_id]
        self.host.cells[self.slot] = self.work.current = run.task_id
        self.making[run.task_id] = Making(
            kind.num_returns, kind.returns, kind.unconsumed_max, lambda *item: self.work.yielded(run, *item)
        )
        self.set_context(TaskContext(run.task_id, kind.name, run.attempt, kind.demand, kind.in_group))
        self.cluster.judge.attempt_started(self.address, run.task_id, run.attempt)
        if kind.in_group is not None:
            self.cluster.judge.groups.used(self.node, kind.in_group.group_id)
        self._debt_ns += self.costs.run_ns
        started_ns, self.lent_ns = self.kernel.now_ns, 0
        failed = self._failed_for_good = False
        try:
            values = yield from self._execute(run, kind)
        except InterruptError:
            failed = True
            values = (cancelled_value(run.task_id),) * kind.num_returns
        except ProgramError as error:
            failed, self._failed_for_good = True, error.is_final
            values = (value_of(error),) * kind.num_returns
        except _InputFailedError as error:
            failed = True
            values = (error.value,) * kind.num_returns
        yield from self._spend()
        now_ns = self.kernel.now_ns
        self.work.current = ids.NIL_ID
        del self.making[run.task_id]
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
            return (yield from self._pack(run.task_id, self.making[run.task_id], result))
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
        self.actor_id = run.task_id
        groups = self.actor.groups if isinstance(self.actor, UserActor) else {}
        self.hosted = OwnCalls(self.machine, self.work.credits, kind, groups)
        self.cluster.judge.actor_made(run.task_id, run.attempt)
        self._keep_state()
        if kind.checkpoint_interval >= 0:
            self.checkpoints = SimCheckpoints(self, kind)
            self.hosted.checkpoints = self.checkpoints.machine
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

    def _pack(self, task_id: bytes, making: Making, result: Any) -> Steps:
        count, error = making.num_returns, None
        if isinstance(result, Partly):
            result, error = result
        results = [result] if count == 1 else list(result or ())
        values = []
        for object_id, one in zip(ids.return_ids(task_id, count), results, strict=error is None):
            values.append((yield from self._pack_one(object_id, pack(one), making.holder)))
        if error is not None:
            values += [Value(ERROR, pack_error(error))] * (count - len(values))
        return tuple(values)

    def do_emit(self, operation: Emit) -> Steps:
        """An item for whoever reads what runs here; it leaves now, or soon."""
        task_id = self.context.task_id
        making = self.making[task_id]
        if not making.is_wanted:
            return
        object_id = item_id(task_id, making.items)
        value = yield from self._pack_one(object_id, pack(operation.value), making.holder)
        making.send(making.items, value)
        making.items += 1
        yield from self._after_append()
        if not operation.waits or self.may_emit(task_id):
            return
        with self.interruptible():
            yield from self.wait_until(lambda: self.may_emit(task_id))

    def may_emit(self, task_id: bytes) -> bool:
        """Whether the next item of a stream is within its bound."""
        making = self.making[task_id]
        return self.work.credits.may_make(task_id, making.items, making.unconsumed_max)

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

    def _serve(self, source: Address, message: LeasedRun | EndLease) -> Steps:
        if isinstance(message, EndLease):
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

    def _run_beside(self, source: Address, call: Call) -> Steps:
        yield from self._run_call(source, call)
        self._start_calls()
        yield from self._spend()
        self.send_all()

    def _run_call(self, source: Address, call: Call) -> Steps:
        hosted, checkpoints = self.hosted, self.checkpoints
        assert hosted is not None
        making = self.making[call.task_id] = Making(
            call.num_returns, call.returns, call.unconsumed_max,
            lambda *item: hosted.yielded(source, call, *item), source,
        )  # fmt: skip
        self.set_context(hosted.contexts[call.task_id])
        self._debt_ns += self.costs.run_ns
        started_ns, self.lent_ns = self.kernel.now_ns, 0
        acquires = self.objects.acquires
        values: tuple[Value, ...]
        answered = True
        self.cluster.judge.call_applied(self.actor_id, call, self.address)
        try:
            args = yield from self.arguments_of(call)
            result = self.method(call.method)(*args)
            if hasattr(result, "send"):
                result = yield from self.drive(result)
            values = yield from self._pack(call.task_id, making, result)
        except (ProgramError, _InputFailedError) as error:
            values = self._failed(call, error)
            answered = not isinstance(error, LeaveError)
        self._keep_state()
        if checkpoints is not None and not hosted.leaving:
            try:
                yield from checkpoints.note(call, values)
            except ProgramError as error:  # it ran; the checkpoint after it could not be saved
                values = self._failed(call, error)
        elif self.objects.acquires != acquires:
            yield from self.confirm_acquired()
        yield from self._spend()
        self.work.current = ids.NIL_ID
        del self.making[call.task_id]
        if answered:
            self.cluster.judge.call_answered(call)
        hosted.ended(source, call, values)
        now_ns = self.kernel.now_ns
        self.cluster.task_ended(self.address, call.method, call.task_id, started_ns, now_ns, self.lent_ns)
        self.let_go()

    def _failed(self, call: Call, error: ProgramError | _InputFailedError) -> tuple[Value, ...]:
        """The values of a call that raised, and may have ended the actor."""
        assert self.hosted is not None
        if isinstance(error, _InputFailedError):
            value = error.value
        elif isinstance(error, LeaveError):
            self.cluster.judge.actor_left(self.actor_id)
            return self.hosted.leave(call)
        elif isinstance(error, InterruptError):
            value = cancelled_value(call.task_id)
        else:
            value = value_of(error)
        return (value,) * call.num_returns

    def method(self, name: str) -> Callable[..., Any]:
        """What callers mean by the name of a method."""
        if isinstance(self.actor, UserActor):
            return self.actor.method(name)
        method: Callable[..., Any] = getattr(self.actor, name)
        return method

    PERFORM: ClassVar[dict[type, Any]] = {**Process.PERFORM, Emit: do_emit}


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
