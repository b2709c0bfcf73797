"""Example messages and hypothesis strategies, both read off the types of the messages themselves.

So a new message is covered by every test of this folder without a line here.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from typing import Any

import msgspec
import msgspec.inspect as shape
from hypothesis import strategies as st

from zray.protocol import (
    actor_messages,
    base,
    chain,
    cluster,
    codec,
    flushing,
    group_messages,
    local_messages,
    messages,
    strategies,
    user_messages,
)

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What one msgpack integer holds."""

MODULES = (
    base, strategies, user_messages, messages, cluster, actor_messages, group_messages, local_messages, chain,
    flushing,
)  # fmt: skip
"""Where messages are defined: those of every cluster, of a process with itself, of logs and chains."""

LINKS: dict[str, tuple[Callable[[bytes], list[Any]], Any]] = {
    "node": (
        codec.decode_for_node,
        messages.ToNode | cluster.ToClusterNode | actor_messages.ToActorNode | group_messages.ToGroupNode,
    ),
    "gcs": (
        codec.decode_for_gcs,
        messages.ToGcs | cluster.ToDirectory | cluster.ToScheduler | group_messages.ToCoordinator,
    ),
    "replica": (codec.batch_decoder(chain.ToReplica), chain.ToReplica),
    "master": (codec.batch_decoder(chain.ToMaster), chain.ToMaster),
    "doctor": (codec.batch_decoder(cluster.ToDoctor), cluster.ToDoctor),
    "process": (codec.decode_for_process, messages.ToProcess | group_messages.GroupAnswer),
}
"""Receiver -> its decoder and the union of messages it accepts."""


def structs() -> list[type[base.Message]]:
    """Every message class and the structs inside them, in the order of the source."""
    return [
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base.Message)
        if value.__module__ == module.__name__ and value is not base.Message
    ]


def unions() -> dict[str, tuple[type[base.Message], ...]]:
    """The unions by name: what travels over which link, and what a log holds."""
    return {
        name: typing.get_args(value)
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, types.UnionType)
    }


def tag_of(struct: type[base.Message]) -> int | None:
    """The permanent integer of a message; ``None`` for a struct that only travels inside others."""
    tag = struct.__struct_config__.tag
    return tag if isinstance(tag, int) else None


def constants() -> dict[str, int]:
    """The integers with a name that travel in fields, and the protocol version."""
    return {
        name: value for name, value in vars(messages).items() if name.isupper() and isinstance(value, int)
    }


# --- one example of each -------------------------------------------------------------------------


def example(struct: type[base.Message]) -> base.Message:
    """The one instance that the golden bytes freeze: no field at its default, no two numbers alike."""
    return _example_struct(struct, count(1))


def _example_struct(struct: type[Any], numbers: Iterator[int]) -> Any:
    fields = shape.type_info(struct)
    assert isinstance(fields, shape.StructType)
    values = {field.name: _example(field.type, field.name, numbers) for field in fields.fields}
    for field in fields.fields:
        if isinstance(field.type, shape.BoolType):
            values[field.name] = field.default is not True
    return struct(**values)


def _example(kind: shape.Type, name: str, numbers: Iterator[int]) -> Any:
    match kind:
        case shape.BoolType():
            return True
        case shape.IntType():
            return next(numbers)
        case shape.StrType():
            return f"{name}-{next(numbers)}"
        case shape.BytesType():
            return bytes([next(numbers)]) * 16
        case shape.VarTupleType():
            return tuple(_example(kind.item_type, name, numbers) for _ in range(2))
        case shape.TupleType():
            return tuple(_example(item, name, numbers) for item in kind.item_types)
        case shape.StructType():
            return _example_struct(kind.cls, numbers)
        case shape.UnionType():
            return _example(_first_value_type(kind), name, numbers)
    raise TypeError(f"no example for {kind} ({name})")


def _first_value_type(union: shape.UnionType) -> shape.Type:
    return next(member for member in union.types if not isinstance(member, shape.NoneType))


# --- any instance of each ------------------------------------------------------------------------


@cache
def instances(struct: type[Any]) -> st.SearchStrategy[Any]:
    """Any instance of ``struct`` that its types allow."""
    fields = shape.type_info(struct)
    assert isinstance(fields, shape.StructType)
    return st.builds(struct, *[_strategy(field.type) for field in fields.fields])


def _strategy(kind: shape.Type) -> st.SearchStrategy[Any]:
    match kind:
        case shape.NoneType():
            return st.none()
        case shape.BoolType():
            return st.booleans()
        case shape.IntType():
            return st.integers(INT_MIN, INT_MAX)
        case shape.StrType():
            return st.text(max_size=20)
        case shape.BytesType():
            return st.binary(max_size=40)
        case shape.VarTupleType():
            return st.lists(_strategy(kind.item_type), max_size=3).map(tuple)
        case shape.TupleType():
            return st.tuples(*map(_strategy, kind.item_types))
        case shape.StructType():
            return instances(kind.cls)
        case shape.UnionType():
            return st.one_of(*map(_strategy, kind.types))
    raise TypeError(f"no strategy for {kind}")


@cache
def batches(link: str) -> st.SearchStrategy[list[Any]]:
    """Any batch that the receiver ``link`` accepts."""
    members = typing.get_args(LINKS[link][1])
    return st.lists(st.sampled_from(members).flatmap(instances), max_size=4)


def untagged() -> list[type[msgspec.Struct]]:
    """The structs that only travel inside messages."""
    return [struct for struct in structs() if tag_of(struct) is None]
