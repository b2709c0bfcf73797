"""The rules hold in the whole repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy import rules

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("zray", "sim", "paper_experiments")
PYTHON = (*PRODUCT, "benchmarks", "examples", "tests")
TEXT_SUFFIXES = frozenset({"", ".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yml"})
TEXT_FOLDERS = (*PYTHON, "docs", ".ci")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_files() -> Iterator[Path]:
    yield from (
        path for path in sorted(ROOT.iterdir()) if path.is_file() and path.name not in ("LICENSE", ".git")
    )
    for folder in TEXT_FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.is_file())


LAYERED = python_files("zray", "sim")
KNOWN = frozenset(map(module_name, LAYERED))


def report(violations: list[str]) -> str:
    return "\n" + "\n".join(violations)


def test_the_tree_is_where_these_tests_look() -> None:
    assert {"zray.ids", "zray.core.machine", "zray.protocol.messages", "sim"} <= KNOWN


@pytest.mark.parametrize("path", LAYERED, ids=relative)
def test_imports_follow_the_layers(path: Path) -> None:
    found = rules.layer_violations(
        path.read_text(), module_name(path), KNOWN, is_package=path.name == "__init__.py"
    )
    assert not found, report(found)


@pytest.mark.parametrize("path", python_files("zray/core"), ids=relative)
def test_core_is_pure(path: Path) -> None:
    found = rules.purity_violations(path.read_text(), module_name(path))
    assert not found, report(found)


@pytest.mark.parametrize("path", python_files(*PYTHON), ids=relative)
def test_functions_and_modules_are_short_and_defaults_immutable(path: Path) -> None:
    source = path.read_text()
    found = rules.length_violations(source, relative(path)) + rules.default_violations(source, relative(path))
    assert not found, report(found)


@pytest.mark.parametrize("path", python_files(*PRODUCT, "benchmarks", "examples"), ids=relative)
def test_public_things_say_what_they_are(path: Path) -> None:
    found = rules.docstring_violations(path.read_text(), relative(path))
    assert not found, report(found)


def test_class_names_of_the_product_are_unique() -> None:
    found = rules.duplicate_class_violations(
        {relative(path): rules.class_names(path.read_text()) for path in python_files(*PRODUCT)}
    )
    assert not found, report(found)


def test_no_file_names_a_machine_path() -> None:
    found = [
        violation
        for path in text_files()
        if path.suffix in TEXT_SUFFIXES
        for violation in rules.workplace_violations(path.read_text(errors="replace"), relative(path))
    ]
    assert not found, report(found)
