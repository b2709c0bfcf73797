"""Operations beyond those of the shipped workloads: each knows how to perform itself in a process.

They serve programs that were not written for the simulator: a recorded graph, or a user's own functions.
What they submit is described by a descriptor of the real API, with any demand, and values are looked at one
by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.programs import ActorRef, Compute, ProgramError, Ref, pack, unpack, unpack_error
from zray.core.client import MethodCall
from zray.protocol.group_messages import CreateGroup, RemoveGroup
from zray.protocol.messages import ERROR, FAULT, INLINE, Describe, Value

if TYPE_CHECKING:
    from sim.process import Process
    from sim.strands import Steps


class SubmitAs(NamedTuple):
    """Submit a task or actor of a given kind; the result is the list of its refs."""

    kind: Describe
    args: tuple[Any, ...]
    task_id: bytes = b""
    """Its id if that was reserved before."""

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` does."""
        object_ids = yield from process._submit(self.kind, self.args, self.task_id)
        return [Ref(object_id) for object_id in object_ids]


class WhoAmI(NamedTuple):
    """The result is the process itself."""

    def perform(self, process: Process) -> Steps:
        """At once."""
        return process
        yield  # a generator like the others


class Handed(NamedTuple):
    """Another operation; the refs that it makes belong to objects of user code, which let go of them."""

    operation: Any

    def perform(self, process: Process) -> Steps:
        """The same, without the context that lets go of them at its end."""
        perform = process.PERFORM.get(type(self.operation))
        steps = perform(process, self.operation) if perform else self.operation.perform(process)
        made = yield from steps
        for ref in made if isinstance(made, list) else [made]:
            times = process.handles.pop(ref.object_id)
            if times > 1:
                process.handles[ref.object_id] = times - 1
        return made


class Keep(NamedTuple):
    """Put an encoded value with the refs inside it; the result is the object's id, held once."""

    data: bytes
    refs: tuple[Ref, ...]
    object_id: bytes = b""
    """Empty: the next thing that the task puts."""

    def perform(self, process: Process) -> Steps:
        """As ``put()`` does."""
        process._debt_ns += process.costs.submit_ns
        return (yield from process._put(pack([self.data, list(self.refs)]), self.object_id))


class CallAs(NamedTuple):
    """Call a method as a real handle does; the result is the ids of its return objects, each held once."""

    actor: ActorRef
    method: MethodCall
    args: tuple[Any, ...]

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` of a method does."""
        returns = yield from process.call_actor(self.actor, self.method, self.args)
        return [Ref(object_id) for object_id in returns]


class WaitFor(NamedTuple):
    """Wait until something is true or the time is over; the result is whether it is true."""

    done: Callable[[], bool]
    until_ns: int | None = None
    may_lend: bool = True
    """Whether others get the processor of the running task meanwhile."""

    def perform(self, process: Process) -> Steps:
        """As iterating over a stream does."""
        if self.until_ns is not None:
            process.kernel.at(self.until_ns, process.look)
        with process.interruptible():
            yield from process.wait_until(
                lambda: self.done() or (self.until_ns is not None and process.kernel.now_ns >= self.until_ns),
                may_lend=self.may_lend,
            )
        return self.done()


class KeepCopiesOf(NamedTuple):
    """Have copies of what was put kept on as many nodes; the result is the node's answer."""

    object_id: bytes
    copies: int

    def perform(self, process: Process) -> Steps:
        """As ``put(copies=...)`` does once the value is stored."""
        return (yield from process.keep_copies(self.object_id, self.copies))


class Ask(NamedTuple):
    """Ask the control store through the node; the result is its answer, ``None`` if the time is over."""

    make: Callable[[int], Any]
    until_ns: int

    def perform(self, process: Process) -> Steps:
        """As whatever asks for groups does."""
        token = process.machine.ask(self._told(process))
        return (yield from process.answer_to(token, self.until_ns))

    def _told(self, process: Process) -> Callable[[int], Any]:
        def make(token: int) -> Any:
            request = self.make(token)
            if isinstance(request, CreateGroup):
                process.cluster.judge.groups.made(request.spec)
            elif isinstance(request, RemoveGroup):
                process.cluster.judge.groups.removed(request.group_id)
            return request

        return make


class CancelAs(NamedTuple):
    """Take a task or call back."""

    task_id: bytes
    force: bool
    recursive: bool

    def perform(self, process: Process) -> Steps:
        """As ``cancel()`` does."""
        process.cluster.judge.task_cancelled()
        process.machine.cancel(self.task_id, force=self.force, recursive=self.recursive)
        yield from process._spend()
        process.send_all()


class KillAs(NamedTuple):
    """End an actor."""

    actor_id: bytes
    no_restart: bool

    def perform(self, process: Process) -> Steps:
        """As ``kill()`` does."""
        yield from process.kill_actor(self.actor_id, self.no_restart)


class EndProcess(NamedTuple):
    """End a worker process at once; its own code does not go on."""

    victim: Process
    exit_code: int

    def perform(self, process: Process) -> Steps:
        """As the system does."""
        victim: Any = self.victim
        process.cluster.judge.process_ended()
        process.kernel.after(0, lambda _: victim.host.worker_ended(victim, self.exit_code))
        if victim is process:
            yield lambda: False
        yield 1


class ExitWith(NamedTuple):
    """End the process as the interpreter ends, which has handed over before what it had to say."""

    exit_code: int

    def perform(self, process: Process) -> Steps:
        """As ``sys.exit()`` does."""
        yield from process.confirm_acquired()
        yield from EndProcess(process, self.exit_code).perform(process)


class Work(NamedTuple):
    """Use the processor, and be seen doing so."""

    duration_ns: int
    counter: list[int]
    """Its only number is how many work now."""

    def perform(self, process: Process) -> Steps:
        """Let time pass."""
        self.counter[0] += 1
        try:
            with process.interruptible():
                yield from process.do_compute(Compute(self.duration_ns))
        finally:
            self.counter[0] -= 1


class Look(NamedTuple):
    """Get encoded values, errors and faults included, not later than at a time; ``None`` if it is over."""

    object_ids: tuple[bytes, ...]
    until_ns: int | None = None

    def perform(self, process: Process) -> Steps:
        """As ``get()`` does."""
        taken: dict[bytes, Value] = {}
        try:
            unique = dict.fromkeys(self.object_ids)
            while (want := process.objects.take_all(unique, taken)) is not None:
                with process.interruptible():
                    if not (yield from process.wait_for(want, self.until_ns)):
                        return None
            return {object_id: _outcome(process, object_id, taken[object_id]) for object_id in taken}
        finally:
            process.give_back(taken)


def _outcome(process: Process, object_id: bytes, value: Value) -> Value:
    """What user code is given: a plain value, an error or a fault, with its bytes."""
    process.cluster.judge.value_seen(process.address, object_id, value)
    if value.kind == FAULT:
        return value
    if value.kind == ERROR:
        return Value(ERROR, bytes_of(unpack_error(value.data)))
    return Value(INLINE, unpack(process.data_of(object_id, value))[0][0])


class AwaitUntil(NamedTuple):
    """Wait until ``needed`` objects are ready or the time is over; the result says of each whether it is."""

    object_ids: tuple[bytes, ...]
    needed: int
    until_ns: int | None = None

    def perform(self, process: Process) -> Steps:
        """As ``wait()`` does."""
        want = process.objects.await_ready(self.object_ids, self.needed)
        if want is not None:
            with process.interruptible():
                yield from process.wait_for(want, self.until_ns)
        return [process.objects.is_ready(object_id) for object_id in self.object_ids]


def user_error(data: bytes, *, is_final: bool = False) -> ProgramError:
    """A pickled error of user code, as programs raise it; no other attempt is worth it if it is final."""
    error = ProgramError("user", data.decode("latin-1"))
    error.is_final = is_final
    return error


def bytes_of(error: ProgramError) -> bytes:
    """Take :func:`user_error` back."""
    return error.text.encode("latin-1")
