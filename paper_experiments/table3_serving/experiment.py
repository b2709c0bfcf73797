"""Table 3: a policy served to a client on the same machine, by an actor and by a server of JSON over HTTP.

All get batches of 64 states and need as long as the paper's models did; what differs is how the states get
there. The server is Starlette on uvicorn, in a process of its own, over a connection that stays open; it is
not the system that the paper compared with.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from paper_experiments.common import peers
from paper_experiments.common.peers import HTTP, ROOT, SYSTEMS, Peer
from paper_experiments.common.run import ExperimentRun, paired_ratio
from paper_experiments.table3_serving.workload import BATCH, states_of

WORKLOAD = "paper_experiments.table3_serving.workload:measure"
SERVERS = "paper_experiments.table3_serving"
JSON, BASE64 = "HTTP, JSON", "HTTP, JSON with base64"


class Load(NamedTuple):
    """One column of the table."""

    name: str
    state_bytes: int
    evaluation_s: float


WARM_UP_BATCHES = 20
"""To an actor: until its store uses pages of memory again that it has used."""
LOADS = (Load("small", 4_000, 0.010), Load("large", 100_000, 0.005))
Ask = Callable[[Load], float]
"""Seconds of one batch."""


@contextmanager
def http_server(run: ExperimentRun) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server in another process: Starlette, or the standard library where that is not."""
    python, module = run.pythons.get(HTTP, sys.executable), "starlette_server"
    reason = peers.missing_reason(HTTP, python)
    if reason:
        python, module = sys.executable, "json_server"
        run.note(f"The server is that of the standard library, without {SYSTEMS[HTTP]}: {reason}")
    run.parameter("server", module)
    process = subprocess.Popen(
        [python, "-m", f"{SERVERS}.{module}"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        yield connection
        connection.close()
    finally:
        process.terminate()
        process.communicate(timeout=10)


def ask_http(connection: http.client.HTTPConnection, load: Load, *, as_base64: bool) -> float:
    """One batch over HTTP; making the text is part of it."""
    states = states_of(load.state_bytes)
    started = time.perf_counter()
    fields: dict[str, Any] = {"evaluation_s": load.evaluation_s}
    if as_base64:
        fields |= {"base64": base64.b64encode(states.tobytes()).decode(), "rows": BATCH}
    else:
        fields["states"] = states.tolist()
    connection.request("POST", "/act", json.dumps(fields), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    taken_s = time.perf_counter() - started
    assert answer == [float(value) for value in states[:, 0]], "other actions"
    return taken_s


def ask_actor(peer: Peer, load: Load) -> float:
    """One batch to the actor of a system, as its driver sees it."""
    taken_s: float = peer.ask(WORKLOAD, state_bytes=load.state_bytes, evaluation_s=load.evaluation_s)
    return taken_s


def live(run: ExperimentRun) -> None:
    """Batches one after the other, as a client of a policy asks; systems take turns."""
    repetitions = run.pick("repetitions", tiny=1, small=15, paper=30)
    warm_up = run.pick("warm_up_batches", tiny=1, small=WARM_UP_BATCHES, paper=WARM_UP_BATCHES)
    actors = run.pick("systems", tiny=("zray",), small=("zray", "ray"), paper=("zray", "ray"))
    run.parameter("batch", BATCH)
    with run.peers(actors, 2) as running, http_server(run) as connection:
        systems: dict[str, Ask] = {
            f"{SYSTEMS[name]} actor": lambda load, peer=peer: ask_actor(peer, load)  # type: ignore[misc]
            for name, peer in running.items()
        }
        systems[JSON] = lambda load: ask_http(connection, load, as_base64=False)
        systems[BASE64] = lambda load: ask_http(connection, load, as_base64=True)
        for load in run.steps(LOADS, "load"):
            _measure(run, load, systems, repetitions, warm_up)
    run.quantity(
        "overhead_growth_ms", run.quantities["overhead_ms large"] - run.quantities["overhead_ms small"]
    )


def _measure(
    run: ExperimentRun, load: Load, systems: Mapping[str, Ask], repetitions: int, warm_up: int
) -> None:
    rates: dict[str, list[float]] = {system: [] for system in systems}
    for system, ask in systems.items():
        for _ in range(warm_up if system.endswith("actor") else 1):
            ask(load)
    for _ in range(repetitions):
        for system, ask in systems.items():
            rates[system].append(BATCH / ask(load))
    medians = {s: run.point("rates", s, load.state_bytes, samples) for s, samples in rates.items()}
    ours = rates["zray actor"]
    run.quantity(f"ratio_{load.name}", paired_ratio(ours, rates[JSON]))
    run.quantity(f"ratio_base64_{load.name}", paired_ratio(ours, rates[BASE64]))
    if "Ray actor" in rates:
        run.compare(f"ratio_ray_{load.name}", ours, rates["Ray actor"])
    else:
        run.beyond(f"ratio_ray_{load.name}", "Ray was not run beside it")
    run.quantity(f"rate_{load.name}", medians["zray actor"])
    overheads_ms = {system: 1000 * (BATCH / rate - load.evaluation_s) for system, rate in medians.items()}
    run.quantity(f"overhead_ms {load.name}", overheads_ms["zray actor"])
    run.absent(
        f"rate_{load.name}",
        f"a batch of {BATCH * load.state_bytes / 1e6:.1f} MB takes, besides its evaluation, "
        + ", ".join(f"{took_ms:.1f} ms by {system}" for system, took_ms in overheads_ms.items()),
    )
