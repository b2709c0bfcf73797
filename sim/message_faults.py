"""The nemesis of single messages: a process dies over one of them, as its sender or as its receiver.

At each strike a kind is drawn from those that crossed the network so far and struck nobody yet: a heartbeat
is as likely as what is sent once in a run. With the next message of that kind one of four things happens: it
is lost with its sender; its sender dies once it has arrived; its receiver dies before it arrives; or its
receiver dies right after it has heard it, so that what it answered is mostly lost.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.network import Link, Network
    from zray.core.machine import Address

LOST, BEHIND, BEFORE, HEARD = FATES = (
    "lost with its sender",
    "its sender dies behind it",
    "its receiver dies before it",
    "its receiver dies behind it",
)

Deathblow = Callable[[Random], None]


class MessageFaults:
    """Watches what crosses the network.

    Args:
        network: every link.
        deathblow: how to kill the process at an address, if it may die now.
        told: of each strike, the kind of message and its fate.
    """

    def __init__(
        self,
        network: Network,
        deathblow: Callable[[Address], Deathblow | None],
        told: Callable[[str, str], None],
    ) -> None:
        self.network = network
        self.deathblow = deathblow
        self.told = told
        self.kinds: dict[type, None] = {}
        self.struck: dict[type, None] = {}
        self.armed: tuple[type, Random] | None = None
        network.watch = self.sent

    def arm(self, random: Random) -> bool:
        """The next message of a drawn kind is the one; False: there is no other kind."""
        kinds = [kind for kind in self.kinds if kind not in self.struck]
        if kinds:
            self.armed = random.choice(kinds), random
        return bool(kinds)

    def sent(self, link: Link, messages: list[Any]) -> None:
        """A frame is on its way."""
        kinds = dict.fromkeys(map(type, messages))
        self.kinds.update(kinds)
        if self.armed is not None and self.armed[0] in kinds:
            kind, random = self.armed
            if self._strike(random, kind, link):
                self.armed = None

    def _strike(self, random: Random, kind: type, link: Link) -> bool:
        fate = random.choice(FATES)
        victim = link.source if fate in (LOST, BEHIND) else link.destination
        if self.deathblow(victim) is None:
            return False
        now_ns, under_way_ns = self.network.kernel.now_ns, self.network.quality.latency_ns
        if fate == LOST:
            self.network.lose_last(link)
        heard_ns = link.last_ns + random.randint(0, 2 * under_way_ns)
        at_ns = now_ns if fate in (LOST, BEFORE) else heard_ns
        self.struck[kind] = None
        self.told(kind.__name__, fate)

        def strike(_: None) -> None:
            deathblow = self.deathblow(victim)
            if deathblow is not None:
                deathblow(random)

        self.network.kernel.at(at_ns, strike)
        return True
