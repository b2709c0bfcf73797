"""What the documents point at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
PROJECT_PATH = re.compile(r"`((?:zray|sim|tests|docs|examples|benchmarks)/[\w./-]*)`")
MAKE_TARGET = re.compile(r"`make (\w+)`")


def missing(text: str, folder: Path) -> list[str]:
    """Links, paths of the project and make targets in ``text`` that lead nowhere."""
    links = [link for link in LINK.findall(text) if "://" not in link and not (folder / link).exists()]
    paths = [path for path in PROJECT_PATH.findall(text) if not (ROOT / path).exists()]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return links + paths + [f"make {name}" for name in MAKE_TARGET.findall(text) if name not in targets]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_document_points_at_what_exists(path: Path) -> None:
    assert missing(path.read_text(), path.parent) == []


def test_a_dead_pointer_is_seen() -> None:
    alive = "[b](README.md#here) [c](https://zray.example/no) `zray/ids.py` `make test`"
    dead = "[a](no.md) `zray/no.py` `make no`"
    assert missing(f"{alive} {dead}", ROOT) == ["no.md", "zray/no.py", "make no"]
