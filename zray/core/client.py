"""The client's side of everything: what a driver or worker says to its node and to actors, and when.

Composes the rooms that decide (objects, calls, leases, streams, questions) and adds what ties them
together: how a task, a call and a value leave the process, what the node must have heard before, how far a
submitter may be ahead of it, and when what has gathered is sent. The real process
(``zray/runtime/client.py``) adds sockets, threads and the bytes of large objects; the simulated one
(``sim/process.py``) virtual time.

The invariant of the outbox: before a message with a ref leaves, the node knows the object, and before the
value of a leased task leaves, the node knows the task (paper, section 4.2.1: lineage before visibility).

Whoever hosts this machine sends its outbox, after :meth:`ClientMachine.settle`, whenever it waits and after
each submission that makes it :meth:`~ClientMachine.is_due`. What is left then leaves with a visit while the
process computes, after :meth:`~ClientMachine.catch_up`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

from zray.config import Config
from zray.core.actor_caller import ActorCaller
from zray.core.actor_calls import ActorCalls
from zray.core.client_objects import ClientObjects
from zray.core.client_streams import ClientStreams
from zray.core.last_words import Farewells
from zray.core.leased_tasks import LeasedTasks
from zray.core.machine import Address, Effect, Handler
from zray.core.questions import Questions
from zray.core.task_context import TaskContext
from zray.errors import ObjectStoreFullError, OutOfDiskError
from zray.ids import first_return_id, return_ids
from zray.protocol.group_messages import GroupAnswer
from zray.protocol.messages import (
    ACTOR_DEAD,
    EXTENT,
    INLINE,
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
    ExportFunction,
    Goodbye,
    HoldFor,
    KillActor,
    Lease,
    LeasedReply,
    LeaseGone,
    ObjectReady,
    Reply,
    Seal,
    Submit,
    Value,
)
from zray.protocol.user_messages import (
    STREAM,
    VALUES,
    Cancel,
    CheckpointFound,
    CopiesKept,
    KeepCopies,
    LastWords,
    LastWordsHeard,
    NameAnswer,
    ReplyItem,
    ResultsReady,
    StreamItem,
)

ARGS_IN_LAST_DEP = b"@"
"""``Submit.args`` of a task whose arguments are too large to travel inside: they are its last dependency."""

DEAD_ACTORS_MIN = 64
"""So many actors that died under a handle are kept at least before it is looked whose handles are gone."""

ROOM, HAS_VALUE, TOO_LARGE, NO_ROOM = range(4)
"""What comes of :meth:`ClientMachine.ask_room`."""


class MethodCall(NamedTuple):
    """What holds for all calls of one method through one handle."""

    name: str
    num_returns: int = 1
    returns: int = VALUES
    group: str = ""
    unconsumed_max: int = 0
    repeats: int = 0


class ClientMachine:
    """The decisions of one driver or worker. A machine in the sense of ``core/machine.py``.

    Args:
        node: the address of its node.
        config: limits.
    """

    def __init__(self, *, node: Address, config: Config) -> None:
        self.node = node
        self.config = config
        self.inline_bytes_max = config.inline_bytes_max
        self.out: list[Effect] = []
        self.objects = ClientObjects(self.out, node=node)
        self.calls = ActorCalls(self.out, node=node)
        self.caller = ActorCaller(self.calls, self.objects)
        self.leased = LeasedTasks(self.out, node=node, objects=self.objects)
        self.streams = ClientStreams(self.out, node=node, objects=self.objects, calls=self.calls)
        self.questions = Questions(self.out, node=node)
        self.farewells = Farewells(self.out, node=node)
        self.described: dict[bytes, str] = {}  # the names of tasks
        self.exported: dict[bytes, None] = {}
        self.window = config.submit_window_max  # how many tasks more the node has room for
        self.window_floor = 0  # how far below zero it may go for now
        self._linger_ns = config.submit_linger_ns
        self._batch_max = config.submit_batch_max
        self._sent_ns = 0
        self._is_urgent = False
        self._dead_actors: dict[bytes, None] = {}  # there were handles of them when they died
        self._dead_actors_max = DEAD_ACTORS_MIN

    # --- when what gathered leaves -----------------------------------------------------------------

    def is_due(self, now_ns: int) -> bool:
        """Whether a submission just now makes the outbox leave: it is full, urgent, or the link was idle."""
        return now_ns - self._sent_ns > self._linger_ns or self._is_urgent or len(self.out) >= self._batch_max

    def settle(self) -> None:
        """Put into the outbox what leaves with the next batch, whatever that is."""
        if self.leased.due:
            self.leased.settle()
        objects = self.objects
        if objects.released or objects.unpinned:
            objects.settle()

    def sent(self, now_ns: int) -> None:
        """The outbox has left."""
        self._sent_ns = now_ns
        self._is_urgent = False

    def catch_up(self) -> None:
        """What had time has time now: the node hears of the tasks that it did not see."""
        if self.leased.ended:
            self.leased.settle()

    def say_goodbye(self) -> None:
        """The last words."""
        self.leased.settle()
        self.out.append((self.node, Goodbye()))

    # --- tasks -----------------------------------------------------------------------------------

    def describe(
        self, descriptor: Describe, code: bytes, captured: Iterable[bytes] = (),
        packages: tuple[bytes, ...] = (),
    ) -> None:  # fmt: skip
        """Tell the node of code and descriptor, once per link.

        Args:
            descriptor: what tasks to come have in common.
            code: of its function.
            captured: the objects that the code refers to.
            packages: those that its environment is unpacked from, which this process holds to its end.
        """
        if descriptor.function_id not in self.exported:
            self.exported[descriptor.function_id] = None
            if captured:
                self.share(captured)
                self.objects.hold_all(captured)  # code is never forgotten, nor what it refers to
            self.out.append((self.node, ExportFunction(descriptor.function_id, code)))
        if packages:
            self.share(packages)
        self.described[descriptor.descriptor_id] = descriptor.name
        self.out.append((self.node, descriptor))

    def submit(
        self, context: TaskContext, descriptor: Describe, args: bytes, deps: tuple[bytes, ...],
        borrowed: tuple[bytes, ...], stored_args: bytes = b"", packages: tuple[bytes, ...] = (),
        task_id: bytes = b"",
    ) -> tuple[bytes, tuple[bytes, ...]]:  # fmt: skip
        """Submit a task, straight to a leased worker if one is free for it.

        Args:
            context: the task that submits it.
            descriptor: what the node was told of its kind.
            args: encoded, or ``ARGS_IN_LAST_DEP``.
            deps: the objects whose values it takes.
            borrowed: those whose refs are inside its arguments.
            stored_args: the object that large arguments are; needed until now.
            packages: those that its environment is unpacked from.
            task_id: its id if that was reserved before.
        Returns:
            its id and those of its return objects, each held once.
        """
        task_id = task_id or context.next_task_id()
        returns = return_ids(task_id, descriptor.num_returns)
        if deps:
            self.share(deps)
        if borrowed:
            self.share(borrowed)
        kept = (*borrowed, *packages) if packages else borrowed
        spec = Submit(task_id, context.task_id, descriptor.descriptor_id, args, deps, kept)
        leased = self.leased
        if leased.leases and not deps and not borrowed:
            lease = leased.free_for(descriptor.descriptor_id)
            if lease is not None:
                leased.run(lease, spec)
                self._is_urgent = True
                return task_id, returns
        self.objects.expect(returns)
        if descriptor.returns == STREAM:
            self.streams.begin(task_id, returns[0])
        self.out.append((self.node, spec))
        if stored_args:
            self.objects.drop(stored_args)
        self.window -= 1
        return task_id, returns

    def go_on(self) -> None:
        """After a wait of a submitter: the node has room, or the wait is over and there is one batch more.

        Who submits waits at the ``window_floor`` until the ``window`` opens, or for ``submit_delay_ns``.
        Only a delay, never a stop: the tasks that fill the node may wait for what the submitter does next.
        """
        self.window_floor = 0 if self.window > 0 else self.window - self._batch_max

    # --- actors ----------------------------------------------------------------------------------

    def call_actor(
        self, context: TaskContext, actor_id: bytes, handle: bytes, method: MethodCall, args: bytes,
        deps: tuple[bytes, ...], borrowed: tuple[bytes, ...], stored_args: bytes = b"",
    ) -> tuple[bytes, tuple[bytes, ...]]:  # fmt: skip
        """Call a method of an actor; as :meth:`submit`, with the object id that ``handle`` is."""
        task_id = context.next_task_id()
        returns = return_ids(task_id, method.num_returns)
        arguments = (*deps, *borrowed) if deps or borrowed else ()
        if arguments or self.leased.ended or not self.objects.is_shared(handle):
            self.share((handle, *arguments))
        if method.returns == STREAM:
            self.streams.begin(task_id, returns[0])
        sequence = self.calls.next_sequence(actor_id)
        call = Call(
            task_id, actor_id, sequence, method.name, method.num_returns, args, deps, method.returns,
            method.group, method.unconsumed_max, 0, borrowed,
        )  # fmt: skip
        self.caller.call(call, returns, arguments, method.repeats)
        if stored_args:
            self.objects.drop(stored_args)
        return task_id, returns

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> None:
        """End an actor at once."""
        self.out.append((self.node, KillActor(actor_id, no_restart)))

    def is_call(self, task_id: bytes) -> bool:
        """Whether this is a call of this process without a reply."""
        return task_id in self.calls.actor_of_call

    def check_force(self, task_id: bytes, *, force: bool) -> None:
        """
        Raises:
            ValueError: for ``force`` with a call: its actor has others.
        """
        if force and self.is_call(task_id):
            raise ValueError("force=True is for tasks; zray.kill() ends an actor")

    def cancel(self, task_id: bytes, *, force: bool, recursive: bool) -> None:
        """Take a task back, or a call that this process made; ``force`` is for tasks."""
        if self.is_call(task_id):
            self.caller.cancel(task_id, recursive)
        else:
            lease_id = self.leased.cancel(task_id, recursive)
            self.out.append((self.node, Cancel(task_id, force, recursive, lease_id)))

    def names_under_way(self) -> list[str]:
        """What this process waits for and its node does not know of: leased tasks, and calls of actors."""
        specs = [lease.spec for lease in self.leased.under_way.values() if lease.spec is not None]
        running = [spec for spec in specs if spec.task_id not in self.leased.cancelled]
        return [self.described[spec.descriptor_id] for spec in running] + self.calls.methods_pending()

    # --- objects ---------------------------------------------------------------------------------

    def share(self, object_ids: Iterable[bytes]) -> None:
        """Refs to these leave the process; the node hears of a task before it hears of its value."""
        if self.leased.ended:
            self.leased.settle()
        self.objects.share(object_ids)

    def unknown_among(self, object_ids: Iterable[bytes]) -> bytes | None:
        """One of these that this process does not refer to, as after the end of its session."""
        known = self.objects.objects
        for object_id in object_ids:
            if object_id not in known:
                return object_id
        return None

    def keep(self, object_id: bytes, data: bytes, contained: tuple[bytes, ...]) -> None:
        """Put a value of at most ``inline_bytes_max`` bytes, which stays here until a ref to it leaves."""
        self.objects.keep(object_id, Value(INLINE, data, 0, 0, contained))

    def ask_room(self, object_id: bytes, size_bytes: int, holder: Address = b"") -> None:
        """Ask for room in the store, for a larger value; the question's key is the object's id."""
        self.questions.ask(object_id, Create(object_id, size_bytes, holder))

    @staticmethod
    def verdict(answer: Created | CreateFailed, size_bytes: int) -> int:
        """``ROOM`` to write to, or why there is none; ``HAS_VALUE``: it was written before (I1)."""
        if isinstance(answer, Created):
            return ROOM
        if answer.capacity_bytes == 0:
            return HAS_VALUE
        return TOO_LARGE if size_bytes > answer.capacity_bytes else NO_ROOM

    @staticmethod
    def no_room(answer: Created | CreateFailed, size_bytes: int) -> ObjectStoreFullError | OutOfDiskError:
        """The error of who wanted room, where the verdict is that there is none."""
        assert isinstance(answer, CreateFailed)
        if size_bytes > answer.capacity_bytes:
            return ObjectStoreFullError(size_bytes, answer.capacity_bytes)
        return OutOfDiskError(size_bytes, answer.detail)

    def abandon(self, object_id: bytes) -> None:
        """The value is not going to be written."""
        self.out.append((self.node, Abort(object_id)))

    def hold_former(self, object_id: bytes) -> None:
        """An earlier attempt of the task put this: hold that, and ask again whether it is there still."""
        self.out.append((self.node, Acquire((object_id,))))

    def stored(self, object_id: bytes, contained: tuple[bytes, ...], *, written: bool) -> None:
        """A large value that was put is in the store; ``written`` now, or by an earlier attempt."""
        if written:
            self._seal(object_id, contained)
        self.objects.stored(object_id)

    def _seal(self, object_id: bytes, contained: tuple[bytes, ...]) -> None:
        if contained:
            self.share(contained)
        self.out.append((self.node, Seal(object_id, contained)))

    def large_result(
        self, object_id: bytes, size_bytes: int, contained: tuple[bytes, ...], *, seals: bool
    ) -> Value:
        """What is said of a return object in the store.

        Args:
            object_id: its id.
            size_bytes: its size.
            contained: the refs inside.
            seals: it was written now and goes straight to its holder; otherwise its report seals it.
        """
        if seals:
            self._seal(object_id, contained)
        return Value(EXTENT, b"", 0, size_bytes, contained)

    def ask_hold_for(self, holder: Address, object_ids: tuple[bytes, ...]) -> int:
        """Let another process hold objects before this one lets go of them; the token of the question."""
        self.share(object_ids)
        token = self.questions.next_token()
        self.questions.ask(token, HoldFor(holder, object_ids, token))
        return token

    def ask_copies(self, object_id: bytes, copies: int) -> int:
        """Have copies of what was put kept on as many nodes; the token of the question."""
        self.share((object_id,))
        return self.ask(lambda token: KeepCopies(token, object_id, copies))

    def ask_whether_heard(self) -> int:
        """Ask for a sign that the node has heard all of this; the token of the question."""
        token = self.questions.next_token()
        self.questions.ask(token, Acquire((), token))
        return token

    def ask(self, make: Callable[[int], Any]) -> int:
        """Ask the node, or through it the control store; ``make`` gets the token, which is returned."""
        token = self.questions.next_token()
        self.questions.ask(token, make(token))
        return token

    def return_leases(self) -> list[Address]:
        """Before the node is asked what it does: no lease is idle; the addresses to disconnect from."""
        self.leased.settle()
        return self.leased.return_idle()

    # --- what arrives ----------------------------------------------------------------------------

    def on_ready(self, now_ns: int, source: Address, message: ObjectReady) -> None:
        """The node shows or announces a value."""
        self.objects.on_ready(message)
        if self.leased.under_way:
            self.leased.on_value_at_node(message.object_id)

    def on_results_ready(self, now_ns: int, source: Address, message: ResultsReady) -> None:
        """The node has the values of all return objects of a task; leased tasks have one each."""
        values = message.values
        self.objects.on_results(return_ids(message.task_id, len(values)), values)

    def on_reply(self, now_ns: int, source: Address, message: Reply) -> None:
        """An actor answers."""
        self.caller.on_reply(message)

    def on_actor_state(self, now_ns: int, source: Address, message: ActorState) -> None:
        """The node says where an actor is."""
        self.caller.on_state(message)
        if message.state == ACTOR_DEAD and message.actor_id in self.calls.callees:
            self._dead_actors[message.actor_id] = None
            if not self._forget_dead((message.actor_id,)) and len(self._dead_actors) > self._dead_actors_max:
                self._forget_dead(tuple(self._dead_actors))
                self._dead_actors_max = max(DEAD_ACTORS_MIN, 2 * len(self._dead_actors))

    def _forget_dead(self, actor_ids: Iterable[bytes]) -> bool:
        """Forget those of which no handle is left (I15); whether there is one."""
        forgotten = [one for one in actor_ids if not self.objects.refers_to(first_return_id(one))]
        for actor_id in forgotten:
            del self._dead_actors[actor_id]
            self.calls.forget(actor_id)
        return bool(forgotten)

    def on_lease(self, now_ns: int, source: Address, message: Lease) -> None:
        """The node has leased a worker to this process."""
        self.leased.on_lease(message)

    def on_leased_reply(self, now_ns: int, source: Address, message: LeasedReply) -> None:
        """A leased worker answers."""
        self.leased.on_reply(message)

    def on_lease_gone(self, now_ns: int, source: Address, message: LeaseGone) -> None:
        """A lease is over."""
        self.leased.on_gone(message)

    def on_credit(self, now_ns: int, source: Address, message: Credit) -> None:
        """The node has room again."""
        self.window += message.tasks

    def on_object_answer(self, now_ns: int, source: Address, message: Created | CreateFailed) -> None:
        """Room, or none."""
        self.questions.on_answer(message.object_id, message)

    def on_answer(self, now_ns: int, source: Address, message: Any) -> None:
        """The answer to any other question."""
        self.questions.on_answer(message.token, message)

    def on_stream_item(self, now_ns: int, source: Address, message: StreamItem) -> None:
        """The node has an item of a stream."""
        self.streams.on_item(message)

    def on_reply_item(self, now_ns: int, source: Address, message: ReplyItem) -> None:
        """An actor sends an item of a stream."""
        self.streams.on_reply_item(message)

    def on_last_words(self, now_ns: int, source: Address, message: LastWords) -> None:
        """An actor that this process called ends on purpose."""
        self.farewells.said_by(source)

    def on_last_words_heard(self, now_ns: int, source: Address, message: LastWordsHeard) -> None:
        """This process is an actor that ends on purpose, and one of its callers has all of its replies."""
        self.farewells.heard_by(source)

    # --- a machine -------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """Never: it is whoever waits that has a deadline."""
        return None

    def flush(self, now_ns: int) -> None:
        """Nothing to decide after a batch; see :meth:`settle`."""

    def on_tick(self, now_ns: int) -> None:
        """Nothing is timed."""

    def check(self) -> None:
        """All rooms are consistent."""
        self.objects.check()
        self.caller.check()
        self.leased.check()
        self.streams.check()

    HANDLERS: ClassVar[dict[type, Handler]] = {
        ObjectReady: on_ready,
        ResultsReady: on_results_ready,
        Reply: on_reply,
        ActorState: on_actor_state,
        Lease: on_lease,
        LeasedReply: on_leased_reply,
        LeaseGone: on_lease_gone,
        Credit: on_credit,
        Created: on_object_answer,
        CreateFailed: on_object_answer,
        Acked: on_answer,
        Answer: on_answer,
        NameAnswer: on_answer,
        GroupAnswer: on_answer,
        CheckpointFound: on_answer,
        CopiesKept: on_answer,
        StreamItem: on_stream_item,
        ReplyItem: on_reply_item,
        LastWords: on_last_words,
        LastWordsHeard: on_last_words_heard,
    }
