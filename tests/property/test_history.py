"""The judges of histories, against a register that is one and a search that tries everything.

A judge that accepts all would be of no use: every rule is broken here once, and noticed.
"""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.chaos import registers
from tests.chaos.history import (
    Answered,
    AnyEvent,
    Asked,
    Called,
    Checked,
    Did,
    Done,
    HistoryFile,
    Ran,
    Returned,
    Saw,
    judge,
    read_history,
)
from tests.chaos.registers import (
    CAS,
    DELETE,
    GET,
    PUT,
    HistoryError,
    Operation,
    after,
    is_linearizable,
    judge_registers,
)

CLIENTS = 4


class Step(NamedTuple):
    """One operation of a client as it is drawn; times are from its former one on."""

    client: int
    kind: str
    guess: int
    """Of what the register holds: 0 right, 1 nothing, 2 wrong."""
    before_ns: int
    until_point_ns: int
    until_answer_ns: int
    is_answered: bool


steps = st.builds(
    Step,
    st.integers(0, CLIENTS - 1),
    st.sampled_from([GET, GET, PUT, PUT, CAS, DELETE]),
    st.integers(0, 2),
    st.integers(1, 20),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from([True] * 9 + [False]),
)


def right_answer(operation: Operation, state: str | None) -> tuple[bool, str | None]:
    if operation.kind == GET:
        return state is not None, state
    if operation.kind == PUT:
        return True, operation.given
    if operation.kind == CAS:
        return (True, operation.given) if state == operation.expected else (False, state)
    return state is not None and operation.expected in (None, state), None


def history_of(drawn: list[Step], lost: int | None = None) -> list[Operation]:
    """What clients see of one register, whose operations happen at their points.

    Args:
        lost: the number of the operation that is answered and does nothing: a bug.
    """
    clocks = [0] * CLIENTS
    points = []
    for number, step in enumerate(drawn):
        invoked_ns = clocks[step.client] + step.before_ns
        point_ns = invoked_ns + step.until_point_ns
        answered_ns = point_ns + step.until_answer_ns
        points.append((point_ns, number, invoked_ns, answered_ns))
        clocks[step.client] = answered_ns + 1
    state: str | None = None
    found: dict[int, Operation] = {}
    for _, number, invoked_ns, answered_ns in sorted(points):
        step = drawn[number]
        given_ = f"v{number}" if step.kind in (PUT, CAS) else None
        expected = (state, None, "none of them")[step.guess] if step.kind in (CAS, DELETE) else None
        operation = Operation(f"client{step.client}", number, step.kind, "key", given_, expected, invoked_ns)
        ok, value = right_answer(operation, state)
        if number != lost:
            state = after(operation, state)[1]
        if step.is_answered:
            operation = operation._replace(answered_ns=answered_ns, ok=ok, value=value)
        found[number] = operation
    return [found[number] for number in sorted(found)]


@given(st.lists(steps, max_size=40))
def test_what_a_register_does_is_accepted(drawn: list[Step]) -> None:
    assert judge_registers(history_of(drawn)) == len(drawn)


@given(st.lists(steps, min_size=1, max_size=40), st.data())
def test_a_value_from_nowhere_is_rejected(drawn: list[Step], data: st.DataObject) -> None:
    history = history_of(drawn)
    reads = [op for op in history if op.kind == GET and op.answered_ns is not None]
    assume(reads)
    wrong = data.draw(st.sampled_from(reads))
    history[wrong.number] = wrong._replace(ok=True, value="from nowhere")
    with pytest.raises(HistoryError, match="from nowhere"):
        judge_registers(history)


def everything_tried(history: list[Operation]) -> bool:
    """All orders of all operations that were answered and some of the others."""
    open_ = [op for op in history if op.answered_ns is None]
    answered = [op for op in history if op.answered_ns is not None]
    return any(
        is_possible(order)
        for count in range(len(open_) + 1)
        for happened in itertools.combinations(open_, count)
        for order in itertools.permutations([*answered, *happened])
    )


def is_possible(order: tuple[Operation, ...]) -> bool:
    state: str | None = None
    latest_ns = 0
    for operation in order:
        if operation.answered_ns is not None and operation.answered_ns < latest_ns:
            return False
        latest_ns = max(latest_ns, operation.invoked_ns)
        right, state = after(operation, state)
        if not right:
            return False
    return True


@given(st.lists(steps, max_size=5), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=3))
def test_it_agrees_with_a_search_that_tries_everything(
    drawn: list[Step], changes: list[tuple[int, int]]
) -> None:
    """Of a history with a few answers exchanged for others."""
    history = history_of(drawn)
    for place, value in changes:
        if place < len(history) and history[place].answered_ns is not None:
            history[place] = history[place]._replace(ok=value < 5, value=f"v{value}" if value < 5 else None)
    assert is_linearizable(history) == everything_tried(history)


@given(st.lists(steps, max_size=20), st.lists(steps, max_size=10), st.integers(0, CLIENTS - 1))
def test_the_canary_a_lost_acknowledged_write_is_named(
    before: list[Step], later: list[Step], client: int
) -> None:
    """A register forgets a write that it acknowledged, and who reads afterwards does not find it."""
    put = Step(client, PUT, 0, 5_000, 1, 1, True)  # later than all before it
    get = Step((client + 1) % CLIENTS, GET, 0, 10_000, 1, 1, True)
    reads = [step._replace(kind=GET) for step in later]
    known = [step._replace(is_answered=True) for step in before]  # one without could come after the lost one
    history = history_of([*known, put, get, *reads], lost=len(before))
    with pytest.raises(HistoryError) as caught:
        judge_registers(history)
    story = str(caught.value).splitlines()
    lost = history[len(before)]
    assert "it is lost" in story[2]
    assert story[3].strip() == str(lost)


def operation(kind: str, begin: int, end: int | None, value: str | None = None, **more: str) -> Operation:
    """A put writes its value, a get finds it."""
    given_ = value if kind in (PUT, CAS) else None
    ok = value is not None or kind == DELETE
    return Operation("client", begin, kind, "key", given_, more.get("expected"), begin, end, ok, value)


@pytest.mark.parametrize(
    ("seen", "is_right"),
    [
        ([None, None, None], True),  # it never happened
        ([None, "new", "new"], True),  # it happened late
        (["new", "new", "new"], True),
        (["new", None, None], False),  # it happened and is gone
        ([None, "new", None], False),
    ],
)
def test_a_write_without_an_answer_happens_at_any_time_or_never(
    seen: list[str | None], is_right: bool
) -> None:
    reads = [operation(GET, 10 * n + 10, 10 * n + 15, value) for n, value in enumerate(seen)]
    assert is_linearizable([operation(PUT, 1, None, "new"), *reads]) is is_right


def test_a_request_that_is_repeated_is_two_operations() -> None:
    """The first, late one comes after what another client wrote; as one operation that could not be."""
    seen = [operation(GET, 10, 11, "a"), operation(PUT, 12, 13, "b"), operation(GET, 14, 15, "b")]
    again = operation(GET, 30, 31, "a")
    assert not is_linearizable([operation(PUT, 1, 20, "a"), *seen, again])
    assert is_linearizable([operation(PUT, 1, None, "a"), operation(PUT, 2, 20, "a"), *seen, again])


def test_a_stale_read_is_rejected_and_told() -> None:
    history = [operation(PUT, 1, 2, "a"), operation(PUT, 3, 4, "b"), operation(GET, 5, 6, "a")]
    with pytest.raises(HistoryError, match=r"(?s)this one:.*get.*answered 'a'.*it is lost.*put 'b'"):
        judge_registers(history)


def test_two_compare_and_sets_of_one_value_cannot_both_succeed() -> None:
    both = [operation(CAS, 1, 10, "a"), operation(CAS, 2, 9, "b")]
    assert not is_linearizable(both)
    assert is_linearizable([both[0], both[1]._replace(ok=False, value="a")])


def test_keys_are_judged_by_themselves() -> None:
    one = operation(PUT, 1, 2, "a")
    assert judge_registers([one, operation(GET, 3, 4)._replace(key="other")]) == 2


def test_a_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "STEPS_MAX", 100)
    many = [operation(PUT, n, 1_000 + n, f"v{n}") for n in range(30)]
    with pytest.raises(HistoryError, match="not decided after 100 steps"):
        is_linearizable([*many, operation(GET, 2_000, 2_001, "none of them")])


# --- calls, attempts, objects ------------------------------------------------------------------------

CALLS: list[AnyEvent] = [
    Called("ledger", "a", 0, 10),
    Called("ledger", "a", 1, 11),
    Did("life", "a", 0),
    Called("ledger", "b", 0, 12),
    Did("life", "b", 0),
    Returned("ledger", "a", 0, 0, 20),
    Returned("ledger", "b", 0, 1, 21),
    Did("life", "a", 1),  # b dies before its second call returns, and a's never does
    Called("ledger", "b", 1, 22),
]
DONE = Done("ledger", [("a", 0), ("b", 0), ("a", 1)])


def test_calls_that_are_done_in_order_are_accepted() -> None:
    again = [Did("next life", "a", 0), Did("next life", "b", 0), Did("next life", "a", 1)]
    assert judge([*CALLS, *again, DONE]) == Checked(calls=4)


@pytest.mark.parametrize(
    ("more", "entries", "story"),
    [
        ([], [("a", 0), ("b", 0), ("a", 1), ("a", 1)], "twice, or out of order"),
        ([], [("b", 0), ("a", 1), ("a", 0)], "twice, or out of order"),
        ([], [("a", 0), ("b", 0), ("c", 0)], "was never made"),
        ([], [("a", 0)], r"call 0 of b returned that it was done at place 1, .* nothing .* lost"),
        ([], [("b", 0), ("a", 0)], "what was answered is lost"),
        (
            [Called("ledger", "c", 0, 30), Returned("ledger", "c", 0, 0, 40)],
            [("c", 0), ("a", 0), ("b", 0)],
            "what was answered is lost",
        ),
        ([Did("life", "a", 1)], DONE.entries, "life life of an actor ran call 1 of a after 1"),
        ([Did("life", "b", 0)], DONE.entries, "life life of an actor ran call 0 of b after 0"),
    ],
)
def test_calls_that_are_not_are_rejected(
    more: list[AnyEvent], entries: list[tuple[str, int]], story: str
) -> None:
    with pytest.raises(HistoryError, match=story):
        judge([*CALLS, *more, Done("ledger", entries)])


def test_calls_that_do_not_agree_with_time_are_rejected() -> None:
    early = [Called("ledger", "a", 0, 10), Returned("ledger", "a", 0, 1, 20)]
    late = [Called("ledger", "b", 0, 30), Returned("ledger", "b", 0, 0, 40)]
    with pytest.raises(HistoryError, match="had returned before"):
        judge([*early, *late, Done("ledger", [("b", 0), ("a", 0)])])


def test_an_attempt_that_runs_twice_is_rejected() -> None:
    once = [Ran("task", 0, "f"), Ran("task", 1, "f"), Ran("other", 0, "f")]
    assert judge(once) == Checked(attempts=3)
    with pytest.raises(HistoryError, match=r"attempt 1 of task task \(f\) ran twice"):
        judge([*once, Ran("task", 1, "f")])


def test_an_object_with_two_values_is_rejected() -> None:
    same = [Saw("x", "one", 7), Saw("y", "one", 8), Saw("x", "two", 7)]
    assert judge(same) == Checked(reads=3)
    with pytest.raises(HistoryError, match=r"object x has two values: one saw .*7 and three saw .*9"):
        judge([*same, Saw("x", "three", 9)])


def test_an_answer_belongs_to_a_question() -> None:
    asked = Asked("client", 1, PUT, "key", "a", None, 10)
    answered = Answered("client", 1, True, "a", 20)
    assert judge([asked, Asked("client", 2, GET, "key", None, None, 30), answered]) == Checked(2, 1)
    for wrong in ([answered], [asked, answered, answered]):
        with pytest.raises(HistoryError, match="nothing that was asked, or a second one"):
            judge(wrong)


def test_a_file_keeps_what_many_wrote(tmp_path: Path) -> None:
    path = tmp_path / "history"

    def write(who: str) -> None:
        with HistoryFile(path) as file:
            for number in range(50):
                file.add(Ran(who, number, "f"), Saw(who, "r", number))

    writers = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read_history(path)
    assert len(found) == 400
    assert [event for event in found if event in (Ran("t2", 7, "f"), Saw("t2", "r", 7))] == [
        Ran("t2", 7, "f"),
        Saw("t2", "r", 7),
    ]
    with path.open("ab") as torn:
        torn.write(b'{"event":"ran","task')
    with pytest.raises(msgspec.DecodeError):
        read_history(path)
