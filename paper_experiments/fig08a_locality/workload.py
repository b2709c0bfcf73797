"""Tasks that take one object each, on two nodes that hold half of the objects each. No code of zray."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

from paper_experiments.common.peer_nodes import on_node

AWARE, BLIND = WAYS = ("aware", "blind")
NODES = 2


def make(size: int, number: int) -> Any:
    """An object."""
    return np.full(size, number % 251, np.uint8)


def take(data: Any) -> int:
    """Next to nothing with it: one of its bytes."""
    return int(data[-1])


def measure(api: Any, size: int, count: int, seed: int) -> dict[str, float]:
    """Seconds per task, by whether placement may look at where objects are.

    *Blind* tasks are told at random on which node they run, as those of a scheduler that does not look at
    inputs. Every way has objects of its own, because copies stay where they were made.

    Raises:
        AssertionError: if a task was given another object.
    """
    maker, taker = api.remote(make), api.remote(take)
    taken_s = {}
    for way in WAYS:
        rng = random.Random(f"{seed}/{way}")
        api.get([taker.options(resources=on_node(n)).remote(np.zeros(1)) for n in range(NODES)])
        api.get([taker.remote(np.zeros(1)) for _ in range(4 * NODES)])
        numbers = list(range(count))
        rng.shuffle(numbers)
        made = [maker.options(resources=on_node(n % NODES)).remote(size, n) for n in numbers]
        api.wait(made, num_returns=count, fetch_local=False)
        started = time.perf_counter()
        if way == AWARE:
            refs = [taker.remote(ref) for ref in made]
        else:
            refs = [taker.options(resources=on_node(rng.randrange(NODES))).remote(ref) for ref in made]
        found = api.get(refs)
        taken_s[way] = (time.perf_counter() - started) / count
        assert found == [number % 251 for number in numbers], f"{way}: tasks were given other objects"
        del made, refs
    return taken_s
