"""What a driver and a worker share: one socket, the objects they refer to, and waiting for them.

All state is behind one lock; no lock is held while a thread waits. Whichever user thread has to wait *leads*:
it polls the socket and handles what comes for everybody; others that wait follow, and one of them takes
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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from zray import ids
from zray.config import Config
from zray.core.leased_tasks import LeasedTasks
from zray.core.machine import Address
from zray.errors import (
    ClusterUnavailableError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    VersionMismatchError,
    ZrayError,
)
from zray.protocol.faults import fault_error
from zray.protocol.group_messages import GroupAnswer
from zray.protocol.messages import (
    ACTOR_DEAD,
    ACTOR_RESTARTING,
    DRIVER,
    ERROR,
    EXTENT,
    FAULT,
    INLINE,
    PROTOCOL_VERSION,
    Abort,
    Acked,
    Acquire,
    ActorState,
    Answer,
    Call,
    Create,
    Created,
    CreateFailed,
    Credit,
    Describe,
    Exit,
    ExportFunction,
    Goodbye,
    Hello,
    HoldFor,
    KillActor,
    Lease,
    LeasedReply,
    LeaseGone,
    ObjectReady,
    Query,
    Refused,
    Reply,
    Seal,
    Submit,
    Value,
    Warn,
    Welcome,
)
from zray.protocol.user_messages import (
    STREAM,
    Cancel,
    CheckpointFound,
    JobOptions,
    NameAnswer,
    Told,
)
from zray.runtime.client_events import EventLink, MethodCall
from zray.runtime.environment import packages_of
from zray.runtime.link import left_s
from zray.runtime.object_io import ObjectIO
from zray.runtime.self_report import body_of
from zray.runtime.task_context import TaskContext, here
from zray.serialize.values import Serialized

log = logging.getLogger("zray.client")

ARGS_IN_LAST_DEP = b"@"
"""``Submit.args`` of a task whose arguments are too large to travel inside: they are its last dependency."""

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
        self.leased = LeasedTasks(self.out, node=node, objects=self.objects)
        self.dropped: deque[bytes] = deque()  # refs that died, in any thread, also inside the collector
        self.unpinned: deque[bytes] = deque()
        self.root_task = root_task
        self._context = TaskContext(root_task)
        self.is_concurrent = False  # several tasks at once: each thread and coroutine knows its own
        self._described: dict[bytes, str] = {}  # the names of tasks
        self._exported: dict[bytes, None] = {}
        self._warned_of: dict[str, None] = {}  # functions and methods with huge arguments
        self._window = config.submit_window_max
        self._window_floor = 0  # how far below zero it may go for now
        self._tokens = 0
        self._replies: dict[Any, Any] = {}
        self.welcome: Welcome | None = None
        self._io: ObjectIO | None = None
        self.handlers = {
            ObjectReady: self._on_ready,
            Reply: lambda _source, message: self.caller.on_reply(message),
            Lease: self._on_lease,
            LeasedReply: lambda _source, message: self.leased.on_reply(message),
            LeaseGone: self._on_lease_gone,
            ActorState: self._on_actor_state,
            Created: lambda _source, message: self._answer(message.object_id, message),
            CreateFailed: lambda _source, message: self._answer(message.object_id, message),
            Acked: lambda _source, message: self._answer(message.token, message),
            Answer: lambda _source, message: self._answer(message.token, message),
            Credit: self._on_credit,
            Welcome: self._on_welcome,
            Refused: self._on_refused,
            Warn: self._on_warn,
            NameAnswer: lambda _source, message: self._answer(message.token, message),
            GroupAnswer: lambda _source, message: self._answer(message.token, message),
            CheckpointFound: lambda _source, message: self._answer(message.token, message),
            **self.event_handlers(),
            Exit: lambda _source, message: None,
        }

    # --- connection ------------------------------------------------------------------------------

    def connect(self, endpoint: str, hello: Hello, timeout_s: float) -> Welcome:
        """Introduce this process to its node.

        Raises:
            ClusterUnavailableError: if the node does not answer in time.
            VersionMismatchError: if it speaks another version.
        """
        started = time.monotonic()
        self.transport.connect(self.node, endpoint)
        with self.lock:
            self.out.append((self.node, hello))
        if not self.wait_until(lambda: self.welcome is not None, timeout_s):
            waited_s = time.monotonic() - started
            raise ClusterUnavailableError(f"the node at {endpoint} does not answer", waited_s)
        assert self.welcome is not None
        with self.lock:  # an answer that was there at once started nobody who listens while we compute
            self.duty.note_activity()
        self._io = ObjectIO(self.welcome, self.note_unpinned)
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
                self.leased.settle()
                self.out.append((self.node, Goodbye()))
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
            return ids.task_id(*self.context.next_id())

    def describe(self, descriptor: Describe, code: bytes, captured: Sequence[bytes]) -> None:
        """Tell the node of code and descriptor, once per link. Lock held."""
        if descriptor.function_id not in self._exported:
            if len(code) > self.config.frame_bytes_max // 2:
                raise ValueError(
                    f"{descriptor.name} takes {len(code)} bytes with all that it refers to, which is too "
                    "much; give large values as arguments, or put() them once and give the refs"
                )
            if captured:
                self._share(captured)
            self._exported[descriptor.function_id] = None
            if captured:
                for object_id in captured:  # code is never forgotten, nor what it refers to
                    self.objects.hold(object_id)
            self.out.append((self.node, ExportFunction(descriptor.function_id, code)))
        if descriptor.environment:
            self._share(packages_of(descriptor.environment))  # held by this process to its end
        self._described[descriptor.descriptor_id] = descriptor.name
        self.out.append((self.node, descriptor))

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
        with self.lock:
            if descriptor.descriptor_id not in self._described:
                self.describe(descriptor, code, captured)
            context = self.context
            task_id = task_id or ids.task_id(*context.next_id())
            count = descriptor.num_returns
            returns = ids.return_ids(task_id, count)
            if deps:
                self._share(deps)
            if borrowed:
                self._share(borrowed)
            kept = (*borrowed, *packages_of(descriptor.environment)) if descriptor.environment else borrowed
            spec = Submit(task_id, context.task_id, descriptor.descriptor_id, data, deps, kept)
            if self.leased.leases and not deps and not borrowed and self._run_on_lease(spec):
                return task_id, returns
            self.objects.expect(returns)
            if descriptor.returns == STREAM:
                self.streams.open(task_id)
            self.out.append((self.node, spec))
            if stored_args:
                self.objects.drop(stored_args)
            self._window -= 1
            self.after_append()
        if self._window <= self._window_floor:
            self._wait_for_credit()
        return task_id, returns

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

    def _run_on_lease(self, spec: Submit) -> bool:
        """Send a lone task straight to a worker that is leased for its kind, if one is free. Lock held."""
        lease = self.leased.free_for(spec.descriptor_id)
        if lease is None:
            return False
        self.leased.run(lease, spec)
        self._check_usable()
        self._send_all()
        self.duty.note_activity()
        return True

    def _wait_for_credit(self) -> None:
        """Go on when the node has room, or after a while with one batch more.

        Only a delay, never a stop: the tasks that fill the node may wait for what this thread does next.
        """
        if self.wait_until(lambda: self._window > 0, self.config.submit_delay_ns / 1e9):
            self._window_floor = 0
        else:
            self._window_floor = self._window - self.config.submit_batch_max

    def call_actor(
        self, actor_id: bytes, handle: bytes, method: MethodCall, args: Serialized | bytes,
        deps: tuple[bytes, ...],
    ) -> tuple[bytes, ...]:  # fmt: skip
        """Call a method of an actor; returns the ids of its return objects, each held once."""
        data, borrowed, stored_args = self._args_as_sent(args, method.name) if args else _NO_ARGS
        if stored_args:
            deps = (*deps, stored_args)
        with self.lock:
            task_id = ids.task_id(*self.context.next_id())
            returns = ids.return_ids(task_id, method.num_returns)
            arguments = (*deps, *borrowed) if deps or borrowed else ()
            if arguments or self.leased.ended or not self.objects.is_shared(handle):
                self._share((handle, *arguments))
            if method.returns == STREAM:
                self.streams.open(task_id)
            sequence = self.calls.next_sequence(actor_id)
            call = Call(
                task_id, actor_id, sequence, method.name, method.num_returns, data, deps, method.returns,
                method.group, method.unconsumed_max, 0, borrowed,
            )  # fmt: skip
            self.caller.call(call, returns, arguments, method.repeats)
            if stored_args:
                self.objects.drop(stored_args)
            self.after_append()
        return returns

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> None:
        """End an actor at once."""
        with self.lock:
            self.out.append((self.node, KillActor(actor_id, no_restart)))
            self._send_all()

    def cancel(self, task_id: bytes, *, force: bool, recursive: bool) -> None:
        """Take a task back, or a call that this process made.

        Raises:
            ValueError: for ``force`` with a call: its actor has others.
        """
        with self.lock:
            if task_id not in self.calls.actor_of_call:
                lease_id = self.leased.cancel(task_id, recursive)
                self.out.append((self.node, Cancel(task_id, force, recursive, lease_id)))
            elif force:
                raise ValueError("force=True is for tasks; zray.kill() ends an actor")
            else:
                self.caller.cancel(task_id, recursive)
            self._send_all()

    def ask(self, make: Callable[[int], Any], timeout_s: float | None) -> Any:
        """Ask the node, or through it the control store; ``make`` gets the token of the question.

        Without a timeout only the end of the node ends the wait.
        """
        with self.lock:
            token = self._next_token()
            self._expect_answer(token, make(token))
        return self._await_answer(token, timeout_s)

    def names_under_way(self) -> list[str]:
        """What this process waits for and its node does not know of: leased tasks, and calls of actors."""
        with self.lock:
            leases = self.leased.under_way.values()
            specs = [lease.spec for lease in leases if lease.spec is not None]
            running = [spec for spec in specs if spec.task_id not in self.leased.cancelled]
            return [self._described[spec.descriptor_id] for spec in running] + self.calls.methods_pending()

    def _share(self, object_ids: Sequence[bytes]) -> None:
        """Refs to these leave the process. Lock held; raises like :meth:`_check_known`."""
        self._check_known(object_ids)
        if self.leased.ended:  # the node hears of a task before it hears of its value
            self.leased.settle()
        self.objects.share(object_ids)

    def _check_known(self, object_ids: Sequence[bytes]) -> None:
        """
        Raises:
            ObjectLostError: if one is not of this connection.
        """
        known = self.objects.objects
        for object_id in object_ids:
            if object_id not in known:
                raise ObjectLostError(ids.short(object_id), "its session has ended")

    def after_append(self) -> None:
        """Send if the batch is full or the link was idle. Lock held."""
        if self._broken is not None or self._closed:
            self._check_usable()
        now_ns = time.monotonic_ns()
        if (
            len(self.out) >= self.config.submit_batch_max
            or now_ns - self._sent_ns > self.config.submit_linger_ns
        ):
            self._send_all(now_ns)
        self.duty.note_activity(now_ns)

    # --- objects ---------------------------------------------------------------------------------

    def put(self, value: Serialized, object_id: bytes = b"") -> bytes:
        """Keep a value; returns the id of the object, held once. Small ones stay in this process.

        Args:
            value: the value.
            object_id: what it is to be called; empty: the next thing that the present task puts.
        """
        with self.lock:
            if value.contained:
                self._check_known(value.contained)
            holder = self.identity if object_id else b""
            object_id = object_id or ids.put_id(*self.context.next_id())
            if value.total_bytes <= self.config.inline_bytes_max:
                self.objects.keep(object_id, Value(INLINE, value.to_bytes(), 0, 0, value.contained))
                return object_id
        written = self.store(object_id, value, holder)
        if not written:  # an earlier attempt of this task put it: hold that, then see if it is there still
            with self.lock:
                self.out.append((self.node, Acquire((object_id,))))
            written = self.store(object_id, value, holder)
        with self.lock:
            if written:
                self.objects.share(value.contained)
                self.out.append((self.node, Seal(object_id, value.contained)))
            self.objects.stored(object_id)
            self.after_append()
        return object_id

    def store(self, object_id: bytes, value: Serialized, holder: bytes = b"") -> bool:
        """Write a large value into the node's store, not sealed yet.

        Returns:
            False if nothing was written, because the object has a value already (I1).
        Raises:
            ObjectStoreFullError: if it can never fit.
            OutOfDiskError: if there is no room, in memory or on disk.
        """
        size = value.total_bytes
        with self.lock:
            self._expect_answer(object_id, Create(object_id, size, holder))
        try:
            answer = self._await_answer(object_id)
            if isinstance(answer, CreateFailed):
                if answer.capacity_bytes == 0:
                    return False
                if size > answer.capacity_bytes:
                    raise ObjectStoreFullError(size, answer.capacity_bytes)
                raise OutOfDiskError(size, answer.detail)
            self.io.write(answer, value)
        except BaseException:
            with self.lock:
                self.out.append((self.node, Abort(object_id)))
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
                    left = []
                    for object_id in unique:
                        if object_id in taken:
                            continue
                        value = self.objects.take(object_id)
                        if value is None:
                            left.append(object_id)
                        else:
                            taken[object_id] = value
                    if not left:
                        return taken
                    want = self.objects.want(left, None, True)
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
        known = self.objects.objects
        with self.lock:
            self._send_all()
            self._receive()
            here = [known[object_id].value is not None for object_id in object_ids]
            if sum(here) >= needed:
                return here
            want = self.objects.want(object_ids, needed, False)
        try:
            self.wait_until(lambda: want.done, timeout_s)
        finally:
            with self.lock:
                self.objects.end_want(want)
        return [self.objects.is_ready(object_id) for object_id in object_ids]

    def acquire_for(self, holder: Address, object_ids: tuple[bytes, ...]) -> None:
        """Let another process hold objects, acknowledged, before this one lets go of them."""
        with self.lock:
            self._share(object_ids)
            token = self._next_token()
            self._expect_answer(token, HoldFor(holder, object_ids, token))
        self._await_answer(token)

    def hand_to_node(self, object_id: bytes, make: Callable[[bytes], Any]) -> None:
        """Let the node keep an object, as the message that ``make`` gives asks it to; acknowledged."""
        with self.lock:
            self._share((object_id,))
            self.out.append((self.node, make(object_id)))
        self.confirm_acquired()
        self.note_dropped(object_id)

    def confirm_acquired(self, timeout_s: float | None = None) -> None:
        """Return once the node has heard everything that this process has said so far."""
        self.ask(lambda token: Acquire((), token), timeout_s)

    def query(self, what: str, timeout_s: float = 10.0) -> bytes:
        """A report of the node, as JSON."""
        with self.lock:
            self.leased.settle()
            for address in self.leased.return_idle():  # a lease that is not in use is nothing to report
                self.transport.disconnect(address)
        answer: Answer = self.ask(lambda token: Query(token, what), timeout_s)
        return answer.body

    def _next_token(self) -> int:
        self._tokens += 1
        return self._tokens

    def _expect_answer(self, key: Any, request: Any) -> None:
        """Ask the node; :meth:`_await_answer` must follow. Lock held: the answer may come to any thread."""
        self._replies[key] = None
        self.out.append((self.node, request))

    def _answer(self, key: Any, message: Any) -> None:
        if key in self._replies:
            self._replies[key] = message

    def _await_answer(self, key: Any, timeout_s: float | None = None) -> Any:
        try:
            if not self.wait_until(lambda: self._replies[key] is not None, timeout_s):
                raise ClusterUnavailableError("the node does not answer", timeout_s or 0.0)
            return self._replies[key]
        finally:
            del self._replies[key]

    # --- what arrives ----------------------------------------------------------------------------

    def _on_ready(self, source: Address, message: ObjectReady) -> None:
        self.objects.on_ready(message)
        if self.leased.under_way:
            self.leased.on_value_at_node(message.object_id)

    def _on_lease(self, source: Address, message: Lease) -> None:
        self.transport.connect(message.address, message.endpoint)
        self.leased.on_lease(message)

    def _on_lease_gone(self, source: Address, message: LeaseGone) -> None:
        address = self.leased.on_gone(message)
        if address is not None:
            self.transport.disconnect(address)

    def _on_actor_state(self, source: Address, message: ActorState) -> None:
        if message.endpoint:
            self.transport.connect(message.address, message.endpoint)
        self.caller.on_state(message)
        if message.state in (ACTOR_DEAD, ACTOR_RESTARTING) and message.address:
            self.transport.disconnect(message.address)

    def tell_all(self) -> None:
        """For a worker that ends: its node keeps what others may ask for later, and has it before the end."""
        if self.spans:
            with contextlib.suppress(ZrayError):  # the node is gone, or has no time: then nobody will ask
                with self.lock:
                    self.out.append((self.node, Told(0, body_of("", self.spans))))
                self.confirm_acquired(FAREWELL_TIMEOUT_S)

    def _on_credit(self, source: Address, message: Credit) -> None:
        self._window += message.tasks

    def _on_welcome(self, source: Address, message: Welcome) -> None:
        self.welcome = message

    def _on_refused(self, source: Address, message: Refused) -> None:
        if self.welcome is None and message.reason == "version":
            self.fail(VersionMismatchError(PROTOCOL_VERSION, _first_number(message.detail)))
        elif self.welcome is None or message.reason == "unknown-peer":
            self.fail(ClusterUnavailableError(f"the node refuses this process: {message.detail}", 0.0))
        else:
            log.error("refused by %s: %s: %s", source.hex(), message.reason, message.detail)

    def _on_warn(self, source: Address, message: Warn) -> None:
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

    def settle(self) -> None:
        """Count what died since the last time."""
        dropped, objects = self.dropped, self.objects
        if self.closed_streams:
            self.close_streams()
        while dropped:
            objects.drop(dropped.popleft())
        if self.leased.due:
            self.leased.settle()
        unpinned = self.unpinned
        while unpinned:
            objects.unpinned.append(unpinned.popleft())
        objects.settle()

    def has_gathered(self) -> bool:
        """Whether a ref died that the node was not told of."""
        return bool(self.dropped or self.unpinned or self.closed_streams)

    def before_sending(self) -> None:
        """Refs that died are let go with the next batch. Lock held."""
        objects, leased = self.objects, self.leased
        if (
            self.dropped or self.unpinned or self.closed_streams or objects.released or objects.unpinned
            or leased.due
        ):  # fmt: skip
            self.settle()

    def do_idle_duty(self) -> None:
        """What had time has time now: the node hears of the tasks that it did not see."""
        if self.leased.ended:
            self.settle()
            self.leased.settle()
        super().do_idle_duty()


def error_of(value: Value, load_error: Callable[[bytes], BaseException]) -> BaseException | None:
    """The exception that a value stands for, or ``None`` for a plain value."""
    if value.kind == ERROR:
        return load_error(value.data)
    return fault_error(value.data) if value.kind == FAULT else None


def _first_number(text: str) -> int:
    return int(next((word.strip(",.") for word in text.split() if word.strip(",.").isdigit()), "0"))
