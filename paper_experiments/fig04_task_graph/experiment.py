"""Figure 4: the task graph of the training loop of figure 3, as zray records it.

The graph is read off the trace of a real run and compared with that of the paper, edge by edge: once
undisturbed, once with an actor killed in the midst of a call, once with the task killed that submits all.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import zray
from paper_experiments.common.local import local_cluster
from paper_experiments.common.run import ExperimentRun
from paper_experiments.fig04_task_graph import program
from paper_experiments.fig04_task_graph.task_graph import KINDS, GraphEdge, recorded_edges

FIGURE = Path(__file__).with_name("figure.txt")
CPUS = 2
VARIANTS = ("undisturbed", "an actor dies", "the parent dies")


def edges_of_figure() -> list[str]:
    """The paper's edges, one per line."""
    return FIGURE.read_text(encoding="utf-8").splitlines()


def live(run: ExperimentRun) -> None:
    """Every variant on a cluster of its own, whose node writes a trace."""
    wanted = edges_of_figure()
    missing = unexpected = wrong = deaths = 0
    for variant in run.steps(VARIANTS, "variant"):
        found, trained, died = record(variant)
        deaths += died
        lines = [str(edge) for edge in found]
        missing += len([line for line in wanted if line not in lines])
        unexpected += len([line for line in lines if line not in wanted])
        wrong += trained != program.trained_alone()
        for number, kind in enumerate(KINDS):
            run.point("edges", variant, number, sum(edge.kind == kind for edge in found))
    run.quantity("missing_edges", missing)
    run.quantity("unexpected_edges", unexpected)
    run.quantity("wrong_results", wrong)
    run.quantity("deaths", deaths)
    run.note("Edges by kind are " + ", ".join(f"{number}: {kind}" for number, kind in enumerate(KINDS)) + ".")


def record(variant: str) -> tuple[list[GraphEdge], int, bool]:
    """One run: its graph, what it computed, and whether anybody died."""
    with tempfile.TemporaryDirectory(prefix="zs") as folder:
        trace, died = Path(folder) / "node.trace", Path(folder) / "died"
        markers = {name: str(died) if name == variant else "" for name in VARIANTS}
        with local_cluster(num_cpus=CPUS, trace=str(trace)):
            train: Any = program.train_policy
            trained: int = zray.get(train.remote(markers["an actor dies"], markers["the parent dies"]))
        return recorded_edges(trace), trained, died.exists()
