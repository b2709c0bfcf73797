"""Each rule catches a small wrong source and lets the right one next to it pass."""

from __future__ import annotations

import pytest

from tests.tidy import rules

KNOWN = frozenset({"zray.ids", "zray.protocol.codec", "zray.protocol.messages", "zray.core.machine"})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zray.ids", "import msgspec"),
        ("zray.ids", "from zray.core.machine import pump"),
        ("zray.protocol.messages", "from zray.core import machine"),
        ("zray.core.node", "from zray.protocol import codec"),
        ("zray.core.node", "from zray.protocol.codec import encode_batch"),
        ("zray.core.node", "from ..protocol import codec"),
        ("zray.core.node", "import numpy as np"),
        ("zray.core.node", "import msgspec"),
        ("zray.core.node", "def late():\n    import zray.store.arena"),
        ("zray.store.arena", "from zray.runtime import loop"),
        ("zray.store.arena", "from zray.serialize import values"),
        ("zray.runtime.loop", "from zray.api import session"),
        ("zray.runtime.loop", "import zray"),
        ("zray.services.node", "import zray.api.session"),
        ("zray.api.session", "import rich"),
        ("sim.cluster", "import zmq"),
        ("sim.cluster", "from zray.runtime.loop import run"),
        ("sim.cluster", "import zray"),
        ("sim.plots", "import zmq"),
        ("sim.real.driver", "from zray.runtime.client import Client"),
        ("zray.api.objects", "from sim import chrome"),
        ("zray", "from zray.runtime.client import Client"),
        ("zray.brand_new", ""),
    ],
)
def test_an_import_across_layers_is_caught(module: str, source: str) -> None:
    assert len(rules.layer_violations(source, module, KNOWN)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zray.errors", "from typing import Any"),
        ("zray.config", "from zray.errors import ZrayError"),
        ("zray.protocol.codec", "import msgspec\nfrom zray.protocol import messages"),
        ("zray.core.node", "from zray.protocol import messages\nfrom zray import ids"),
        ("zray.core.node", "from msgspec.structs import replace"),
        ("zray.core.node", "from . import machine\nfrom ..protocol.messages import Submit"),
        ("zray.core.placement", "import numpy as np\nfrom zray.core.machine import Address"),
        ("zray.runtime.loop", "import zmq\nfrom zray.store.arena import Arena"),
        ("zray.cli", "import zray\nfrom zray.services import node"),
        ("sim.cluster", "from sim import kernel\nfrom zray.core.machine import pump"),
        ("sim.plots", "from matplotlib.figure import Figure"),
        ("sim.real.driver", "import zray"),
        ("zray.api.simulation", "from sim import chrome"),
        ("zray", "from zray.api.session import init"),
    ],
)
def test_an_import_within_the_table_passes(module: str, source: str) -> None:
    assert rules.layer_violations(source, module, KNOWN) == []


def test_relative_imports_of_a_package_are_resolved_from_the_package_itself() -> None:
    source = "from .session import init"
    assert rules.layer_violations(source, "zray.api", KNOWN, is_package=True) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from datetime import datetime",
        "def late():\n    import logging",
        "import random\nx = random.random()",
        "import random as dice\nx = dice.choice([1])",
        "from random import shuffle",
        "import random\nx = random.Random()",
        "x = hash(b'')",
        "x = sorted(xs, key=id)",
        "x = {1, 2}",
        "x = {y for y in ys}",
        "x = set()",
        "x = frozenset(ys)",
        "print('here')",
        "from zray.ids import random_id",
        "from zray import ids\nx = ids.random_id()",
        "x = Config.from_environment()",
    ],
)
def test_an_impure_line_is_caught(source: str) -> None:
    assert rules.purity_violations(source, "zray.core.node") != []


@pytest.mark.parametrize(
    "source",
    [
        "from random import Random\n\ndef draw(rng: Random) -> float:\n    return rng.random()",
        "import random\nx = random.Random(7)",
        "x = {1: 2}\ny = {key: None for key in x}",
        "class A:\n    def set(self) -> None: ...\n\nA().set()",
        "from zray import ids\nx = ids.task_id(b'', 1)",
        "from collections import deque",
    ],
)
def test_a_pure_line_passes(source: str) -> None:
    assert rules.purity_violations(source, "zray.core.node") == []


def test_long_functions_and_modules_are_caught() -> None:
    def function(lines: int) -> str:
        return "def f():\n" + "    pass\n" * (lines - 1)

    assert rules.length_violations(function(rules.FUNCTION_LINES_MAX), "m") == []
    assert len(rules.length_violations(function(rules.FUNCTION_LINES_MAX + 1), "m")) == 1
    assert rules.length_violations("x = 1\n" * rules.MODULE_LINES_MAX, "m") == []
    assert len(rules.length_violations("x = 1\n" * (rules.MODULE_LINES_MAX + 1), "m")) == 1


def test_missing_docstrings_are_caught() -> None:
    assert rules.docstring_violations("", "m") == []
    assert rules.docstring_violations('"""M."""\n\ndef _private(): pass\n', "m") == []
    bare = "class A: pass\n\ndef f(): pass\n\nasync def g(): pass\n"
    assert len(rules.docstring_violations(bare, "m")) == 4


@pytest.mark.parametrize("default", ["[]", "{}", "{1}", "list()", "dict()", "[x for x in y]", "deque()"])
def test_a_mutable_default_is_caught(default: str) -> None:
    assert len(rules.default_violations(f"def f(x, y={default}): pass", "m")) == 1
    assert len(rules.default_violations(f"def f(*, x, y={default}): pass", "m")) == 1
    assert len(rules.default_violations(f"f = lambda x={default}: x", "m")) == 1


@pytest.mark.parametrize("default", ["()", "None", "0", "Config()"])
def test_an_immutable_default_passes(default: str) -> None:
    assert rules.default_violations(f"def f(x={default}, *, y): pass", "m") == []


def test_a_class_name_used_twice_is_caught() -> None:
    assert rules.class_names("class A:\n    class Inner: pass\n\nclass B: pass") == ["A", "B"]
    assert rules.duplicate_class_violations({"m": ["A"], "n": ["B"]}) == []
    assert rules.duplicate_class_violations({"m": ["A"], "n": ["A"]}) == ["class A is defined in m, n"]


def test_a_machine_path_is_caught() -> None:
    for root in ("work", "opt"):
        assert len(rules.workplace_violations(f"see /{root}/thing", "m")) == 1
        assert rules.workplace_violations(f"driver/{root}er docs/{root}/x a.{root}/b", "m") == []
