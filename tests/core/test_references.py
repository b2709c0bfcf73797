"""Reference counts alone: who needs an object, what goes with it, and how long lineage is kept."""

from __future__ import annotations

import itertools
import time
from itertools import pairwise

import pytest

from tests.core.conftest import Outbox
from zray import ids
from zray.config import Config
from zray.core.extents import Extents
from zray.core.node_store import NodeStore, ObjectEntry
from zray.core.references import References
from zray.errors import InvariantError
from zray.protocol.messages import INLINE, ObjectReady, Value

ANN, BOB = b"ann", b"bob"
ACTOR = b"an actor"
LINEAGE_MAX = 3


def task(number: int) -> bytes:
    return ids.task_id(b"prefix__", number)


def result(number: int, index: int = 0) -> bytes:
    return ids.return_ids(task(number), index + 1)[index]


A, B, C = (result(number) for number in range(3))


class Counts:
    """References over a real store; every step is checked."""

    def __init__(self, out: Outbox) -> None:
        self.released: list[bytes] = []
        self.actors: list[bytes] = []
        self.store = NodeStore(
            out,
            config=Config(),
            extents=Extents(0),
            is_alive=lambda address: True,
            on_sealed=lambda tasks: None,
            on_found=lambda tasks: tasks,
        )
        self.machine = References(
            self.store,
            on_lineage_released=self.released.append,
            on_actor_released=self.actors.append,
            lineage_max=LINEAGE_MAX,
        )

    def ran(self, number: int, *outputs: bytes, deps: tuple[bytes, ...] = ()) -> None:
        """A task ended, maybe not for the first time, and made these."""
        objects = self.store.objects
        made = [objects[one] if one in objects else self.sealed(one) for one in outputs]
        self.machine.follow_lineage(task(number), self.machine.newly_made(made), deps)

    def sealed(self, key: bytes, *contained: bytes, holder: bytes = ANN) -> ObjectEntry:
        """An object with a value, held by one process."""
        entry = self.store.announce(key)
        self.machine.hold(holder, entry)
        self.machine.contain(0, contained)
        self.store.seal(entry, Value(INLINE, b"", 0, 0, contained))
        self.machine.check()
        return entry

    def release(self, client: bytes, *keys: bytes) -> None:
        self.machine.release(client, keys)
        self.machine.check()

    @property
    def known(self) -> list[bytes]:
        return list(self.store.objects)


@pytest.fixture
def counts(out: Outbox) -> Counts:
    return Counts(out)


# --- holding -------------------------------------------------------------------------------------


def test_an_object_lives_as_long_as_somebody_holds_it(counts: Counts) -> None:
    counts.sealed(A)
    counts.machine.acquire(0, BOB, (A, A))
    counts.release(ANN, A)
    assert counts.known == [A]
    counts.release(ANN, A)  # what is not held is ignored
    counts.release(BOB, A)
    assert not counts.known


def test_who_expects_an_object_holds_it_and_is_told(counts: Counts, out: Outbox) -> None:
    entry = counts.machine.expect(ANN, A)
    assert counts.machine.expect(BOB, A) is entry
    counts.release(BOB, A)
    counts.store.seal(entry, Value(INLINE, b"1"))
    assert out.take() == [(ANN, ObjectReady(A, Value(INLINE, b"1")))]
    counts.release(ANN, A)
    assert not counts.known


def test_what_is_still_to_come_is_kept_for_its_maker(counts: Counts) -> None:
    entry = counts.machine.expect(ANN, A)
    counts.release(ANN, A)
    assert counts.known == [A]
    counts.store.seal(entry, Value(INLINE))
    counts.machine.free_if_unneeded(entry)
    assert not counts.known


def test_a_stranger_that_nobody_wants_any_more_is_forgotten(counts: Counts) -> None:
    counts.machine.acquire(0, ANN, (A,))
    assert list(counts.store.strangers) == [A]
    counts.release(ANN, A)
    assert not counts.known
    assert not counts.store.strangers


def test_all_that_a_dead_process_held_or_was_handed_is_released(counts: Counts) -> None:
    counts.sealed(A)
    counts.sealed(B, holder=BOB)
    counts.machine.hand(0, ACTOR, ANN, (B,))
    counts.machine.hand(0, ACTOR, ANN, (B,))
    counts.release(BOB, B)
    assert counts.known == [A, B]
    counts.machine.client_gone(ANN)
    counts.machine.client_gone(ANN)
    assert not counts.known
    assert not counts.machine.held.get(ANN)
    assert not counts.machine.handed


# --- passing on ----------------------------------------------------------------------------------


def test_a_release_that_crosses_a_gift_does_not_take_it(counts: Counts) -> None:
    """Bob holds A, and lets go of it while Ann hands it to him again."""
    counts.sealed(A)
    counts.machine.acquire(0, BOB, (A,))
    counts.machine.hand(0, ACTOR, BOB, (A,))
    counts.release(ANN, A)
    counts.release(BOB, A)
    assert counts.known == [A]
    counts.machine.take_over(0, BOB, ACTOR, (A,))
    assert counts.known == [A]
    counts.release(BOB, A)
    assert not counts.known


def test_each_gift_is_taken_over_once(counts: Counts) -> None:
    counts.sealed(A)
    counts.machine.hand(0, ACTOR, BOB, (A,))
    counts.machine.hand(0, ACTOR, BOB, (A,))
    counts.machine.take_over(0, BOB, ACTOR, (A,))
    counts.release(BOB, A)
    counts.release(ANN, A)
    assert counts.known == [A]
    counts.machine.take_over(0, BOB, ACTOR, (A,))
    counts.release(BOB, A)
    assert not counts.known


def test_what_was_never_handed_is_simply_acquired(counts: Counts) -> None:
    counts.sealed(A)
    counts.machine.take_over(0, BOB, ACTOR, (A,))
    counts.release(ANN, A)
    assert counts.known == [A]


# --- containers ----------------------------------------------------------------------------------


def test_what_an_object_contains_lives_as_long(counts: Counts) -> None:
    counts.sealed(A)
    counts.sealed(B, A, A)
    counts.sealed(C, B)
    counts.release(ANN, A, B)
    assert counts.known == [A, B, C]
    counts.release(ANN, C)
    assert not counts.known


def test_a_long_chain_of_containers_is_freed_without_recursion(counts: Counts) -> None:
    chain = [result(number) for number in range(3000)]
    counts.sealed(chain[0])
    for inner, outer in pairwise(chain):
        entry = counts.store.announce(outer)
        counts.machine.hold(ANN, entry)
        counts.machine.contain(0, (inner,))
        counts.store.seal(entry, Value(INLINE, b"", 0, 0, (inner,)))
    counts.release(ANN, *chain[:-1])
    assert len(counts.known) == 3000
    counts.release(ANN, chain[-1])
    assert not counts.known


def test_an_actor_is_released_with_its_handle(counts: Counts) -> None:
    counts.sealed(A).is_actor = True
    counts.sealed(B, A)
    counts.release(ANN, A)
    assert not counts.actors
    counts.release(ANN, B)
    assert counts.actors == [A]


# --- lineage -------------------------------------------------------------------------------------


def test_lineage_is_needed_until_all_outputs_are_gone(counts: Counts) -> None:
    counts.ran(7, result(7, 0), result(7, 1))
    counts.release(ANN, result(7, 0))
    assert not counts.released
    counts.release(ANN, result(7, 1))
    assert counts.released == [task(7)]


def test_lineage_is_needed_while_a_consumer_may_run_again(counts: Counts) -> None:
    counts.ran(0, A)
    counts.ran(1, B, deps=(A, A))
    counts.release(ANN, A)
    assert not counts.released
    counts.release(ANN, B)
    assert counts.released == [task(1), task(0)]


def test_a_task_that_ran_again_counts_only_what_it_made_anew(counts: Counts) -> None:
    counts.ran(7, result(7, 0))
    counts.ran(7, result(7, 0), result(7, 1))
    counts.release(ANN, result(7, 0))
    assert not counts.released
    counts.release(ANN, result(7, 1))
    assert counts.released == [task(7)]


GIVEN_UP_BEFORE = 60_000
"""So many were given up before it is measured: what deletions leave behind is in the way by then."""


def seconds_to_give_up(lineage_max: int, out: Outbox) -> float:
    """What it takes to give up 2,000 records, in a row of so many: the least of three."""
    machine = Counts(out).machine
    machine.lineage_max = lineage_max
    numbers = itertools.count()
    for _ in range(lineage_max + GIVEN_UP_BEFORE):
        machine.follow_lineage(task(next(numbers)), 1, ())
    found = []
    for _ in range(3):
        began = time.thread_time()
        for _ in range(2_000):
            machine.follow_lineage(task(next(numbers)), 1, ())
        found.append(time.thread_time() - began)
    assert machine.lineage_truncated == GIVEN_UP_BEFORE + 6_000
    return min(found)


@pytest.mark.slow
def test_the_oldest_record_is_found_without_a_walk(out: Outbox) -> None:
    # From the front of a plain dictionary: twenty times as long, over all that was deleted there before.
    assert seconds_to_give_up(100_000, out) < 6 * seconds_to_give_up(1_000, out)


def test_too_much_lineage_is_given_up_from_the_oldest(counts: Counts) -> None:
    for number in range(LINEAGE_MAX + 1):
        counts.ran(number, result(number), deps=(result(number - 1),) if number else ())
    assert counts.released == [task(0)]
    assert counts.machine.lineage_truncated == 1
    assert len(counts.machine.lineage) == LINEAGE_MAX
    counts.release(ANN, *(result(number) for number in range(LINEAGE_MAX + 1)))
    assert counts.released == [task(number) for number in (0, 3, 2, 1)]
    assert not counts.machine.lineage


def test_check_notices_a_wrong_count(counts: Counts) -> None:
    counts.sealed(A).holders += 1
    with pytest.raises(InvariantError, match="holders"):
        counts.machine.check()


def test_what_a_dead_actor_handed_goes_when_the_receiver_knows_of_its_death(counts: Counts) -> None:
    """The reply that carried the gifts may be lost with the actor; another giver's gifts stay."""
    counts.sealed(A)
    counts.sealed(B)
    counts.machine.hand(0, ACTOR, BOB, (A, A))
    counts.machine.hand(0, b"another", BOB, (B,))
    counts.release(ANN, A, B)
    counts.machine.let_go(BOB, ACTOR)
    counts.machine.check()
    assert counts.known == [B]
    counts.machine.let_go(BOB, ACTOR)
    counts.machine.take_over(0, BOB, b"another", (B,))
    assert not counts.machine.handed
    assert counts.known == [B]


def test_the_same_object_from_two_actors_is_two_gifts(counts: Counts) -> None:
    """One actor is dead; the reply of the other is still on its way."""
    counts.sealed(A)
    counts.machine.hand(0, ACTOR, BOB, (A,))
    counts.machine.hand(0, b"another", BOB, (A,))
    counts.machine.take_over(0, BOB, ACTOR, (A,))
    counts.release(ANN, A)
    counts.machine.let_go(BOB, ACTOR)
    counts.release(BOB, A)
    assert counts.known == [A], "the other's gift is not taken yet"
    counts.machine.let_go(BOB, b"another")
    assert not counts.known
