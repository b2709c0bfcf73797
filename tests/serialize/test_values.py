"""Values in their flat layout: what comes back, what is copied, what is refused."""

from __future__ import annotations

import collections
import datetime
import fractions
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zray.errors import RemoteProtocolError, SerializationError
from zray.serialize import values
from zray.serialize.values import ALIGN_BYTES, DeserializationError, Serialized, dump, load, note_contained

Point = collections.namedtuple("Point", "x y")


class Ref:
    """Stands where an ObjectRef will: it notes itself when it is pickled."""

    def __init__(self, object_id: bytes) -> None:
        self.id = object_id

    def __reduce__(self) -> tuple[Any, ...]:
        note_contained(self.id)
        return Ref, (self.id,)


class DumpsInside:
    """Its own pickling serializes another value, as a ``put`` inside ``__reduce__`` would."""

    def __init__(self, before: Ref, inner: Any, after: Ref) -> None:
        self.parts = before, inner, after

    def __reduce__(self) -> tuple[Any, ...]:
        self.inner_contained = dump(self.parts[1]).contained
        return DumpsInside, (self.parts[0], None, self.parts[2])


def flat(value: Any) -> bytes:
    return dump(value).to_bytes()


def address_of(view: Any) -> int:
    return np.frombuffer(view, np.uint8).__array_interface__["data"][0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        1 << 300,
        1.5,
        2j,
        "",
        "é" * 100_000,
        "\ud800" * 70_000,
        b"x" * 200_000,
        bytearray(b"y" * 200_000),
        (),
        [[[[[[[]]]]]]],
        {1: {2: {3: {4: 5}}}},
        list(range(1000)),
        {"a", "b"},
        Point(1, [2]),
        fractions.Fraction(1, 3),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        collections.OrderedDict(a=1),
        len,
        os.path.join,
        int,
    ],
    ids=lambda value: type(value).__name__,
)
def test_round_trip_keeps_value_and_type(value: Any) -> None:
    loaded = load(flat(value))
    assert loaded == value
    assert type(loaded) is type(value)


def test_none_is_made_once() -> None:
    assert dump(None) is dump(None)
    assert load(dump(None).to_bytes()) is None


def test_small_plain_values_are_a_bare_pickle() -> None:
    value = {"loss": 0.5, "steps": [1, 2, (3, None)], "name": b"x"}
    assert flat(value) == pickle.dumps(value, 5)


def test_a_list_that_holds_itself() -> None:
    value: list[Any] = [1]
    value.append(value)
    loaded = load(flat(value))
    assert loaded[1] is loaded


ARRAYS = {
    "float": np.arange(1000.0),
    "zero_d": np.array(3.5),
    "empty": np.empty((0, 3)),
    "empty_dates": np.empty((2, 0), "M8[s]"),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "strided": np.arange(100)[::7],
    "negative_stride": np.arange(10)[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "big_endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False]),
    "half": np.arange(5, dtype="f2"),
    "complex": np.array([1 + 2j]),
    "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "dates_fortran": np.asfortranarray(np.zeros((2, 3), "M8[ns]")),
    "spans": np.array([1, 2], "m8[ms]"),
    "text": np.array(["a", "bcd"]),
    "byte_strings": np.array([b"a", b"bcd"]),
    "no_size_strings": np.zeros(3, "S0"),
    "void": np.zeros(3, "V4"),
    "structured": np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    "structured_dates": np.zeros(3, [("t", "M8[s]"), ("v", "f4", (2,))]),
    "aligned": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "metadata": np.zeros(2, np.dtype("f8", metadata={"unit": "m"})),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_views_of_the_bytes_and_read_only(name: str, nested: bool) -> None:
    array = ARRAYS[name]
    memory = bytearray(flat([array, 1] if nested else array))
    loaded = load(memoryview(memory))
    if nested:
        loaded = loaded[0]
    assert type(loaded) is np.ndarray
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert loaded.dtype.metadata == array.dtype.metadata
    assert loaded.tobytes() == array.tobytes()
    assert not loaded.flags.writeable
    if loaded.nbytes:
        offset = loaded.__array_interface__["data"][0] - address_of(memory)
        assert 0 <= offset < len(memory)
        assert offset % ALIGN_BYTES == 0


def test_arrays_of_inline_bytes_are_read_only_too() -> None:
    loaded = load(flat(np.arange(3)))
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        loaded.flags.writeable = True


@pytest.mark.parametrize(
    "array",
    [
        np.array([{"a": 1}, None], dtype=object),
        np.array(["a", "b" * 100], dtype=np.dtypes.StringDType()),
        np.array([(1, "x")], dtype=[("a", "i4"), ("b", "O")]),
    ],
    ids=["object", "variable_text", "structured_object"],
)
def test_arrays_whose_elements_are_elsewhere(array: Any) -> None:
    loaded = load(flat(array))
    assert loaded.dtype == array.dtype
    assert loaded.tolist() == array.tolist()


def test_subclasses_of_arrays_keep_their_class() -> None:
    masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    loaded = load(flat(masked))
    assert isinstance(loaded, np.ma.MaskedArray)
    assert loaded.tolist() == [1, None, 3]


def test_one_array_met_twice_is_written_once() -> None:
    array = np.zeros(100_000)
    serialized = dump([array, array])
    assert serialized.total_bytes < 1.1 * array.nbytes
    first, second = load(serialized.to_bytes())
    assert first is second


def test_nothing_large_is_copied_on_the_way_in() -> None:
    array, text, mutable = np.zeros(100_000), b"x" * 100_000, bytearray(100_000)
    serialized = dump({"array": array, "nested": [text, mutable]})
    assert [address_of(buffer) for buffer in serialized.buffers] == [address_of(array)]
    assert any(piece is text for piece in serialized.stream)
    assert any(piece is mutable for piece in serialized.stream)


def test_views_keep_their_memory_alive() -> None:
    memory = bytearray(flat(np.arange(10)))
    view = memoryview(memory)
    loaded = load(view)
    view.release()
    with pytest.raises(BufferError):  # the array still exports it
        memory.append(0)
    assert loaded.sum() == 45
    del loaded
    memory.append(0)


def test_pickle_buffers_come_back_as_views() -> None:
    loaded = load(flat(pickle.PickleBuffer(bytearray(b"abc"))))
    assert type(loaded) is memoryview
    assert loaded.readonly
    assert bytes(loaded) == b"abc"


SHAPES: dict[str, Any] = {
    "plain": (1, "a"),
    "array": np.arange(500_000),
    "mixed": [b"z" * 70_000, np.arange(7), np.arange(300_000), "end"],
    "many_buffers": [np.full(3, i) for i in range(1500)],
    "empty_buffer": [np.empty(0), np.arange(3)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_value_takes_the_bytes_that_it_says_and_no_others(name: str) -> None:
    serialized = dump(SHAPES[name])
    expected = serialized.to_bytes()
    assert len(expected) == serialized.total_bytes

    arena = bytearray(b"\xff" * (serialized.total_bytes + 100))
    assert serialized.write_into(memoryview(arena)) == serialized.total_bytes
    assert arena[: serialized.total_bytes] == expected
    assert arena[serialized.total_bytes :] == b"\xff" * 100


def test_too_small_a_target_is_refused_untouched() -> None:
    serialized = dump(np.arange(100))
    target = bytearray(serialized.total_bytes - 1)
    with pytest.raises(ValueError, match="do not fit"):
        serialized.write_into(memoryview(target))
    assert not any(target)


# --- refs ---


def test_contained_refs_are_listed_once_in_order() -> None:
    shared = Ref(b"b")
    assert dump([Ref(b"a"), {"k": shared}, shared, Ref(b"a")]).contained == (b"a", b"b")
    assert dump([1, 2]).contained == ()


def test_a_dump_inside_a_dump_keeps_its_own_refs() -> None:
    value = DumpsInside(Ref(b"before"), Ref(b"inner"), Ref(b"after"))
    assert dump(value).contained == (b"before", b"after")
    assert value.inner_contained == (b"inner",)


def test_pickling_by_hand_notes_nothing() -> None:
    assert pickle.loads(pickle.dumps(Ref(b"a"))).id == b"a"
    assert dump([Ref(b"b")]).contained == (b"b",)


def test_a_failed_dump_leaves_no_refs_behind() -> None:
    with pytest.raises(SerializationError):
        dump([Ref(b"a"), threading.Lock()])
    note_contained(b"stray")
    assert dump([Ref(b"b")]).contained == (b"b",)


# --- damage ---


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\x00",
        b"Z",
        b"ZRV\x01",
        b"ZRV\x02" + bytes(12),
        b"\x80",
        b"\x80\x05",
        b"\x80\x05\x97.",  # asks for a buffer that no table offers
        values._HEADER.pack(values._MAGIC, 0xFFFF_FFFF, 0),
        values._HEADER.pack(values._MAGIC, 0, 0xFFFF_FFFF_FFFF_FFFF),
        values._HEADER.pack(values._MAGIC, 1, 0) + b"\xff" * 8,
        b"\x80\x05\x8e" + b"\xff" * 8,
    ],
)
def test_junk_is_a_typed_error(junk: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        load(junk)


@pytest.mark.parametrize("value", [(1, "two", [3.0]), np.arange(20), [np.arange(5), b"x" * 70_000]])
def test_every_truncation_is_a_typed_error(value: Any) -> None:
    whole = flat(value)
    for end in [*range(min(len(whole), 600)), len(whole) - 1]:
        with pytest.raises(RemoteProtocolError):
            load(memoryview(whole)[:end])


def test_a_missing_module_is_named() -> None:
    with pytest.raises(DeserializationError, match="No module named 'no_such_module'") as caught:
        load(b"\x80\x05cno_such_module\nf\n.", "the result of f()")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.what) == (DeserializationError, "the result of f()")


# --- other processes ---


def run(script: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_main_defines_is_loaded_by_another_process(tmp_path: Path) -> None:
    script = """
import enum, sys
from dataclasses import dataclass
from zray.serialize.values import dump

@dataclass
class Config:
    rate: float
    def doubled(self):
        return helper(self.rate)

class Color(enum.Enum):
    RED = 1

def helper(x):
    return 2 * x

value = [Config(1.5), {"color": Color.RED}, helper, lambda: Config(4.0).doubled()]
with open(sys.argv[1], "wb") as file:
    file.write(dump(value).to_bytes())
"""
    path = tmp_path / "value"
    run(script, str(path))
    config, colors, helper, call = load(path.read_bytes())
    assert config.doubled() == 3.0
    assert colors["color"].name == "RED"
    assert helper(4) == 8
    assert call() == 8.0


def test_plain_values_import_neither_numpy_nor_cloudpickle() -> None:
    script = """
import sys
from zray.serialize import functions, values
values.load(values.dump({"a": [1, "b"]}).to_bytes())
functions.load_args(functions.dump_args((1,), {"k": 2}, type)[0].to_bytes(), ())
print(sorted({"numpy", "asyncio", "cloudpickle", "inspect", "logging"} & set(sys.modules)))
"""
    assert run(script).strip() == "[]"


def test_serialized_counts_its_own_bytes() -> None:
    assert Serialized((b"ab", b"c"), 3).to_bytes() == b"abc"
