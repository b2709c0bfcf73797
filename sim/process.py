"""What a simulated driver and worker share: the part of the runtime's client, in virtual time.

The state machines are the real ones (``ClientObjects``, ``ActorCalls``). Around them a process is one
Python generator that yields how long it computes, in nanoseconds, or a predicate that it waits for.
Messages are handled when they arrive, also while the process computes (the real one has a thread for
that); what they make the process say leaves when it waits, or with the next visit of that thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sim.programs import (
    ActorRef,
    Await,
    CallActor,
    Compute,
    EndActor,
    Fetch,
    Forget,
    MakeActor,
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
from zray import ids
from zray.core.actor_caller import ActorCaller
from zray.core.actor_calls import ActorCalls
from zray.core.client_objects import ClientObjects
from zray.core.leased_tasks import LeasedTasks
from zray.core.machine import Address, Effect
from zray.protocol.group_messages import GroupAnswer
from zray.protocol.messages import (
    EXTENT,
    FILE,
    INLINE,
    TASK,
    Acked,
    Acquire,
    ActorState,
    Call,
    Create,
    Created,
    CreateFailed,
    Credit,
    Describe,
    Exit,
    ExportFunction,
    Goodbye,
    HoldFor,
    KillActor,
    Lease,
    LeasedReply,
    LeaseGone,
    ObjectReady,
    Refused,
    Reply,
    Seal,
    Submit,
    Value,
    Warn,
    Welcome,
)

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.hosts import SimNode

Wish = int | Callable[[], bool]
Steps = Generator[Wish, None, Any]

ARGS_IN_LAST_DEP = b"@"


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
        self.out: list[Effect] = []
        self.objects = ClientObjects(self.out, node=self.node)
        self.calls = ActorCalls(self.out, node=self.node)
        self.caller = ActorCaller(self.calls, self.objects)
        self.leased = LeasedTasks(self.out, node=self.node, objects=self.objects)
        self.alive = True
        self.welcome: Welcome | None = None
        self.frozen_until_ns = 0
        self._unheard: deque[tuple[Address, list[Any]]] = deque()
        self.routes: dict[Address, Address] = {}  # caller -> the address of ours that it called
        self.handles: dict[bytes, int] = {}  # of the running context, with their number
        self.context_task = root_task
        self._prefix = ids.child_prefix(root_task)
        self._counter = 0
        self._described: dict[bytes, None] = {}
        self._exported: dict[bytes, None] = {}
        self._window = self.config.submit_window_max
        self._window_floor = 0
        self._sent_ns = 0
        self._debt_ns = 0  # processor time used and not yet spent
        self._hearing_until_ns = 0  # processor time that frames take, beside what it waits for
        self._duty_planned = False
        self._tokens = 0
        self._replies: dict[Any, Any] = {}
        self._steps: Steps = self.main()
        self._waiting: Callable[[], bool] | None = None
        cluster.network.attach(address, self.receive)

    @abstractmethod
    def main(self) -> Steps:
        """Everything that the process does."""

    @abstractmethod
    def ended(self) -> None:
        """``main`` is over: the process exits by itself."""

    def start(self, _: Any = None) -> None:
        """Take the first steps."""
        self._advance()

    def crash(self) -> None:
        """Be gone, at once."""
        self.alive = False
        self._steps.close()

    def _advance(self) -> None:
        steps = self._steps
        while True:
            try:
                wish = next(steps)
            except StopIteration:
                if self.alive:
                    self.ended()
                return
            if type(wish) is int:
                self._waiting = None
                self.kernel.at(max(self.kernel.now_ns + wish, self.frozen_until_ns), self._wake)
                return
            assert not isinstance(wish, int)
            if not wish():
                self._waiting = wish
                return

    def _wake(self, _: Any) -> None:
        if not self.alive:
            return
        if self.frozen_until_ns > self.kernel.now_ns:
            self.kernel.at(self.frozen_until_ns, self._wake)
            return
        self._advance()

    def look(self, _: Any = None) -> None:
        """See whether what it waits for has come."""
        waiting = self._waiting
        if self.alive and waiting is not None and waiting():
            self._waiting = None
            self._advance()

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
        handlers = self.HANDLERS
        now_ns, waiting = self.kernel.now_ns, self._waiting
        self._hearing_until_ns = max(self._hearing_until_ns, now_ns) + self.costs.of_frame(
            len(messages), slept=waiting is not None and self._hearing_until_ns <= now_ns
        )
        for message in messages:
            handlers[type(message)](self, source, message)
        if waiting is not None:
            if waiting():
                self._waiting = None
                self._debt_ns += self._hearing_until_ns - now_ns
                self._advance()
            else:
                self.send_all()
        elif self.out and not self._duty_planned:
            self._duty_planned = True
            self.kernel.after(self.config.idle_duty_interval_ns, self._idle_duty)

    def _idle_duty(self, _: Any) -> None:
        self._duty_planned = False
        if self.alive:
            if self.frozen_until_ns > self.kernel.now_ns:
                self._duty_planned = True
                self.kernel.at(self.frozen_until_ns, self._idle_duty)
            else:
                self.leased.settle()
                self.send_all()

    def send_all(self) -> None:
        """Send what is in the outbox, one batch per peer."""
        if self.leased.due:
            self.leased.settle()
        self.objects.settle()
        out = self.out
        if not out:
            return
        by_peer: dict[Address, list[Any]] = {}
        for destination, message in out:
            messages = by_peer.get(destination)
            if messages is None:
                by_peer[destination] = [message]
            else:
                messages.append(message)
        out.clear()
        now_ns = self._sent_ns = self.kernel.now_ns
        for destination, messages in by_peer.items():
            source = self.routes.get(destination, self.address)
            self.cluster.network.send(source, destination, messages, now_ns)

    def _spend(self) -> Steps:
        """Let the processor time pass that was used."""
        if self._debt_ns:
            debt_ns, self._debt_ns = self._debt_ns, 0
            yield debt_ns

    def _after_append(self) -> Steps:
        """Send if the batch is full or the link was idle."""
        now_ns = self.kernel.now_ns + self._debt_ns
        config = self.config
        if len(self.out) >= config.submit_batch_max or now_ns - self._sent_ns > config.submit_linger_ns:
            yield from self._spend()
            self.send_all()

    def wait_until(self, done: Callable[[], bool]) -> Steps:
        """Wait; what waits to be sent leaves first."""
        yield from self._spend()
        self.send_all()
        if done():
            return
        lent = self.before_waiting()
        self.send_all()
        yield done
        if lent:
            self.after_waiting()

    def before_waiting(self) -> bool:
        """A worker may lend its processor."""
        return False

    def after_waiting(self) -> None:  # noqa: B027  only workers do
        """Take :meth:`before_waiting` back."""

    # --- user code ---------------------------------------------------------------------------------

    def set_context(self, task_id: bytes) -> None:
        """What is made from now on gets ids below this task's."""
        self.context_task = task_id
        self._prefix = b""
        self._counter = 0

    def _next_prefix(self) -> bytes:
        if not self._prefix:
            self._prefix = ids.child_prefix(self.context_task)
        self._counter += 1
        return self._prefix

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
        if self.out and not self._duty_planned:
            self._duty_planned = True
            self.kernel.after(self.config.idle_duty_interval_ns, self._idle_duty)
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

    def _submit(self, kind: Describe, args: tuple[Any, ...]) -> Steps:
        self._debt_ns += self.costs.submit_ns
        packed, deps = pack_args(args) if args else (_NO_ARGS, ())
        data, deps, stored = yield from self._args_as_sent(packed, deps)
        if kind.descriptor_id not in self._described:
            self._describe(kind)
        task_id = ids.task_id(self._next_prefix(), self._counter)
        returns = ids.return_ids(task_id, kind.num_returns)
        self.share((*deps, *packed.contained))
        for object_id in returns:
            self._add_handle(object_id)
        self.cluster.judge.task_submitted(task_id)
        spec = Submit(task_id, self.context_task, kind.descriptor_id, data, deps, packed.contained)
        lease = None if deps or packed.contained else self.leased.free_for(kind.descriptor_id)
        if lease is not None:
            self.leased.run(lease, spec)
            yield from self._spend()
            self.send_all()
            return returns
        self.objects.expect(returns)
        self.out.append((self.node, spec))
        if stored:
            self.objects.drop(stored)
        self._window -= 1
        yield from self._after_append()
        if self._window <= self._window_floor:
            yield from self._wait_for_credit()
        return returns

    def share(self, object_ids: Sequence[bytes]) -> None:
        """Refs leave the process; the node hears of a task before it hears of its value."""
        if object_ids:
            self.leased.settle()
            self.objects.share(object_ids)

    def _args_as_sent(self, packed: Packed, deps: tuple[bytes, ...]) -> Steps:
        """(data, deps, id of the stored arguments or nothing): large arguments travel as an object."""
        if packed.total_bytes <= self.config.inline_bytes_max:
            return packed.data, deps, b""
        stored = yield from self._put(packed)
        return ARGS_IN_LAST_DEP, (*deps, stored), stored

    def _describe(self, kind: Describe) -> None:
        if kind.function_id not in self._exported:
            self._exported[kind.function_id] = None
            self.out.append((self.node, ExportFunction(kind.function_id, self.cluster.code_of(kind))))
        self._described[kind.descriptor_id] = None
        self.out.append((self.node, kind))

    def _wait_for_credit(self) -> Steps:
        deadline_ns = self.kernel.now_ns + self._debt_ns + self.config.submit_delay_ns
        self.kernel.at(deadline_ns, self.look)
        yield from self.wait_until(lambda: self._window > 0 or self.kernel.now_ns >= deadline_ns)
        self._window_floor = 0 if self._window > 0 else self._window - self.config.submit_batch_max

    # --- objects -----------------------------------------------------------------------------------

    def do_store(self, operation: Store) -> Steps:
        """Put a value."""
        self._debt_ns += self.costs.submit_ns
        object_id = yield from self._put(pack(operation.value))
        self._add_handle(object_id)
        return Ref(object_id)

    def _put(self, packed: Packed) -> Steps:
        """Keep a value; the id of the object, held once."""
        object_id = ids.put_id(self._next_prefix(), self._counter)
        if packed.total_bytes <= self.config.inline_bytes_max:
            self.objects.keep(object_id, Value(INLINE, packed.data, 0, 0, packed.contained))
            return object_id
        written = yield from self.store(object_id, packed)
        if not written:  # an earlier attempt put it
            self.out.append((self.node, Acquire((object_id,))))
            written = yield from self.store(object_id, packed)
        if written:
            self.share(packed.contained)
            self.out.append((self.node, Seal(object_id, packed.contained)))
        self.objects.stored(object_id)
        yield from self._after_append()
        return object_id

    def store(self, object_id: bytes, packed: Packed, holder: Address = b"") -> Steps:
        """Write a large value, not sealed yet; False if the object has one already."""
        answer = yield from self._ask(object_id, Create(object_id, packed.total_bytes, holder))
        if isinstance(answer, CreateFailed):
            if answer.capacity_bytes == 0:
                return False
            full = packed.total_bytes > answer.capacity_bytes
            raise ProgramError("store_full" if full else "out_of_disk", answer.detail)
        if self.crashes_when_creating():
            yield _never
        self.host.memory.write(self.address, answer, packed)
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
        objects = self.objects
        taken: dict[bytes, Value] = {}
        unique = dict.fromkeys(object_ids)
        while True:
            left = []
            for object_id in unique:
                if object_id not in taken:
                    value = objects.take(object_id)
                    if value is None:
                        left.append(object_id)
                    else:
                        taken[object_id] = value
            if not left:
                return taken
            want = objects.want(left, None, True)
            yield from self.wait_until(lambda want=want: want.done)  # type: ignore[misc]
            objects.end_want(want)

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
        want = self.objects.want(object_ids, operation.needed, False)
        yield from self.wait_until(lambda: want.done)
        self.objects.end_want(want)
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

    def _ask(self, key: Any, request: Any) -> Steps:
        self._replies[key] = None
        self.out.append((self.node, request))
        yield from self.wait_until(lambda: self._replies[key] is not None)
        return self._replies.pop(key)

    def acquire_for(self, holder: Address, object_ids: tuple[bytes, ...]) -> Steps:
        """Let another process hold objects, acknowledged."""
        self.share(object_ids)
        self._tokens += 1
        yield from self._ask(self._tokens, HoldFor(holder, object_ids, self._tokens))

    def confirm_acquired(self) -> Steps:
        """Go on once the node counts every ref taken up so far."""
        self._tokens += 1
        yield from self._ask(self._tokens, Acquire((), self._tokens))

    # --- actors ------------------------------------------------------------------------------------

    def do_call_actor(self, operation: CallActor) -> Steps:
        """Call a method."""
        self._debt_ns += self.costs.submit_ns
        handle, method, args, count, repeats = operation
        packed, deps = pack_args(args) if args else (_NO_ARGS, ())
        data, deps, stored = yield from self._args_as_sent(packed, deps)
        task_id = ids.task_id(self._next_prefix(), self._counter)
        returns = ids.return_ids(task_id, count)
        arguments = (*deps, *packed.contained)
        self.share((handle.object_id, *arguments))
        sequence = self.calls.next_sequence(handle.actor_id)
        call = Call(task_id, handle.actor_id, sequence, method, count, data, deps)
        self.cluster.judge.call_made(self.address, handle.actor_id, task_id)
        self.caller.call(call, returns, arguments, repeats)
        for object_id in returns:
            self._add_handle(object_id)
        if stored:
            self.objects.drop(stored)
        yield from self._after_append()
        return Ref(returns[0]) if count == 1 else [Ref(object_id) for object_id in returns]

    def do_end_actor(self, operation: EndActor) -> Steps:
        """Kill an actor."""
        self.out.append((self.node, KillActor(operation.actor.actor_id)))
        self.cluster.judge.actor_killed(operation.actor.actor_id)
        yield from self._spend()
        self.send_all()

    # --- what arrives ------------------------------------------------------------------------------

    def on_ready(self, source: Address, message: ObjectReady) -> None:
        """The node shows or announces a value."""
        if message.value.kind == EXTENT:
            self.host.memory.look(self.address, message.object_id, message.value)
            if message.object_id not in self.objects.objects:
                self.host.memory.look_away(self.address, message.object_id, message.value)
        self.objects.on_ready(message)
        self.leased.on_value_at_node(message.object_id)

    def on_lease(self, source: Address, message: Lease) -> None:
        """The node has leased a worker to this process."""
        self.leased.on_lease(message)

    def on_leased_reply(self, source: Address, message: LeasedReply) -> None:
        """A leased worker answers."""
        self.leased.on_reply(message)

    def on_lease_gone(self, source: Address, message: LeaseGone) -> None:
        """A lease is over."""
        self.leased.on_gone(message)

    def on_reply(self, source: Address, message: Reply) -> None:
        """An actor answers."""
        self.caller.on_reply(message)

    def on_actor_state(self, source: Address, message: ActorState) -> None:
        """The node says where an actor is."""
        self.caller.on_state(message)

    def on_object_answer(self, source: Address, message: Created | CreateFailed) -> None:
        """Room, or none."""
        if message.object_id in self._replies:
            self._replies[message.object_id] = message

    def on_acked(self, source: Address, message: Acked) -> None:
        """Holds are counted."""
        if message.token in self._replies:
            self._replies[message.token] = message

    def on_group_answer(self, source: Address, message: GroupAnswer) -> None:
        """The coordinator of placement groups answers."""
        if message.token in self._replies:
            self._replies[message.token] = message

    def on_credit(self, source: Address, message: Credit) -> None:
        """The window opens."""
        self._window += message.tasks

    def on_welcome(self, source: Address, message: Welcome) -> None:
        """The node knows this process."""
        self.welcome = message

    def on_refused(self, source: Address, message: Refused) -> None:
        """The node does not accept something: here that is always a bug."""
        self.cluster.judge.fail(f"{self.address.hex()} was refused: {message.reason}: {message.detail}")

    def on_warn(self, source: Address, message: Warn) -> None:
        """A sentence for people."""
        self.cluster.tell(self.address, message.text)

    def on_exit(self, source: Address, message: Exit) -> None:  # noqa: B027  only workers do
        """The node ends this process; a driver ends by itself."""

    def say_goodbye(self) -> None:
        """The last words of a driver."""
        self.leased.settle()
        self.out.append((self.node, Goodbye()))
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
    HANDLERS: ClassVar[dict[type, Any]] = {
        ObjectReady: on_ready,
        Reply: on_reply,
        Lease: on_lease,
        LeasedReply: on_leased_reply,
        LeaseGone: on_lease_gone,
        ActorState: on_actor_state,
        Created: on_object_answer,
        CreateFailed: on_object_answer,
        Acked: on_acked,
        GroupAnswer: on_group_answer,
        Credit: on_credit,
        Welcome: on_welcome,
        Refused: on_refused,
        Warn: on_warn,
        Exit: on_exit,
    }


_NO_ARGS = pack([])


def _never() -> bool:
    return False
