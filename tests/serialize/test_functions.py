"""Code is pickled once and unpickled once; arguments keep refs out of the pickle."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zray.errors import RemoteProtocolError
from zray.ids import content_id
from zray.serialize import functions
from zray.serialize.functions import (
    FunctionTable,
    captured_refs,
    dump_args,
    export,
    load_args,
)
from zray.serialize.values import DeserializationError, dump, note_contained


class Ref:
    def __init__(self, object_id: bytes) -> None:
        self.id = object_id

    def __reduce__(self) -> tuple[Any, ...]:
        note_contained(self.id)
        return Ref, (self.id,)


class SubRef(Ref):
    """Not exactly a ref, so an ordinary argument."""


def bytes_of(blob: Any) -> bytes:
    return blob if blob == b"" else blob.to_bytes()


# --- code ---


def test_importable_functions_go_by_reference() -> None:
    function_id, code = export(os.path.join)
    assert function_id == content_id(code)
    assert len(code) < 60
    table = FunctionTable()
    table.add(function_id, code)
    assert table.get(function_id) is os.path.join


def test_code_keeps_the_name_of_its_file() -> None:
    def fails() -> None:
        def inner() -> None:
            raise LookupError

        inner()

    table = FunctionTable()
    function_id, code = export(fails)
    table.add(function_id, code)
    with pytest.raises(LookupError) as caught:
        table.get(function_id)()
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert files == [__file__] * 3


def test_code_is_made_once_per_callable() -> None:
    def f() -> int:
        return 1

    assert export(f) is export(f)


def test_the_cache_lets_go_of_functions() -> None:
    def f() -> int:
        return 1

    export(f)
    key = id(f)
    assert key in functions._exports
    del f
    gc.collect()
    assert key not in functions._exports


def test_a_callable_without_weak_references_is_exported_anew() -> None:
    class Add:
        __slots__ = ("n",)

        def __call__(self, x: int) -> int:
            return x + self.n

    add = Add()
    add.n = 2
    first = export(add)
    add.n = 3
    assert export(add) != first


def test_refs_in_a_closure_are_known() -> None:
    ref = Ref(b"captured")
    assert captured_refs(lambda: ref) == (b"captured",)
    assert captured_refs(os.path.join) == ()


def test_functions_of_main_run_elsewhere(tmp_path: Path) -> None:
    script = """
import sys
import numpy as np
from zray.serialize.functions import export

table = np.arange(10)

class Counter:
    start = 5
    def next(self, by=1):
        self.start += by
        return self.start

def lookup(i):
    return int(table[i]) + Counter().next()

function_id, code = export(lookup)
open(sys.argv[1], "wb").write(function_id + code)
"""
    path = tmp_path / "code"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    data = path.read_bytes()
    table = FunctionTable()
    table.add(data[:16], data[16:])
    assert table.get(data[:16])(3) == 9


def test_unpickled_once_and_lazily() -> None:
    code = dump(lambda: 7).to_bytes()
    table = FunctionTable()
    table.add(content_id(code), code)
    assert content_id(code) in table
    first = table.get(content_id(code))
    assert first() == 7
    table.add(content_id(code), code)
    assert table.get(content_id(code)) is first


def test_a_missing_module_fails_each_task_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "only_the_driver_has_it.py").write_text("def f():\n    return 1\n")
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from only_the_driver_has_it import f
from zray.serialize.functions import export
sys.stdout.buffer.write(b"".join(export(f)))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    table = FunctionTable()
    table.add(data[:16], data[16:])
    errors = []
    for _ in range(2):
        with pytest.raises(DeserializationError) as caught:
            table.get(data[:16], "train")
        errors.append(caught.value)
    text = str(errors[0])
    assert "function train" in text
    assert "module 'only_the_driver_has_it' cannot be imported in the worker" in text
    assert str(sys.path) in text
    assert errors[0] is not errors[1]
    assert data[:16] in table


def test_wrong_or_unknown_code_is_refused() -> None:
    table = FunctionTable()
    with pytest.raises(RemoteProtocolError, match="changed on its way"):
        table.add(bytes(16), b"other")
    with pytest.raises(RemoteProtocolError, match="before it was sent"):
        table.get(bytes(16))


# --- arguments ---


def test_no_arguments_are_no_bytes() -> None:
    assert dump_args((), {}, Ref) == (b"", ())
    assert load_args(b"", ()) == ((), {})


def test_nothing_but_refs_is_no_bytes_either() -> None:
    refs = tuple(Ref(i.to_bytes(2, "big")) for i in range(10_000))
    blob, deps = dump_args(refs, {}, Ref)
    assert blob == b""
    assert deps == tuple(ref.id for ref in refs)
    assert load_args(blob, range(10_000)) == (tuple(range(10_000)), {})


def test_many_refs_cost_few_bytes() -> None:
    refs = tuple(Ref(i.to_bytes(2, "big")) for i in range(10_000))
    blob, deps = dump_args(("first", *refs, "last"), {"k": refs[0]}, Ref)
    assert bytes_of(blob).__len__() < 200
    args, kwargs = load_args(bytes_of(blob), range(10_001))
    assert len(deps) == 10_001
    assert args == ("first", *range(10_000), "last")
    assert kwargs == {"k": 10_000}


def test_positions_and_order_of_keywords_are_kept() -> None:
    a, b = Ref(b"a"), Ref(b"b")
    blob, deps = dump_args((a, 1, a, b, 2), {"z": 1, "y": b, "x": [3]}, Ref)
    assert deps == (b"a", b"a", b"b", b"b")
    args, kwargs = load_args(bytes_of(blob), ["A", "A", "B", "B2"])
    assert args == ("A", 1, "A", "B", 2)
    assert list(kwargs.items()) == [("z", 1), ("y", "B2"), ("x", [3])]


def test_nested_refs_and_subclasses_stay_inside() -> None:
    blob, deps = dump_args(([Ref(b"nested")], SubRef(b"sub")), {}, Ref)
    assert deps == ()
    assert blob.contained == (b"nested", b"sub")
    (inner, sub), _ = load_args(blob.to_bytes(), ())
    assert (inner[0].id, sub.id) == (b"nested", b"sub")


def test_arrays_are_views_of_the_arguments() -> None:
    blob, _ = dump_args((np.arange(1000), "x"), {"w": np.ones(3)}, Ref)
    memory = bytearray(blob.total_bytes)
    blob.write_into(memoryview(memory))
    (array, _), kwargs = load_args(memoryview(memory), ())
    assert array.sum() == 499_500
    assert not array.flags.writeable
    assert kwargs["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("values", [(), (1, 2, 3)])
def test_another_number_of_values_is_refused(values: Any) -> None:
    blob, _ = dump_args((Ref(b"a"), 1), {"k": Ref(b"b")}, Ref)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        load_args(blob.to_bytes(), values)


def test_values_that_nothing_asks_for_are_refused() -> None:
    blob, _ = dump_args((1,), {}, Ref)
    with pytest.raises(RemoteProtocolError, match="take no dependency"):
        load_args(blob.to_bytes(), (1,))


@pytest.mark.parametrize("value", [5, [1], [1, 2, 3, 4], [[], {}, [0], []], [[], None, [0, 1], ["k"]]])
def test_junk_arguments_are_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        load_args(dump(value).to_bytes(), (1,))
