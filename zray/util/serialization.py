"""Serializers for classes that do not pickle, or not well."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any, TypeVar

from zray.api.refused import absent

T = TypeVar("T")


def register_serializer(
    cls: type[T], *, serializer: Callable[[T], Any], deserializer: Callable[[Any], T]
) -> None:
    """Pickle instances of ``cls`` with functions of one's own, in this process.

    Args:
        cls: exactly this class, not those that inherit from it.
        serializer: an instance -> something that pickles.
        deserializer: that -> an instance. It travels with each value, so only senders need to register.
    Raises:
        TypeError: if ``cls`` is no class.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer takes a class, not {cls!r}")
    copyreg.pickle(cls, lambda value: (_load, (deserializer, serializer(value))))


def deregister_serializer(cls: type) -> None:
    """Take :func:`register_serializer` back; a class without one changes nothing."""
    copyreg.dispatch_table.pop(cls, None)


def _load(deserializer: Callable[[Any], T], data: Any) -> T:
    return deserializer(data)


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)
