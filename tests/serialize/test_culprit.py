"""What cannot be pickled is named, with the path to it."""

from __future__ import annotations

import functools
import threading
import types
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest

from zray.errors import ObjectLostError, SerializationError
from zray.serialize import culprit
from zray.serialize.functions import dump_args, export
from zray.serialize.values import dump

LOCK = "cannot pickle '_thread.lock' object"
Pair = namedtuple("Pair", "left right")


class Holder:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("lock", "other")

    def __init__(self, lock: Any) -> None:
        self.other, self.lock = 1, lock


class ByConstructor:
    """Its attribute is never pickled; the argument of its constructor is."""

    def __init__(self, resource: Any) -> None:
        self.lock, self.resource = threading.Lock(), resource

    def __reduce__(self) -> tuple[Any, ...]:
        return ByConstructor, (self.resource,)


class Raises:
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("not today")


class RaisesOurs:
    def __reduce__(self) -> tuple[Any, ...]:
        raise ObjectLostError("00", "a test")


def lock() -> Any:
    return threading.Lock()


def culprit_of(value: Any) -> tuple[str, str]:
    with pytest.raises(SerializationError) as caught:
        dump(value, "a test", "v")
    assert caught.value.what == "a test"
    return caught.value.path, caught.value.detail


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lock(), "v"),
        ([1, [2, (3, lock())]], "v[1][1][1]"),
        ({"a": {"b c": lock()}}, "v['a']['b c']"),
        ({1, lock()}, None),
        (Pair(1, lock()), "v.right"),
        (OrderedDict(k=lock()), "v['k']"),
        (Holder(sessions=[0, 1, 2, Holder(lock=lock())]), "v.sessions[3].lock"),
        (Slotted(lock()), "v.lock"),
        (ByConstructor(lock()), "v.<made from 0>"),
        (functools.partial(print, 1, sep=lock()), "v.keywords['sep']"),
        (Holder(lock=lock()).__init__, "v.__self__.lock"),
        (types.SimpleNamespace(a=1, b=lock()), "v.b"),
        (np.array([1, lock()], dtype=object), "v.flat[1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_path_leads_to_the_lock(value: Any, path: str | None) -> None:
    found, detail = culprit_of(value)
    assert detail == LOCK
    if path is None:  # sets have no order
        assert found in ("v[0]", "v[1]")
    else:
        assert found == path


def test_a_key_can_be_the_culprit() -> None:
    found, detail = culprit_of({lock(): 1})
    assert found.startswith("v.<key <unlocked")
    assert detail == LOCK


def test_functions_name_the_variable() -> None:
    hidden, fine = lock(), 1

    def by_closure() -> Any:
        return hidden, fine

    by_global = eval("lambda: [model for _ in '1']", {"model": Holder(lock=lock()), "unused": lock()})
    by_default = eval("lambda guard=guard: guard", {"guard": lock()})

    assert culprit_of(by_closure) == ("v.__closure__['hidden']", LOCK)
    assert culprit_of(by_global) == ("v.<global> model.lock", LOCK)
    assert culprit_of(by_default) == ("v.__defaults__[0]", LOCK)


def test_classes_name_the_attribute() -> None:
    guard = lock()

    class Service:
        limits = (1, guard)

    class Method:
        @staticmethod
        def enter() -> Any:
            return guard

    assert culprit_of(Service) == ("v.limits[1]", LOCK)
    assert culprit_of(Method) == ("v.enter.__closure__['guard']", LOCK)


def test_exports_name_the_function() -> None:
    hidden = lock()
    with pytest.raises(SerializationError) as caught:
        export(lambda: hidden)
    assert (caught.value.what, caught.value.path) == (
        "function <lambda>",
        "<lambda>.__closure__['hidden']",
    )


def train(data: Any, cfg: Any = None, *rest: Any, **more: Any) -> None:
    """Named by the errors below."""


class Trainer:
    def step(self, batch: Any) -> None:
        """A method, as the handle of an actor knows it."""


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "what", "path"),
    [
        (train, (1, Holder(x=[lock()])), {}, "argument 'cfg' of train()", "cfg.x[0]"),
        (train, (1,), {"cfg": [lock()]}, "argument 'cfg' of train()", "cfg[0]"),
        (train, (1, 2, lock()), {}, "argument '#2' of train()", "#2"),
        (Trainer.step, (lock(),), {}, "argument 'batch' of Trainer.step()", "batch"),
        ("train", (lock(),), {}, "argument '#0' of train()", "#0"),
        (min, (lock(),), {}, "argument '#0' of min()", "#0"),
    ],
)
def test_arguments_are_named(function: Any, args: Any, kwargs: Any, what: str, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        dump_args(args, kwargs, Slotted, function)
    assert (caught.value.what, caught.value.path, caught.value.detail) == (what, path, LOCK)


def test_errors_of_user_code_are_described() -> None:
    assert culprit_of([Raises()]) == ("v[0]", "RuntimeError: not today")


def test_errors_of_zray_pass() -> None:
    with pytest.raises(ObjectLostError):
        dump([RaisesOurs()])


def test_cycles_and_depth_end() -> None:
    cycle = Holder(lock=lock())
    cycle.myself = [cycle]
    assert culprit_of(cycle) == ("v.lock", LOCK)

    deep: Any = lock()
    for _ in range(100):
        deep = [deep]
    path, detail = culprit_of(deep)
    assert path == "v" + "[0]" * culprit.DEPTH_MAX
    assert detail == LOCK

    bottomless: Any = []
    for _ in range(100_000):
        bottomless = [bottomless]
    assert culprit_of(bottomless) == ("v", "it is nested too deeply")


def test_the_search_stops_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "SEARCH_TIME_MAX_NS", -1)
    assert culprit_of([lock()]) == ("v", LOCK)
