"""``Extents`` against a naive model: a list of live intervals that is searched from end to end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zray.core.extents import GRANULE_BYTES, PLACED_BYTES_MIN, SLOT_BYTES_MAX, Extents

CAPACITIES = (100, 4096, 100_000, 1 << 20, 16 << 20, 100 << 20)
SIZES = st.one_of(
    st.integers(0, 300),
    st.integers(1, SLOT_BYTES_MAX + 64),
    st.integers(SLOT_BYTES_MAX, 2 << 20),
    st.integers(PLACED_BYTES_MIN - 5_000, 2 * PLACED_BYTES_MIN),
    st.sampled_from((64, 4096, SLOT_BYTES_MAX, SLOT_BYTES_MAX + 1, 1 << 20, 16 << 20)),
)


class ExtentsAgainstModel(RuleBasedStateMachine):
    """The model holds ``offset -> requested size`` and finds overlaps and gaps by looking at all of it."""

    @initialize(capacity=st.sampled_from(CAPACITIES))
    def start(self, capacity: int) -> None:
        self.extents = Extents(capacity)
        self.capacity = capacity // GRANULE_BYTES * GRANULE_BYTES
        self.live: dict[int, int] = {}
        self.reached = 0

    @rule(size=SIZES)
    def allocate(self, size: int) -> None:
        gaps_before = self.gaps()
        offset = self.extents.allocate(size)
        if offset is None:
            # The slots of a slab may lie idle, but nothing that largest_free promises is refused.
            assert max(size, 1) > self.extents.largest_free()
            return
        assert offset % GRANULE_BYTES == 0
        assert any(start <= offset and offset + max(size, 1) <= end for start, end in gaps_before)
        assert offset not in self.live
        self.live[offset] = size
        self.reached = max(self.reached, offset + size)

    @rule(size=SIZES, count=st.integers(2, 24))
    def allocate_many(self, size: int, count: int) -> None:
        for _ in range(count):
            self.allocate(size)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free_one(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[offset]
        self.extents.free(offset)

    @precondition(lambda self: self.live)
    @rule(step=st.integers(1, 3))
    def free_every_nth(self, step: int) -> None:
        for offset in sorted(self.live)[::step]:
            del self.live[offset]
            self.extents.free(offset)

    @rule()
    def largest_free_is_what_can_be_had(self) -> None:
        largest = self.extents.largest_free()
        longest_gap = max((end - start for start, end in self.gaps()), default=0)
        assert largest <= longest_gap
        if not self.live:
            assert largest == self.capacity
        if largest:
            offset = self.extents.allocate(largest)
            assert offset is not None
            self.reached = max(self.reached, offset + largest)
            self.extents.free(offset)
        # Beyond it, a slot that is already cut may be found, but never a new extent.
        if largest >= SLOT_BYTES_MAX:
            assert self.extents.allocate(largest + 1) is None

    @invariant()
    def holds_together(self) -> None:
        self.extents.check()
        assert len(self.extents) == len(self.live)
        occupied = {offset: self.extents.size_of(offset) for offset in self.live}
        assert all(occupied[offset] >= size for offset, size in self.live.items())
        assert self.extents.used_bytes == sum(occupied.values())
        assert self.extents.free_bytes == self.capacity - self.extents.used_bytes
        assert self.reached <= self.extents.high_water_bytes <= self.capacity

    def gaps(self) -> list[tuple[int, int]]:
        """The free intervals, by the requests alone, each rounded up to the granule."""
        gaps, position = [], 0
        for offset, size in sorted(self.live.items()):
            if offset > position:
                gaps.append((position, offset))
            assert offset >= position, "two live extents overlap"
            position = offset + max(-(-size // GRANULE_BYTES), 1) * GRANULE_BYTES
        if position < self.capacity:
            gaps.append((position, self.capacity))
        return gaps


TestExtentsAgainstModel = ExtentsAgainstModel.TestCase
TestExtentsAgainstModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
