"""Are the answers that several clients got of one key those of a single register? (linearizability)

Each operation must look as if it happened in one moment between its invocation and its answer. The search
for such moments is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with Lowe's memory of
what was tried ("Testing for linearizability", 2017), on each key by itself, as the property is local. It is
exponential in the number of operations that overlap, and nearly linear in the length of a history.

An operation without an answer may have happened at any time after its invocation, or never. So a client that
repeats a request has made *two* operations, of which one has no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

GET, PUT, CAS, DELETE = "get", "put", "cas", "delete"
STEPS_MAX = 2_000_000
"""Of one search: some seconds."""
SUSPECTS_MAX = 50


class HistoryError(AssertionError):
    """A history that no correct system can have; the text tells the story."""


class Operation(NamedTuple):
    """What a client asked of one key, and heard.

    Attributes:
        who: the client.
        number: of the operation, in that client's order.
        kind: ``GET``, ``PUT``, ``CAS`` or ``DELETE``.
        given: what is to be written.
        expected: of a ``CAS``, ``None``: there is no such key; of a ``DELETE``, ``None``: whatever it holds.
        invoked_ns, answered_ns: by one clock for all clients; without an answer ``None``.
        ok, value: the answer, as ``TableReply`` has it.
    """

    who: str
    number: int
    kind: str
    key: str
    given: str | None
    expected: str | None
    invoked_ns: int
    answered_ns: int | None = None
    ok: bool = False
    value: str | None = None

    @property
    def is_write(self) -> bool:
        """Whether it changed the register, as far as its client knows."""
        return self.answered_ns is not None and self.ok and self.kind != GET

    def __str__(self) -> str:
        what = {
            GET: "get", PUT: f"put {self.given!r}", CAS: f"cas {self.expected!r} -> {self.given!r}",
            DELETE: "delete" if self.expected is None else f"delete if {self.expected!r}",
        }[self.kind]  # fmt: skip
        invoked_ms = self.invoked_ns / 1e6
        if self.answered_ns is None:
            return f"{self.who} #{self.number} {what}, at {invoked_ms:.3f} ms, without an answer"
        answer = repr(self.value) if self.ok else f"no, it holds {self.value!r}"
        return (
            f"{self.who} #{self.number} {what}, at {invoked_ms:.3f} ms, answered {answer} at "
            f"{self.answered_ns / 1e6:.3f} ms"
        )


def after(operation: Operation, state: str | None) -> tuple[bool, str | None]:
    """What the register holds afterwards, and whether the answer is right if it held ``state`` before."""
    _, _, kind, _, given, expected, _, answered_ns, ok, value = operation
    if kind == GET:
        right, new = (state is not None, state), state
    elif kind == PUT:
        right, new = (True, given), given
    elif kind == CAS:
        new = given if state == expected else state
        right = state == expected, new
    else:
        deletes = state is not None and expected in (None, state)
        right, new = (deletes, None), None if deletes else state
    return answered_ns is None or (ok, value) == right, new


def is_linearizable(operations: Sequence[Operation], initial: str | None = None) -> bool:
    """Whether one register that held ``initial`` could have given these answers.

    Raises:
        HistoryError: if that is not found out within :data:`STEPS_MAX` steps.
    """
    return _Search(operations).run(initial)


class _Search:
    """Invocations and answers in order of time, a linked list; operations that are placed are taken out."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        # Without an answer a read says nothing, and a write has an invocation only.
        self.operations = [op for op in operations if op.answered_ns is not None or op.kind != GET]
        moments = [(op.invoked_ns, 0, place) for place, op in enumerate(self.operations)]
        answers = [(op.answered_ns, 1, place) for place, op in enumerate(self.operations)]
        moments += [moment for moment in answers if moment[0] is not None]  # type: ignore[misc]
        moments.sort()  # at one moment invocations come first: they may overlap
        self.moments = [(bool(is_answer), place) for _, is_answer, place in moments]
        self.answer_of = {place: at for at, (is_answer, place) in enumerate(self.moments, 1) if is_answer}
        count = len(self.moments)
        self.next = [*range(1, count + 1), 0]  # place 0 is the end, and its next the first
        self.previous = [count, *range(count)]
        if not count:
            self.next, self.previous = [0], [0]

    def run(self, state: str | None) -> bool:
        tried: set[tuple[int, str | None]] = set()
        placed: list[tuple[int, str | None]] = []  # where the invocation is, what the register held before
        done, missing, steps = 0, len(self.answer_of), 0
        at = self.next[0]
        while missing:
            steps += 1
            if steps > STEPS_MAX:
                raise HistoryError(f"not decided after {STEPS_MAX} steps: too many operations overlap")
            is_answer, place = self.moments[at - 1] if at else (True, -1)
            if not is_answer:
                right, new = after(self.operations[place], state)
                if right and (key := (done | 1 << place, new)) not in tried:
                    tried.add(key)
                    placed.append((at, state))
                    done, state = key
                    missing -= self._take(at, place)
                    at = self.next[0]
                    continue
                at = self.next[at]
                continue
            # The answer of something that is not placed yet: what was placed last was a mistake.
            if not placed:
                return False
            at, state = placed.pop()
            place = self.moments[at - 1][1]
            done &= ~(1 << place)
            missing += self._put_back(at, place)
            at = self.next[at]
        return True

    def _take(self, at: int, place: int) -> int:
        """Take an operation out of the list; 1 if it had an answer."""
        self._unlink(at)
        answer = self.answer_of.get(place, 0)
        if answer:
            self._unlink(answer)
        return bool(answer)

    def _put_back(self, at: int, place: int) -> int:
        answer = self.answer_of.get(place, 0)
        if answer:
            self._link(answer)
        self._link(at)
        return bool(answer)

    def _unlink(self, at: int) -> None:
        before, behind = self.previous[at], self.next[at]
        self.next[before], self.previous[behind] = behind, before

    def _link(self, at: int) -> None:
        self.next[self.previous[at]] = self.previous[self.next[at]] = at


# --- what to tell whoever has to find the bug --------------------------------------------------------


def judge_registers(operations: Iterable[Operation]) -> int:
    """How many operations were looked at.

    Raises:
        HistoryError: if those of a key are not linearizable; it names the first answer that cannot be, and
            the acknowledged write without which it could.
    """
    of_keys: dict[str, list[Operation]] = {}
    count = 0
    for operation in operations:
        of_keys.setdefault(operation.key, []).append(operation)
        count += 1
    for key, found in of_keys.items():
        if not is_linearizable(found):
            raise HistoryError(_story(key, found))
    return count


def _until(operations: Sequence[Operation], moment_ns: int) -> list[Operation]:
    """The history as it was at a moment; that is linearizable if the whole one is."""
    return [
        op if op.answered_ns is not None and op.answered_ns <= moment_ns else op._replace(answered_ns=None)
        for op in operations
        if op.invoked_ns <= moment_ns
    ]


def _story(key: str, operations: Sequence[Operation]) -> str:
    answered = sorted(
        (op for op in operations if op.answered_ns is not None), key=lambda op: op.answered_ns or 0
    )
    low, high = 0, len(answered) - 1  # the first answer that cannot be is not before low, nor after high
    while low < high:
        middle = (low + high) // 2
        if is_linearizable(_until(operations, answered[middle].answered_ns or 0)):
            low = middle + 1
        else:
            high = middle
    culprit = answered[low]
    known = _until(operations, culprit.answered_ns or 0)
    lines = [f"key {key!r}: no order of its operations explains this one:", f"  {culprit}"]
    writes = [op for op in answered[:low] if op.is_write]
    for write in reversed(writes[-SUSPECTS_MAX:]):
        if is_linearizable([op for op in known if op != write]):
            lines += [
                "it would be right if this acknowledged write had never happened; it is lost:",
                f"  {write}",
            ]
            break
    lines.append("before it, the latest last:")
    lines += [f"  {op}" for op in sorted(known, key=lambda op: op.invoked_ns)[-20:] if op != culprit]
    return "\n".join(lines)
