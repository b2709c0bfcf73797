"""What a simulated driver and worker share: what surrounds the client's machine, in virtual time.

What is decided is decided by the real :class:`ClientMachine`. Around it a process is one Python generator
that yields how long it computes, in nanoseconds, or a predicate that it waits for; an actor with several
calls at once has one more for each (``sim/strands.py``). Messages are handled when they arrive, also while
the process computes (the real one has a thread for that); what they make the process say leaves when it
waits, or with the next visit of that thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from sim.programs import (
    ActorRef,
    Await,
    CallActor,
    Compute,
    EndActor,
    Fetch,
    Forget,
    InterruptError,
    MakeActor,
    NoRoomError,
    Packed,
    Program,
    ProgramError,
    Ref,
    Spawn,
    Store,
    descriptor_of,
    descriptor_of_actor,
    error_in,
    pack,
    pack_args,
    unpack,
)
from sim.strands import Steps, Strand
from zray.core.client import ARGS_IN_LAST_DEP, HAS_VALUE, ROOM, ClientMachine, MethodCall
from zray.core.client_objects import Want
from zray.core.machine import Address, bound_handlers, take_effects
from zray.core.task_context import TaskContext
from zray.errors import ObjectStoreFullError
from zray.protocol.messages import (
    EXTENT,
    FILE,
    TASK,
    Describe,
    Exit,
    ObjectReady,
    Refused,
    Value,
    Warn,
    Welcome,
)

if TYPE_CHECKING:
    from sim.checkpoints import SimCheckpoints
    from sim.cluster import Cluster
    from sim.hosts import SimNode


class Process(ABC):
    """A driver or worker.

    Args:
        cluster: where it lives.
        address: its routing id.
        node: its node.
        root_task: the task that it is.
    """

    def __init__(self, cluster: Cluster, address: Address, node: SimNode, root_task: bytes) -> None:
        self.cluster = cluster
        self.kernel = cluster.kernel
        self.config = cluster.config
        self.costs = cluster.costs
        self.address = address
        self.host = node
        self.node = node.address
        self.machine: ClientMachine = ClientMachine(node=self.node, config=self.config)
        self.out, self.objects, self.calls = self.machine.out, self.machine.objects, self.machine.calls
        self.handlers = bound_handlers(self.machine)
        self.handlers.update(
            {
                ObjectReady: self._on_ready,
                Welcome: self._on_welcome,
                Refused: self._on_refused,
                Warn: self._on_warn,
                Exit: self.on_exit,
            }
        )
        self.alive = True
        self.checkpoints: SimCheckpoints | None = None  # of a worker that is an actor which can be saved
        self.welcome: Welcome | None = None
        self.frozen_until_ns = 0
        self._unheard: deque[tuple[Address, list[Any]]] = deque()
        self.routes: dict[Address, Address] = {}  # caller -> the address of ours that it called
        self.handles: dict[bytes, int] = {}  # of the running context, with their number
        self.context = TaskContext(root_task)
        self._debt_ns = 0  # processor time used and not yet spent
        self._hearing_until_ns = 0  # processor time that frames take, beside what it waits for
        self._duty_planned = False
        self._frames_heard = 0
        self._main = self._strand = Strand(self.main(), self.context)
        self.strands = [self._main]
        self._interrupts = 0  # how often it did not compute to the end
        self._interruptible = self._to_interrupt = False
        cluster.network.attach(address, self.receive)

    @abstractmethod
    def main(self) -> Steps:
        """Everything that the process does."""

    @abstractmethod
    def ended(self) -> None:
        """``main`` is over: the process exits by itself."""

    def start(self, _: Any = None) -> None:
        """Take the first steps."""
        self._advance(self._main)

    def begin(self, steps: Steps, context: TaskContext) -> Strand:
        """Do something beside what it does."""
        strand = Strand(steps, context)
        self.strands.append(strand)
        self.kernel.after(0, self._begin, strand)
        return strand

    def _begin(self, strand: Strand) -> None:
        if self.alive:
            self._advance(strand)

    def crash(self) -> None:
        """Be gone, at once."""
        self.alive = False
        for strand in self.strands:
            strand.steps.close()

    @property
    def thread_name(self) -> str:
        """Of the thread that runs its code."""
        return "simulated task"

    @property
    def is_waiting(self) -> bool:
        """Whether it waits, with at least one strand."""
        return any(strand.waiting is not None for strand in self.strands)

    def _switch_to(self, strand: Strand) -> None:
        former, self._strand = self._strand, strand
        former.context, former.handles, former.debt_ns = self.context, self.handles, self._debt_ns
        self.context, self.handles, self._debt_ns = strand.context, strand.handles, strand.debt_ns

    def _advance(self, strand: Strand, error: InterruptError | None = None) -> None:
        if strand is not self._strand:
            self._switch_to(strand)
        steps = strand.steps
        while True:
            try:
                wish = next(steps) if error is None else steps.throw(error)
                error = None
            except StopIteration:
                if strand is not self._main:
                    self.strands.remove(strand)
                    self.look()
                elif self.alive:
                    self.ended()
                return
            if type(wish) is int:
                strand.waiting = None
                until_ns = max(self.kernel.now_ns + wish, self.frozen_until_ns)
                self.kernel.at(until_ns, self._wake, (strand, self._interrupts))
                return
            assert not isinstance(wish, int)
            if not wish():
                strand.waiting = wish
                return

    def _wake(self, alarm: tuple[Strand, int]) -> None:
        strand, interrupts = alarm
        if not self.alive or (strand is self._main and interrupts != self._interrupts):
            return
        if self.frozen_until_ns > self.kernel.now_ns:
            self.kernel.at(self.frozen_until_ns, self._wake, alarm)
            return
        self._advance(strand)

    def look(self, _: Any = None) -> None:
        """See whether what it waits for has come."""
        for strand in self.strands if len(self.strands) == 1 else list(self.strands):
            waiting = strand.waiting
            if self.alive and waiting is not None and waiting():
                strand.waiting = None
                self._advance(strand)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it what the process computes or waits for may be cut short, and an earlier interrupt comes.

        Only tasks are, which a worker runs one at a time.


        Raises:
            InterruptError: if the running task was cancelled.
        """
        if self._to_interrupt:
            self._to_interrupt = False
            raise InterruptError
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def interrupt(self, context: TaskContext) -> None:
        """Raise an interrupt where the code of a task is, at once or as soon as nothing is half done."""
        if not self.alive or self.context is not context:
            return
        if not self._interruptible:
            self._to_interrupt = True
            return
        if self.frozen_until_ns > self.kernel.now_ns:
            self.kernel.at(self.frozen_until_ns, self.interrupt, context)
            return
        self._interrupts += 1
        self._main.waiting = None
        self._advance(self._main, InterruptError())

    # --- sending and receiving ---------------------------------------------------------------------

    def receive(self, source: Address, messages: list[Any]) -> None:
        """A frame has arrived."""
        if self._unheard or self.frozen_until_ns > self.kernel.now_ns:
            self._unheard.append((source, messages))
            self.kernel.at(self.frozen_until_ns, self._thaw)
        else:
            self._hear(source, messages)

    def _thaw(self, _: Any) -> None:
        """Hear what came while the process was frozen, in order."""
        if self._unheard and self.frozen_until_ns > self.kernel.now_ns:
            self.kernel.at(self.frozen_until_ns, self._thaw)
            return
        while self._unheard and self.alive:
            self._hear(*self._unheard.popleft())

    def _hear(self, source: Address, messages: list[Any]) -> None:
        handlers = self.handlers
        now_ns, several = self.kernel.now_ns, len(self.strands) > 1
        waits = self.is_waiting if several else self._main.waiting is not None
        self._hearing_until_ns = max(self._hearing_until_ns, now_ns) + self.costs.of_frame(
            len(messages), slept=waits and self._hearing_until_ns <= now_ns
        )
        for message in messages:
            handlers[type(message)](now_ns, source, message)
        self._frames_heard += 1
        if self._frames_heard % self.cluster.check_every == 0:
            self.check()
        if not waits:
            if self.out:
                self.plan_duty()
        elif several:
            self._pay_for_hearing()
            self.send_all()
            self.look()
        else:
            waiting = self._main.waiting
            assert waiting is not None
            if waiting():
                self._main.waiting = None
                self._pay_for_hearing()
                self._advance(self._main)
            else:
                self.send_all()

    def _pay_for_hearing(self) -> None:
        self._debt_ns += max(0, self._hearing_until_ns - self.kernel.now_ns)

    def check(self) -> None:
        """What the machines of this process say of themselves."""
        self.machine.check()

    def plan_duty(self) -> None:
        """Let the background thread come by, which sends what has gathered."""
        if not self._duty_planned:
            self._duty_planned = True
            self.kernel.after(self.config.idle_duty_interval_ns, self._idle_duty)

    def _idle_duty(self, _: Any) -> None:
        self._duty_planned = False
        if self.alive:
            if self.frozen_until_ns > self.kernel.now_ns:
                self._duty_planned = True
                self.kernel.at(self.frozen_until_ns, self._idle_duty)
            else:
                self.machine.catch_up()
                self.send_all()

    def send_all(self) -> None:
        """Send what is in the outbox, one batch per peer."""
        self.machine.settle()
        out = self.out
        if not out:
            return
        by_peer: dict[Address, list[Any]] = {}
        take_effects(out, by_peer)
        now_ns = self.kernel.now_ns
        self.machine.sent(now_ns)
        for destination, messages in by_peer.items():
            source = self.routes.get(destination, self.address)
            self.cluster.network.send(source, destination, messages, now_ns)

    def _spend(self) -> Steps:
        """Let the processor time pass that was used."""
        if self._debt_ns:
            debt_ns, self._debt_ns = self._debt_ns, 0
            yield debt_ns

    def _after_append(self) -> Steps:
        """Send if that is due."""
        if self.machine.is_due(self.kernel.now_ns + self._debt_ns):
            yield from self._spend()
            self.send_all()

    def wait_until(self, done: Callable[[], bool], *, may_lend: bool = True) -> Steps:
        """Wait; what waits to be sent leaves first. A worker may lend its processor meanwhile."""
        yield from self._spend()
        self.send_all()
        if done():
            return
        lent = may_lend and self.before_waiting()
        self.send_all()
        try:
            yield done
        except InterruptError:
            if lent:
                self.after_waiting()
            raise
        if lent:
            self.after_waiting()

    def before_waiting(self) -> bool:
        """A worker may lend its processor."""
        return False

    def after_waiting(self) -> None:  # noqa: B027  only workers do
        """Take :meth:`before_waiting` back."""

    # --- user code ---------------------------------------------------------------------------------

    def set_context(self, context: TaskContext) -> None:
        """What is made from now on gets ids below this task's."""
        self.context, self._to_interrupt = context, False

    def drive(self, program: Program) -> Steps:
        """Perform the operations of user code; returns what it returns."""
        try:
            operation = next(program)
            while True:
                try:
                    perform = self.PERFORM.get(type(operation))
                    if perform is not None:
                        result = yield from perform(self, operation)
                    else:
                        result = yield from operation.perform(self)
                except ProgramError as error:
                    operation = program.throw(error)
                else:
                    operation = program.send(result)
        except StopIteration as stop:
            return stop.value
        finally:
            program.close()  # also if something else refers to it: user code ends with its process

    def let_go(self) -> None:
        """Drop every handle of the running context."""
        handles, self.handles = self.handles, {}
        drop = self.objects.drop
        for object_id, times in handles.items():
            for _ in range(times):
                drop(object_id)

    def take_up(self, object_ids: Iterable[bytes]) -> None:
        """Handles that were unpickled."""
        for object_id in object_ids:
            self.objects.borrow(object_id)
            self._add_handle(object_id)

    def _add_handle(self, object_id: bytes) -> None:
        self.handles[object_id] = self.handles.get(object_id, 0) + 1

    def do_compute(self, operation: Compute) -> Steps:
        """Let time pass. What is in the outbox leaves with the visit of the background thread."""
        if self.out:
            self.plan_duty()
        self._debt_ns += operation.duration_ns
        yield from self._spend()

    def do_spawn(self, operation: Spawn) -> Steps:
        """Submit a task."""
        function, args, returns, retries, cpus, again, strategy = operation
        kind = descriptor_of(function, TASK, returns, cpus, retries, again, strategy)
        object_ids = yield from self._submit(kind, args)
        refs = [Ref(object_id) for object_id in object_ids]
        return refs[0] if returns == 1 else refs

    def do_make_actor(self, operation: MakeActor) -> Steps:
        """Submit a creation task."""
        (object_id,) = yield from self._submit(descriptor_of_actor(operation), operation.args)
        return ActorRef(object_id)

    def _submit(self, kind: Describe, args: tuple[Any, ...], task_id: bytes = b"") -> Steps:
        self._debt_ns += self.costs.submit_ns
        packed, deps = pack_args(args) if args else (_NO_ARGS, ())
        data, deps, stored = yield from self._args_as_sent(packed, deps)
        machine = self.machine
        if kind.descriptor_id not in machine.described:
            machine.describe(kind, self.cluster.code_of(kind))
        task_id, returns = machine.submit(
            self.context, kind, data, deps, packed.contained, stored_args=stored, task_id=task_id
        )
        self.cluster.judge.task_submitted(task_id)
        for object_id in returns:
            self._add_handle(object_id)
        yield from self._after_append()
        if machine.window <= machine.window_floor:
            deadline_ns = self.kernel.now_ns + self._debt_ns + self.config.submit_delay_ns
            self.kernel.at(deadline_ns, self.look)
            yield from self.wait_until(lambda: machine.window > 0 or self.kernel.now_ns >= deadline_ns)
            machine.go_on()
        return returns

    def _args_as_sent(self, packed: Packed, deps: tuple[bytes, ...]) -> Steps:
        """(data, deps, id of the stored arguments or nothing): large arguments travel as an object."""
        if packed.total_bytes <= self.machine.inline_bytes_max:
            return packed.data, deps, b""
        stored = yield from self._put(packed)
        return ARGS_IN_LAST_DEP, (*deps, stored), stored

    # --- objects -----------------------------------------------------------------------------------

    def do_store(self, operation: Store) -> Steps:
        """Put a value."""
        self._debt_ns += self.costs.submit_ns
        object_id = yield from self._put(pack(operation.value))
        self._add_handle(object_id)
        if operation.copies > 1:
            yield from self.keep_copies(object_id, operation.copies)
        return Ref(object_id)

    def keep_copies(self, object_id: bytes, copies: int) -> Steps:
        """Have other nodes keep copies of what was put, and wait for them; how many there are."""
        answer = yield from self.answer_to(self.machine.ask_copies(object_id, copies))
        if answer.copies >= copies:
            self.cluster.judge.copies_kept(object_id, copies)
            self.cluster.faults.copies_acknowledged(self.host)
        return answer

    def _put(self, packed: Packed, object_id: bytes = b"") -> Steps:
        """Keep a value; the id of the object, held once. Without one it is the next that this task puts."""
        machine, holder = self.machine, self.address if object_id else b""
        object_id = object_id or self.context.next_put_id()
        if packed.total_bytes <= machine.inline_bytes_max:
            machine.keep(object_id, packed.data, packed.contained)
            return object_id
        written = yield from self.store(object_id, packed, holder)
        if not written:
            machine.hold_former(object_id)
            written = yield from self.store(object_id, packed, holder)
        machine.stored(object_id, packed.contained, written=written)
        yield from self._after_append()
        return object_id

    def store(self, object_id: bytes, packed: Packed, holder: Address = b"") -> Steps:
        """Write a large value, not sealed yet; False if the object has one already."""
        machine, size_bytes = self.machine, packed.total_bytes
        machine.ask_room(object_id, size_bytes, holder)
        answer = yield from self.answer_to(object_id)
        verdict = machine.verdict(answer, size_bytes)
        if verdict == HAS_VALUE:
            return False
        if verdict != ROOM:
            machine.abandon(object_id)
            refusal = machine.no_room(answer, size_bytes)
            if isinstance(refusal, ObjectStoreFullError):
                self.cluster.judge.never_fits()
            raise NoRoomError(refusal)
        if self.crashes_when_creating():
            yield _never
        self.host.memory.write(answer, packed)
        return True

    def crashes_when_creating(self) -> bool:
        """Room was made and nothing written yet: whether a fault strikes here."""
        return False

    def do_fetch(self, operation: Fetch) -> Steps:
        """Get values."""
        wanted = [ref.object_id for ref in operation.refs]
        taken = yield from self.fetch(wanted)
        values = {}
        try:
            for object_id, value in taken.items():
                data = self.data_of(object_id, value)
                values[object_id], contained = unpack(data)
                self.take_up(contained)
            return [values[object_id] for object_id in wanted]
        finally:
            self.give_back(taken)

    def fetch(self, object_ids: Sequence[bytes]) -> Steps:
        """The values of objects that this process refers to, each shown once."""
        taken: dict[bytes, Value] = {}
        unique = dict.fromkeys(object_ids)
        while (want := self.objects.take_all(unique, taken)) is not None:
            yield from self.wait_for(want)
        return taken

    def wait_for(self, want: Want, until_ns: int | None = None) -> Steps:
        """Until it is done or the time is over; whether it is done."""
        if until_ns is not None:
            self.kernel.at(until_ns, self.look)
        try:
            yield from self.wait_until(
                lambda: want.done or (until_ns is not None and self.kernel.now_ns >= until_ns)
            )
            return want.done
        finally:
            self.objects.end_want(want)

    def give_back(self, taken: dict[bytes, Value]) -> None:
        """Nobody looks at these extents any more. After a crash the node finds that out by itself."""
        if not self.alive:
            return
        for object_id, value in taken.items():
            if value.kind == EXTENT:
                self.host.memory.look_away(self.address, object_id, value)
                self.objects.unpinned.append(object_id)

    def data_of(self, object_id: bytes, value: Value) -> bytes:
        """The encoded value.

        Raises:
            ProgramError: for an error value.
        """
        self.cluster.judge.value_seen(self.address, object_id, value)
        if value.kind == EXTENT or value.kind == FILE:
            data = self.host.memory.read(object_id, value)
            self.cluster.judge.data_seen(self.address, object_id, False, data)
            return data
        error = error_in(value)
        if error is not None:
            self.cluster.judge.data_seen(self.address, object_id, True, value.data)
            raise error
        self.cluster.judge.data_seen(self.address, object_id, False, value.data)
        return value.data

    def do_await(self, operation: Await) -> Steps:
        """Wait for some of the refs."""
        object_ids = list(dict.fromkeys(ref.object_id for ref in operation.refs))
        want = self.objects.await_ready(object_ids, operation.needed)
        if want is not None:
            yield from self.wait_for(want)
        ready = [self.objects.is_ready(ref.object_id) for ref in operation.refs]
        self.cluster.judge.waited(self.address, sum(ready), operation.needed)
        return ready

    def do_forget(self, operation: Forget) -> Steps:
        """Let go of refs."""
        for ref in operation.refs:
            times = self.handles.pop(ref.object_id)
            if times > 1:
                self.handles[ref.object_id] = times - 1
            self.objects.drop(ref.object_id)
        return None
        yield  # a generator like the others

    def answer_to(self, key: bytes | int, until_ns: int | None = None) -> Steps:
        """Wait for the answer to a question; ``None`` if the time is over before."""
        questions = self.machine.questions
        if until_ns is not None:
            self.kernel.at(until_ns, self.look)
        try:
            yield from self.wait_until(
                lambda: (
                    questions.is_answered(key) or (until_ns is not None and self.kernel.now_ns >= until_ns)
                )
            )
            return questions.take(key)
        finally:
            questions.give_up(key)

    def acquire_for(self, holder: Address, object_ids: tuple[bytes, ...]) -> Steps:
        """Let another process hold objects, acknowledged."""
        yield from self.answer_to(self.machine.ask_hold_for(holder, object_ids))

    def confirm_acquired(self) -> Steps:
        """Go on once the node counts every ref taken up so far."""
        yield from self.answer_to(self.machine.ask_whether_heard())

    # --- actors ------------------------------------------------------------------------------------

    def do_call_actor(self, operation: CallActor) -> Steps:
        """Call a method."""
        handle, method, args, count, repeats = operation
        returns = yield from self.call_actor(handle, MethodCall(method, count, repeats=repeats), args)
        return Ref(returns[0]) if count == 1 else [Ref(object_id) for object_id in returns]

    def call_actor(self, handle: ActorRef, method: MethodCall, args: tuple[Any, ...]) -> Steps:
        """Make a call; the ids of its return objects."""
        self._debt_ns += self.costs.submit_ns
        packed, deps = pack_args(args) if args else (_NO_ARGS, ())
        data, deps, stored = yield from self._args_as_sent(packed, deps)
        task_id, returns = self.machine.call_actor(
            self.context, handle.actor_id, handle.object_id, method, data, deps, packed.contained, stored
        )
        self.cluster.judge.call_made(self.address, handle.actor_id, task_id)
        for object_id in returns:
            self._add_handle(object_id)
        yield from self._after_append()
        return returns

    def do_end_actor(self, operation: EndActor) -> Steps:
        """Kill an actor."""
        yield from self.kill_actor(operation.actor.actor_id)

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> Steps:
        """End it at once."""
        self.machine.kill_actor(actor_id, no_restart)
        if no_restart:
            self.cluster.judge.actor_killed(actor_id)
        else:
            self.cluster.judge.process_ended()
        yield from self._spend()
        self.send_all()

    # --- what arrives ------------------------------------------------------------------------------

    def _on_ready(self, now_ns: int, source: Address, message: ObjectReady) -> None:
        if message.value.kind == EXTENT:
            self.host.memory.look(self.address, message.object_id, message.value)
            if message.object_id not in self.objects.objects:
                self.host.memory.look_away(self.address, message.object_id, message.value)
        self.machine.on_ready(now_ns, source, message)

    def _on_welcome(self, now_ns: int, source: Address, message: Welcome) -> None:
        self.welcome = message

    def _on_refused(self, now_ns: int, source: Address, message: Refused) -> None:
        """Here that is always a bug."""
        self.cluster.judge.fail(f"{self.address.hex()} was refused: {message.reason}: {message.detail}")

    def _on_warn(self, now_ns: int, source: Address, message: Warn) -> None:
        self.cluster.tell(self.address, message.text)

    def on_exit(self, now_ns: int, source: Address, message: Exit) -> None:  # noqa: B027  only workers do
        """The node ends this process; a driver ends by itself."""

    def say_goodbye(self) -> None:
        """The last words of a driver."""
        self.machine.say_goodbye()
        self.send_all()

    PERFORM: ClassVar[dict[type, Any]] = {
        Compute: do_compute,
        Spawn: do_spawn,
        Fetch: do_fetch,
        Await: do_await,
        Store: do_store,
        Forget: do_forget,
        MakeActor: do_make_actor,
        CallActor: do_call_actor,
        EndActor: do_end_actor,
    }


_NO_ARGS = pack([])


def _never() -> bool:
    return False
