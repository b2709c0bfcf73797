"""Operations beyond those of the shipped workloads: each knows how to perform itself in a process.

They serve programs that were not written for the simulator: a recorded graph, or a user's own functions. What
they submit is described by a descriptor of the real API, with any demand, and values are looked at one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sim.programs import ProgramError, Ref, unpack
from zray.protocol.messages import Describe

if TYPE_CHECKING:
    from sim.process import Process, Steps


class SubmitAs(NamedTuple):
    """Submit a task or actor of a given kind; the result is the list of its refs."""

    kind: Describe
    args: tuple[Any, ...]

    def perform(self, process: Process) -> Steps:
        """As ``remote()`` does."""
        object_ids = yield from process._submit(self.kind, self.args)
        return [Ref(object_id) for object_id in object_ids]


class Outcome(NamedTuple):
    """What became of an object: its value, or why there is none."""

    value: Any
    error: ProgramError | None


class Look(NamedTuple):
    """Get values, errors as outcomes, not later than at a time; the result is ``None`` if it is over."""

    object_ids: tuple[bytes, ...]
    until_ns: int | None = None

    def perform(self, process: Process) -> Steps:
        """As ``get()`` does."""
        taken: dict[bytes, Any] = {}
        outcomes: dict[bytes, Outcome] = {}
        try:
            while True:
                left = [one for one in dict.fromkeys(self.object_ids) if one not in taken]
                for object_id in left:
                    value = process.objects.take(object_id)
                    if value is not None:
                        taken[object_id] = value
                left = [object_id for object_id in left if object_id not in taken]
                if not left:
                    break
                want = process.objects.want(left, None, True)
                in_time = yield from _wait(process, want, self.until_ns)
                if not in_time:
                    return None
            for object_id, value in taken.items():
                try:
                    decoded, contained = unpack(process.data_of(object_id, value))
                except ProgramError as error:
                    outcomes[object_id] = Outcome(None, error)
                else:
                    process.take_up(contained)
                    outcomes[object_id] = Outcome(decoded, None)
            return [outcomes[object_id] for object_id in self.object_ids]
        finally:
            process.give_back(taken)


class AwaitUntil(NamedTuple):
    """Wait until ``needed`` objects are ready or the time is over; the result says of each whether it is."""

    object_ids: tuple[bytes, ...]
    needed: int
    until_ns: int | None = None

    def perform(self, process: Process) -> Steps:
        """As ``wait()`` does."""
        ready = [process.objects.is_ready(object_id) for object_id in self.object_ids]
        if sum(ready) < self.needed:
            want = process.objects.want(list(self.object_ids), self.needed, False)
            yield from _wait(process, want, self.until_ns)
        return [process.objects.is_ready(object_id) for object_id in self.object_ids]


def _wait(process: Process, want: Any, until_ns: int | None) -> Steps:
    """Until ``want`` is done or the time is over; whether it is done."""
    if until_ns is not None:
        process.kernel.at(until_ns, process.look)
    try:
        yield from process.wait_until(
            lambda: want.done or (until_ns is not None and process.kernel.now_ns >= until_ns)
        )
        return want.done
    finally:
        process.objects.end_want(want)
