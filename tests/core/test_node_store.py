"""The index of the store alone: where objects lie, what leaves, and who is told."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests.core.conftest import Outbox
from zray import ids
from zray.config import Config
from zray.core.extents import Extents
from zray.core.machine import DISK, RUNTIME
from zray.core.node_store import CREATING, PENDING, SEALED, NodeStore, ObjectEntry
from zray.protocol.faults import OBJECT_LOST, fault_value
from zray.protocol.local_messages import DeleteFile, Spill, Spilled, SpillFailed
from zray.protocol.messages import (
    AT_NODE,
    ERROR,
    EXTENT,
    FILE,
    INLINE,
    Abort,
    Create,
    Created,
    CreateFailed,
    Get,
    ObjectReady,
    Unpin,
    Value,
)

ANN, BOB = b"ann", b"bob"
SMALL = Value(INLINE, b"small")
CAPACITY = 4096
HALF = 2048
PATIENCE_NS = Config().stranger_patience_ns


def object_id(number: int) -> bytes:
    return ids.put_id(b"prefix__", number)


A, B, C, D = (object_id(number) for number in range(4))


class Store:
    """A store whose invariants are checked after every step; everybody is alive but ``dead``."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self.woken: list[Any] = []
        self.dead: list[bytes] = []
        self.machine = NodeStore(
            out,
            config=Config(),
            extents=Extents(CAPACITY),
            is_alive=lambda address: address not in self.dead,
            on_sealed=self.woken.extend,
            on_found=lambda tasks: tasks,
        )

    def entry(self, key: bytes) -> ObjectEntry:
        return self.machine.objects[key]

    def told(self) -> list[tuple[bytes, Any]]:
        self.machine.check()
        return self.out.take()

    def create(self, key: bytes, size: int = HALF, source: bytes = ANN) -> None:
        self.machine.on_create(0, source, Create(key, size))

    def stored(self, key: bytes, size: int = HALF, source: bytes = ANN) -> int:
        """Create and seal; the offset."""
        self.create(key, size, source)
        [(to, created)] = self.told()
        assert (to, created.object_id, created.kind) == (source, key, EXTENT)
        self.machine.seal(self.entry(key), Value(EXTENT))
        assert not self.told()
        return int(created.offset)

    def get(self, key: bytes, reader: bytes = BOB, *, fetch: bool = True) -> None:
        self.machine.on_get(0, reader, Get((key,), fetch))

    def spilled(self, key: bytes) -> None:
        self.machine.on_spilled(0, RUNTIME, Spilled(key))

    def free(self, key: bytes) -> tuple[bytes, ...]:
        return self.machine.free(self.entry(key))

    @property
    def used_bytes(self) -> int:
        return self.machine.extents.used_bytes


@pytest.fixture
def store(out: Outbox) -> Store:
    return Store(out)


# --- look up or subscribe ------------------------------------------------------------------------


def test_get_answers_once_per_request_now_or_later(store: Store) -> None:
    entry = store.machine.announce(A)
    store.get(A)
    store.get(A)
    assert not store.told()
    store.machine.seal(entry, SMALL)
    assert store.told() == [(BOB, ObjectReady(A, SMALL))] * 2
    store.get(A)
    assert store.told() == [(BOB, ObjectReady(A, SMALL))]


def test_what_is_kept_of_an_object_does_not_lengthen_collections(store: Store) -> None:
    entry = store.machine.entry(A)
    store.machine.subscribe(ANN, entry)
    store.machine.seal(entry, Value(INLINE, b"value"))
    objects = store.machine.objects
    assert not any(gc.is_tracked(each) for each in (objects, *objects.values()))
    store.out.take()


def test_who_only_wants_to_know_is_told_once_and_shown_nothing_large(store: Store) -> None:
    store.machine.announce(A)
    store.get(A, fetch=False)
    store.get(A, fetch=False)
    store.create(A)
    assert store.told() == [(ANN, Created(A, EXTENT, 0))]
    store.machine.seal(store.entry(A), Value(EXTENT))
    assert store.told() == [(BOB, ObjectReady(A, Value(AT_NODE, b"", 0, HALF)))]
    assert store.entry(A).maps == 0


def test_the_dead_are_told_nothing(store: Store) -> None:
    store.machine.announce(A)
    store.get(A)
    store.get(A, ANN, fetch=False)
    store.dead = [ANN, BOB]
    store.machine.seal(store.entry(A), SMALL)
    assert not store.told()


def test_who_lets_go_is_not_told(store: Store) -> None:
    entry = store.machine.announce(A)
    store.get(A)
    store.get(A, fetch=False)
    store.machine.unsubscribe(BOB, entry)
    store.machine.seal(entry, SMALL)
    assert not store.told()


def test_the_first_value_counts(store: Store) -> None:
    entry = store.machine.announce(A)
    store.machine.seal(entry, SMALL)
    store.machine.seal(entry, Value(ERROR, b"other"))
    assert entry.value == SMALL
    assert not store.told()


def test_dependents_are_handed_over_when_the_object_is_sealed(store: Store) -> None:
    entry = store.machine.announce(A)
    entry.dependents = ["task", "task"]
    store.machine.seal(entry, SMALL)
    assert store.woken == ["task", "task"]
    assert entry.dependents is None
    assert not store.told()


# --- strangers -----------------------------------------------------------------------------------


def test_what_nobody_announces_in_time_is_lost(store: Store) -> None:
    store.get(A)
    assert store.machine.wake_at_ns == PATIENCE_NS
    assert store.machine.on_tick(PATIENCE_NS - 1) == []
    assert store.machine.on_tick(PATIENCE_NS) == [store.entry(A)]
    [(to, ready)] = store.told()
    assert to == BOB
    reason = "no process of this cluster has it, made it or announced it"
    assert ready == ObjectReady(A, fault_value(OBJECT_LOST, ids.short(A), reason))
    assert store.machine.wake_at_ns is None


def test_a_stranger_that_is_announced_or_created_in_time_is_none(store: Store) -> None:
    store.get(A)
    store.get(B)
    store.machine.announce(A)
    store.create(B)
    assert store.told() == [(ANN, Created(B, EXTENT, 0))]
    assert store.machine.on_tick(PATIENCE_NS) == []
    assert [store.entry(key).state for key in (A, B)] == [PENDING, CREATING]
    assert store.machine.wake_at_ns is None


# --- creating ------------------------------------------------------------------------------------


def test_a_request_that_is_repeated_gets_the_same_answer(store: Store) -> None:
    store.create(A)
    store.create(A)
    assert store.told() == [(ANN, Created(A, EXTENT, 0))] * 2
    assert store.used_bytes == HALF


def test_a_repeated_request_that_waits_for_room_is_answered_once(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.create(C)
    assert store.told() == [(DISK, Spill(A, 0, HALF))]
    store.create(C)
    assert not store.told()
    store.spilled(A)
    assert store.told() == [(ANN, Created(C, EXTENT, 0))]


def test_what_has_a_value_or_another_creator_is_refused(store: Store) -> None:
    store.machine.seal(store.machine.announce(A), SMALL)
    store.create(A)
    store.create(B)
    store.create(B, source=BOB)
    assert store.told() == [
        (ANN, CreateFailed(A, HALF, 0, "the object already has a value")),
        (ANN, Created(B, EXTENT, 0)),
        (BOB, CreateFailed(B, HALF, 0, "another process writes it")),
    ]


def test_what_is_larger_than_the_store_is_refused_and_leaves_no_trace(store: Store) -> None:
    assert store.machine.on_create(0, ANN, Create(A, CAPACITY + 1)) is None
    assert store.told() == [(ANN, CreateFailed(A, CAPACITY + 1, CAPACITY))]
    assert not store.machine.objects


def test_an_aborted_object_gives_its_room_back_and_may_be_made_again(store: Store) -> None:
    store.create(A)
    assert store.told()
    assert store.machine.on_abort(0, BOB, Abort(A)) is None
    assert store.machine.on_abort(0, ANN, Abort(A)) is store.entry(A)
    assert (store.entry(A).state, store.used_bytes) == (PENDING, 0)
    assert not store.told(), "there is no file to delete"
    store.create(A, source=BOB)
    assert store.told() == [(BOB, Created(A, EXTENT, 0))]


def test_a_creator_that_dies_gives_its_room_to_the_next(store: Store) -> None:
    store.create(A, CAPACITY)
    assert store.told()
    assert store.machine.client_gone(ANN) == [store.entry(A)]
    assert (store.entry(A).state, store.used_bytes) == (PENDING, 0)
    assert not store.told()


def test_a_creator_that_dies_while_it_waits_is_not_answered(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.create(C, source=BOB)
    store.create(D, source=ANN)
    assert store.told() == [(DISK, Spill(A, 0, HALF))]
    assert store.machine.client_gone(BOB) == [store.entry(C)]
    store.spilled(A)
    assert store.told() == [(ANN, Created(D, EXTENT, 0))]


def test_an_error_instead_of_the_written_value_frees_the_room(store: Store) -> None:
    store.create(A)
    assert store.told()
    store.machine.seal(store.entry(A), Value(ERROR, b"oh"))
    assert (store.entry(A).value, store.used_bytes) == (Value(ERROR, b"oh"), 0)
    assert not store.told()


@pytest.mark.parametrize("kind", [EXTENT, FILE])
def test_an_extent_that_was_never_created_is_a_lost_object(store: Store, kind: int) -> None:
    entry = store.machine.announce(A)
    store.machine.seal(entry, Value(kind, b"", 64, 64))
    assert entry.value == fault_value(OBJECT_LOST, ids.short(A), "its maker did not write it")
    assert not store.told()


# --- memory pressure -----------------------------------------------------------------------------


def test_the_least_recently_used_object_leaves_first(store: Store) -> None:
    store.stored(A)
    offset = store.stored(B)
    store.get(A)
    store.machine.on_unpin(0, BOB, Unpin((A,)))
    assert store.told() == [(BOB, ObjectReady(A, Value(EXTENT, b"", 0, HALF)))]
    store.create(C)
    assert store.told() == [(DISK, Spill(B, offset, HALF))]
    store.spilled(B)
    assert store.told() == [(ANN, Created(C, EXTENT, offset))]
    assert store.entry(B).value == Value(FILE, b"", 0, HALF)
    store.get(B)
    assert store.told() == [(BOB, ObjectReady(B, Value(FILE, b"", 0, HALF)))]
    assert store.machine.spilled_bytes == HALF


def test_what_is_looked_at_stays_and_a_full_store_writes_to_a_file(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.get(A)
    store.get(B)
    assert len(store.told()) == 2
    store.create(C)
    assert store.told() == [(ANN, Created(C, FILE, 0))]
    store.machine.seal(store.entry(C), Value(EXTENT, b"", 0, 0, (D,)))
    assert store.entry(C).value == Value(FILE, b"", 0, HALF, (D,))
    assert store.free(C) == (D,)
    assert store.told() == [(DISK, DeleteFile(C))]
    assert store.machine.spilled_bytes == 0


def test_what_is_on_disk_too_leaves_at_once_when_nobody_looks_any_more(store: Store) -> None:
    store.stored(A, CAPACITY)
    store.create(B)
    assert store.told() == [(DISK, Spill(A, 0, CAPACITY))]
    store.get(A)
    store.spilled(A)  # it stays in memory: Bob looks at it
    assert store.told() == [
        (BOB, ObjectReady(A, Value(EXTENT, b"", 0, CAPACITY))), (ANN, Created(B, FILE, 0)),
    ]  # fmt: skip
    store.machine.on_unpin(0, BOB, Unpin((A,)))
    store.create(C)
    assert store.told() == [(ANN, Created(C, EXTENT, 0))]
    assert store.entry(A).value == Value(FILE, b"", 0, CAPACITY)


def test_those_who_wait_for_room_hear_why_there_is_none(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.create(C)
    assert store.told() == [(DISK, Spill(A, 0, HALF))]
    failed = store.machine.on_spill_failed(0, RUNTIME, SpillFailed(A, "disk full"))
    assert failed == [store.entry(C)]
    assert store.told() == [(ANN, CreateFailed(C, HALF, CAPACITY, "disk full"))]
    assert [store.entry(key).state for key in (A, B, C)] == [SEALED, SEALED, PENDING]
    store.create(D)
    assert store.told() == [(DISK, Spill(B, HALF, HALF))], "the next time another one is tried"


def test_freed_while_it_is_written_to_disk(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.create(C)
    assert store.told() == [(DISK, Spill(A, 0, HALF))]
    store.free(A)
    assert not store.told(), "the disk still reads the memory"
    assert store.used_bytes == CAPACITY
    store.spilled(A)
    assert store.told() == [(DISK, DeleteFile(A)), (ANN, Created(C, EXTENT, 0))]
    assert store.machine.spilled_bytes == 0


def test_freed_while_a_spill_of_it_fails(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.create(C)
    store.free(A)
    assert store.told() == [(DISK, Spill(A, 0, HALF))]
    assert store.machine.on_spill_failed(0, RUNTIME, SpillFailed(A, "disk full")) == []
    assert store.told() == [(DISK, DeleteFile(A)), (ANN, Created(C, EXTENT, 0))], "there is room all the same"


def test_an_object_that_is_made_anew_is_not_mixed_up_with_its_former_life(store: Store) -> None:
    store.stored(A)
    store.stored(B)
    store.create(C)
    assert store.told() == [(DISK, Spill(A, 0, HALF))]
    store.free(A)
    store.free(B)
    assert store.told() == [(ANN, Created(C, EXTENT, HALF))]
    store.machine.seal(store.entry(C), Value(EXTENT))
    store.free(C)
    store.stored(A)  # again, while its former file is still being written
    store.create(D)
    assert not store.told(), "one file, one writer: the new A waits"
    store.spilled(A)
    assert store.told() == [(DISK, DeleteFile(A)), (ANN, Created(D, EXTENT, 0))]
    assert store.entry(A).value == Value(EXTENT, b"", HALF, HALF)


# --- the end of life -----------------------------------------------------------------------------


def test_memory_that_somebody_looks_at_outlives_its_object(store: Store) -> None:
    store.stored(A)
    store.get(A)
    store.get(A, ANN)
    assert len(store.told()) == 2
    store.free(A)
    store.machine.on_unpin(0, BOB, Unpin((A, A)))  # one too many is ignored
    assert store.used_bytes == HALF
    assert store.machine.client_gone(ANN) == []
    assert store.used_bytes == 0
    assert not store.machine.mapped
    assert not store.told()


def test_memory_of_a_former_life_is_not_unpinned_for_the_new_one(store: Store) -> None:
    store.stored(A)
    store.get(A)
    store.free(A)
    assert store.told() == [(BOB, ObjectReady(A, Value(EXTENT, b"", 0, HALF)))]
    offset = store.stored(A)
    store.get(A)
    assert store.told() == [(BOB, ObjectReady(A, Value(EXTENT, b"", offset, HALF)))]
    store.machine.on_unpin(0, BOB, Unpin((A, A)))
    assert (store.entry(A).maps, store.used_bytes) == (0, HALF)
    assert not store.told()


def test_pressure_costs_no_walk_over_all_objects(store: Store) -> None:
    """A waiting creator looks at what leaves, not at what stays."""
    for number in range(100, 164):
        store.stored(object_id(number), 64)
    store.create(A, 64)
    assert store.told() == [(DISK, Spill(object_id(100), 0, 64))]
    assert sum(entry.spilling for entry in store.machine.evictable.values()) == 1
