"""Errors travel as values; what cannot travel is left out and noted."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from zray.errors import (
    ActorDiedError,
    ObjectLostError,
    RemoteProtocolError,
    TaskError,
    WorkerCrashedError,
    ZrayError,
)
from zray.serialize import values
from zray.serialize.values import dump, dump_error, format_user_traceback, load_error


class TwoArguments(Exception):
    """Pickles by itself and does not unpickle: ``args`` are not what the constructor takes."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class NeverPickles(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("no")


class BrokenText(ZrayError):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no text")


def round_trip(error: BaseException) -> Any:
    return load_error(dump_error(error))


def test_a_task_error_arrives_whole_and_dual() -> None:
    error = round_trip(TaskError("f", "Traceback ...\nKeyError: 'k'\n", KeyError("k")))
    assert (error.function_name, error.traceback_text) == ("f", "Traceback ...\nKeyError: 'k'\n")
    assert (type(error.cause), error.cause.args) == (KeyError, ("k",))
    assert not hasattr(error, "__notes__")
    with pytest.raises(KeyError) as caught:
        raise error.as_cause()
    assert isinstance(caught.value, TaskError)


@pytest.mark.parametrize(
    "error",
    [
        WorkerCrashedError("f", -9, 4),
        ObjectLostError("ab", "gone"),
        ActorDiedError("ab", "its constructor raised", ValueError("bad")),
        ActorDiedError("ab", "killed"),
    ],
)
def test_other_errors_keep_their_fields(error: ZrayError) -> None:
    loaded = round_trip(error)
    assert type(loaded) is type(error)
    assert str(loaded) == str(error)
    assert str(getattr(loaded, "cause", None)) == str(getattr(error, "cause", None))
    assert loaded.__cause__ is getattr(loaded, "cause", None)


def test_an_exception_whose_constructor_differs_still_travels() -> None:
    cause = round_trip(TaskError("f", "text", TwoArguments(3, "x"))).cause
    assert type(cause) is TwoArguments
    assert (cause.code, cause.args) == (3, ("3: x",))


@pytest.mark.parametrize("cause", [NeverPickles("x"), ValueError(threading.Lock())])
def test_a_cause_that_cannot_be_pickled_is_noted(cause: BaseException) -> None:
    error = round_trip(TaskError("f", "the text", cause))
    assert (error.cause, error.traceback_text) == (None, "the text")
    assert type(cause).__name__ in error.__notes__[0]
    assert "could not be pickled" in error.__notes__[0]


def test_a_cause_of_a_missing_module_is_noted(tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("class Oops(Exception):\n    pass\n")
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from only_there import Oops
from zray.errors import TaskError
from zray.serialize.values import dump_error
inner = TaskError("g", "inner text", Oops("x"))
sys.stdout.buffer.write(dump_error(TaskError("f", "outer text", inner.as_cause())))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    error = load_error(subprocess.run(command, capture_output=True, check=True).stdout)
    assert isinstance(error, TaskError)
    assert error.traceback_text == "outer text"
    inner = error.cause
    assert isinstance(inner, TaskError)
    assert (inner.traceback_text, inner.cause) == ("inner text", None)
    assert "only_there.Oops, could not be unpickled here" in inner.__notes__[0]
    # What was lost stays noted when the error travels on.
    assert round_trip(inner).__notes__ == inner.__notes__


def test_nested_task_errors_stay_dual() -> None:
    inner = TaskError("g", "inner", ZeroDivisionError("x")).as_cause()
    cause = round_trip(TaskError("f", "outer", inner)).cause
    assert isinstance(cause, ZeroDivisionError)
    assert isinstance(cause, TaskError)


def test_nothing_makes_it_fail() -> None:
    error = round_trip(BrokenText())
    assert type(error) is ZrayError
    assert "BrokenText" in str(error)
    assert "could not be pickled" in error.__notes__[0]


def test_exceptions_that_are_not_ours_travel_too() -> None:
    error = round_trip(KeyboardInterrupt("stop"))
    assert (type(error), error.args) == (KeyboardInterrupt, ("stop",))


@pytest.mark.parametrize("value", [None, (1, 2), (b"", 1, 2, 3, 4, 5), "x"])
def test_junk_is_a_typed_error(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        load_error(dump(value).to_bytes())
    with pytest.raises(RemoteProtocolError):
        load_error(b"\x80\x05junk")


# --- tracebacks ---


def user_function() -> None:
    raise ValueError("the root cause")


def through_zray(function: Any) -> None:
    """Call ``function`` with a frame of the package around it, as a worker does."""
    code = compile("def run(f):\n    f()\n", values._PACKAGE_DIR + "runtime/worker.py", "exec")
    scope: dict[str, Any] = {}
    exec(code, scope)
    scope["run"](function)


def traceback_of(function: Any) -> str:
    try:
        through_zray(function)
    except BaseException as error:
        return format_user_traceback(error)
    raise AssertionError("it did not raise")


def test_frames_of_zray_are_cut() -> None:
    text = traceback_of(user_function)
    assert "runtime/worker.py" not in text
    assert "in user_function" in text
    assert text.endswith("ValueError: the root cause\n")


def test_an_error_of_zray_alone_keeps_its_frames() -> None:
    with pytest.raises(ZrayError) as caught:
        dump(threading.Lock())
    without_this_test = caught.value.__traceback__.tb_next
    text = format_user_traceback(caught.value.with_traceback(without_this_test))
    assert "serialize/values.py" in text


def test_causes_come_first_and_are_cut_too() -> None:
    def wrapped() -> None:
        try:
            through_zray(user_function)
        except ValueError as error:
            raise RuntimeError("the last word") from error

    text = traceback_of(wrapped)
    assert "runtime/worker.py" not in text
    assert text.index("the root cause") < text.index("the last word")


def test_a_failed_task_inside_ends_with_its_root_cause() -> None:
    inner = TaskError("g", traceback_of(user_function), ValueError("the root cause"))

    def outer() -> None:
        raise inner.as_cause()

    text = traceback_of(outer)
    assert text.count("ValueError: the root cause") == 1
    assert text.index("in outer") < text.index("g() raised in a worker") < text.index("in user_function")
    assert text.endswith("ValueError: the root cause\n")


def test_groups_are_cut_inside() -> None:
    def group() -> None:
        errors = []
        for _ in range(2):
            try:
                through_zray(user_function)
            except ValueError as error:
                errors.append(error)
        raise ExceptionGroup("several", errors)

    text = traceback_of(group)
    assert text.count("in user_function") == 2
    assert "runtime/worker.py" not in text


def test_endless_texts_are_shortened() -> None:
    def long() -> None:
        raise ValueError("x" * 1_000_000)

    text = traceback_of(long)
    assert len(text) < values.TRACEBACK_TEXT_MAX + 100
    assert "characters left out" in text
