"""What the documents point at exists, and so does what they and the comments call by its name in the code."""

from __future__ import annotations

import builtins
import re
import sys
from functools import cache
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


# --- names -------------------------------------------------------------------------------------------

SOURCES = [
    path for folder in ("zray", "sim", "tests", "benchmarks", "paper_experiments", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]  # fmt: skip
SAID = re.compile(r"(?<!`)`{1,2}([^`\n]+)`{1,2}(?!`)")
PROSE = re.compile(r'"""[\s\S]*?"""|#.*')
"""Docstrings and comments."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
VARIABLE = re.compile(r"\bZRAY_[A-Z_]+\b")
SYSTEM = {
    "EINVAL", "MADV_COLLAPSE", "MADV_POPULATE_WRITE", "SIGBUS", "deny", "epoll_ctl", "epoll_wait",
    "eventfd", "futex", "malloc", "mallopt", "memfd", "recvfrom", "sendto", "shmem_enabled", "sun_path",
}  # fmt: skip
"""Calls, constants and settings of the system."""
FOREIGN = {
    "--randomly-seed", "Class", "Makefile", "NAME", "SIZE", "WORD", "_async", "kubectl", "pyplot",
    "shared_memory",
}  # fmt: skip
"""Of other programs, parts of names, or to be replaced by the reader."""
COMPARED = "compatibility.md"
"""It is about names that zray has not, and has tests of its own."""


@cache
def names() -> frozenset[str]:
    """Every word and every option of the code itself, without what it says in docstrings and comments."""
    known = {*dir(builtins), *sys.stdlib_module_names, *SYSTEM, *FOREIGN}
    for path in SOURCES:
        code = PROSE.sub("", path.read_text())
        known.update(
            path.with_suffix("").relative_to(ROOT).parts, re.findall(r"\w+", code), OPTION.findall(code)
        )
    return frozenset(known)


def unknown(text: str) -> list[str]:
    """What ``text`` calls by a name that nothing has: names and options in backticks, variables anywhere."""
    found = [
        name for name in VARIABLE.findall(text) if not names() & {name, name.removeprefix("ZRAY_").lower()}
    ]
    for said in SAID.findall(text):
        found += [option for option in OPTION.findall(said) if option not in names()]
        if re.fullmatch(r"[A-Za-z_][\w.]*(?:\(\))?", said) and not VARIABLE.fullmatch(said):
            found += [said for part in re.findall(r"\w+", said) if part not in names()]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if path.name != COMPARED],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_a_document_calls_things_by_names_that_they_have(path: Path) -> None:
    assert unknown(re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)) == []


def test_comments_call_things_by_names_that_they_have() -> None:
    product = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("zray", "sim")]
    prose = {path: "\n".join(PROSE.findall(path.read_text())) for path in product}
    found = {path.relative_to(ROOT).as_posix(): unknown(text) for path, text in prose.items()}
    assert {path: each for path, each in found.items() if each} == {}


def test_a_name_that_nothing_has_is_seen() -> None:
    alive = "``LocalScheduler`` `zray.get()` `zray start --head` ZRAY_INIT_TIMEOUT_NS `two words` `x + y`"
    dead = "``LocalSchedular`` `zray.no_such()` `zray start --head-first` ZRAY_NO_SUCH"
    assert unknown(alive) == []
    assert unknown(dead) == ["ZRAY_NO_SUCH", "LocalSchedular", "zray.no_such()", "--head-first"]
