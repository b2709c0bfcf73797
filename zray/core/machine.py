"""The contract of every state machine in ``core`` and the only way into one.

A machine has ``out`` (the outbox, a list of ``(destination, message)``), ``HANDLERS`` (message type to
method), ``flush(now_ns)`` (decide once, after the whole batch was absorbed), ``wake_at_ns`` (when it
wants ``on_tick``, or ``None``) and ``check()`` (walk all state, raise ``InvariantError``). It opens no
socket, reads no clock, starts no process and draws no random number of its own. The ZeroMQ loop, the
simulator and the replay of a trace all call :func:`pump`.

What the driver of a machine owes it:

- ``now_ns`` is an integer, never goes back, and is one value per batch;
- messages from one source arrive in the order they were sent; nothing is promised across sources;
- effects leave in the order they were appended, per destination;
- once ``wake_at_ns`` has passed, ``on_tick(now_ns)`` is called, with or without a batch.

Addresses are ``bytes``: the routing id of a process, or one of the reserved names below, which start
with ``@`` and never cross a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, ClassVar, Protocol

from zray.errors import InvariantError

Address = bytes
Effect = tuple[Address, Any]
Handler = Callable[[Any, int, Address, Any], None]

WORKER_POOL: Address = b"@worker-pool"
"""Starts and kills worker processes; reports ``WorkerExited``."""
DISK: Address = b"@disk"
"""Writes objects to spill files and deletes them; reports ``Spilled`` or ``SpillFailed``."""
ROWS: Address = b"@rows"
"""Keeps the flushed rows of a shard in a file; reports ``RowsFlushed`` and ``RowsRead``, in order."""
LOG: Address = b"@log"
"""Appends records to a shard's log before anything after it leaves."""
TRANSFER: Address = b"@transfer"
"""Moves the bytes of large objects between nodes; reports ``ChunkArrived`` and ``ChunkSent``."""
RUNTIME: Address = b"@runtime"
"""The process that hosts the machine: source of local reports, target of notices to the operator."""


class Machine(Protocol):
    """What :func:`pump` needs of a state machine."""

    HANDLERS: ClassVar[dict[type, Handler]]
    out: list[Effect]

    @property
    def wake_at_ns(self) -> int | None: ...

    def flush(self, now_ns: int) -> None: ...

    def on_tick(self, now_ns: int) -> None: ...

    def check(self) -> None: ...


def pump(machine: Machine, batch: Iterable[tuple[Address, Any]], now_ns: int) -> None:
    """Feed ``(source, message)`` pairs to a machine, then let it decide once."""
    handlers = machine.HANDLERS
    for source, message in batch:
        handlers[type(message)](machine, now_ns, source, message)
    wake_at_ns = machine.wake_at_ns
    if wake_at_ns is not None and wake_at_ns <= now_ns:
        machine.on_tick(now_ns)
    machine.flush(now_ns)


def take_effects(out: list[Effect], outgoing: dict[Address, list[Any]]) -> None:
    """Move an outbox into one batch per destination, each in the order in which it was appended."""
    for destination, message in out:
        messages = outgoing.get(destination)
        if messages is None:
            outgoing[destination] = [message]
        else:
            messages.append(message)
    out.clear()


def bound_handlers(machine: Machine) -> dict[type, Callable[[int, Address, Any], None]]:
    """The handlers of a machine for a process that handles further messages in between.

    It calls them in the order in which messages came, with one ``now_ns`` per batch. Only for machines that
    decide nothing in ``flush`` and never want to be woken; all others are pumped.
    """
    return {kind: MethodType(handler, machine) for kind, handler in machine.HANDLERS.items()}


def invariant(holds: bool, *story: object) -> None:
    """Raise ``InvariantError`` with its story unless ``holds``; for ``check()`` and O(1) facts."""
    if not holds:
        raise InvariantError(" ".join(str(part) for part in story))
