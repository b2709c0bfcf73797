"""Bytes that machines hand on without looking inside: values of GCS tables and reports for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")

encode_value: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
"""A message -> the value of a table entry."""

encode_report: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""Plain dicts and lists -> a JSON document."""


def decode_value(value: bytes, kind: type[_T]) -> _T:
    """The message whose :func:`encode_value` is ``value``.

    Raises:
        msgspec.DecodeError: if it is none of that kind.
    """
    return msgspec.msgpack.decode(value, type=kind)
