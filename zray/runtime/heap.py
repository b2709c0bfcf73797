"""How much freed memory a worker, or a node that moves chunks, keeps, instead of giving it back at once.

The allocator of the GNU C library gives back what is free at the end of its heap when that is more than twice
the largest block that the process ever freed (128 KiB at first). A worker is forked from a process that
never freed a large one, so numpy code whose temporary arrays are a few hundred kilobytes gave back and took
again the same pages in every step, each cleared by the kernel: a network that was trained in an actor took
three times as long as in a script of its own (45,000 page faults each 45 ms).
"""

from __future__ import annotations

LARGEST_FREED_BYTES = 8 << 20
"""Twice as much may stay with an idle worker at the end of its heap. Above 32 MiB it would not count."""


def keep_freed_memory() -> None:
    """Free one large block, for this process and those that it will fork.

    It is never touched, so it costs two calls of the system. Setting the limits by ``mallopt`` would also
    keep them from growing with what the user's code frees.
    """
    bytes(LARGEST_FREED_BYTES)
