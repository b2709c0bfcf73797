"""Which GPUs of a node are whose, by number.

A demand of whole GPUs gets that many to itself; of a fraction, a share of one: the fullest that has room, so
that whole ones stay whole. What counts as free in sum may therefore not fit: halves of two GPUs are no GPU.
The one invariant is I4, for each GPU: free + held = total.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.core.group_resources import amount_in
from zray.core.machine import invariant
from zray.protocol.messages import RESOURCE_UNIT, Demand

RESOURCE = "GPU"

Shares = tuple[tuple[int, int], ...]
"""``((number, amount), ...)``, amounts in 1/RESOURCE_UNIT."""


class Gpus:
    """The GPUs of one node. Pure.

    Args:
        total: the resources of the node; a fraction of a GPU is the last one.
    """

    __slots__ = ("free", "total")

    def __init__(self, total: Demand) -> None:
        whole, rest = divmod(dict(total).get(RESOURCE, 0), RESOURCE_UNIT)
        self.total = [RESOURCE_UNIT] * whole + ([rest] if rest else [])
        self.free = list(self.total)

    def choose(self, amount: int) -> Shares | None:
        """The shares that an amount would get; ``None`` if there are none. Cost: O(GPUs)."""
        whole, rest = divmod(amount, RESOURCE_UNIT)
        untouched = [number for number, free in enumerate(self.free) if free == RESOURCE_UNIT]
        if len(untouched) < whole:
            return None
        shares = [(number, RESOURCE_UNIT) for number in untouched[:whole]]
        if rest:
            taken = dict(shares)
            roomy = [
                (free, number)
                for number, free in enumerate(self.free)
                if free >= rest and number not in taken
            ]
            if not roomy:
                return None
            shares.append((min(roomy)[1], rest))
        return tuple(shares)

    def fits(self, demand: Demand) -> bool:
        """Whether the GPUs of a demand can be taken now."""
        amount = amount_in(demand, RESOURCE)
        return not amount or self.choose(amount) is not None

    def take(self, demand: Demand) -> Shares:
        """Hold what :meth:`fits`; the shares, which :meth:`give` takes back."""
        shares = self.choose(amount_in(demand, RESOURCE))
        invariant(shares is not None, "I4: GPUs that are not free", demand)
        for number, amount in shares or ():
            self.free[number] -= amount
        return shares or ()

    def give(self, shares: Shares) -> None:
        """Free what was held."""
        for number, amount in shares:
            self.free[number] += amount

    def check(self, held: Iterable[Shares]) -> None:
        """Raise ``InvariantError`` unless free + held = total for every GPU (I4)."""
        sums = list(self.free)
        for shares in held:
            for number, amount in shares:
                sums[number] += amount
        invariant(sums == self.total, "I4: GPUs free + held are", sums, "and total are", self.total)
        invariant(all(free >= 0 for free in self.free), "I4: GPUs free", self.free)
