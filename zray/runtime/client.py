"""What a driver and a worker share: their links, the objects they refer to, and waiting for them.

All state is behind one lock; no lock is held while a thread waits. Whichever user thread has to wait *leads*:
it polls the links and handles what comes for everybody; others that wait follow, and one of them takes
over when the leader leaves. A background thread (``IdleDuty``) does the same only when no user thread does,
so that a program that computes still sends its last tasks and hears of its cluster, and the path of a call
in a loop costs no hand-over between threads.

Tasks leave in batches: when the link has been idle for ``submit_linger_ns`` at once, otherwise when a batch
is full, when any thread waits, or when the background thread comes by.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from zray import ids
from zray.config import Config
from zray.core.client import ARGS_IN_LAST_DEP, HAS_VALUE, ROOM, MethodCall
from zray.core.last_words import REPEAT_NS
from zray.core.machine import Address
from zray.core.task_context import TaskContext
from zray.errors import (
    ClusterUnavailableError,
    ObjectLostError,
    VersionMismatchError,
    ZrayError,
)
from zray.protocol.faults import fault_error
from zray.protocol.messages import (
    ACTOR_DEAD,
    ACTOR_RESTARTING,
    DRIVER,
    ERROR,
    EXTENT,
    FAULT,
    PROTOCOL_VERSION,
    ActorState,
    Answer,
    Describe,
    Exit,
    Hello,
    Lease,
    LeaseGone,
    Query,
    Refused,
    Value,
    Warn,
    Welcome,
)
from zray.protocol.user_messages import CopiesKept, JobOptions, Told
from zray.runtime.client_events import EventLink
from zray.runtime.environment import packages_of
from zray.runtime.link import left_s
from zray.runtime.object_io import ObjectIO
from zray.runtime.running import here
from zray.runtime.self_report import body_of
from zray.serialize.values import Serialized

log = logging.getLogger("zray.client")

WARNED_OF_MAX = 1_000
FAREWELL_TIMEOUT_S = 1.0
"""How long a worker that ends waits for its node to have heard what it had to say."""
_NO_ARGS: tuple[bytes, tuple[bytes, ...], bytes] = (b"", (), b"")


class Client(EventLink):
    """The connection of one process to its node.

    Args:
        identity: routing id of this process.
        node: routing id of the node.
        root_task: id of the task that this process is, for the ids of what it makes.
        config: limits.
        role: ``DRIVER`` or ``WORKER``.
    """

    def __init__(
        self, identity: Address, node: Address, *, root_task: bytes, config: Config, role: int = DRIVER
    ) -> None:
        super().__init__(identity, node, config)
        self.role = role
        self.pid = os.getpid()
        self.weak = weakref.ref(self)  # for refs, which do not keep it alive
        self.leased = self.machine.leased
        self.dropped: deque[bytes] = deque()  # refs that died, in any thread, also inside the collector
        self.unpinned: deque[bytes] = deque()
        self.root_task = root_task
        self._context = TaskContext(root_task)
        self.is_concurrent = False  # several tasks at once: each thread and coroutine knows its own
        self._warned_of: dict[str, None] = {}  # functions and methods with huge arguments
        self.welcome: Welcome | None = None
        self._io: ObjectIO | None = None
        self.handlers.update(
            {
                Lease: self._on_lease,
                LeaseGone: self._on_lease_gone,
                ActorState: self._on_actor_state,
                Welcome: self._on_welcome,
                Refused: self._on_refused,
                Warn: self._on_warn,
                Exit: lambda _now_ns, _source, _message: None,
            }
        )

    # --- connection ------------------------------------------------------------------------------

    def connect(self, endpoint: str, hello: Hello, timeout_s: float) -> Welcome:
        """Introduce this process to its node.

        Raises:
            ClusterUnavailableError: if the node does not answer in time.
            VersionMismatchError: if it speaks another version.
        """
        started = time.monotonic()
        self.links.connect(self.node, endpoint)
        with self.lock:
            self.out.append((self.node, hello))
        if not self.wait_until(lambda: self.welcome is not None, timeout_s):
            waited_s = time.monotonic() - started
            raise ClusterUnavailableError(f"the node at {endpoint} does not answer", waited_s)
        assert self.welcome is not None
        with self.lock:  # an answer that was there at once started nobody who listens while we compute
            self.duty.note_activity()
        huge_pages = self.config.huge_pages > 0
        self._io = ObjectIO(self.welcome, self.note_unpinned, huge_pages=huge_pages)
        return self.welcome

    def begin_job(self, options: JobOptions) -> None:
        """A driver says what holds for its whole job."""
        self.namespace, self.environment = options.namespace, options.environment
        with self.lock:
            self.out.append((self.node, options))

    def close(self) -> None:
        """Say goodbye and let go of the socket. Refs that are left do nothing any more."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self.call_back()
            if self._broken is None:
                self.machine.say_goodbye()
                self._send_all()
        self.interrupts.remove()
        self.duty.close()
        self._wake_leader()
        with self._leading, self.lock:
            self.close_sockets()
            if self._io is not None:
                self._io.close()

    # --- tasks -----------------------------------------------------------------------------------

    def set_context(self, context: TaskContext) -> None:
        """This process runs that task from now on: what it makes gets ids below it."""
        self._context = context

    @property
    def context(self) -> TaskContext:
        """The task that the caller's code belongs to."""
        return (here.get() or self._context) if self.is_concurrent else self._context

    def reserve_task_id(self) -> bytes:
        """The id of a task to be submitted, for who must know it before."""
        with self.lock:
            return self.context.next_task_id()

    def describe(self, descriptor: Describe, code: bytes, captured: Sequence[bytes]) -> None:
        """Tell the node of code and descriptor, once per link. Lock held.

        Raises:
            ObjectLostError: if the code refers to what is not of this connection.
            ValueError: if the code is too large for a message.
        """
        if descriptor.function_id not in self.machine.exported:
            if len(code) > self.config.frame_bytes_max // 2:
                raise ValueError(
                    f"{descriptor.name} takes {len(code)} bytes with all that it refers to, which is too "
                    "much; give large values as arguments, or put() them once and give the refs"
                )
            self._check_known(captured)
        packages = packages_of(descriptor.environment) if descriptor.environment else ()
        self._check_known(packages)
        self.machine.describe(descriptor, code, captured, packages)

    def submit(
        self,
        descriptor: Describe,
        code: bytes,
        captured: Sequence[bytes],
        args: Serialized | bytes,
        deps: tuple[bytes, ...],
        task_id: bytes = b"",
    ) -> tuple[bytes, tuple[bytes, ...]]:
        """Submit a task; returns its id and the ids of its return objects, each held once."""
        data, borrowed, stored_args = self._args_as_sent(args, descriptor.name) if args else _NO_ARGS
        if stored_args:
            deps = (*deps, stored_args)
        machine = self.machine
        with self.lock:
            if descriptor.descriptor_id not in machine.described:
                self.describe(descriptor, code, captured)
            if deps:
                self._check_known(deps)
            if borrowed:
                self._check_known(borrowed)
            packages = packages_of(descriptor.environment) if descriptor.environment else ()
            made = machine.submit(
                self.context, descriptor, data, deps, borrowed, stored_args, packages, task_id
            )
            self.after_append()
        if machine.window <= machine.window_floor:
            self.wait_until(lambda: machine.window > 0, self.config.submit_delay_ns / 1e9)
            machine.go_on()
        return made

    def _args_as_sent(self, args: Serialized | bytes, name: str) -> tuple[bytes, tuple[bytes, ...], bytes]:
        """(bytes to send, refs inside, the object that large arguments are stored as)."""
        assert not isinstance(args, bytes)
        if args.total_bytes <= self.config.inline_bytes_max:
            return args.to_bytes(), args.contained, b""
        if args.total_bytes > self.config.arguments_warn_bytes and name not in self._warned_of:
            if len(self._warned_of) < WARNED_OF_MAX:
                self._warned_of[name] = None
            log.warning(
                "%s() is called with %d bytes of arguments, which are stored anew for each call; put() what "
                "is large once and pass the ref", name, args.total_bytes,
            )  # fmt: skip
        return ARGS_IN_LAST_DEP, args.contained, self.put(args)

    def call_actor(
        self, actor_id: bytes, handle: bytes, method: MethodCall, args: Serialized | bytes,
        deps: tuple[bytes, ...],
    ) -> tuple[bytes, ...]:  # fmt: skip
        """Call a method of an actor; returns the ids of its return objects, each held once."""
        data, borrowed, stored_args = self._args_as_sent(args, method.name) if args else _NO_ARGS
        if stored_args:
            deps = (*deps, stored_args)
        with self.lock:
            if deps or borrowed or handle not in self.objects.objects:
                self._check_known((handle, *deps, *borrowed))
            _, returns = self.machine.call_actor(
                self.context, actor_id, handle, method, data, deps, borrowed, stored_args
            )
            self.after_append()
        return returns

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> None:
        """End an actor at once."""
        with self.lock:
            self.machine.kill_actor(actor_id, no_restart)
            self._send_all()

    def cancel(self, task_id: bytes, *, force: bool, recursive: bool) -> None:
        """Take a task back, or a call that this process made.

        Raises:
            ValueError: for ``force`` with a call: its actor has others.
        """
        with self.lock:
            self.machine.check_force(task_id, force=force)
            self.machine.cancel(task_id, force=force, recursive=recursive)
            self._send_all()

    def ask(self, make: Callable[[int], Any], timeout_s: float | None) -> Any:
        """Ask the node, or through it the control store; ``make`` gets the token of the question.

        Without a timeout only the end of the node ends the wait.
        """
        with self.lock:
            token = self.machine.ask(make)
        return self._await_answer(token, timeout_s)

    def names_under_way(self) -> list[str]:
        """What this process waits for and its node does not know of: leased tasks, and calls of actors."""
        with self.lock:
            return self.machine.names_under_way()

    def _check_known(self, object_ids: Sequence[bytes]) -> None:
        """
        Raises:
            ObjectLostError: if one is not of this connection.
        """
        lost = self.machine.unknown_among(object_ids)
        if lost is not None:
            raise ObjectLostError(ids.short(lost), "its session has ended")

    def after_append(self) -> None:
        """Send if the batch is full or the link was idle, else let who sleeps at the socket. Lock held."""
        if self._broken is not None or self._closed:
            self._check_usable()
        now_ns = time.monotonic_ns()
        if self.machine.is_due(now_ns):
            self._send_all(now_ns)
        elif self._leader_sleeps:  # the idle duty would come only after its linger
            self.rouse_sleeper()
        self.duty.note_activity(now_ns)

    # --- objects ---------------------------------------------------------------------------------

    def put(self, value: Serialized, object_id: bytes = b"") -> bytes:
        """Keep a value; returns the id of the object, held once. Small ones stay in this process.

        Args:
            value: the value.
            object_id: what it is to be called; empty: the next thing that the present task puts.
        """
        machine = self.machine
        with self.lock:
            if value.contained:
                self._check_known(value.contained)
            holder = self.identity if object_id else b""
            object_id = object_id or self.context.next_put_id()
            if value.total_bytes <= machine.inline_bytes_max:
                machine.keep(object_id, value.to_bytes(), value.contained)
                return object_id
        written = self.store(object_id, value, holder)
        if not written:
            with self.lock:
                machine.hold_former(object_id)
            written = self.store(object_id, value, holder)
        with self.lock:
            machine.stored(object_id, value.contained, written=written)
            self.after_append()
        return object_id

    def keep_copies(self, object_id: bytes, copies: int) -> CopiesKept:
        """Have copies of what was put kept on as many nodes, and wait for them as long as the node does."""
        with self.lock:
            token = self.machine.ask_copies(object_id, copies)
        answer: CopiesKept = self._await_answer(token)
        return answer

    def store(self, object_id: bytes, value: Serialized, holder: bytes = b"") -> bool:
        """Write a large value into the node's store, not sealed yet.

        Returns:
            False if nothing was written, because the object has a value already (I1).
        Raises:
            ObjectStoreFullError: if it can never fit.
            OutOfDiskError: if there is no room, in memory or on disk.
        """
        size_bytes = value.total_bytes
        with self.lock:
            self.machine.ask_room(object_id, size_bytes, holder)
        try:
            answer = self._await_answer(object_id)
            verdict = self.machine.verdict(answer, size_bytes)
            if verdict == HAS_VALUE:
                return False
            if verdict != ROOM:
                raise self.machine.no_room(answer, size_bytes)
            self.io.write(answer, value)
        except BaseException:
            with self.lock:
                self.machine.abandon(object_id)
            raise
        return True

    @property
    def io(self) -> ObjectIO:
        """The bytes of large objects."""
        assert self._io is not None
        return self._io

    def view(self, object_id: bytes, value: Value) -> bytes | memoryview:
        """The bytes of a value that was taken from ``objects`` or came with a task, without a copy."""
        return self.io.view(object_id, value)

    def fetch(self, object_ids: Sequence[bytes], timeout_s: float | None) -> dict[bytes, Value] | None:
        """The values of objects that this process refers to; ``None`` if the time is over.

        Each value must be shown with :meth:`view` or given back with :meth:`give_back`.
        """
        taken: dict[bytes, Value] = {}
        unique = dict.fromkeys(object_ids)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                with self.lock:
                    want = self.objects.take_all(unique, taken)
                if want is None:
                    return taken
                try:
                    if not self.wait_until(lambda want=want: want.done, left_s(deadline)):  # type: ignore[misc]
                        self.give_back(taken)
                        return None
                finally:
                    with self.lock:
                        self.objects.end_want(want)
        except BaseException:
            self.give_back(taken)
            raise

    def give_back(self, taken: dict[bytes, Value]) -> None:
        """Values of :meth:`fetch` that nobody looked at."""
        for object_id, value in taken.items():
            if value.kind == EXTENT:
                self.note_unpinned(object_id)

    def wait_ready(
        self, object_ids: Sequence[bytes], needed: int, timeout_s: float | None, fetch: bool
    ) -> list[bool]:
        """Wait until ``needed`` of the objects are sealed or the time is over; which are, in order."""
        self.first_ready(object_ids, needed, timeout_s, fetch)
        return [self.objects.is_ready(object_id) for object_id in object_ids]

    def first_ready(
        self, object_ids: Sequence[bytes], needed: int, timeout_s: float | None, fetch: bool
    ) -> list[int]:
        """Wait like :meth:`wait_ready`; the positions of the first that are sealed, at most ``needed``."""
        with self.lock:
            if self.out:  # what only was let go has time until somebody sleeps, or the next visit
                self._send_all()
            self._receive()
            found = self.objects.first_ready(object_ids, needed)
            if len(found) == needed:
                self.duty.note_activity()
                return found
            want = self.objects.want(object_ids, needed, False)
        try:
            self.wait_until(lambda: want.done, timeout_s)
        finally:
            with self.lock:
                self.objects.end_want(want)
        return self.objects.first_ready(object_ids, needed)

    def acquire_for(self, holder: Address, object_ids: tuple[bytes, ...]) -> None:
        """Let another process hold objects, acknowledged, before this one lets go of them."""
        with self.lock:
            self._check_known(object_ids)
            token = self.machine.ask_hold_for(holder, object_ids)
        self._await_answer(token)

    def confirm_acquired(self, timeout_s: float | None = None) -> None:
        """Return once the node has heard everything that this process has said so far."""
        with self.lock:
            token = self.machine.ask_whether_heard()
        self._await_answer(token, timeout_s)

    def query(self, what: str, timeout_s: float = 10.0) -> bytes:
        """A report of the node, as JSON."""
        with self.lock:
            for address in self.machine.return_leases():  # one that is not in use is nothing to report
                self.links.disconnect(address)
        answer: Answer = self.ask(lambda token: Query(token, what), timeout_s)
        return answer.body

    def _await_answer(self, key: bytes | int, timeout_s: float | None = None) -> Any:
        questions = self.machine.questions
        try:
            if not self.wait_until(lambda: questions.is_answered(key), timeout_s):
                raise ClusterUnavailableError("the node does not answer", timeout_s or 0.0)
            return questions.take(key)
        finally:
            questions.give_up(key)

    # --- what arrives ----------------------------------------------------------------------------

    def _on_lease(self, now_ns: int, source: Address, message: Lease) -> None:
        self.links.connect(message.address, message.endpoint)
        self.leased.on_lease(message)

    def _on_lease_gone(self, now_ns: int, source: Address, message: LeaseGone) -> None:
        address = self.leased.on_gone(message)
        if address is not None:
            self.links.disconnect(address)

    def _on_actor_state(self, now_ns: int, source: Address, message: ActorState) -> None:
        if message.endpoint:
            self.links.connect(message.address, message.endpoint)
        self.machine.on_actor_state(now_ns, source, message)
        if message.state in (ACTOR_DEAD, ACTOR_RESTARTING) and message.address:
            self.links.disconnect(message.address)

    def tell_all(self) -> None:
        """For a worker that ends: its node keeps what others may ask for later, and has it before the end."""
        if self.spans:
            with contextlib.suppress(ZrayError):  # the node is gone, or has no time: then nobody will ask
                with self.lock:
                    self.out.append((self.node, Told(0, body_of("", self.spans))))
                self.confirm_acquired(FAREWELL_TIMEOUT_S)

    def say_last_words(self) -> None:
        """For an actor that ends on purpose: return once its callers and its node have all that it said.

        After ``last_words_timeout_ns`` at the latest: a caller that is stopped takes nothing.
        """
        farewells = self.machine.farewells
        deadline = time.monotonic() + self.config.last_words_timeout_ns / 1e9
        with self.lock:
            callers = self.links.callers()
            farewells.say(callers)
        with contextlib.suppress(ZrayError):  # the node is gone, and this process is to be, too
            while (pause_s := min(REPEAT_NS / 1e9, left_s(deadline) or 0.0)) > 0:
                with self.lock:
                    self._send_all()
                    for address in callers:
                        if address not in self.links.links:  # nobody is there any more
                            farewells.heard_by(address)
                if self.wait_until(lambda: farewells.all_heard, pause_s, may_lend=False):
                    return
                with self.lock:
                    farewells.repeat()
            log.warning("%d callers take no replies: this actor ends without them", len(farewells.unheard))

    def _on_welcome(self, now_ns: int, source: Address, message: Welcome) -> None:
        self.welcome = message

    def _on_refused(self, now_ns: int, source: Address, message: Refused) -> None:
        if self.welcome is None and message.reason == "version":
            self.fail(VersionMismatchError(PROTOCOL_VERSION, _first_number(message.detail)))
        elif self.welcome is None or message.reason == "unknown-peer":
            self.fail(ClusterUnavailableError(f"the node refuses this process: {message.detail}", 0.0))
        else:
            log.error("refused by %s: %s: %s", source.hex(), message.reason, message.detail)

    def _on_warn(self, now_ns: int, source: Address, message: Warn) -> None:
        log.warning("%s", message.text)

    # --- what dies -------------------------------------------------------------------------------

    def note_dropped(self, object_id: bytes) -> None:
        """A ref is gone. In any thread, also inside the collector: it only appends, and wakes a sleeper."""
        self.dropped.append(object_id)
        self.rouse_sleeper()

    def note_unpinned(self, object_id: bytes) -> None:
        """Nobody looks at an extent any more; otherwise like :meth:`note_dropped`."""
        self.unpinned.append(object_id)
        self.rouse_sleeper()

    def count_dropped(self) -> None:
        """Let go of what died since the last time. Lock held."""
        dropped, unpinned, objects = self.dropped, self.unpinned, self.objects
        while self.closed_streams:
            self.streams.let_go(self.closed_streams.popleft())
        while dropped:
            objects.drop(dropped.popleft())
        while unpinned:
            objects.unpinned.append(unpinned.popleft())

    def has_gathered(self) -> bool:
        """Whether a ref died that the node was not told of."""
        return bool(self.dropped or self.unpinned or self.closed_streams)

    def before_sending(self) -> None:
        """Refs that died are let go with the next batch. Lock held."""
        if self.dropped or self.unpinned or self.closed_streams:
            self.count_dropped()
        self.machine.settle()

    def do_idle_duty(self) -> None:
        """What had time has time now. Lock held."""
        self.count_dropped()  # first: what nobody refers to any more is not kept
        self.machine.catch_up()
        super().do_idle_duty()


def error_of(value: Value, load_error: Callable[[bytes], BaseException]) -> BaseException | None:
    """The exception that a value stands for, or ``None`` for a plain value."""
    if value.kind == ERROR:
        return load_error(value.data)
    return fault_error(value.data) if value.kind == FAULT else None


def _first_number(text: str) -> int:
    return int(next((word.strip(",.") for word in text.split() if word.strip(",.").isdigit()), "0"))
