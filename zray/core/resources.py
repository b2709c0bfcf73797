"""Resources of one node: what it has, what is free, and what a task asks for.

Amounts are whole numbers of 1/10,000 (``RESOURCE_UNIT``), so that giving back what was taken restores
exactly what was there. The one invariant is I4: free + held = total, for every resource.

A name that a node does not have counts as an amount of zero; a demand of ``()`` fits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

from zray.core.machine import invariant
from zray.errors import InvariantError
from zray.protocol.messages import RESOURCE_UNIT, Demand

AMOUNT_MAX = (1 << 63) - 1
"""Amounts travel as 64-bit integers; in bytes of memory this is 838 TiB."""

_NOISE_UNITS_MAX = 1e-6
"""0.1 + 0.2 is meant to be 0.3: a float this close to a whole number of units is that number."""

Shortage = tuple[str, int, int]
"""``(name, asked, total)``: a resource of which a node has less than was asked, in 1/RESOURCE_UNIT."""


class ResourcePool:
    """The resources of one node: ``total`` and ``free``, name -> amount in 1/RESOURCE_UNIT.

    ``free`` has exactly the names of ``total``. It is negative only after :meth:`oversubscribe`, or in a
    pool that mirrors the report of a node which did that.
    """

    __slots__ = ("aside", "free", "own", "total")

    def __init__(self, total: Demand, free: Demand | None = None) -> None:
        """All of it free, or as reported by a node, where a name that ``free`` omits has none left."""
        self.own = total  # without what :meth:`add` added
        self.aside: dict[str, int] = {}  # what :meth:`set_aside` took
        self.total: dict[str, int] = dict(total)
        self.free: dict[str, int] = {}
        self.set_free(total if free is None else free)

    def set_free(self, free: Demand) -> None:
        """Mirror what a node reports; a name that ``free`` omits has none left, others are ignored."""
        reported = dict(free)
        self.free = {name: reported.get(name, 0) for name in self.total}

    def fits(self, demand: Demand) -> bool:
        """Whether the demand can be taken now."""
        free = self.free
        for name, amount in demand:  # noqa: SIM110 - all() and a generator cost three times as much
            if free.get(name, 0) < amount:
                return False
        return True

    def room(self, demand: Demand, most: int) -> int:
        """How many of such demands can be taken now; ``most`` at most."""
        return min([most, *(max(0, self.free.get(name, 0)) // amount for name, amount in demand)])

    def feasible(self, demand: Demand) -> bool:
        """Whether the demand could be taken if nothing else were held."""
        total = self.total
        for name, amount in demand:  # noqa: SIM110 - as above
            if total.get(name, 0) < amount:
                return False
        return True

    def take(self, demand: Demand) -> None:
        """Hold a demand that fits.

        Raises:
            InvariantError: if it does not fit: the caller did not ask :meth:`fits`.
        """
        free = self.free
        for name, amount in demand:
            left = free.get(name, 0) - amount
            if left < 0:
                raise InvariantError(f"I4: took {amount} of {name}, {left + amount} were free")
            free[name] = left

    def oversubscribe(self, demand: Demand) -> None:
        """Hold a feasible demand at once, even if it drives ``free`` below zero.

        For a task that wakes from a blocked ``get``: its CPUs may be lent out, and it goes on anyway.

        Raises:
            InvariantError: if the node could never have lent them.
        """
        free, total = self.free, self.total
        for name, amount in demand:
            if total.get(name, 0) < amount:
                raise InvariantError(f"I4: re-took {amount} of {name}, the node has {total.get(name, 0)}")
            free[name] -= amount

    def give(self, demand: Demand) -> None:
        """Free what was held.

        Raises:
            InvariantError: if more comes back than there is in total.
        """
        free, total = self.free, self.total
        for name, amount in demand:
            now_free = free.get(name, 0) + amount
            if now_free > total.get(name, 0):
                raise InvariantError(f"I4: {now_free} of {name} free, the node has {total.get(name, 0)}")
            free[name] = now_free

    # --- bundles of placement groups -------------------------------------------------------------

    def set_aside(self, demand: Demand) -> None:
        """Reserve a demand that fits: it is neither free nor held by a worker.

        Raises:
            InvariantError: if it does not fit.
        """
        self.take(demand)
        for name, amount in demand:
            self.aside[name] = self.aside.get(name, 0) + amount

    def put_back(self, demand: Demand) -> None:
        """Take :meth:`set_aside` back."""
        for name, amount in demand:
            self.aside[name] -= amount
            invariant(self.aside[name] >= 0, "I4: more put back than was set aside:", name)
            if not self.aside[name]:
                del self.aside[name]
        self.give(demand)

    def add(self, demand: Demand) -> None:
        """Have more in total, all of it free."""
        for name, amount in demand:
            self.total[name] = self.total.get(name, 0) + amount
            self.free[name] = self.free.get(name, 0) + amount

    def withdraw_free(self, demand: Demand) -> Demand:
        """Have less in total: of a demand that was added, what nobody holds; returns what somebody does."""
        still_held = []
        for name, amount in demand:
            gone = max(0, min(amount, self.free.get(name, 0)))
            if gone:
                self.total[name] -= gone
                self.free[name] -= gone
                if not self.total[name]:
                    del self.total[name], self.free[name]
            if gone < amount:
                still_held.append((name, amount - gone))
        return tuple(still_held)

    # --- reports -----------------------------------------------------------------------------------

    def missing(self, demand: Demand) -> list[Shortage]:
        """What makes the demand infeasible here; empty if it is feasible."""
        return shortages(self.total, demand)

    def as_demand(self) -> Demand:
        """``total`` as it travels: sorted by name, without zeros."""
        return _sorted_amounts(self.total)

    def free_demand(self) -> Demand:
        """``free`` as it travels: sorted by name, without zeros; negative where oversubscribed."""
        return _sorted_amounts(self.free)

    def check(self, held: Iterable[Demand]) -> None:
        """Raise ``InvariantError`` unless free + held + set aside = total for every resource (I4)."""
        sums = dict(self.free)
        for demand in (*held, tuple(self.aside.items())):
            for name, amount in demand:
                sums[name] = sums.get(name, 0) + amount
        invariant(sums == self.total, "I4: free + held is", sums, "and total is", self.total)


def shortages(total: Mapping[str, int], demand: Demand) -> list[Shortage]:
    """Every resource of ``demand`` that ``total`` has too little of, in the order of the demand."""
    return [(name, amount, total.get(name, 0)) for name, amount in demand if total.get(name, 0) < amount]


def shortage_text(missing: Iterable[Shortage]) -> str:
    """Shortages for people, such as ``has 0 of 2 GPU, 1.5 of 4 CPU``."""
    parts = [f"{_plain(total)} of {_plain(asked)} {name}" for name, asked, total in missing]
    return "has " + ", ".join(parts)


def demand_from(resources: Mapping[str, float]) -> Demand:
    """What a user wrote, such as ``{"CPU": 1, "GPU": 0.5}``, in whole units; zeros are left out.

    Raises:
        TypeError: if a name is not a string or an amount is not a real number (a bool is not one).
        ValueError: if a name is empty, or an amount is negative, not finite, finer than 1/10,000, or
            does not fit 64 bits. The sentence names the resource.
    """
    amounts = []
    for name, value in resources.items():
        if not isinstance(name, str):
            raise TypeError(f"resource names are strings, not {type(name).__name__}: {name!r}")
        if not name:
            raise ValueError(f"a resource has an empty name (amount {value!r})")
        units = _units(name, value)
        if units:
            amounts.append((name, units))
    amounts.sort()
    return tuple(amounts)


def amounts_of(demand: Demand) -> dict[str, float]:
    """A demand in the numbers that people use: whole amounts as ``int``, others as ``float``."""
    return {name: _amount(units) for name, units in demand}


def _units(name: str, value: object) -> int:
    """One amount in whole units; see :func:`demand_from` for what is refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"the amount of resource {name!r} must be a number, not {type(value).__name__}")
    units = int(value) * RESOURCE_UNIT if isinstance(value, Integral) else _whole_units(name, float(value))
    if units < 0:
        raise ValueError(f"the amount of resource {name!r} is negative: {value!r}")
    if units > AMOUNT_MAX:
        raise ValueError(f"the amount of resource {name!r} is too large: {value!r}")
    return units


def _whole_units(name: str, value: float) -> int:
    """A float in whole units, if it is meant to be a whole number of them."""
    if not math.isfinite(value):
        raise ValueError(f"the amount of resource {name!r} is not finite: {value!r}")
    scaled = value * RESOURCE_UNIT
    if not math.isfinite(scaled):
        raise ValueError(f"the amount of resource {name!r} is too large: {value!r}")
    units = round(scaled)
    # The division is rounded correctly, so it gives back the very float that was written as a decimal.
    if units / RESOURCE_UNIT != value and abs(scaled - units) > _NOISE_UNITS_MAX:
        raise ValueError(
            f"the amount of resource {name!r} is finer than 1/{RESOURCE_UNIT}: {value!r}; "
            f"the nearest that can be counted is {units / RESOURCE_UNIT!r}"
        )
    return units


def _sorted_amounts(amounts: Mapping[str, int]) -> Demand:
    return tuple(sorted(item for item in amounts.items() if item[1]))


def _amount(units: int) -> float:
    whole, part = divmod(units, RESOURCE_UNIT)
    return units / RESOURCE_UNIT if part else whole


def _plain(units: int) -> str:
    return str(_amount(units))
