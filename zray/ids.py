"""Identifiers: sixteen bytes that say where a thing came from.

Layout of a task or object id (big endian)::

    | 8 bytes: lineage prefix | 4 bytes: counter | 4 bytes: index |

The prefix is a digest of the *parent* task's id, the counter numbers what the parent made, and the
index tells the task itself (0) from its return values (1, 2, ...) and from a value that the parent
``put`` (``PUT_INDEX``). So a parent that is run again re-creates the same ids, and the producer of
an object is read off its id without a look-up (paper, section 4.2.3: lineage re-execution).

A driver starts a job with a random prefix. The chance that any two of 10**8 submitting tasks share a
64-bit prefix is about 3e-4; the tables that hold specs refuse a second, different one under a known id.
"""

from __future__ import annotations

import os

try:
    from _blake2 import blake2b  # what hashlib has, without the OpenSSL library that hashlib loads
except ImportError:
    from hashlib import blake2b

ID_BYTES = 16
PREFIX_BYTES = 8
PUT_INDEX = 0x8000_0000
RETURNS_MAX = 0x7FFF_FFFF
NIL_ID = bytes(ID_BYTES)

_TASK_SUFFIX = bytes(4)
_PUT_SUFFIX = PUT_INDEX.to_bytes(4, "big")
_FIRST_RETURN_SUFFIX = (1).to_bytes(4, "big")
_KEPT_SUFFIXES = [index.to_bytes(4, "big") for index in range(1, 1025)]  # 70 ns each to make anew


def random_id() -> bytes:
    """A fresh 16-byte id for a node, a worker, a driver or a cluster."""
    return os.urandom(ID_BYTES)


def root_task_id() -> bytes:
    """The id of a driver, seen as the root task of a new job."""
    return os.urandom(PREFIX_BYTES) + bytes(8)


def child_prefix(parent_task_id: bytes) -> bytes:
    """The 8-byte prefix of everything that ``parent_task_id`` submits or puts."""
    return blake2b(parent_task_id, digest_size=PREFIX_BYTES).digest()


def task_id(prefix: bytes, counter: int) -> bytes:
    """The id of the ``counter``-th thing a parent made, seen as a task."""
    return prefix + counter.to_bytes(4, "big") + _TASK_SUFFIX


def put_id(prefix: bytes, counter: int) -> bytes:
    """The id of the ``counter``-th thing a parent made, seen as a ``put`` value."""
    return prefix + counter.to_bytes(4, "big") + _PUT_SUFFIX


def first_return_id(task: bytes) -> bytes:
    """The object id of a task's first return value (the hot case)."""
    return task[:12] + _FIRST_RETURN_SUFFIX


def return_id(task: bytes, index: int) -> bytes:
    """The object id of return value ``index`` of a task, counted from 1."""
    return task[:12] + index.to_bytes(4, "big")


def return_ids(task: bytes, num_returns: int) -> tuple[bytes, ...]:
    """The object ids of a task's return values, in order."""
    stem = task[:12]
    if num_returns == 1:
        return (stem + _FIRST_RETURN_SUFFIX,)
    if num_returns <= len(_KEPT_SUFFIXES):
        return tuple([stem + suffix for suffix in _KEPT_SUFFIXES[:num_returns]])
    return tuple([stem + index.to_bytes(4, "big") for index in range(1, num_returns + 1)])


def producer_of(object_id: bytes) -> bytes:
    """The task that returns ``object_id``; for a ``put`` value an id that no task has."""
    return object_id[:12] + _TASK_SUFFIX


def is_put(object_id: bytes) -> bool:
    """Whether ``object_id`` was made by ``put`` (and so has no task that could make it again)."""
    return object_id[12:] == _PUT_SUFFIX


def digest(content: bytes, size_bytes: int) -> bytes:
    """A short digest, the same in every process; without loading what ``hashlib`` loads."""
    return blake2b(content, digest_size=size_bytes).digest()


def content_id(content: bytes) -> bytes:
    """The id of immutable content: a function's code, a task descriptor."""
    return blake2b(content, digest_size=ID_BYTES).digest()


def package_id(content: bytes) -> bytes:
    """The id of the object that a package with this content is, which looks like one that was ``put``."""
    return blake2b(content, digest_size=12).digest() + _PUT_SUFFIX


def package_object_id(digest: bytes) -> bytes:
    """The same, from the 12 bytes of the digest."""
    return digest + _PUT_SUFFIX


def shard_of(key: bytes, shard_count: int) -> int:
    """Which GCS shard owns ``key``: a task and its objects share one (paper, section 4.2.1).

    The digest keeps the choice the same in every process, whatever its hash seed.
    """
    if shard_count == 1:
        return 0
    return int.from_bytes(blake2b(key[:12], digest_size=4).digest(), "big") % shard_count


def short(an_id: bytes) -> str:
    """The first bytes of an id in hex, for logs and messages to people."""
    return an_id.hex()[:24].rstrip("0") or "0"
