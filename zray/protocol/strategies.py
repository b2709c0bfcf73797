"""Where a task may run: a value in its descriptor, decided about in ``core/placement.py``.

What a strategy says of nodes, it says of their ids and labels; whether their resources suffice is another
question. More kinds of strategy are more fields, each empty by default.
"""

from __future__ import annotations

from zray.protocol.base import Message

Labels = tuple[tuple[str, str], ...]
"""Of a node: ``((name, value), ...)``, sorted by name, each name once."""

# What a rule asks of a label (LabelRule.kind).
ONE_OF = 0  # the node has it, with one of these values
NONE_OF = 1  # the node has not got it, or with another value
PRESENT = 2
ABSENT = 3


class LabelRule(Message, frozen=True):
    """What one label of a node must be."""

    name: str
    kind: int
    values: tuple[str, ...] = ()


class Strategy(Message, frozen=True):
    """Which nodes may run a task (``node_id``, ``hard``), and which had better (``soft``, ``wanted``)."""

    node_id: bytes = b""  # empty: any
    soft: bool = False  # another node will do, if that one is gone or can never run the task
    hard: tuple[LabelRule, ...] = ()
    wanted: tuple[LabelRule, ...] = ()  # nodes for which all of these hold are taken first
