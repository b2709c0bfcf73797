"""What a task or call is to make, while it runs on a simulated worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.core.machine import Address
from zray.protocol.messages import Value


class Making:
    """What a task or call is to make, and how far it is.

    Args:
        num_returns, returns, unconsumed_max: as its descriptor or call says.
        send: puts an item of its stream, with its index, into the outbox.
        holder: the caller, if the values go straight to it.
        is_wanted: somebody asked; otherwise it runs again for its effect on its actor alone.
    """

    __slots__ = ("holder", "is_wanted", "items", "kept", "num_returns", "returns", "send", "unconsumed_max")

    def __init__(
        self, num_returns: int, returns: int, unconsumed_max: int, send: Callable[[int, Value], None],
        holder: Address = b"", *, is_wanted: bool = True,
    ) -> None:  # fmt: skip
        self.num_returns = num_returns
        self.is_wanted = is_wanted
        self.returns = returns
        self.unconsumed_max = unconsumed_max
        self.send = send
        self.holder = holder
        self.items = 0
        self.kept: Any = None  # what it returned: refs in there are not let go of before its message is out
