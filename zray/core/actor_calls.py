"""The caller's side of actor calls: their order, where the actor is, and what becomes of them if it dies.

Calls of one caller reach the actor in the order they were made, over one link (I3). Until the node has
said where the actor is they wait here. When it is dead, every call without a reply ends with the cause
the node gave. An actor of another node is called through the own one. When it is made again, those that
may be repeated wait at the front, in their order, and the others under way end: they may have run or not.
A call is in ``waiting`` or in ``in_flight`` of exactly one actor until it has a reply or a fault.
"""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from zray.core.machine import Address, Effect, invariant
from zray.ids import short
from zray.protocol.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    ACTOR_RESTARTING,
    ActorState,
    Call,
    LetGo,
    Reply,
    Value,
    WatchActor,
)
from zray.protocol.user_messages import STREAM, CancelCall, ConsumedItems


class _Callee:
    """One actor as this process sees it."""

    __slots__ = ("actor_id", "in_flight", "sequence", "state", "waiting")

    def __init__(self, actor_id: bytes) -> None:
        self.actor_id = actor_id
        self.state: ActorState | None = None
        self.waiting: deque[Call] = deque()
        self.in_flight: dict[bytes, Call] = {}
        self.sequence = 0


class ActorCalls:
    """Every actor that one process calls. Pure.

    Args:
        out: the process's outbox.
        node: the address of its node.
    """

    def __init__(self, out: list[Effect], *, node: Address) -> None:
        self.out = out
        self.node = node
        self.callees: dict[bytes, _Callee] = {}
        self.actor_of_call: dict[bytes, bytes] = {}
        self.repeats: dict[bytes, int] = {}  # calls that may be repeated -> how often; -1: without end
        self.consumed: dict[bytes, ConsumedItems] = {}  # how far the readers of calls without a reply are
        self.again: dict[bytes, Call] = {}  # streams whose former run is to end first
        self.sequences: dict[bytes, int] = {}  # calls ever made to actors that were forgotten and may live

    def next_sequence(self, actor_id: bytes) -> int:
        """The number of the next call to an actor."""
        callee = self.callees.get(actor_id)
        if callee is None:
            callee = self.callees[actor_id] = _Callee(actor_id)
            callee.sequence = self.sequences.pop(actor_id, 0)
            self.out.append((self.node, WatchActor(actor_id)))
        callee.sequence += 1
        return callee.sequence

    def pending(self, actor_id: bytes) -> int:
        """How many calls of an actor have no reply."""
        callee = self.callees.get(actor_id)
        return 0 if callee is None else len(callee.waiting) + len(callee.in_flight)

    def is_pending(self, actor_id: bytes) -> bool:
        """Whether a call of an actor has no reply."""
        callee = self.callees.get(actor_id)
        return callee is not None and bool(callee.in_flight or callee.waiting)

    def methods_pending(self) -> list[str]:
        """The method of every call that has no reply."""
        callees = self.callees.values()
        return [call.method for callee in callees for call in (*callee.in_flight.values(), *callee.waiting)]

    def note_consumed(self, task_id: bytes, items: int, done: bool) -> None:
        """How far the reader of a call's stream is: the actor hears of it now, or after the call."""
        former = self.consumed.get(task_id)
        if former is not None:
            items, done = max(items, former.items), done or former.done
        word = self.consumed[task_id] = ConsumedItems(task_id, items, done)
        callee = self.callees[self.actor_of_call[task_id]]
        if task_id in callee.in_flight:
            assert callee.state is not None
            self.out.append((callee.state.address, word))

    def call(self, call: Call, repeats: int = 0) -> Value | None:
        """Take a call; returns the fault it ends with at once if the actor is known to be dead.

        Args:
            call: the call.
            repeats: how often it may run again if its actor dies and is made again; -1: without end.
        """
        callee = self.callees[call.actor_id]
        state = callee.state
        if state is None or (state.state != ACTOR_ALIVE and state.state != ACTOR_DEAD):
            callee.waiting.append(call)
        elif state.state == ACTOR_DEAD:
            return state.cause
        else:
            callee.in_flight[call.task_id] = call
            self.out.append((state.address, call))
        self.actor_of_call[call.task_id] = call.actor_id
        if repeats:
            self.repeats[call.task_id] = repeats
        return None

    def make_again(self, call: Call) -> None:
        """The task that made a call runs again in this process, and the call has no reply: that one counts.

        A stream is read from its first item on, and so it is made once more when its former run has ended.
        """
        if call.returns != STREAM:
            return
        self.consumed.pop(call.task_id, None)
        callee = self.callees[call.actor_id]
        if call.task_id in callee.in_flight:
            assert callee.state is not None
            self.again[call.task_id] = call
            for word in (ConsumedItems(call.task_id, 0, True), CancelCall(call.task_id, False)):
                self.out.append((callee.state.address, word))

    def _send_again(self, call: Call) -> None:
        callee = self.callees[call.actor_id]
        if call.task_id not in callee.in_flight:
            return  # the actor died, and the call waits for it
        assert callee.state is not None
        callee.in_flight[call.task_id] = call
        self.out.append((callee.state.address, call))
        if call.task_id in self.consumed:
            self.out.append((callee.state.address, self.consumed[call.task_id]))

    def on_state(self, message: ActorState) -> list[tuple[Call, Value]]:
        """The node says where an actor is; returns the calls that end, with their fault."""
        callee = self.callees.get(message.actor_id)
        if callee is None and message.state == ACTOR_DEAD:
            self.sequences.pop(message.actor_id, None)
        if callee is None or (callee.state is not None and callee.state.state == ACTOR_DEAD):
            return []
        former, callee.state = callee.state, message
        if message.state == ACTOR_ALIVE:
            if not message.address:  # it lives on another node
                message = callee.state = replace(message, address=self.node)
            for call in callee.waiting:
                callee.in_flight[call.task_id] = call
                self.out.append((message.address, call))
                if call.task_id in self.consumed:  # before it was sent, or by who ran it before
                    self.out.append((message.address, self.consumed[call.task_id]))
            callee.waiting.clear()
        elif message.state == ACTOR_RESTARTING:
            if not message.address and former is not None and former.state != ACTOR_RESTARTING:
                self.out.append((self.node, WatchActor(message.actor_id)))  # what it called before is void
            return self._keep_repeatable(callee, message)
        elif message.state == ACTOR_DEAD:
            self.out.append((self.node, LetGo(message.actor_id)))  # a reply that still comes is ignored
            return self._fail_all(callee, message)
        return []

    def _keep_repeatable(self, callee: _Callee, message: ActorState) -> list[tuple[Call, Value]]:
        """The actor is made again: what may be repeated waits for it, the rest of what was sent ends."""
        assert message.cause is not None
        ended = []
        again = []
        for call in callee.in_flight.values():
            left = self.repeats.pop(call.task_id, 0)
            if not left:
                self._ended(call.task_id)
                ended.append((call, message.cause))
                continue
            self.again.pop(call.task_id, None)  # it is made from the beginning anyway
            if left != 1:
                self.repeats[call.task_id] = max(left - 1, -1)
            again.append(replace(call, attempt=call.attempt + 1))
        callee.in_flight.clear()
        callee.waiting.extendleft(reversed(again))
        return ended

    def cancel(self, task_id: bytes, recursive: bool) -> Call | None:
        """Take a call back; returns it if it was not sent, and so has ended. The actor decides otherwise."""
        self.again.pop(task_id, None)
        callee = self.callees[self.actor_of_call[task_id]]
        call = callee.in_flight.get(task_id)
        if call is not None:
            assert callee.state is not None
            self.out.append((callee.state.address, CancelCall(task_id, recursive)))
            return None
        self._ended(task_id)
        return self._withdraw(callee, task_id)

    @staticmethod
    def _withdraw(callee: _Callee, task_id: bytes) -> Call:
        call = next(call for call in callee.waiting if call.task_id == task_id)
        callee.waiting.remove(call)
        return call

    def _ended(self, task_id: bytes) -> bytes | None:
        if self.repeats or self.consumed or self.again:
            self.repeats.pop(task_id, None)
            self.consumed.pop(task_id, None)
            self.again.pop(task_id, None)
        return self.actor_of_call.pop(task_id, None)

    def _fail_all(self, callee: _Callee, message: ActorState) -> list[tuple[Call, Value]]:
        assert message.cause is not None
        ended = [*callee.in_flight.values(), *callee.waiting]
        callee.in_flight.clear()
        callee.waiting.clear()
        for call in ended:
            self._ended(call.task_id)
        return [(call, message.cause) for call in ended]

    def on_reply(self, message: Reply) -> Call | None:
        """The call that a reply answers, or ``None`` if it has ended already, or is made once more."""
        again = self.again.pop(message.task_id, None)
        if again is not None:
            self._send_again(again)
            return None
        actor_id = self._ended(message.task_id)
        if actor_id is None:
            return None
        callee = self.callees[actor_id]
        call = callee.in_flight.pop(message.task_id, None)
        # Or it waits to be repeated, and the reply of its former run was under way when its actor died.
        return self._withdraw(callee, message.task_id) if call is None else call

    def forget(self, actor_id: bytes) -> Address | None:
        """No handle is left in this process; returns the address to disconnect from, if any.

        An actor with calls under way is kept: the calls keep a handle.
        """
        callee = self.callees.get(actor_id)
        if callee is None or callee.in_flight or callee.waiting:
            return None
        del self.callees[actor_id]
        if callee.state is None:
            return None
        if callee.state.state != ACTOR_DEAD:
            self.sequences[actor_id] = callee.sequence
        address = callee.state.address
        return address if address and address != self.node else None

    def check(self) -> None:
        """Every unanswered call is in one place."""
        count = 0
        for actor_id, callee in self.callees.items():
            for call in [*callee.in_flight.values(), *callee.waiting]:
                invariant(self.actor_of_call.get(call.task_id) == actor_id, "call", short(call.task_id))
                count += 1
        unknown = [short(task_id) for task_id in self.repeats if task_id not in self.actor_of_call]
        invariant(not unknown, "repeats of unknown calls", unknown)
        lost = [short(task_id) for task_id in self.again if task_id not in self.actor_of_call]
        invariant(not lost, "unknown calls that are to be made again", lost)
        unread = [short(task_id) for task_id in self.consumed if task_id not in self.actor_of_call]
        invariant(not unread, "readers of unknown calls", unread)
        invariant(count == len(self.actor_of_call), "calls", count, len(self.actor_of_call))
