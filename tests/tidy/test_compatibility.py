"""Every row of ``docs/compatibility.md`` that claims something names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
REFERENCE = re.compile(r"`(test_\w+\.py)((?:::\w+)*)`")


def rows() -> list[str]:
    lines = PAGE.read_text().splitlines()
    return [
        line for line in lines if line.startswith("| ") and not line.startswith(("| name", "| |", "|---"))
    ]


def names_in(path: Path) -> list[str]:
    """``Class``, ``Class::method`` and ``function`` of a test file."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
            found += [f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)]
        elif isinstance(node, ast.FunctionDef):
            found.append(node.name)
    return found


@pytest.mark.parametrize("row", [row for row in rows() if REFERENCE.search(row)])
def test_the_test_of_a_row_exists(row: str) -> None:
    for file, names in REFERENCE.findall(row):
        paths = list((ROOT / "tests" / "integration").glob(file)) or list((ROOT / "tests").rglob(file))
        assert len(paths) == 1, f"{file}: {paths}"
        assert not names or names.removeprefix("::") in names_in(paths[0]), f"{file} has no {names}"


def test_every_claim_has_a_test() -> None:
    bare = [
        row
        for row in rows()
        if not REFERENCE.search(row)
        and (cells := row.split(" | "))
        and len(cells) > 2
        and cells[1].startswith(("yes", "better", "partly"))
    ]
    assert bare == []
    assert len(rows()) > 50
