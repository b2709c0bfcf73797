"""Percentiles of very many durations in little memory."""

from __future__ import annotations

_STEPS = 16  # buckets per power of two: values are known to 6 %


class DurationHistogram:
    """Counts of whole numbers in buckets that grow with the number."""

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0

    def add(self, value: int) -> None:
        """Count one value, at least 0."""
        shift = max(0, value.bit_length() - 5)
        bucket = shift * _STEPS + (value >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1

    def quantile(self, share: float) -> int:
        """The lower bound of the bucket that holds this share of the values; 0 if there are none."""
        rank = int(self.count * share)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank < 0:
                shift = max(0, bucket // _STEPS - 1)
                return (bucket - shift * _STEPS) << shift
        return 0
