"""All results of one task at once: sealed in one walk, and told in one message.

As a rule one process submitted the task, holds all of its return objects and waits to hear of each, and all
are small. Then their ids follow from that of the task, and the process is told with one ``ResultsReady``.
Everything else takes the way of a single object (:meth:`NodeStore.seal`), with the same outcome.
"""

from __future__ import annotations

from typing import Any

from zray.core.machine import Address
from zray.core.node_store import PENDING, SEALED, NodeStore, ObjectEntry
from zray.protocol.messages import ERROR, FAULT, INLINE, Value
from zray.protocol.user_messages import ResultsReady

TOLD_BYTES_MAX = 8 << 20
"""What the values of one ``ResultsReady`` take; of more, each object is told by itself."""

_IN_A_MESSAGE = (INLINE, ERROR, FAULT)


def seal_together(store: NodeStore, task_id: bytes, made: list[tuple[ObjectEntry, Value]]) -> bool:
    """Seal all return objects of a task, if one process holds them, waits for them, and nobody else looks.

    Args:
        store: of their entries.
        task_id: the task.
        made: all of them, in order, with their values.
    Returns:
        False if this is no such case; then nothing has happened.
    """
    reader = _only_reader(store, made)
    if reader is None:
        return False
    values = []
    dependents: list[Any] = []
    for entry, value in made:
        entry.known = True
        entry.state = SEALED
        entry.value = value
        entry.subscribers = None
        values.append(value)
        if entry.dependents:
            dependents += entry.dependents
            entry.dependents = None
    if store.is_alive(reader):
        store.out.append((reader, ResultsReady(task_id, tuple(values))))
    if dependents:
        store.on_sealed(dependents)
    return True


def _only_reader(store: NodeStore, made: list[tuple[ObjectEntry, Value]]) -> Address | None:
    subscribers = made[0][0].subscribers
    if not subscribers or len(subscribers) > 1 or store.shared:
        return None
    told_bytes = 0
    for entry, value in made:
        if entry.state != PENDING or entry.subscribers != subscribers or entry.waiters or not entry.holders:
            return None
        if value.kind not in _IN_A_MESSAGE or value.contained:
            return None
        told_bytes += len(value.data)
    return subscribers[0] if told_bytes <= TOLD_BYTES_MAX else None
