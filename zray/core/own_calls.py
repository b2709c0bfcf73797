"""In the process of an actor: which calls run, which are taken back, and what is said of them.

Calls start in the order in which they come, as many at once as ``core/call_slots.py`` says. Whoever hosts
this runs them, in a thread, a coroutine or virtual time, and says here when they have ended.
"""

from __future__ import annotations

from collections.abc import Mapping

from zray.core.call_slots import CallSlots
from zray.core.cancellation import cancelled_value
from zray.core.client import ClientMachine
from zray.core.machine import Address
from zray.core.own_checkpoints import OwnCheckpoints
from zray.core.stream_credits import StreamCredits
from zray.core.task_context import TaskContext
from zray.ids import short
from zray.protocol import faults
from zray.protocol.messages import Call, Describe, Reply, Value
from zray.protocol.user_messages import STREAM, Cancel, CancelCall, ConsumedItems, Leaving, ReplyItem

NAMES_MAX = 1_000
"""Names of methods that are kept; callers may make up more."""


class OwnCalls:
    """The calls of the actor that a worker is. Pure; shares the outbox of its process.

    Args:
        client: the client's machine of the process.
        credits: how far the readers of its streams are.
        descriptor: of the actor's creation task.
        group_of: method -> concurrency group, for those that were declared in one.
    """

    def __init__(
        self, client: ClientMachine, credits: StreamCredits, descriptor: Describe, group_of: Mapping[str, str]
    ) -> None:
        self.client = client
        self.out = client.out
        self.credits = credits
        self.name = descriptor.name
        self.demand, self.in_group = descriptor.demand, descriptor.in_group
        self.slots = CallSlots(descriptor.max_concurrency, dict(descriptor.concurrency_groups), group_of)
        self.checkpoints: OwnCheckpoints | None = None  # of an actor that can be saved and has a life to lose
        self.contexts: dict[bytes, TaskContext] = {}  # of the calls that run
        self.leaving = False  # it ended itself
        self._names: dict[str, str] = {}  # method -> what its calls are called

    # --- what callers say --------------------------------------------------------------------------

    def arrived(self, source: Address, call: Call) -> bool:
        """Queue a call; False if its concurrency group does not exist, which its caller is to be told."""
        if self.leaving:
            return True  # its caller hears of the end
        answer = None if self.checkpoints is None else self.checkpoints.take_answer(call)
        if answer is not None:  # it ran before this process was made, and only its reply was lost
            self.out.append((source, Reply(call.task_id, answer)))
            return True
        if not self.slots.arrived(source, call):
            return False
        if call.returns == STREAM:  # while it is queued its reader may go on, or away
            if call.task_id in self.contexts:  # its caller runs again: the former run is for nobody
                self.credits.on_credit(ConsumedItems(call.task_id, 0, True))
            else:
                self.credits.open(call.task_id, source)
        return True

    def refuse(self, source: Address, call: Call, values: tuple[Value, ...]) -> None:
        """Answer a call that did not run."""
        self.out.append((source, Reply(call.task_id, values)))

    def cancel(self, message: CancelCall) -> TaskContext | None:
        """A caller takes a call back: one that is queued ends here; returns the context of one that runs.

        That is marked as cancelled: a coroutine is interrupted, what runs in a thread ends as it likes.
        """
        task_id = message.task_id
        if message.recursive:
            self.client.leased.cancel_children(task_id)
            self.out.append((self.client.node, Cancel(task_id)))
        queued = self.slots.withdraw(task_id)
        if queued is not None:
            source, call = queued
            self.credits.close(task_id)
            self.refuse(source, call, (cancelled_value(task_id),) * call.num_returns)
            return None
        context = self.contexts.get(task_id)
        if context is not None:
            context.is_cancelled = True
        return context

    # --- one call ----------------------------------------------------------------------------------

    def start(self) -> tuple[Address, Call] | None:
        """The next call that may run, which has a context from now on."""
        item = self.slots.next()
        if item is not None:
            call = item[1]
            self.contexts[call.task_id] = self.context_of(call)
            if call.returns == STREAM:  # unless a former run of it has just ended, that is so
                self.credits.open(call.task_id, item[0])
        return item

    def yielded(self, source: Address, call: Call, index: int, value: Value) -> None:
        """A call made an item of its stream."""
        self.out.append((source, ReplyItem(call.task_id, index, value)))

    def ended(self, source: Address, call: Call, values: tuple[Value, ...]) -> None:
        """A call has ended, with the values of its return objects."""
        self.contexts.pop(call.task_id, None)
        if call.returns == STREAM:
            self.credits.close(call.task_id)
        self.slots.ended(call.task_id)
        self.out.append((source, Reply(call.task_id, values)))

    def leave(self, call: Call) -> tuple[Value, ...]:
        """A call ended the actor with ``exit_actor()`` or ``sys.exit()``; its own values."""
        self.leaving = True
        for _, queued in self.slots.withdraw_all():  # their callers hear of the end
            self.credits.close(queued.task_id)
        self.out.append((self.client.node, Leaving("exit_actor() or sys.exit()")))
        reason = "it ended itself with exit_actor() or sys.exit()"
        return (faults.fault_value(faults.ACTOR_DIED, short(call.actor_id), reason),) * call.num_returns

    @property
    def is_idle(self) -> bool:
        """Whether no call runs, and none may start."""
        return not self.slots.running and (self.leaving or not self.slots.queued)

    def name_of(self, call: Call) -> str:
        """What a call is called: its class and method."""
        name = self._names.get(call.method)
        if name is None:
            name = f"{self.name}.{call.method}"
            if len(self._names) < NAMES_MAX:
                self._names[call.method] = name
        return name

    def context_of(self, call: Call) -> TaskContext:
        """What the code of a call runs as."""
        return TaskContext(call.task_id, self.name_of(call), call.attempt, self.demand, self.in_group)

    def check(self) -> None:
        """Slots add up."""
        self.slots.check()
