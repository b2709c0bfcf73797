"""What becomes of promised objects when the process that promised them is gone."""

from __future__ import annotations

from zray.core.identity import ClientEntry
from zray.core.node_store import CREATING, SEALED, NodeStore
from zray.core.references import References
from zray.ids import short
from zray.protocol import faults


def break_all(client: ClientEntry, store: NodeStore, references: References) -> None:
    """The results of a process's actor calls that others wait for are lost with it."""
    for object_id in client.promised:
        entry = store.objects.get(object_id)
        if entry is None or entry.state >= SEALED:
            continue
        if entry.state == CREATING:  # the actor is about to keep the promise itself
            entry.known = False
            continue
        reason = "the process that waited for its actor call is gone"
        store.seal(entry, faults.fault_value(faults.OBJECT_LOST, short(object_id), reason))
        references.free_if_unneeded(entry)
