"""The worker's side: what waits to be run here, and what is said of what ran.

A worker runs tasks of its node, and tasks straight from a submitter while it is leased. What waits goes back
to the node when the running task blocks, for others to run. Finished results gather until nothing is left
to run, the batch is full or the oldest has waited for ``done_linger_ns``.

A task is in ``runs`` or ``calls`` until it starts, then it is ``current`` until its code is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from zray.core.cancellation import cancelled_value
from zray.core.client import ClientMachine
from zray.core.machine import Address, Handler, invariant
from zray.core.stream_credits import StreamCredits
from zray.ids import NIL_ID, short
from zray.protocol.messages import (
    AT_NODE,
    ERROR,
    EXTENT,
    FAULT,
    Blocked,
    Describe,
    EndLease,
    Exit,
    LeasedDone,
    LeasedReply,
    LeasedRun,
    LeaseEnded,
    LeaseReady,
    PrepareLease,
    Recall,
    Returned,
    Run,
    TaskDone,
    Unblocked,
    Value,
)
from zray.protocol.user_messages import (
    STREAM,
    CancelCall,
    ConsumedItems,
    Interrupt,
    ReaderGone,
    StreamCredit,
    Yielded,
)


class WorkerMachine:
    """What a worker has besides a client's machine. Shares its outbox; a machine, too.

    Args:
        client: the client's machine of the same process.
    """

    def __init__(self, client: ClientMachine) -> None:
        self.client = client
        self.config = client.config
        self.node = client.node
        self.out = client.out
        self.descriptors: dict[bytes, Describe] = {}
        self.runs: deque[Run] = deque()
        self.calls: deque[tuple[Address, LeasedRun | EndLease]] = deque()  # with where they came from
        self.current = NIL_ID  # the task that runs
        self.exiting = False  # the node wants no more of it
        self.credits = StreamCredits()
        self._ended_lease = 0  # tasks of this lease and those before are not run any more
        self._last_reply: LeasedReply | None = None
        self._unsent = 0  # results that wait in the outbox
        self._unsent_since_ns = 0

    # --- what waits --------------------------------------------------------------------------------

    def return_queued(self) -> list[Run]:
        """Give back what was not started; nobody is going to look at its inputs."""
        returned = list(self.runs)
        if returned:
            self.runs.clear()
            for run in returned:
                self.look_away(run)
                self.credits.close(run.task_id)
            self.out.append((self.node, Returned(tuple(run.task_id for run in returned))))
        return returned

    def look_away(self, run: Run) -> None:
        """The inputs that the node shows for a task are not going to be viewed."""
        self.client.objects.unpinned += [one.object_id for one in run.deps if one.value.kind == EXTENT]

    def is_wanted(self, message: LeasedRun) -> bool:
        """Whether to run it; otherwise it crossed the end of its lease, and runs elsewhere."""
        return message.lease_id > self._ended_lease

    def end_lease(self, message: EndLease) -> None:
        """All before it is done. The last reply may have missed its submitter, and goes along."""
        last, self._last_reply = self._last_reply, None
        if last is not None and last.lease_id != message.lease_id:
            last = None
        self._ended_lease = message.lease_id
        self.out.append((self.node, LeaseEnded(message.lease_id, last)))

    def withdraw(self, source: Address, message: Interrupt | CancelCall) -> bool:
        """A task was cancelled; returns whether it runs, so that its code is to be interrupted."""
        task_id = message.task_id
        for item in self.calls if isinstance(message, CancelCall) else ():
            if isinstance(item[1], LeasedRun) and item[1].spec.task_id == task_id:
                self.calls.remove(item)
                self._reply(source, LeasedReply(item[1].lease_id, task_id, cancelled_value(task_id), 1, True))
                return False
        if message.recursive:
            self.client.leased.cancel_children(task_id)
        for run in self.runs:
            if run.task_id == task_id:
                self.runs.remove(run)
                self.look_away(run)
                count = self.descriptors[run.descriptor_id].num_returns
                self.done(run, (cancelled_value(task_id),) * count, 1, failed=True)
                return False
        return self.current == task_id

    # --- what runs ---------------------------------------------------------------------------------

    @staticmethod
    def inputs_to_fetch(run: Run) -> list[bytes]:
        """The inputs of a task that did not come along with it."""
        return [ready.object_id for ready in run.deps if ready.value.kind == AT_NODE]

    @staticmethod
    def failed_input(values: Iterable[Value]) -> Value | None:
        """The first of these that is no value but an error: what takes them ends with the same one."""
        return next((value for value in values if value.kind in (ERROR, FAULT)), None)

    def block(self, task_id: bytes) -> list[Run]:
        """The running task waits: its resources are for others, and what is queued behind it, returned."""
        returned = self.return_queued()
        self.out.append((self.node, Blocked(task_id)))
        return returned

    def unblock(self, task_id: bytes) -> None:
        """It goes on."""
        self.out.append((self.node, Unblocked(task_id)))

    def yielded(self, run: Run, index: int, value: Value) -> None:
        """A task of the node made an item of its stream."""
        self.out.append((self.node, Yielded(run.task_id, run.attempt, index, value)))

    def done(
        self, run: Run, values: tuple[Value, ...], run_ns: int, *, failed: bool, is_final: bool = False
    ) -> None:
        """A task of the node has ended, with the values of its return objects."""
        if self.credits.consumed:
            self.credits.close(run.task_id)
        self.out.append((self.node, TaskDone(run.task_id, run.attempt, values, run_ns, failed, is_final)))

    def leased_done(
        self, source: Address, message: LeasedRun, value: Value, run_ns: int, *, failed: bool
    ) -> None:
        """The same of a submitter's. Only a small value without refs goes straight back to it."""
        spec = message.spec
        if value.kind == EXTENT or value.contained:
            self._last_reply = None
            done = LeasedDone(message.lease_id, spec, run_ns, failed, True, value)
            self.out.append((self.node, done))
        else:
            self._reply(source, LeasedReply(message.lease_id, spec.task_id, value, run_ns, failed))

    def _reply(self, source: Address, reply: LeasedReply) -> None:
        self._last_reply = reply
        self.out.append((source, reply))

    def note_result(self, now_ns: int) -> bool:
        """A result is in the outbox and there is more to run; whether all are to be sent now."""
        if self._unsent == 0:
            self._unsent_since_ns = now_ns
        self._unsent += 1
        late = now_ns - self._unsent_since_ns >= self.config.done_linger_ns
        if late or self._unsent >= self.config.done_batch_max:
            self._unsent = 0
            return True
        return False

    def note_idle(self) -> None:
        """There is nothing to run: whoever waits sends all that there is."""
        self._unsent = 0

    # --- what arrives ------------------------------------------------------------------------------

    def on_run(self, now_ns: int, source: Address, message: Run) -> None:
        """A task of the node."""
        self.runs.append(message)
        if self.descriptors[message.descriptor_id].returns == STREAM:
            self.credits.open(message.task_id)

    def on_call(self, now_ns: int, source: Address, message: LeasedRun | EndLease) -> None:
        """A task straight from its submitter, or the end of that."""
        self.calls.append((source, message))

    def on_describe(self, now_ns: int, source: Address, message: Describe) -> None:
        """What tasks to come have in common."""
        self.descriptors[message.descriptor_id] = message

    def on_prepare_lease(self, now_ns: int, source: Address, message: PrepareLease) -> None:
        """Submitters may send tasks: the process listens to them by now."""
        self.out.append((self.node, LeaseReady()))

    def on_recall(self, now_ns: int, source: Address, message: Recall) -> None:
        """Give back what was not started."""
        self.return_queued()

    def on_exit(self, now_ns: int, source: Address, message: Exit) -> None:
        """End once what is here is done."""
        self.exiting = True

    def on_credit(self, now_ns: int, source: Address, message: StreamCredit | ConsumedItems) -> None:
        """The reader of a stream goes on."""
        self.credits.on_credit(message)

    def on_reader_gone(self, now_ns: int, source: Address, message: ReaderGone) -> None:
        """A process that may have called this actor is dead."""
        self.credits.reader_gone(message.reader)

    # --- a machine ---------------------------------------------------------------------------------

    @property
    def wake_at_ns(self) -> int | None:
        """Never."""
        return None

    def flush(self, now_ns: int) -> None:
        """Nothing to decide after a batch."""

    def on_tick(self, now_ns: int) -> None:
        """Nothing is timed."""

    def check(self) -> None:
        """What waits is described, and streams are of what is here; see also the client's machine."""
        for run in self.runs:
            invariant(run.descriptor_id in self.descriptors, "not described:", short(run.task_id))

    HANDLERS: ClassVar[dict[type, Handler]] = {
        Run: on_run,
        LeasedRun: on_call,
        EndLease: on_call,
        Describe: on_describe,
        PrepareLease: on_prepare_lease,
        Recall: on_recall,
        Exit: on_exit,
        StreamCredit: on_credit,
        ConsumedItems: on_credit,
        ReaderGone: on_reader_gone,
    }
