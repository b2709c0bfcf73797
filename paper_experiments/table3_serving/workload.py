"""A policy behind an actor, for any system with zray's API. Imports nothing of zray: servers use it, too."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np

BATCH = 64


def states_of(state_bytes: int) -> Any:
    """float32[BATCH, state_bytes / 4]."""
    return np.random.default_rng(0).random((BATCH, state_bytes // 4), dtype=np.float32)


def evaluate(states: Any, evaluation_s: float) -> list[float]:
    """Stands for a network: needs its time, looks at every state."""
    time.sleep(evaluation_s)
    return [float(value) for value in states[:, 0]]


def states_in(fields: dict[str, Any]) -> Any:
    """The batch of a request, as nested lists or as base64 of its bytes."""
    if "states" in fields:
        return np.asarray(fields["states"], dtype=np.float32)
    data = np.frombuffer(base64.b64decode(fields["base64"]), dtype=np.float32)
    return data.reshape(fields["rows"], -1)


class ServedPolicy:
    """The actor."""

    def act(self, states: Any, evaluation_s: float) -> list[float]:
        """Actions for a batch of states."""
        return evaluate(states, evaluation_s)


_actors: list[Any] = []


def measure(api: Any, state_bytes: int, evaluation_s: float) -> float:
    """Seconds of one batch; the actor stays for the next."""
    if not _actors:
        _actors.append(api.remote(ServedPolicy).remote())
    states = states_of(state_bytes)
    started = time.perf_counter()
    answer = api.get(_actors[0].act.remote(states, evaluation_s))
    taken_s = time.perf_counter() - started
    assert answer == [float(value) for value in states[:, 0]], "other actions"
    return taken_s
