"""What ``zray.simulate`` cannot do yet it refuses by name, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import zray
from zray.util.state import list_actors


@zray.remote
def yields() -> Iterator[int]:
    yield 1


@zray.remote
def echo(value: int) -> int:
    return value


@zray.remote
class Plain:
    def read(self) -> int:
        return 7

    def yields(self) -> Iterator[int]:
        yield 1


def test_what_has_no_simulated_worker() -> None:
    with zray.simulate(nodes=1, cpus=2):
        plain, ended = Plain.remote(), echo.remote(1)
        assert zray.get(ended) == 1
        refused: list[tuple[str, Any]] = [
            ("task that yields", yields.remote),
            ("method that yields", plain.yields.remote),
            ("several calls at once", Plain.options(max_concurrency=2).remote),
            ("what all nodes have", list_actors),
            ("runtime environment", lambda: echo.options(runtime_env={"env_vars": {"A": "1"}}).remote(1)),
            ("runtime environment", lambda: echo.options(runtime_env={"working_dir": "."}).remote(1)),
        ]
        for what, call in refused:
            with pytest.raises(NotImplementedError, match=what):
                call()
        assert zray.get(echo.remote(3)) == 3
        assert zray.get(plain.read.remote()) == 7
