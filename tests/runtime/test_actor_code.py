"""How the code of an actor ends it, and how it is told: what both worlds ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from zray.runtime.actor_class import ActorExitRequest
from zray.runtime.actor_code import Outcome, ending_of, made, print_failed_farewell, shut_down
from zray.runtime.exit_codes import EXIT_RAISED, exit_code_of, print_ending


class AnyError(BaseException):
    pass


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ActorExitRequest(), 0),
        (SystemExit(), 0),
        (SystemExit(0), 0),
        (SystemExit(256), 0),  # as the system counts
        (SystemExit(3), 3),
        (SystemExit(-1), 255),
        (SystemExit("a sentence"), EXIT_RAISED),
        (KeyError("x"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_only_two_exceptions_end_an_actor(error: BaseException, exit_code: int | None) -> None:
    assert ending_of(error) == exit_code


def test_a_process_ends_as_the_interpreter_does(capsys: pytest.CaptureFixture[str]) -> None:
    endings = [None, SystemExit(7), SystemExit(), SystemExit("a sentence"), AnyError("x")]
    assert [exit_code_of(error) for error in endings] == [0, 7, 0, EXIT_RAISED, EXIT_RAISED]
    for error in endings[1:]:
        assert error is not None
        print_ending(error)
    printed = capsys.readouterr().err
    assert printed.startswith("a sentence\n")
    assert "AnyError: x" in printed


class Made:
    async def __init__(self, value: int) -> None:
        await asyncio.sleep(0)
        if value < 0:
            raise SystemExit(value)
        self.value = value


def test_what_a_constructor_raises_does_not_end_its_loop() -> None:
    async def both() -> tuple[Outcome, Outcome]:
        return await made(call, Made, (7,), {}), await made(call, Made, (-1,), {})

    (instance, no_error), (nothing, error) = asyncio.run(both())
    assert instance.value == 7
    assert (no_error, nothing) == (None, None)
    assert isinstance(error, SystemExit)


class Silent:
    pass


class Failing:
    async def __ray_shutdown__(self) -> None:
        raise SystemExit(1)


def test_a_farewell_that_fails_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    shut_down(Silent(), call, None)
    with pytest.raises(SystemExit) as failed:
        shut_down(Failing(), call, asyncio.run)
    print_failed_farewell("Failing", failed.value)
    assert "Failing.__ray_shutdown__() raised:" in capsys.readouterr().err
