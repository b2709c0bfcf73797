"""A function has the same bytes in every process, and loads as what it was."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zray.serialize.canonical import canonical_pickle
from zray.serialize.functions import export
from zray.serialize.values import load, pickle_value

ROOT = Path(__file__).parents[2]
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner) | st.tuples(inner, inner),
)

MODULE = '''
"""A module whose function has names, annotations and constants in common."""
import zray

LIMIT = 50_000

@zray.remote
def plus(pad: int, *values: "Any", **names: "Any") -> "Any":
    """The sum of the first items."""
    return [sum(int(value[0]) for value in values) + 1, "pad", "Any", b"", b"a", LIMIT]
'''

SCRIPT = """
import sys
from zray.serialize.functions import export
from zray.serialize.values import load, pickle_value
sys.path.insert(0, sys.argv[1])
import shared_texts
function = shared_texts.plus._function
for _ in range(int(sys.argv[2])):
    function = load(pickle_value(function).to_bytes())
print(export(function)[0].hex())
"""


def copies(value: Any) -> Any:
    """The same value, made of texts that are objects of their own."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return bytes(bytearray(value))
    if isinstance(value, list | tuple):
        return type(value)(copies(item) for item in value)
    if isinstance(value, dict):
        return {copies(key): copies(item) for key, item in value.items()}
    return value


@given(VALUES)
def test_equal_values_of_other_texts_are_equal_bytes(value: Any) -> None:
    ours = canonical_pickle(pickle.dumps(value, 5))
    assert pickle.loads(ours) == value
    assert canonical_pickle(pickle.dumps(copies(value), 5)) == ours
    assert canonical_pickle(ours) == ours


def test_many_places_and_cycles() -> None:
    cycle: list[Any] = [str(number) for number in range(600)]
    cycle += [["599", cycle], bytearray(b"599"), "x" * 100_000, b"x" * 100_000]
    loaded = pickle.loads(canonical_pickle(pickle.dumps(cycle, 5)))
    assert loaded[600][1] is loaded
    assert loaded[:600] == cycle[:600]
    assert loaded[601:] == cycle[601:]


def test_older_protocols_stay_as_they_are() -> None:
    data = pickle.dumps(["a", "a", ["a"]], 2)
    assert canonical_pickle(data) is data


def test_what_went_through_another_process_has_the_same_bytes() -> None:
    def function(name: str, names: dict[str, str]) -> Any:
        """Adds a name."""
        return {**names, "name": name, "names": function}

    again: Any = load(pickle_value(function).to_bytes())
    assert export(again)[0] == export(function)[0]
    loaded: Any = load(export(function)[1])
    assert loaded("a", {})["name"] == "a"
    assert export(loaded) == export(function)


def test_compiled_or_read_from_a_cache_imported_or_unpickled(tmp_path: Path) -> None:
    """The compiler, the file it leaves and the pickle share other texts: the id is one."""
    (tmp_path / "shared_texts.py").write_text(MODULE)
    told = []
    for times_unpickled in (0, 0, 1, 2):
        run = [sys.executable, "-c", SCRIPT, str(tmp_path), str(times_unpickled)]
        told.append(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert len(set(told)) == 1
