"""The questions that a process has asked its node, each until somebody has taken the answer.

A question about an object is known by the object's id, any other by a token. An answer that nobody waits for
any more changes nothing.
"""

from __future__ import annotations

from typing import Any

from zray.core.machine import Address, Effect

Key = bytes | int


class Questions:
    """Those of one process. Pure; shares its outbox.

    Args:
        out: the process's outbox.
        node: the address of its node.
    """

    def __init__(self, out: list[Effect], *, node: Address) -> None:
        self.out = out
        self.node = node
        self.answers: dict[Key, Any] = {}  # ``None`` until one comes
        self._tokens = 0

    def next_token(self) -> int:
        """A number for the next question."""
        self._tokens += 1
        return self._tokens

    def ask(self, key: Key, request: Any) -> None:
        """Ask the node; :meth:`take` or :meth:`give_up` must follow."""
        self.answers[key] = None
        self.out.append((self.node, request))

    def is_answered(self, key: Key) -> bool:
        """Whether :meth:`take` has an answer."""
        return self.answers[key] is not None

    def take(self, key: Key) -> Any:
        """The answer."""
        return self.answers.pop(key)

    def give_up(self, key: Key) -> None:
        """Nobody waits for it any more."""
        self.answers.pop(key, None)

    def on_answer(self, key: Key, message: Any) -> None:
        """The node answers."""
        if key in self.answers:
            self.answers[key] = message
