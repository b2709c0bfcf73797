"""What things cost in processor time, for hosts that are modelled one turn at a time.

The numbers are measured on real processes by ``zray sim calibrate`` (see ``calibrate.py``), which writes them
into a file with the machine, the versions and the day; ``costs.json`` beside this module is the one that was
measured last, and the default. They scale virtual time; no verdict depends on them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from zray.errors import ZrayError

SHIPPED = Path(__file__).with_name("costs.json")


class CostsError(ZrayError, ValueError):
    """A file of costs cannot be used: which, and what is wrong."""


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nanoseconds of one processor, unless said otherwise."""

    turn_ns: int = 6_000
    """One turn of a node or shard that has just had another: look, receive, send."""
    node_wake_ns: int = 2_000
    """The same after a sleep, on top: its caches are cold and its peers have to be woken."""
    message_ns: int = 2_500
    """One message inside a turn, decided and answered, if its type was not measured."""
    transport_ns: int = 0
    """Decoding one message and encoding what it leads to, on top of its handler."""
    handlers: dict[str, int] = {}
    """One message by its type, decided."""
    submit_ns: int = 4_000
    """One ``remote()`` or ``put()`` in a program."""
    hear_ns: int = 0
    """One frame that a driver or worker receives, and what it says to it."""
    wake_ns: int = 0
    """The same after a sleep, on top."""
    heard_ns: int = 0
    """One message inside it."""
    run_ns: int = 12_000
    """Everything around the user's code of one task."""
    link_ns: int = 30_000
    """From one process to another on one machine, beyond the processor time of both."""
    worker_start_ns: int = 5_000_000
    """Fork to ``Hello``."""
    exit_notice_ns: int = 1_000_000
    """The end of a process until its node knows."""
    disk_bytes_per_s: int = 500_000_000
    disk_latency_ns: int = 1_000_000

    def of_turn(self, batch: list[tuple[bytes, Any]], *, slept: bool) -> int:
        """One turn with this batch."""
        handlers, usual_ns = self.handlers, self.message_ns
        spent_ns = self.turn_ns + len(batch) * self.transport_ns
        if slept:
            spent_ns += self.node_wake_ns
        for _, message in batch:
            spent_ns += handlers.get(type(message).__name__, usual_ns)
        return spent_ns

    def of_frame(self, messages: int, *, slept: bool) -> int:
        """One frame that a driver or worker hears."""
        return self.hear_ns + self.heard_ns * messages + (self.wake_ns if slept else 0)


class CostsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Costs and where they come from."""

    measured: dict[str, str | int]
    """Machine, versions, day and code."""
    costs: Costs


def load_costs(path: str | Path) -> CostsFile:
    """The costs in a file.

    Raises:
        CostsError: if it cannot be read or is not such a file.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=CostsFile)
    except OSError as error:
        raise CostsError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        advice = "write one with zray sim calibrate"
        raise CostsError(f"{path}: not a file of costs of this version ({error}); {advice}") from None


@cache
def default_costs() -> Costs:
    """The costs that come along."""
    return load_costs(SHIPPED).costs
