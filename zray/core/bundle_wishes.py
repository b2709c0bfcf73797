"""What each node should hold of each placement group, and whether it does.

A wish is sent until the node answers that it is so, each time under a higher version; an answer to an older
one means nothing. So messages may be lost, repeated and late: the newest word wins at both ends, in every
life of the coordinator, whose versions begin above those of the lives before.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.core.machine import Address, Effect, invariant
from zray.core.membership import LIFE_SHIFT
from zray.ids import short
from zray.protocol.group_messages import AskBundles, Bundle, BundlesHeld, BundlesListed, HoldBundles


class Wish:
    """What one node should hold of one group; found in ``BundleWishes.wishes``."""

    __slots__ = ("bundles", "fulfilled", "version")

    def __init__(self, bundles: tuple[Bundle, ...], version: int) -> None:
        self.bundles = bundles
        self.version = version
        self.fulfilled = False


class BundleWishes:
    """Wishes by node and group. Pure; shares the outbox of the coordinator."""

    def __init__(self, out: list[Effect], *, life: Callable[[], int]) -> None:
        self.out = out
        self.life = life
        self.newest = 0  # version
        self.wishes: dict[tuple[bytes, bytes], Wish] = {}  # (node, group)
        self.unfulfilled: dict[tuple[bytes, bytes], Wish] = {}
        self.unlisted: dict[bytes, int] = {}  # nodes that were asked what they hold -> version

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be repeated."""
        return not self.unfulfilled and not self.unlisted

    def _version(self) -> int:
        self.newest = max(self.newest, self.life() << LIFE_SHIFT) + 1
        return self.newest

    def set(self, node_id: bytes, group_id: bytes, bundles: tuple[Bundle, ...]) -> None:
        """What a node should hold from now on; nothing new is not said again."""
        key = node_id, group_id
        known = self.wishes.get(key)
        if known is None and not bundles:
            return
        if known is None or known.bundles != bundles:
            self.wishes[key] = self.unfulfilled[key] = Wish(bundles, 0)
            self._send(key)

    def release_all(self, group_id: bytes) -> None:
        """No node should hold anything of a group."""
        for node_id, other in list(self.wishes):
            if other == group_id:
                self.set(node_id, group_id, ())

    def _send(self, key: tuple[bytes, bytes]) -> None:
        wish = self.unfulfilled[key]
        wish.version = self._version()
        self.out.append((key[0], HoldBundles(wish.version, key[1], wish.bundles)))

    def is_fulfilled(self, node_id: bytes, group_id: bytes) -> bool:
        """Whether a node has said that it holds what it should."""
        wish = self.wishes.get((node_id, group_id))
        return wish is not None and wish.fulfilled

    def answered(self, source: Address, message: BundlesHeld) -> Wish | None:
        """The wish that a node answers; ``None`` if it is not what it should hold any more."""
        key = source, message.group_id
        wish = self.unfulfilled.get(key)
        if wish is None or wish.version != message.version:
            return None
        if message.ok:
            wish.fulfilled = True
            del self.unfulfilled[key]
            if not wish.bundles:
                del self.wishes[key]
        return wish

    # --- lives -------------------------------------------------------------------------------------

    def ask(self, node_id: bytes) -> None:
        """Ask a node what it holds, which former lives may have wished for."""
        self.unlisted[node_id] = self._version()
        self.out.append((node_id, AskBundles(self.unlisted[node_id])))

    def listed(self, source: Address, message: BundlesListed) -> None:
        """A node says what it holds: it lets go of what nobody wishes for."""
        if self.unlisted.get(source) != message.version:
            return
        del self.unlisted[source]
        if message.heard > self.newest:  # a former life, whose number is forgotten, counted further
            self.newest = message.heard
            for key in self.unfulfilled:
                if key[0] == source:
                    self._send(key)
        for group_id in message.group_ids:
            key = source, group_id
            if key not in self.wishes:
                self.wishes[key] = self.unfulfilled[key] = Wish((), 0)
                self._send(key)

    def node_dead(self, node_id: bytes) -> None:
        """A dead node holds nothing."""
        self.unlisted.pop(node_id, None)
        for key in [key for key in self.wishes if key[0] == node_id]:
            del self.wishes[key]
            self.unfulfilled.pop(key, None)

    def repeat(self) -> None:
        """Say and ask again what was not answered."""
        for key in self.unfulfilled:
            self._send(key)
        for node_id in self.unlisted:
            self.ask(node_id)

    def check(self, alive: dict[bytes, None] | None) -> None:
        """Every wish is for a node that lives, and is said again until it is fulfilled."""
        for key, wish in self.wishes.items():
            node_id, group_id = key
            invariant(alive is None or node_id in alive, "a wish for a dead node:", short(group_id))
            invariant(wish.fulfilled != (key in self.unfulfilled), "I6: a forgotten wish:", short(group_id))
