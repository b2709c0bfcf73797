"""Names of actors: one winner per name, listings over shards, lost answers, processes that die between."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zray.core.actor_names import PAGE_ENTRIES, ActorNames, key_of
from zray.core.machine import Address
from zray.ids import shard_of
from zray.protocol.messages import (
    TableCas,
    TableDelete,
    TableGet,
    TablePage,
    TableReply,
    TableScan,
)
from zray.protocol.user_messages import ClaimName, FindName, ListNames, NameAnswer

ANN, BOB = b"ann", b"bob"
SHARDS = (b"shard0", b"shard1")
HANDLE_A, HANDLE_B = b"A" * 16 + b"handle", b"B" * 16 + b"handle"


class World:
    """A machine of names and two shards, played here."""

    def __init__(self, shards: tuple[Address, ...] = SHARDS, questions_max: int = 10) -> None:
        self.out: list[tuple[Address, Any]] = []
        self.actors: dict[bytes, None] = {}
        self.tables: dict[Address, dict[bytes, bytes]] = {shard: {} for shard in SHARDS}
        self.answers: list[tuple[Address, NameAnswer]] = []
        self.machine = ActorNames(
            self.out, shards=shards, questions_max=questions_max, is_actor=self.actors.__contains__
        )

    def settle(self, *, lose_replies: bool = False) -> None:
        """Deliver until nothing moves."""
        while self.out:
            target, message = self.out.pop(0)
            if isinstance(message, NameAnswer):
                self.answers.append((target, message))
                continue
            reply = self._shard(target, message)
            if lose_replies:
                continue
            if isinstance(reply, TablePage):
                self.machine.on_page(target, reply)
            else:
                assert self.machine.on_reply(target, reply)
            self.machine.check()

    def _shard(self, shard: Address, message: Any) -> Any:
        table = self.tables[shard]
        match message:
            case TableCas():
                won = table.get(message.key) == message.expected
                if won:
                    table[message.key] = message.value
                return TableReply(message.token, won, table[message.key])
            case TableGet():
                return TableReply(message.token, message.key in table, table.get(message.key))
            case TableDelete():
                same = message.key in table and table[message.key] == message.expected
                if same:
                    del table[message.key]
                return TableReply(message.token, same)
            case TableScan():
                keys = sorted(key for key in table if key > message.after)[: message.limit]
                return TablePage(message.token, tuple((key, table[key]) for key in keys))
        raise AssertionError(message)

    def names(self) -> list[bytes]:
        return sorted(key for table in self.tables.values() for key in table)

    def last(self) -> NameAnswer:
        return self.answers[-1][1]


def test_the_first_claim_wins() -> None:
    world = World()
    world.machine.claim(ANN, ClaimName(1, "ns", "name", HANDLE_A))
    world.machine.claim(BOB, ClaimName(7, "ns", "name", HANDLE_B))
    world.settle()
    assert world.answers == [(ANN, NameAnswer(1, True, HANDLE_A)), (BOB, NameAnswer(7, False, HANDLE_A))]
    world.machine.find(BOB, FindName(8, "ns", "name"))
    world.machine.find(BOB, FindName(9, "other", "name"))
    world.settle()
    assert world.answers[2:] == [(BOB, NameAnswer(8, True, HANDLE_A)), (BOB, NameAnswer(9, False))]


def test_a_dead_actor_frees_its_name_and_only_its_own() -> None:
    world = World()
    world.machine.claim(ANN, ClaimName(1, "ns", "name", HANDLE_A))
    world.settle()
    world.machine.gone("ns", "name", HANDLE_B)  # late word of a former holder
    world.settle()
    assert world.names() == [key_of("ns", "name")]
    world.machine.gone("ns", "name", HANDLE_A)
    world.settle()
    assert world.names() == []


def test_a_claim_without_an_actor_dies_with_its_process() -> None:
    world = World()
    world.machine.claim(ANN, ClaimName(1, "ns", "made", HANDLE_A))
    world.machine.claim(ANN, ClaimName(2, "ns", "not made", HANDLE_B))
    world.settle()
    world.actors[HANDLE_A[:16]] = None
    world.machine.client_gone(ANN)
    world.settle()
    assert world.names() == [key_of("ns", "made")]


def test_a_process_that_dies_before_the_answer() -> None:
    world = World()
    world.machine.claim(ANN, ClaimName(1, "ns", "name", HANDLE_A))
    world.machine.client_gone(ANN)
    world.settle()
    assert world.names() == []
    assert world.answers == []


def test_lost_answers_are_asked_for_again() -> None:
    world = World()
    world.machine.claim(ANN, ClaimName(1, "ns", "name", HANDLE_A))
    world.settle(lose_replies=True)
    assert world.answers == []
    world.machine.shard_is_back(SHARDS[shard_of(key_of("ns", "name"), 2)])
    world.settle()
    assert world.last() == NameAnswer(1, True, HANDLE_A)  # our own value: the first time had won


@pytest.mark.parametrize("count", [0, 3, 2 * PAGE_ENTRIES + 7])
def test_listings(count: int) -> None:
    world = World()
    for number in range(count):
        key = key_of("ns", f"name{number:05}")
        world.tables[SHARDS[shard_of(key, 2)]][key] = HANDLE_A
    other = key_of("ns2", "other")
    world.tables[SHARDS[shard_of(other, 2)]][other] = HANDLE_B
    world.tables[SHARDS[0]][b"zzz something else"] = b""
    world.machine.list_names(ANN, ListNames(5, "ns"))
    world.settle()
    found = json.loads(world.last().value)
    assert found == [["ns", f"name{number:05}"] for number in range(count)]
    world.machine.list_names(ANN, ListNames(6, ""))
    world.settle()
    assert json.loads(world.last().value) == [*found, ["ns2", "other"]]


def test_without_shards_there_are_no_names() -> None:
    world = World(shards=())
    world.machine.claim(ANN, ClaimName(1, "ns", "name", HANDLE_A))
    world.machine.list_names(ANN, ListNames(2, ""))
    world.machine.gone("ns", "name", HANDLE_A)
    world.settle()
    assert world.answers == [(ANN, NameAnswer(1, False)), (ANN, NameAnswer(2, True, b"[]"))]


def test_questions_are_bounded() -> None:
    world = World(questions_max=2)
    for token in range(3):
        world.machine.find(ANN, FindName(token, "ns", "name"))
    assert world.out[-1] == (ANN, NameAnswer(2, False))


def test_answers_to_nobody_and_of_others() -> None:
    world = World()
    assert not world.machine.on_reply(SHARDS[0], TableReply(3, True))  # a write of the table writer
    world.machine.find(ANN, FindName(1, "ns", "name"))
    _, question = world.out.pop()
    wrong = SHARDS[1 - shard_of(key_of("ns", "name"), 2)]
    world.machine.on_reply(wrong, TableReply(question.token, True, HANDLE_A))
    world.machine.on_page(wrong, TablePage(question.token, ()))
    assert world.out == []
