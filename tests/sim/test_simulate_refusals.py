"""What ``zray.simulate`` cannot do it refuses by name, and goes on."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import zray
from zray.util.state import list_actors


@zray.remote
def echo(value: int) -> int:
    return value


@zray.remote
class Plain:
    def read(self) -> int:
        return 7

    def pid(self) -> int:
        return os.getpid()


def test_what_has_no_place_in_a_simulation() -> None:
    with zray.simulate(nodes=1, cpus=2):
        plain, ended = Plain.remote(), echo.remote(1)
        assert zray.get(ended) == 1
        pid = zray.get(plain.pid.remote())
        refused: list[tuple[str, Any]] = [
            ("what all nodes have", list_actors),
            ("future", ended.future),
            ("signal", lambda: os.kill(pid, signal.SIGINT)),
            ("runtime environment", lambda: echo.options(runtime_env={"env_vars": {"A": "1"}}).remote(1)),
            ("runtime environment", lambda: echo.options(runtime_env={"working_dir": "."}).remote(1)),
        ]
        for what, call in refused:
            with pytest.raises(NotImplementedError, match=what):
                call()
        assert zray.get(echo.remote(3)) == 3
        assert zray.get(plain.read.remote()) == 7
