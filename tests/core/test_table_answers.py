"""Several machines of a node ask the tables of the control store: each hears its own answers."""

from __future__ import annotations

import pytest

from tests.core.test_local_scheduler import GLOBAL
from tests.core.test_node import NodeBench
from zray.core import actor_names, actor_views, name_sweeper, reconstruction
from zray.protocol.messages import TABLE_FUNCTION, TableReply

FIRST_TOKENS = [module.FIRST_TOKEN for module in (actor_names, reconstruction, actor_views, name_sweeper)]


def test_a_look_up_that_is_answered_at_once_is_heard() -> None:
    """A rebuild on a node that does not know the function would wait for ever."""
    bench = NodeBench()
    token = reconstruction.FIRST_TOKEN + 1
    bench.node.cluster.reconstruction.asked[token] = TABLE_FUNCTION, b"key"
    bench.say(GLOBAL, TableReply(token, True, b"code"))
    assert bench.node.scheduler.functions[b"key"] == b"code"
    assert not bench.node.cluster.reconstruction.asked


@pytest.mark.parametrize("first", FIRST_TOKENS)
def test_an_answer_that_nobody_waits_for_changes_nothing(first: int) -> None:
    bench = NodeBench()
    bench.all()
    bench.say(GLOBAL, TableReply(first + 1, True, b"whatever"))
    assert bench.all() == []


def test_no_two_of_them_share_tokens() -> None:
    assert sorted(set(FIRST_TOKENS)) == FIRST_TOKENS
