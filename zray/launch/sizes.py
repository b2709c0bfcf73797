"""Amounts of memory as people write them."""

from __future__ import annotations

import re

ARENA_SHARE = 0.3
"""Part of the memory of a job or container that the object store of its node takes, as on a whole machine."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?")


def size_bytes(text: str) -> int:
    """Bytes of ``512M``, ``8G``, ``1.5GiB``; units are powers of 1024.

    Raises:
        ValueError: if it is no size, or less than a MiB.
    """
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1 << 20:
        raise ValueError(f"{text!r} is not an amount of memory of at least 1M, such as 512M, 8G or 1.5GiB")
    return size
