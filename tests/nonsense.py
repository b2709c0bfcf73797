"""Messages that are well formed and mean nothing."""

from __future__ import annotations

import random
from typing import Any

import msgspec

EDGES: dict[str, list[Any]] = {
    "int": [0, 1, -1, 2, 255, 10_000, 2**31, 2**63 - 1, -(2**63)],
    "bytes": [b"", b"x", b"o" * 16, b"\0" * 16, b"t" * 11 + bytes(5), b"y" * 40, b"d" * 16],
    "str": ["", "node", "x" * 1000, "\ud7ff"],
    "bool": [False, True],
}


def invented(dice: random.Random, annotation: Any) -> Any:
    """A value of a type, with a liking for the edges."""
    kind = msgspec.inspect.type_info(annotation)
    return _invented(dice, kind)


def _invented(dice: random.Random, kind: Any) -> Any:
    name = type(kind).__name__
    simple = {"IntType": "int", "BytesType": "bytes", "StrType": "str", "BoolType": "bool"}.get(name)
    if simple is not None:
        return dice.choice(EDGES[simple])
    if name == "NoneType":
        return None
    if name == "UnionType":
        return _invented(dice, dice.choice(kind.types))
    if name == "VarTupleType":
        return tuple(_invented(dice, kind.item_type) for _ in range(dice.choice((0, 1, 2, 5))))
    if name == "TupleType":
        return tuple(_invented(dice, item) for item in kind.item_types)
    if name == "StructType":
        return kind.cls(*[_invented(dice, field.type) for field in kind.fields])
    raise AssertionError(f"no value for {kind}")


def types_of(union: Any) -> list[type]:
    return sorted(union.__args__, key=lambda cls: cls.__struct_config__.tag)
