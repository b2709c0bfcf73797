"""The objects of one process: what the node is told of them, and when a value is here."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests.core.conftest import Outbox
from zray import ids
from zray.core.client_objects import ClientObjects
from zray.protocol.messages import (
    AT_NODE,
    EXTENT,
    FAULT,
    FILE,
    INLINE,
    Acquire,
    Get,
    HoldFor,
    ObjectReady,
    Promise,
    Publish,
    Release,
    Unpin,
    Value,
)

NODE = b"node"
SMALL = Value(INLINE, b"small")
LARGE = Value(EXTENT, b"", 64, 4096)
A, B, C, D = (ids.put_id(b"prefix__", number) for number in range(4))


class Process:
    """The machine, checked after every step; what it says to the node."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self.machine = ClientObjects(out, node=NODE)

    def said(self) -> list[Any]:
        """What leaves when the outbox is sent."""
        self.machine.settle()
        self.machine.check()
        taken = self.out.take()
        assert all(destination == NODE for destination, _ in taken)
        return [message for _, message in taken]

    def ready(self, key: bytes, value: Value) -> None:
        self.machine.on_ready(ObjectReady(key, value))

    def take(self, key: bytes) -> Value | None:
        return self.machine.take(key)


@pytest.fixture
def process(out: Outbox) -> Process:
    return Process(out)


# --- counting ------------------------------------------------------------------------------------


def test_what_never_leaves_the_process_costs_the_node_nothing(process: Process) -> None:
    process.machine.keep(A, SMALL)
    process.machine.borrow(A)
    process.machine.drop(A)
    process.machine.drop(A)
    assert not process.said()
    assert not process.machine.refers_to(A)


def test_the_node_hears_of_the_first_handle_and_of_the_last(process: Process) -> None:
    process.machine.borrow(A)
    process.machine.borrow(A)
    assert process.said() == [Acquire((A,))]
    process.machine.drop(A)
    assert not process.said()
    process.machine.drop(A)
    assert process.said() == [Release((A,))]


def test_what_is_taken_up_again_in_time_was_never_let_go(process: Process) -> None:
    process.machine.expect((A,))
    process.machine.drop(A)
    process.machine.borrow(A)
    assert not process.said()
    process.machine.drop(A)
    assert process.said() == [Release((A,))]


def test_an_acquire_leaves_before_the_release_of_what_it_came_out_of(process: Process) -> None:
    process.machine.expect((A,))
    process.ready(A, Value(INLINE, b"", 0, 0, (B,)))
    process.machine.borrow(B)
    process.machine.drop(A)
    assert process.said() == [Acquire((B,)), Release((A,))]


def test_a_drop_too_many_is_ignored(process: Process) -> None:
    process.machine.drop(A)
    assert not process.said()


def test_a_task_that_runs_again_in_this_process_adds_handles(process: Process) -> None:
    """What is left of its first run is not forgotten."""
    process.machine.expect((A,))
    process.machine.keep(B, SMALL)
    process.machine.stored(C)
    process.machine.expect_reply((D,))
    process.machine.on_reply(D, SMALL)
    process.machine.expect((A,))
    process.machine.keep(B, Value(INLINE, b"other"))
    process.machine.stored(C)
    process.machine.expect_reply((D,))
    process.machine.on_reply(D, Value(INLINE, b"other"))
    for key in (A, B, C, D):
        process.machine.drop(key)
        assert process.machine.refers_to(key)
    assert process.take(B) == process.take(D) == SMALL
    for key in (A, B, C, D):
        process.machine.drop(key)
    assert process.said() == [Release((A, C))]


def test_what_is_made_again_before_its_release_left_is_still_held(process: Process) -> None:
    process.machine.keep(A, SMALL)
    process.machine.share((A,))
    process.machine.drop(A)
    process.machine.keep(A, SMALL)
    process.machine.share((A,))
    assert process.said() == [Publish(A, SMALL)]
    process.machine.drop(A)
    assert process.said() == [Release((A,))]


def test_a_long_chain_of_values_is_dropped_without_recursion(process: Process) -> None:
    chain = [ids.put_id(b"chain___", number) for number in range(3000)]
    contained: tuple[bytes, ...] = ()
    for key in chain:
        process.machine.keep(key, Value(INLINE, b"", 0, 0, contained))
        contained = (key,)
    for key in chain[:-1]:
        process.machine.drop(key)
    assert process.machine.refers_to(chain[0])
    process.machine.drop(chain[-1])
    assert not process.machine.objects
    assert not process.said()


# --- sharing -------------------------------------------------------------------------------------


def test_a_value_is_published_once_before_a_reference_leaves(process: Process) -> None:
    process.machine.keep(A, SMALL)
    process.machine.share((A, A))
    process.machine.share((A,))
    assert process.said() == [Publish(A, SMALL)]
    process.machine.drop(A)
    assert process.said() == [Release((A,))]


def test_what_a_value_contains_is_published_before_it(process: Process) -> None:
    process.machine.keep(A, SMALL)
    outer = Value(INLINE, b"", 0, 0, (A,))
    process.machine.keep(B, outer)
    process.machine.drop(A)
    process.machine.share((B,))
    assert process.said() == [Publish(A, SMALL), Publish(B, outer)]
    process.machine.drop(B)
    assert process.said() == [Release((B, A))]


def test_what_the_node_knows_already_is_not_shared_again(process: Process) -> None:
    process.machine.expect((A,))
    process.machine.borrow(B)
    process.machine.stored(C)
    process.machine.share((A, B, C, D))
    assert process.said() == [Acquire((B,))]


def test_a_result_that_is_shared_before_it_comes_is_promised(process: Process) -> None:
    process.machine.expect_reply((A,))
    process.machine.share((A,))
    assert process.said() == [Promise((A,))]
    process.machine.drop(A)
    assert not process.said(), "the call still needs it"
    process.machine.on_reply(A, SMALL)
    assert process.said() == [Publish(A, SMALL), Release((A,))]


# --- replies of actors ---------------------------------------------------------------------------


def test_the_result_of_a_call_stays_here(process: Process) -> None:
    process.machine.expect_reply((A,))
    assert not process.machine.is_ready(A)
    process.machine.on_reply(A, SMALL)
    assert process.machine.is_ready(A)
    assert process.take(A) == SMALL
    process.machine.drop(A)
    assert not process.said()


def test_a_large_result_is_held_at_the_node(process: Process) -> None:
    process.machine.expect_reply((A,))
    process.machine.on_reply(A, LARGE)
    assert process.machine.is_ready(A)
    assert process.take(A) is None
    want = process.machine.want((A,), None, True)
    assert process.said() == [Get((A,))]
    process.ready(A, LARGE)
    assert want.done
    process.machine.drop(A)
    assert process.said() == [Unpin((A,)), Release((A,))]


def test_references_in_a_large_result_are_kept_by_the_node(process: Process) -> None:
    process.machine.expect_reply((A,))
    process.machine.on_reply(A, Value(EXTENT, b"", 0, 4096, (B,)))
    assert process.said() == [HoldFor(b"", (B,), 0), Release((B,))]
    assert not process.machine.refers_to(B)


def test_references_in_a_result_that_came_before_are_let_go(process: Process) -> None:
    """The caller ran again and made the same call; the first value stays."""
    process.machine.expect_reply((A,))
    process.machine.on_reply(A, SMALL)
    process.machine.expect_reply((A,))
    process.machine.on_reply(A, Value(INLINE, b"other", 0, 0, (B,)))
    assert process.take(A) == SMALL
    assert process.said() == [HoldFor(b"", (B,), 0), Release((B,))]


def test_references_in_a_result_are_taken_over_from_the_actor(process: Process) -> None:
    process.machine.expect_reply((A,))
    process.machine.on_reply(A, Value(INLINE, b"", 0, 0, (B, C)))
    assert process.said() == [HoldFor(b"", (B, C), 0)]
    process.machine.borrow(B)
    process.machine.drop(A)
    assert process.said() == [Release((C,))]
    process.machine.drop(B)
    assert process.said() == [Release((B,))]


def test_a_reference_that_comes_back_while_it_is_let_go_is_held(process: Process) -> None:
    """The node counts what the actor handed over apart, so the order of the two does not matter."""
    process.machine.borrow(B)
    process.machine.expect_reply((A,))
    process.machine.drop(B)
    assert process.said() == [Acquire((B,)), Release((B,))]
    process.machine.on_reply(A, Value(INLINE, b"", 0, 0, (B,)))
    assert process.said() == [HoldFor(b"", (B,), 0)]
    process.machine.borrow(B)
    process.machine.drop(B)
    process.machine.drop(A)
    assert process.said() == [Release((B,))]


def test_the_fault_of_a_call_is_its_value(process: Process) -> None:
    fault = Value(FAULT, b"dead")
    process.machine.expect_reply((A,))
    process.machine.share((A,))
    process.machine.on_reply(A, fault)
    assert process.take(A) == fault
    assert process.said() == [Promise((A,)), Publish(A, fault)]


# --- waiting -------------------------------------------------------------------------------------


def test_a_small_result_comes_without_asking(process: Process) -> None:
    process.machine.expect((A,))
    want = process.machine.want((A,), None, True)
    assert not process.said()
    process.ready(A, SMALL)
    assert want.done
    assert process.take(A) == SMALL
    assert process.machine.want((A,), None, True).done


def test_a_large_result_is_asked_for_when_it_is_announced(process: Process) -> None:
    process.machine.expect((A,))
    want = process.machine.want((A,), None, True)
    process.ready(A, Value(AT_NODE, b"", 0, 4096))
    assert not want.done
    assert process.said() == [Get((A,))]
    process.ready(A, LARGE)
    assert want.done
    assert process.take(A) == LARGE
    assert process.take(A) is None, "each showing is for one reader"


def test_a_large_result_that_was_lost_before_it_was_looked_at(process: Process) -> None:
    process.machine.expect((A,))
    want = process.machine.want((A,), None, True)
    process.ready(A, Value(AT_NODE, b"", 0, 4096))
    assert process.said() == [Get((A,))]
    lost = Value(FAULT, b"gone")
    process.ready(A, lost)
    assert want.done
    assert process.take(A) == lost
    assert process.machine.want((A,), None, True).done, "nobody has to ask again"


def test_whoever_waits_for_what_is_let_go_is_forgotten(process: Process) -> None:
    process.machine.expect((A, B))
    process.machine.want((A, B), None, True)
    process.machine.drop(A)
    process.machine.drop(B)
    assert not process.machine.wants
    process.machine.expect((A,))
    process.ready(A, SMALL)
    process.machine.check()


def test_what_is_kept_of_an_object_does_not_lengthen_collections(process: Process) -> None:
    process.machine.expect((A,))
    process.ready(A, Value(INLINE, b"", 0, 0, (B,)))
    process.machine.borrow(B)
    process.machine.drop(B)
    objects = process.machine.objects
    assert not any(gc.is_tracked(each) for each in (objects, *objects.values()))
    assert process.said() == [Acquire((B,)), Release((B,))]


def test_who_only_waits_does_not_look(process: Process) -> None:
    process.machine.borrow(A)
    want = process.machine.want((A,), None, False)
    assert process.said() == [Acquire((A,)), Get((A,), False)]
    process.ready(A, Value(AT_NODE, b"", 0, 4096))
    assert want.done
    assert not process.said()


def test_waiting_for_some_of_many(process: Process) -> None:
    process.machine.expect((A, B, C))
    process.ready(A, SMALL)
    want = process.machine.want((A, B, C), 2, False)
    assert not want.done
    process.ready(C, SMALL)
    assert want.done
    assert list(want.missing) == [B]
    process.machine.end_want(want)
    process.ready(B, SMALL)
    assert list(want.missing) == [B], "nobody waits any more"


def test_two_readers_of_one_object(process: Process) -> None:
    """One showing serves one of them; the other asks again."""
    process.machine.stored(A)
    first = process.machine.want((A,), None, True)
    second = process.machine.want((A,), None, True)
    assert process.said() == [Get((A,)), Get((A,))]
    process.ready(A, LARGE)
    assert first.done
    assert second.done
    assert process.take(A) == LARGE
    assert process.take(A) is None
    third = process.machine.want((A,), None, True)
    assert process.said() == [Get((A,))]
    process.ready(A, LARGE)
    assert third.done
    process.ready(A, LARGE)
    process.machine.drop(A)
    assert process.said() == [Unpin((A, A)), Release((A,))]


def test_what_is_shown_after_it_was_let_go_is_unpinned(process: Process) -> None:
    process.machine.stored(A)
    process.machine.want((A,), None, True)
    process.machine.drop(A)
    process.ready(A, LARGE)
    process.ready(B, SMALL)
    assert process.said() == [Get((A,)), Unpin((A,)), Release((A,))]


def test_a_file_is_shown_like_an_extent_and_owes_nothing(process: Process) -> None:
    process.machine.stored(A)
    process.machine.want((A,), None, True)
    process.ready(A, Value(FILE, b"", 0, 4096))
    process.machine.drop(A)
    assert process.said() == [Get((A,)), Release((A,))]


def test_the_first_value_counts(process: Process) -> None:
    process.machine.expect((A,))
    process.ready(A, SMALL)
    process.ready(A, Value(INLINE, b"other"))
    assert process.take(A) == SMALL
