"""What a program leaves undone when it ends: one sentence on standard error, and none if there is nothing."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from zray.errors import ZrayError

if TYPE_CHECKING:
    from zray.runtime.client import Client

ANSWER_TIMEOUT_S = 1.0
"""A node that does not say within this long what it still runs is not waited for."""
NAMES_SHOWN = 5


def tell(client: Client) -> None:
    """Say what of this driver's work had not ended. A cluster that is gone has said so itself."""
    try:
        names = Counter(msgspec.json.decode(client.query("abandoned", ANSWER_TIMEOUT_S), type=dict[str, int]))
    except (ZrayError, msgspec.ValidationError):
        return
    names.update(client.names_under_way())
    if names and sys.stderr is not None:
        print(sentence(names), file=sys.stderr, flush=True)


def sentence(names: Counter[str]) -> str:
    """Such as ``zray: 3 tasks were abandoned (add, square x2); use zray.wait or zray.get``."""
    shown = [f"{name} x{count}" if count > 1 else name for name, count in sorted(names.items())]
    more = len(shown) - NAMES_SHOWN
    if more > 0:
        shown[NAMES_SHOWN:] = [f"{more} more kinds" if more > 1 else "1 more kind"]
    what = "task was" if names.total() == 1 else "tasks were"
    return f"zray: {names.total()} {what} abandoned ({', '.join(shown)}); use zray.wait or zray.get"
