"""Bare machines: messages in, exact outbox out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


class Outbox(list[tuple[bytes, Any]]):
    """An outbox whose effects a test must look at, all of them."""

    def take(self) -> list[tuple[bytes, Any]]:
        """What was appended since the last time."""
        taken = list(self)
        self.clear()
        return taken


@pytest.fixture
def out() -> Iterator[Outbox]:
    """The outbox of the machine under test; an effect that nobody looked at fails the test."""
    outbox = Outbox()
    yield outbox
    assert not outbox, f"effects that no test looked at: {outbox}"
