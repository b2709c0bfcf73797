"""Which rows are flushed: a set of keys that costs nine bytes for each.

Of every key 64 bits of a mixed value are kept, sorted, in buckets of some thousand. Two different keys agree
in them with a chance of 2**-64 per pair: the second one is refused, so it simply stays in memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

BUCKET_BITS = 12
BYTES_PER_KEY = 9
"""Eight, and what an array that grows has to spare (a sixteenth)."""

_MIXER = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835  # odd; the golden ratio in 128 bits
_LOW = (1 << 64) - 1
_SHIFT = 64 - BUCKET_BITS
_NONE: array[int] = array("Q")


def digest_of(key: bytes) -> int:
    """64 well-mixed bits of a key of any length: counters must not gather in one bucket."""
    product = int.from_bytes(key, "big") * _MIXER
    product ^= product >> 128
    return (product >> 64) & _LOW


class FlushedKeys:
    """Keys of rows that are on disk and not in memory."""

    __slots__ = ("_buckets", "count")

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __contains__(self, key: bytes) -> bool:
        digest = digest_of(key)
        bucket = self._buckets.get(digest >> _SHIFT, _NONE)
        place = bisect_left(bucket, digest)
        return place < len(bucket) and bucket[place] == digest

    def add(self, key: bytes) -> bool:
        """False, and nothing changed, if it is there, or one that looks the same."""
        digest = digest_of(key)
        bucket = self._buckets.get(digest >> _SHIFT)
        if bucket is None:
            bucket = self._buckets[digest >> _SHIFT] = array("Q")
        place = bisect_left(bucket, digest)
        if place < len(bucket) and bucket[place] == digest:
            return False
        bucket.insert(place, digest)
        self.count += 1
        return True

    def discard(self, key: bytes) -> None:
        """Take a key out, if it is there."""
        digest = digest_of(key)
        bucket = self._buckets.get(digest >> _SHIFT, _NONE)
        place = bisect_left(bucket, digest)
        if place < len(bucket) and bucket[place] == digest:
            del bucket[place]
            self.count -= 1

    @property
    def memory_bytes(self) -> int:
        """About what the keys take; an empty set counts as nothing."""
        return BYTES_PER_KEY * self.count

    def check_count(self) -> int:
        """How many there are, counted."""
        return sum(map(len, self._buckets.values()))
