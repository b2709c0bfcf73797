"""What users of a cluster saw while parts of it were killed, and whether a correct one can have shown it.

Every process that takes part appends what it does and hears to one file, a line per event, as it happens:
what a killed process had seen until then counts. The judges look at nothing else:

- keys of the control store are registers (``registers.py``), so no acknowledged write is lost;
- what an actor did is what its callers were told, in the order of each caller, each call once, and in an
  order that agrees with time (I3); within one life of it nothing is done twice;
- an attempt of a task runs once (I8);
- all who read one object saw the same bytes (I1, I10).

``python -m tests.chaos.history FILE`` judges a file that was kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from tests.chaos.registers import HistoryError, Operation, judge_registers


class Event(msgspec.Struct, frozen=True, tag_field="event"):
    """Base of all lines; times are of the machine's monotonic clock, one for all its processes."""


class Asked(Event, frozen=True, tag="asked"):
    """A client of the control store says something about a key; see :class:`Operation` for the fields."""

    who: str
    number: int
    kind: str
    key: str
    given: str | None
    expected: str | None
    at_ns: int


class Answered(Event, frozen=True, tag="answered"):
    """It hears the answer."""

    who: str
    number: int
    ok: bool
    value: str | None
    at_ns: int


class Called(Event, frozen=True, tag="called"):
    """A caller is about to make its next call of an actor."""

    actor: str
    caller: str
    number: int
    at_ns: int


class Returned(Event, frozen=True, tag="returned"):
    """It has the result: the place of the call among all that the actor did."""

    actor: str
    caller: str
    number: int
    place: int
    at_ns: int


class Did(Event, frozen=True, tag="did"):
    """An actor runs a call, by its own word: one that is repeated in another life is here again."""

    life: str
    caller: str
    number: int


class Done(Event, frozen=True, tag="done"):
    """What an actor says at last that it did: ``(caller, number)`` by place."""

    actor: str
    entries: list[tuple[str, int]]


class Ran(Event, frozen=True, tag="ran"):
    """An attempt of a task begins."""

    task_id: str
    attempt: int
    name: str


class Saw(Event, frozen=True, tag="saw"):
    """A process has read an object."""

    object_id: str
    reader: str
    digest: int


Kind = TypeVar("Kind", bound=Event)
AnyEvent = Asked | Answered | Called | Returned | Did | Done | Ran | Saw


class HistoryFile:
    """Where events are appended, by any number of threads and processes.

    Args:
        path: made when it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def add(self, *events: AnyEvent) -> None:
        """In one piece: lines of several processes do not mix."""
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        written = os.write(self._fd, lines)
        assert written == len(lines), f"{written} of {len(lines)} bytes of history"

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> HistoryFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_history(path: str | Path) -> list[AnyEvent]:
    """All events of a file, in the order in which they were appended."""
    return msgspec.json.Decoder(AnyEvent).decode_lines(Path(path).read_bytes())


class Checked(NamedTuple):
    """How much the judges had to look at."""

    operations: int = 0
    unanswered: int = 0
    """Of the operations."""
    calls: int = 0
    attempts: int = 0
    reads: int = 0

    def __str__(self) -> str:
        return (
            f"{self.operations} operations of keys ({self.unanswered} without an answer), "
            f"{self.calls} calls, {self.attempts} attempts, {self.reads} reads of objects"
        )


def judge(events: Iterable[AnyEvent]) -> Checked:
    """How much was looked at, if a correct cluster can have this history.

    Raises:
        HistoryError: if it cannot.
    """
    of_kind: dict[type, list[Any]] = {}
    for event in events:
        of_kind.setdefault(type(event), []).append(event)

    def of(kind: type[Kind]) -> list[Kind]:
        return of_kind.get(kind, [])

    operations = operations_of(of(Asked), of(Answered))
    judge_registers(operations)
    judge_lives(of(Did))
    for done in of(Done):
        called = [call for call in of(Called) if call.actor == done.actor]
        returned = [result for result in of(Returned) if result.actor == done.actor]
        judge_calls(called, returned, done.entries)
    judge_attempts(of(Ran))
    judge_reads(of(Saw))
    unanswered = sum(operation.answered_ns is None for operation in operations)
    return Checked(len(operations), unanswered, len(of(Called)), len(of(Ran)), len(of(Saw)))


def operations_of(asked: Iterable[Asked], answered: Iterable[Answered]) -> list[Operation]:
    """Questions with their answers.

    Raises:
        HistoryError: if one was answered twice, or that was not asked.
    """
    found = {
        (a.who, a.number): Operation(a.who, a.number, a.kind, a.key, a.given, a.expected, a.at_ns)
        for a in asked
    }
    for answer in answered:
        place = answer.who, answer.number
        operation = found.get(place)
        if operation is None or operation.answered_ns is not None:
            raise HistoryError(f"an answer to nothing that was asked, or a second one: {answer}")
        found[place] = operation._replace(answered_ns=answer.at_ns, ok=answer.ok, value=answer.value)
    return list(found.values())


def judge_calls(called: list[Called], returned: list[Returned], entries: list[tuple[str, int]]) -> None:
    """An actor did what it was asked to, once, in the order of each caller, and told the truth about it.

    Raises:
        HistoryError: if not.
    """
    called_ns = {(call.caller, call.number): call.at_ns for call in called}
    returned_of = {(result.caller, result.number): result for result in returned}
    newest: dict[str, int] = {}
    for place, (caller, number) in enumerate(entries):
        if (caller, number) not in called_ns:
            raise HistoryError(f"call {number} of {caller} is done at place {place}, and was never made")
        if number <= newest.get(caller, -1):
            raise HistoryError(
                f"call {number} of {caller} is done at place {place}, after its call {newest[caller]} was: "
                "twice, or out of order"
            )
        newest[caller] = number
    for (caller, number), result in returned_of.items():
        if not 0 <= result.place < len(entries) or tuple(entries[result.place]) != (caller, number):
            there = entries[result.place] if 0 <= result.place < len(entries) else "nothing"
            raise HistoryError(
                f"call {number} of {caller} returned that it was done at place {result.place}, where "
                f"there is {there} now: what was answered is lost"
            )
    latest: tuple[int, tuple[str, int]] | None = None
    for entry in map(tuple, entries):
        place_of = returned_of.get(entry)
        if latest is not None and place_of is not None and place_of.at_ns < latest[0]:
            raise HistoryError(f"{entry} had returned before {latest[1]} was called, and was done after it")
        if latest is None or called_ns[entry] > latest[0]:
            latest = called_ns[entry], entry


def judge_lives(did: list[Did]) -> None:
    """No life of an actor does a call twice, or the calls of one caller out of order.

    Raises:
        HistoryError: if one does.
    """
    newest: dict[tuple[str, str], int] = {}
    for call in did:
        before = newest.get((call.life, call.caller), -1)
        if call.number <= before:
            raise HistoryError(
                f"life {call.life} of an actor ran call {call.number} of {call.caller} after {before}"
            )
        newest[call.life, call.caller] = call.number


def judge_attempts(ran: list[Ran]) -> None:
    """No attempt of a task runs twice.

    Raises:
        HistoryError: if one does.
    """
    seen: dict[tuple[str, int], None] = {}
    for attempt in ran:
        place = attempt.task_id, attempt.attempt
        if place in seen:
            raise HistoryError(
                f"attempt {attempt.attempt} of task {attempt.task_id} ({attempt.name}) ran twice"
            )
        seen[place] = None


def judge_reads(saw: list[Saw]) -> None:
    """All who read an object saw the same.

    Raises:
        HistoryError: if two did not.
    """
    first: dict[str, Saw] = {}
    for read in saw:
        known = first.setdefault(read.object_id, read)
        if known.digest != read.digest:
            raise HistoryError(
                f"object {read.object_id} has two values: {known.reader} saw {known.digest:08x} and "
                f"{read.reader} saw {read.digest:08x}"
            )


if __name__ == "__main__":
    print(judge(read_history(sys.argv[1])))
