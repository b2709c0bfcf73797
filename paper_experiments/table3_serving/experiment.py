"""Table 3: a policy served to a client on the same machine, by an actor and by a server of JSON over HTTP.

Both get batches of 64 states and need as long as the paper's models did; what differs is how the states
get there. The server is that of the standard library, in a process of its own, over a connection that
stays open; it is not the system that the paper compared with.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import zray
from paper_experiments.common.local import local_cluster
from paper_experiments.common.run import ExperimentRun

BATCH = 64
ROOT = Path(__file__).resolve().parents[2]


class Load(NamedTuple):
    """One column of the table."""

    name: str
    state_bytes: int
    evaluation_s: float


LOADS = (Load("small", 4_000, 0.010), Load("large", 100_000, 0.005))
Ask = Callable[[Any, float], list[float]]


def evaluate(states: Any, evaluation_s: float) -> list[float]:
    """Stands for a network: needs its time, looks at every state."""
    time.sleep(evaluation_s)
    return [float(value) for value in states[:, 0]]


class Policy:
    """The actor."""

    def act(self, states: Any, evaluation_s: float) -> list[float]:
        """Actions for a batch of states."""
        return evaluate(states, evaluation_s)


@contextmanager
def http_server() -> Iterator[http.client.HTTPConnection]:
    """A connection to a server in another process."""
    command = [sys.executable, "-m", "paper_experiments.table3_serving.json_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        yield connection
        connection.close()
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _ask_http(connection: http.client.HTTPConnection, fields: dict[str, Any]) -> list[float]:
    connection.request("POST", "/act", json.dumps(fields), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found: list[float] = json.loads(answer.read())
    return found


def live(run: ExperimentRun) -> None:
    """Batches one after the other, as a client of a policy asks; systems are interleaved."""
    repetitions = run.pick("repetitions", tiny=1, small=5, paper=30)
    run.parameter("batch", BATCH)
    with local_cluster(object_store_memory=1 << 30), http_server() as connection:
        actor: Any = zray.remote(Policy).remote()

        def ask_actor(states: Any, evaluation_s: float) -> list[float]:
            answer: list[float] = zray.get(actor.act.remote(states, evaluation_s))
            return answer

        def ask_json(states: Any, evaluation_s: float) -> list[float]:
            return _ask_http(connection, {"states": states.tolist(), "evaluation_s": evaluation_s})

        def ask_base64(states: Any, evaluation_s: float) -> list[float]:
            text = base64.b64encode(states.tobytes()).decode()
            return _ask_http(connection, {"base64": text, "rows": BATCH, "evaluation_s": evaluation_s})

        systems = {"zray actor": ask_actor, "HTTP, JSON": ask_json, "HTTP, JSON with base64": ask_base64}
        for load in run.steps(LOADS, "load"):
            _measure(run, load, systems, repetitions)
    run.quantity(
        "overhead_growth_ms", run.quantities["overhead_ms large"] - run.quantities["overhead_ms small"]
    )


def _measure(run: ExperimentRun, load: Load, systems: Mapping[str, Ask], repetitions: int) -> None:
    states = np.random.default_rng(0).random((BATCH, load.state_bytes // 4), dtype=np.float32)
    expected = [float(value) for value in states[:, 0]]
    rates: dict[str, list[float]] = {system: [] for system in systems}
    for number in range(repetitions + 1):
        for system, ask in systems.items():
            started = time.perf_counter()
            answer = ask(states, load.evaluation_s)
            taken = time.perf_counter() - started
            assert answer == expected, f"{system} gives other actions"
            if number:  # the first warms it up
                rates[system].append(BATCH / taken)
    medians = {s: run.point("rates", s, load.state_bytes, samples) for s, samples in rates.items()}
    run.quantity(f"ratio_{load.name}", medians["zray actor"] / medians["HTTP, JSON"])
    run.quantity(f"ratio_base64_{load.name}", medians["zray actor"] / medians["HTTP, JSON with base64"])
    run.quantity(f"rate_{load.name}", medians["zray actor"])
    run.quantity(f"overhead_ms {load.name}", 1000 * (BATCH / medians["zray actor"] - load.evaluation_s))
