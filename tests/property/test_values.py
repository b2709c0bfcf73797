"""Values and arguments against naive models: round trips over nested structures, and damaged bytes."""

from __future__ import annotations

import contextlib
from collections import UserList
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zray.errors import RemoteProtocolError
from zray.serialize.functions import dump_args, load_args
from zray.serialize.values import dump, load

atoms = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)  # fmt: skip
arrays = hnp.arrays(
    hnp.scalar_dtypes() | hnp.array_dtypes(),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=40)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
            | st.lists(inner, max_size=3).map(UserList)
        ),
        max_leaves=20,
    )


def same(left: Any, right: Any) -> bool:
    """Equality that looks into arrays, bit by bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        kind = left.dtype == right.dtype and left.shape == right.shape
        return kind and left.tobytes() == right.tobytes() and not right.flags.writeable
    if isinstance(left, dict):
        return list(left) == list(right) and all(map(same, left.values(), right.values()))
    if isinstance(left, (list, tuple, UserList)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(nested(atoms | arrays))
@settings(max_examples=150, deadline=None)
def test_every_value_comes_back(value: Any) -> None:
    serialized = dump(value)
    whole = serialized.to_bytes()
    arena = bytearray(serialized.total_bytes)
    serialized.write_into(memoryview(arena))
    assert bytes(arena) == whole
    assert same(value, load(whole))
    assert same(value, load(memoryview(arena)))


@given(nested(arrays), st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_table_is_refused_or_harmless(value: Any, data: st.DataObject) -> None:
    serialized = dump([value, np.arange(4)])
    whole = bytearray(serialized.to_bytes())
    position = data.draw(st.integers(0, 15 + 8 * len(serialized.buffers)))
    whole[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        load(bytes(whole))


@given(nested(atoms | arrays), st.data())
@settings(max_examples=100, deadline=None)
def test_truncated_values_are_refused(value: Any, data: st.DataObject) -> None:
    whole = dump(value).to_bytes()
    end = data.draw(st.integers(0, len(whole) - 1))
    try:
        load(whole[:end])
    except RemoteProtocolError:
        return
    raise AssertionError(f"the first {end} of {len(whole)} bytes were loaded")


# The opcodes that store at an index of their choice make the unpickler itself reserve that much room.
junk = st.binary(max_size=200).map(lambda data: data.replace(b"r", b"s"))


@given(st.sampled_from([b"", b"\x80\x05", b"ZRV\x01", b"ZRV\x01\x02\0\0\0"]), junk)
@settings(max_examples=300, deadline=None)
def test_junk_never_gets_past_the_typed_error(start: bytes, rest: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        load(start + rest)


class Ref:
    """A ref by its exact class; a subclass is an ordinary argument."""

    def __init__(self, object_id: int) -> None:
        self.id = object_id.to_bytes(2, "big")


arguments = nested(atoms) | st.integers(0, 65_535).map(Ref)


@given(st.lists(arguments, max_size=8), st.dictionaries(st.text(max_size=4), arguments, max_size=4))
@settings(max_examples=200, deadline=None)
def test_arguments_come_back_with_refs_replaced(args: list[Any], kwargs: dict[str, Any]) -> None:
    blob, deps = dump_args(tuple(args), kwargs, Ref)
    data = blob if isinstance(blob, bytes) else blob.to_bytes()
    loaded_args, loaded_kwargs = load_args(data, [b"value of " + dep for dep in deps])

    def seen(arg: Any) -> Any:
        return b"value of " + arg.id if type(arg) is Ref else arg

    assert loaded_args == tuple(map(seen, args))
    assert list(loaded_kwargs.items()) == [(name, seen(arg)) for name, arg in kwargs.items()]
