"""How an actor that ends on purpose leaves: its process is there until its callers have its replies.

Replies go straight to each caller. That the actor is dead, callers hear from their node, over another link,
and nothing orders the two. So after its last reply the actor says ``LastWords`` to everybody who called it,
and to its node, for who called from other nodes; its process ends once each of them has heard them. The node
speaks of the death when the process is gone, which is later.

Who is gone hears nothing, and who is stopped only later: whoever hosts this machine repeats the words every
``REPEAT_NS``, says who could not be reached, and waits for ``last_words_timeout_ns`` at most.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.core.machine import Address, Effect
from zray.protocol.user_messages import LastWords, LastWordsHeard

REPEAT_NS = 100_000_000
"""A caller that has gone, and cannot be reached, is noticed so late."""


class Farewells:
    """Those of one process: its own if it is an actor, and those of actors that it called. Pure.

    Args:
        out: the process's outbox.
        node: the address of its node.
    """

    def __init__(self, out: list[Effect], *, node: Address) -> None:
        self.out = out
        self.node = node
        self.unheard: dict[Address, None] = {}  # who has not heard our last words

    def say(self, callers: Iterable[Address]) -> None:
        """Nothing follows: no reply, and no message of which the node must know."""
        self.unheard = dict.fromkeys((*callers, self.node))
        self.repeat()

    def repeat(self) -> None:
        """Say it again to those who have not heard it."""
        self.out.extend((address, LastWords()) for address in self.unheard)

    @property
    def all_heard(self) -> bool:
        """Whether the process may end."""
        return not self.unheard

    def heard_by(self, source: Address) -> None:
        """Somebody has heard them, or cannot any more."""
        self.unheard.pop(source, None)

    def said_by(self, source: Address) -> None:
        """An actor that this process called has no more to say, and all that it said was heard."""
        self.out.append((source, LastWordsHeard()))
