"""The end of an actor that ends itself: who must have heard its last words, and who answers them."""

from __future__ import annotations

from zray.config import Config
from zray.core.client import ClientMachine
from zray.core.machine import pump
from zray.protocol.user_messages import LastWords, LastWordsHeard

NODE, FIRST, SECOND = b"node", b"first", b"second"


def machine() -> ClientMachine:
    return ClientMachine(node=NODE, config=Config())


def said(made: ClientMachine) -> list[bytes]:
    addresses = [address for address, message in made.out if message == LastWords()]
    assert len(addresses) == len(made.out)
    made.out.clear()
    return addresses


def test_all_callers_and_the_node_must_have_heard_them() -> None:
    actor = machine()
    actor.farewells.say([FIRST, SECOND])
    assert said(actor) == [FIRST, SECOND, NODE]
    pump(actor, [(FIRST, LastWordsHeard()), (FIRST, LastWordsHeard()), (b"stranger", LastWordsHeard())], 1)
    assert not actor.farewells.all_heard
    actor.farewells.repeat()
    assert said(actor) == [SECOND, NODE]
    pump(actor, [(NODE, LastWordsHeard())], 2)
    actor.farewells.heard_by(SECOND)  # it is gone
    assert actor.farewells.all_heard
    actor.farewells.repeat()
    assert not said(actor)


def test_a_caller_answers_each_time_as_an_answer_may_be_lost() -> None:
    caller = machine()
    pump(caller, [(FIRST, LastWords()), (FIRST, LastWords())], 1)
    assert caller.out == [(FIRST, LastWordsHeard())] * 2
