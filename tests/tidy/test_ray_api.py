"""Every public name of Ray Core is on ``docs/compatibility.md``; what is not refused there exists.

``ray_api.json`` is what ``record_ray_api.py`` found in the version of Ray that the page names.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import zray
from zray.api import options
from zray.api.refused import REFUSED
from zray.api.session import _REFUSED as REFUSED_BY_INIT
from zray.runtime.environment import FIELDS
from zray.runtime.environment import REFUSED as REFUSED_FIELDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text()
RAY: dict[str, str] = json.loads((Path(__file__).parent / "ray_api.json").read_text())
WHOLE = ("zray.exceptions", "zray.util.accelerators")
"""Modules of which the page says that every name is there."""
METHODS_ON_THE_PAGE = "## Methods that are refused"


def of(prefix: str) -> list[tuple[str, list[str]]]:
    return [
        (key.removeprefix(prefix).replace("ray", "zray", 1), value.split())
        for key, value in RAY.items()
        if key.startswith(prefix)
    ]


def mentioned() -> set[str]:
    """Every word inside backticks."""
    return {word for code in re.findall(r"`([^`]*)`", PAGE) for word in re.findall(r"\w+", code)}


def found(path: str) -> Any:
    """What Ray has at this path, in zray; a module or an attribute."""
    if path == "zray.util.placement_group":  # hidden by the function of that name, in Ray as well
        return importlib.import_module(path)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        parent, _, name = path.rpartition(".")
        return getattr(importlib.import_module(parent), name)


@pytest.mark.parametrize(("module", "names"), of("module "))
def test_names(module: str, names: list[str]) -> None:
    there, on_page, refused = found(module), mentioned(), REFUSED.get(module, {})
    for name in names:
        assert name in on_page or module in WHOLE, f"{module}.{name} is not on the page"
        if name in refused:
            with pytest.raises(AttributeError, match=re.escape(refused[name])):
                getattr(there, name)
        else:
            assert hasattr(there, name) or found(f"{module}.{name}"), name


@pytest.mark.parametrize(("path", "names"), of("class "))
def test_methods(path: str, names: list[str]) -> None:
    refused = PAGE.partition(METHODS_ON_THE_PAGE)[2].partition("\n## ")[0]
    module, _, name = path.rpartition(".")
    cls = getattr(found(module), name)
    missing = {name for name in names if not hasattr(cls, name) and name not in vars_of(cls)}
    rows = [row for row in refused.splitlines() if row.startswith(f"| `{name}`")]
    said = {
        word for row in rows for code in re.findall(r"`([^`]*)`", row) for word in re.findall(r"\w+", code)
    }
    assert missing <= said, f"neither there nor refused: {sorted(missing - said)}"
    assert not {name for name in names if hasattr(cls, name)} & (said - {name}), "refused, and there"


def vars_of(cls: type) -> set[str]:
    """Attributes that instances get from ``__init__``."""
    return set(re.findall(r"self\.(\w+)(?:: [^=]+)? =", inspect.getsource(cls)))


@pytest.mark.parametrize(("function", "names"), of("function "))
def test_parameters(function: str, names: list[str]) -> None:
    """By name; those that are given by position only in practice may be called otherwise."""
    own = [
        each.name
        for each in inspect.signature(getattr(zray, function)).parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    positional = {"object_refs", "ray_waitables", "ray_waitable"}
    internal = {"_owner", "_tensor_transport", "_use_object_store"}
    missing = set(names) - set(own) - positional - internal
    assert missing <= (set(REFUSED_BY_INIT) if function == "init" else set())
    assert missing <= mentioned(), "refused, and not on the page"


@pytest.mark.parametrize(
    ("kind", "defaults"), [("tasks", options.TASK_DEFAULTS), ("actors", options.ACTOR_DEFAULTS)]
)
def test_options(kind: str, defaults: dict[str, Any]) -> None:
    for name in RAY[f"options of {kind}"].split():
        assert name in mentioned(), name
        if name not in defaults:
            with pytest.raises(ValueError, match="zray refuses the option"):
                options.merged(defaults, {name: None}, "it")


def test_runtime_env() -> None:
    for name in RAY["runtime_env"].split():
        assert name in mentioned(), name
        assert (name in FIELDS) != (name in REFUSED_FIELDS), name


def test_the_page_names_the_version() -> None:
    assert f"(as of {RAY['version'].rpartition('.')[0]})" in PAGE
