"""Copies of put objects that this node keeps, as one of several: ``put(value, copies=2)``.

No task can make again what ``put`` made, so whoever cannot do without it asks for copies. The directory of
the object's shard counts the nodes that keep one and chooses further ones while they are too few: when the
first says so, when one of them dies, when a node joins (``object_directory.py``). A kept copy is spilled like
an original, never evicted, and goes when no node holds the object any more. Whoever asked hears how many
there are, at the latest after ``copies_patience_ns``: if enough, the death of one node loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.config import Config
from zray.core.machine import Address, Effect, invariant
from zray.core.node_store import PENDING, SEALED, NodeStore, ObjectEntry
from zray.core.references import References
from zray.core.sharing import Sharing
from zray.ids import short
from zray.protocol.cluster import CopiesCounted, KeepCopy
from zray.protocol.messages import AT_NODE, ERROR, INLINE
from zray.protocol.user_messages import CopiesKept, KeepCopies

QUESTIONS_MAX = 10_000
"""Processes of this node that wait for copies, each with one object."""
ALONE = "this cluster has no other node; a copy is made once there is one"
TOO_FEW = "this cluster has too few nodes; more copies are made once there are more"
LATE = "no word of the others yet; they are made as soon as the control store and other nodes can be heard"
CROWDED = f"{QUESTIONS_MAX} processes wait for copies already; they are made all the same"
UNKNOWN = "the object is not known to this node any more"


class KeptCopies:
    """Kept copies of one node, and who waits for those of others. Pure; shares its node's outbox.

    Args:
        out: the node's outbox.
        config: how long whoever asked for copies waits for them.
        is_client: whether an address is a living process of this node.
    """

    def __init__(
        self,
        out: list[Effect],
        *,
        config: Config,
        store: NodeStore,
        references: References,
        sharing: Sharing,
        is_client: Callable[[Address], bool],
    ) -> None:
        self.out = out
        self.config = config
        self.store = store
        self.references = references
        self.sharing = sharing
        self.is_client = is_client
        self.asked: dict[tuple[Address, int], tuple[bytes, int, int]] = {}  # -> object, copies, deadline
        self.arriving: dict[bytes, None] = {}  # kept, pinned and not here yet

    @property
    def wake_at_ns(self) -> int | None:
        """When the first question is answered, whatever there is. Questions are in the order of deadlines."""
        return next(iter(self.asked.values()))[2] if self.asked else None

    # --- asked for ---------------------------------------------------------------------------------

    def on_keep_copies(self, now_ns: int, source: Address, message: KeepCopies) -> None:
        """A process of this node has put an object that is to survive a node."""
        entry = self.store.objects.get(message.object_id)
        if entry is None:
            self.out.append((source, CopiesKept(message.token, 0, UNKNOWN)))
            return
        if not self.sharing.active:
            self.store.keep(entry, message.copies)
            self.out.append((source, CopiesKept(message.token, 1, ALONE)))
        elif len(self.asked) >= QUESTIONS_MAX:
            self._keep(entry, message.copies)
            self.out.append((source, CopiesKept(message.token, 1, CROWDED)))
        else:
            deadline_ns = now_ns + self.config.copies_patience_ns
            self.asked[source, message.token] = message.object_id, message.copies, deadline_ns
            self._keep(entry, message.copies)

    def on_copies_counted(self, now_ns: int, source: Address, message: CopiesCounted) -> None:
        """The directory says how many nodes keep a copy, and asks nobody else at present."""
        if source not in self.sharing.by_address:
            return
        for question, (object_id, wanted, _) in list(self.asked.items()):
            if object_id == message.object_id:
                self._answer(question, message.copies, "" if message.copies >= wanted else TOO_FEW)

    def _answer(self, question: tuple[Address, int], copies: int, reason: str) -> None:
        del self.asked[question]
        asker, token = question
        if self.is_client(asker):
            self.out.append((asker, CopiesKept(token, copies, reason)))

    def client_gone(self, address: Address) -> None:
        """A process is gone and waits for nothing; what it asked for is kept while anybody holds it."""
        for question in [question for question in self.asked if question[0] == address]:
            del self.asked[question]

    def on_tick(self, now_ns: int) -> None:
        """Nobody waits for ever."""
        for question, (_, _, deadline_ns) in list(self.asked.items()):
            if deadline_ns > now_ns:
                return
            self._answer(question, 1, LATE)

    # --- kept --------------------------------------------------------------------------------------

    def on_keep_copy(self, now_ns: int, source: Address, message: KeepCopy) -> None:
        """The directory chose this node to keep a copy of what others have."""
        value = message.value
        if source not in self.sharing.by_address or value.kind not in (AT_NODE, INLINE, ERROR):
            return
        entry = self.store.entry(message.object_id)
        self.sharing.hold(entry)
        if entry.state == PENDING and value.kind == AT_NODE:
            self.sharing.adopt(entry, value, message.nodes, is_home=False)
        self._keep(entry, message.copies)
        if entry.state == PENDING and value.kind != AT_NODE:
            self.references.contain(now_ns, value.contained)
            self.store.seal(entry, value)
        self.references.free_if_unneeded(entry)

    def _keep(self, entry: ObjectEntry, copies: int) -> None:
        """What is here is kept and announced as such; what is not is fetched, and held until it is."""
        self.store.keep(entry, copies)
        if entry.state != SEALED:
            self.sharing.hold(entry)
            if entry.object_id not in self.arriving:
                self.arriving[entry.object_id] = None
                self.references.pin(entry)
            self.store.want_copy(entry)
            return
        shared = self.sharing.shared.get(entry.object_id)
        if shared is not None and shared.copied:
            self.sharing.say_copied(entry)
        else:
            self.sharing.expose((entry.object_id,))

    def sealed(self, entry: ObjectEntry) -> None:
        """A shared object has its value here: the copy stands for itself from now on."""
        if entry.object_id in self.arriving:
            del self.arriving[entry.object_id]
            self.references.unpin(entry)

    def begin(self) -> None:
        """There are other nodes: what was to be kept while there were none is told to the directory."""
        for object_id, copies in list(self.store.kept.items()):
            self._keep(self.store.objects[object_id], copies)

    def check(self) -> None:
        """Whatever is kept is known, what is on its way is pinned, and questions are bounded (I15)."""
        invariant(len(self.asked) <= QUESTIONS_MAX, "I15 questions about copies", len(self.asked))
        for object_id in self.store.kept:
            entry = self.store.objects.get(object_id)
            invariant(entry is not None, "kept and unknown:", short(object_id))
            invariant(object_id not in self.store.copies, "kept and about to be evicted:", short(object_id))
        for object_id in self.arriving:
            arriving = self.store.objects.get(object_id)
            on_its_way = arriving is not None and arriving.state != SEALED and arriving.pins > 0
            invariant(on_its_way, "kept and not on its way:", short(object_id))
