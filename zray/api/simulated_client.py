"""What the API takes for the connection of a process, inside :func:`zray.simulate`."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sim.operations import (
    Ask,
    AwaitUntil,
    CallAs,
    CancelAs,
    Handed,
    Keep,
    KeepCopiesOf,
    KillAs,
    Look,
    SubmitAs,
    WaitFor,
)
from sim.process import Process
from sim.programs import ActorRef, InterruptError, NoRoomError, ProgramError, Ref
from zray import ids
from zray.core.client import MethodCall
from zray.core.client_objects import Want
from zray.core.membership import Membership
from zray.core.node_lists import nodes_report
from zray.core.reports import report
from zray.core.task_context import TaskContext
from zray.errors import ClusterUnavailableError, ZrayError
from zray.protocol.cluster import ListNodes
from zray.protocol.messages import ACTOR, Describe, Value
from zray.protocol.user_messages import STREAM, CopiesKept
from zray.runtime import own_client
from zray.runtime.own_client import ActorIdentity
from zray.runtime.running import here
from zray.serialize.functions import FunctionTable
from zray.serialize.values import Serialized, dump

if TYPE_CHECKING:
    from zray.api.simulation import Simulation

NS_PER_S = 1_000_000_000
SETTLE_NS = 1_000
FOREVER_S = 1_000_000.0


class SimulatedClient:
    """What the API takes for the connection of this process: one process of the simulated cluster.

    Args:
        simulation: the run.
        process: the driver or worker for which user code runs now.
    """

    def __init__(self, simulation: Simulation, process: Process) -> None:
        self.simulation = simulation
        self.process = process
        self.pid = os.getpid()
        self.weak = weakref.ref(self)
        self.lock = threading.RLock()
        self.identity = process.address
        self.objects = process.objects
        self.calls = process.calls
        self.streams = process.machine.streams
        self.namespace = simulation.namespace
        self.environment = ""
        self.publisher = _NoPublisher()
        self.config = process.config
        self.perform: Callable[[Any], Any] = simulation.run.perform
        self.declared_duration_s: float | None = None
        self.functions = FunctionTable()
        self.dropped: deque[bytes] = deque()
        self.closed_streams: deque[bytes] = deque()
        self._will_settle = False
        self.actor: ActorIdentity | None = None  # what the actor that it is knows of itself

    @property
    def context(self) -> TaskContext:
        """The task, call or driver whose code runs; of several coroutines each has its own."""
        return here.get() or self.process.context

    @property
    def welcome(self) -> Any:
        """What its node said of itself."""
        return self.process.welcome

    def is_inside(self) -> bool:
        """User code is never called from within a call of the API here."""
        return False

    def close(self) -> None:
        """The simulation ends with its ``with``, not before."""

    def hand_over(self, operation: Any) -> Any:
        """Let the kernel perform an operation.

        Raises:
            ObjectStoreFullError, OutOfDiskError: if the object store has no room for it.
        """
        self.simulation.charge(self)
        self.settle()
        self.process.context = self.context
        try:
            return self.perform(operation)
        except InterruptError:
            raise KeyboardInterrupt from None
        except NoRoomError as error:
            raise error.refusal from None
        except ProgramError as error:
            raise ZrayError(f"{error.origin}: {error.text}") from None
        finally:
            self.simulation.clock_ns = time.thread_time_ns()

    # --- tasks and actors --------------------------------------------------------------------------

    def submit(
        self, descriptor: Describe, code: bytes, captured: tuple[bytes, ...], args: Serialized | bytes,
        deps: tuple[bytes, ...], task_id: bytes = b"",
    ) -> tuple[bytes, tuple[bytes, ...]]:  # fmt: skip
        """Submit a task, or the creation of an actor; its id and those of its return objects.

        Raises:
            NotImplementedError: for what has no place in a simulation.
        """
        if descriptor.environment:
            raise not_simulated("a runtime environment")
        descriptor = self.simulation.learn(descriptor, code)
        payload = (payload_of(args), self._duration_ns(descriptor.name), *map(Ref, deps))
        made = self.hand_over(Handed(SubmitAs(descriptor, payload, task_id)))
        returns = tuple(ref.object_id for ref in made)
        task_id = ids.producer_of(returns[0]) if returns else ids.NIL_ID
        if descriptor.kind == ACTOR:
            self.simulation.actor_names[task_id] = descriptor.name
            self.simulation.note_got(deps)
        else:
            self.simulation.note_submitted(descriptor.name, _read_by_get(returns, descriptor.returns), deps)
        return task_id, returns

    def reserve_task_id(self) -> bytes:
        """The id of what is made next."""
        return self.process.context.next_task_id()

    def call_actor(
        self, actor_id: bytes, handle: bytes, method: MethodCall, args: Serialized | bytes,
        deps: tuple[bytes, ...],
    ) -> tuple[bytes, ...]:  # fmt: skip
        """Call a method; the ids of its return objects."""
        name = f"{self.simulation.actor_names.get(actor_id, '')}.{method.name}"
        args_and_more = (payload_of(args), self._duration_ns(name), *map(Ref, deps))
        made = self.hand_over(Handed(CallAs(ActorRef(handle), method, args_and_more)))
        returns = tuple(ref.object_id for ref in made)
        self.simulation.note_submitted(name, _read_by_get(returns, method.returns), deps)
        return returns

    def cancel(self, task_id: bytes, *, force: bool, recursive: bool) -> None:
        """Take a task back, or a call that this process made.

        Raises:
            ValueError: for ``force`` with a call: its actor has others.
        """
        self.process.machine.check_force(task_id, force=force)
        self.simulation.note_got(ids.return_ids(task_id, 1))  # nobody asks for it any more
        self.hand_over(CancelAs(task_id, force, recursive))

    def ask(self, make: Callable[[int], Any], timeout_s: float | None) -> Any:
        """Ask the control store.

        Raises:
            ClusterUnavailableError: if it does not answer in (virtual) time.
        """
        timeout_s = FOREVER_S if timeout_s is None else timeout_s
        answer = self.hand_over(Ask(make, self.simulation.run.now_ns + round(timeout_s * NS_PER_S)))
        if answer is None:
            raise ClusterUnavailableError("the node does not answer", timeout_s)
        return answer

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> None:
        """End an actor."""
        self.hand_over(KillAs(actor_id, no_restart))

    def _duration_ns(self, name: str) -> int:
        declared_s, self.declared_duration_s = self.declared_duration_s, None
        return self.simulation.duration_ns(name, declared_s)

    # --- objects -----------------------------------------------------------------------------------

    def put(self, value: Serialized, object_id: bytes = b"") -> bytes:
        """Keep a value; its id, held once."""
        object_id = self.hand_over(Keep(value.to_bytes(), tuple(map(Ref, value.contained)), object_id))
        return object_id

    def keep_copies(self, object_id: bytes, copies: int) -> CopiesKept:
        """Have copies kept on as many nodes."""
        answer: CopiesKept = self.hand_over(KeepCopiesOf(object_id, copies))
        return answer

    def fetch(self, object_ids: Sequence[bytes], timeout_s: float | None) -> dict[bytes, Value] | None:
        """Values, or ``None`` if the (virtual) time is over."""
        found: dict[bytes, Value] | None
        try:
            found = self.hand_over(Look(tuple(object_ids), self.simulation.until_ns(timeout_s)))
        except KeyboardInterrupt:  # cancelled: they are not forgotten, and were asked for
            self.simulation.note_got(object_ids)
            raise
        if found is not None:
            self.simulation.note_got(object_ids)
        return found

    def wait_ready(
        self, object_ids: Sequence[bytes], needed: int, timeout_s: float | None, fetch: bool
    ) -> list[bool]:
        """Which are ready, once enough are or the (virtual) time is over."""
        until_ns = self.simulation.until_ns(timeout_s)
        ready: list[bool] = self.hand_over(AwaitUntil(tuple(object_ids), needed, until_ns))
        self.simulation.note_got([one for one, there in zip(object_ids, ready, strict=True) if there])
        return ready

    def first_ready(
        self, object_ids: Sequence[bytes], needed: int, timeout_s: float | None, fetch: bool
    ) -> list[int]:
        """The positions of the first of them, at most ``needed``."""
        here = self.wait_ready(object_ids, needed, timeout_s, fetch)
        return [position for position, is_here in enumerate(here) if is_here][:needed]

    def wait_until(self, done: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something is true; whether it is, when the (virtual) time is over."""
        is_done: bool = self.hand_over(WaitFor(done, self.simulation.until_ns(timeout_s)))
        return is_done

    def when_ready(self, object_id: bytes, callback: Callable[[], None]) -> Want:
        """Call ``callback`` in the kernel's turn, once the value can be fetched at once."""
        want = self.objects.want((object_id,), None, True)
        if want.done:
            callback()
        else:
            want.on_done = callback
        return want

    def forget_want(self, want: Want) -> None:
        """Take :meth:`when_ready` back."""
        want.on_done = None
        self.objects.end_want(want)

    def future_of(self, ref: Any) -> Any:
        """Who waits for a future of a thread waits in real time.

        Raises:
            NotImplementedError: always.
        """
        raise not_simulated("ref.future()")

    def note_consumed(self, task_id: bytes, items: int) -> None:
        """Tell who makes a stream how far its reader is."""
        self.streams.note_consumed(task_id, items)

    def view(self, object_id: bytes, value: Value) -> bytes:
        """The bytes of a value; here they always came with it."""
        return value.data

    def give_back(self, taken: dict[bytes, Value]) -> None:
        """Nothing is pinned here."""

    def query(self, what: str, timeout_s: float = 10.0) -> bytes:
        """A report of the node, or of all of them.

        Raises:
            NotImplementedError: for what each of all nodes would have to be asked.
        """
        self.settle()
        self.process.send_all()  # as a question to a real node takes along what has gathered
        host = self.process.host
        if what.startswith("everywhere/"):
            raise not_simulated("a report of what all nodes have")
        if what != "nodes":
            return report(host.node, what)
        for machine in host.cluster.shards[0].machines if host.cluster.shards else ():
            if isinstance(machine, Membership):
                rows = machine.census.answer(ListNodes(0)).rows
                return nodes_report(host.node, rows, 0)
        return nodes_report(host.node, (), 0)

    # --- what dies -----------------------------------------------------------------------------------

    def note_dropped(self, object_id: bytes) -> None:
        """A ref is gone; in any thread, also inside the collector."""
        self.dropped.append(object_id)
        self._plan_settling()

    def _plan_settling(self) -> None:
        """Whose code does not run now would not see what the code of others, or the collector, let go of."""
        if own_client.get() is not self and not self._will_settle:
            self._will_settle = True
            self.simulation.run.cluster.kernel.after(SETTLE_NS, self.send_settled)

    def note_closed_stream(self, task_id: bytes) -> None:
        """Nobody reads a stream any more; otherwise like :meth:`note_dropped`."""
        self.closed_streams.append(task_id)
        self._plan_settling()

    def settle(self, _: Any = None) -> None:
        """Count what died since the last time. For the kernel's turn, or user code's own."""
        if (self.closed_streams or self.dropped) and self.process.alive:
            self.process.plan_duty()
        while self.closed_streams:
            task_id = self.closed_streams.popleft()
            if self.process.alive:
                self.streams.let_go(task_id)
        while self.dropped:
            object_id = self.dropped.popleft()
            if self.process.alive and object_id in self.objects.objects:
                self.objects.drop(object_id)

    def send_settled(self, _: Any = None) -> None:
        """The same, and let the node hear of it if nothing else will."""
        self._will_settle = False
        self.settle()
        if self.process.alive and self.process.is_waiting:
            self.process.send_all()


def not_simulated(what: str) -> NotImplementedError:
    """What is refused by name."""
    return NotImplementedError(f"{what} has no place in zray.simulate() yet; try it on a real cluster")


class _NoPublisher:
    """There is no store that directories could go to."""

    def publish(self, environment: str) -> str:
        """Refuse."""
        raise not_simulated("a runtime environment")


def payload_of(args: Serialized | bytes) -> list[Any]:
    """A pickled value with the refs inside it, as values of the simulator."""
    if isinstance(args, Serialized):
        return [args.to_bytes(), [Ref(object_id) for object_id in args.contained]]
    return [bytes(args), []]


def encoded(name: str, value: Any) -> list[Any]:
    """A value that ``name`` made."""
    return payload_of(dump(value, f"the return value of {name}()"))


def _read_by_get(returns: Sequence[bytes], kind: int) -> Sequence[bytes]:
    """The return objects that somebody has to ask for: of a stream, the items are read and not its end."""
    return () if kind == STREAM else returns
