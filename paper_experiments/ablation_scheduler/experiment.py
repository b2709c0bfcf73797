"""What the paper left open of its scheduler: how old reports may be, the threshold, the averaging constant.

One program in virtual time: a driver submits bursts of two tasks per CPU of the cluster, and waits for each
burst. The time it takes over the least possible is what is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from paper_experiments.ablation_scheduler import stale_policy
from paper_experiments.common.run import ExperimentRun
from sim.cluster import Cluster
from sim.kernel import MS, S
from sim.programs import Compute, Fetch, Program, Ref, Spawn
from sim.scenario import ClusterPart, NetworkPart, PhasesPart, Scenario
from zray.config import Config
from zray.errors import ZrayError

CPUS = 4
TASKS_PER_CPU = 2
SHORT_NS, LONG_NS = 20 * MS, 100 * MS
WARM_UP_NS = 1_200 * MS
LIMIT_NS = 10_000 * S
DEATH_INTERVALS = 8
POLICIES = ("paper", stale_policy.NAME, "power_of_two", "random", "spread")
THRESHOLDS = (-1, 0, 1, 2, 4, 8, 16)
ALPHAS = (0.02, 0.1, 0.2, 0.5, 1.0)


class UnfinishedAblationError(ZrayError):
    """A simulated run did not come to an end."""


class SchedulerSetting(NamedTuple):
    """One run."""

    nodes: int
    bursts: int
    policy: str = "paper"
    heartbeat_ns: int = Config().heartbeat_interval_ns
    threshold: int = Config().backlog_per_slot_max
    alpha: float = Config().run_average_alpha
    changes: bool = False
    """Long tasks after short ones in every burst, so that an average is wrong for a while."""


class SchedulerOutcome(NamedTuple):
    """What came of it."""

    slowdown: float
    """Time over the least possible."""
    most_over_mean: float
    """Tasks of the busiest node over the mean."""
    forwards: int


def spend(duration_ns: int) -> Program:
    """A task."""
    yield Compute(duration_ns)


def durations_ns(setting: SchedulerSetting, burst: int) -> list[int]:
    """Of one burst."""
    count = setting.nodes * CPUS * TASKS_PER_CPU
    if not setting.changes:
        return [SHORT_NS] * count
    return [LONG_NS if burst % 2 else SHORT_NS] * count


def simulate(setting: SchedulerSetting, seed: int = 0) -> SchedulerOutcome:
    """One run in virtual time.

    Raises:
        UnfinishedAblationError: if it does not end.
    """
    scenario = Scenario(
        "ablation", strict=False, check_every=10_000_000, policy=setting.policy,  # type: ignore[arg-type]
        cluster=ClusterPart(nodes=setting.nodes, cpus=CPUS, drivers=1, arena_kib=4096),
        network=NetworkPart(latency_us=100, jitter_us=0), phases=PhasesPart(liveness_s=LIMIT_NS / S),
    )  # fmt: skip
    config = Config(
        heartbeat_interval_ns=setting.heartbeat_ns, node_death_ns=DEATH_INTERVALS * setting.heartbeat_ns,
        backlog_per_slot_max=setting.threshold, run_average_alpha=setting.alpha,
    )  # fmt: skip
    marks: list[int] = []
    cluster = Cluster(
        scenario, seed, [lambda: _driver(setting, marks, lambda: cluster.kernel.now_ns)], config=config,
        functions={"spend": spend}, keep_spans=True,
    )  # fmt: skip
    cluster.boot()
    cluster.kernel.run_until(LIMIT_NS, lambda: not cluster.unfinished)
    if cluster.unfinished:
        raise UnfinishedAblationError(f"{setting} does not end")
    least_ns = sum(TASKS_PER_CPU * max(durations_ns(setting, burst)) for burst in range(setting.bursts))
    ran = Counter(span.worker[:12] for span in cluster.spans or ())
    mean = sum(ran.values()) / setting.nodes
    return SchedulerOutcome(marks[0] / least_ns, max(ran.values()) / mean, cluster.forwards)


def _driver(setting: SchedulerSetting, marks: list[int], clock_ns: Callable[[], int]) -> Program:
    yield Compute(max(WARM_UP_NS, 2 * setting.heartbeat_ns))
    began_ns = clock_ns()
    for burst in range(setting.bursts):
        refs: list[Ref] = []
        for duration_ns in durations_ns(setting, burst):
            ref = yield Spawn("spend", (duration_ns,))
            refs += (ref,)
        yield Fetch(refs)
    marks.append(clock_ns() - began_ns)


def sim(run: ExperimentRun) -> None:
    """Each of the three with all else as it ships."""
    nodes = run.pick("nodes", tiny=4, small=16, paper=64)
    bursts = run.pick("bursts", tiny=4, small=10, paper=20)
    run.parameter("cpus_per_node", CPUS)
    _herding(run, SchedulerSetting(nodes, bursts), run.pick("heartbeats_ms", small=(10, 100, 1_000),
                                                           paper=(10, 100, 1_000)))  # fmt: skip
    _threshold(run, SchedulerSetting(nodes, bursts))
    _alpha(run, SchedulerSetting(nodes, bursts, changes=True))


def _herding(run: ExperimentRun, usual: SchedulerSetting, heartbeats_ms: tuple[int, ...]) -> None:
    found: dict[tuple[str, int], SchedulerOutcome] = {}
    for policy in run.steps(POLICIES, "policy"):
        own: Any = stale_policy.registered if policy == stale_policy.NAME else nullcontext
        for interval_ms in heartbeats_ms:
            with own():
                one = simulate(usual._replace(policy=policy, heartbeat_ns=interval_ms * MS))
            found[policy, interval_ms] = one
            run.point("heartbeat", policy, interval_ms, one.slowdown)
            run.point("balance", policy, interval_ms, one.most_over_mean)
    least, most = min(heartbeats_ms), max(heartbeats_ms)
    corrected, herding = found["paper", most], found[stale_policy.NAME, most]
    run.quantity("herding", herding.slowdown / corrected.slowdown)
    run.quantity("cost_of_old_reports", corrected.slowdown / found["paper", least].slowdown)
    best = min(outcome.slowdown for (_, interval_ms), outcome in found.items() if interval_ms == 100)
    run.quantity("policy_over_best", found["paper", 100].slowdown / best)


def _threshold(run: ExperimentRun, usual: SchedulerSetting) -> None:
    found = {}
    for threshold in run.steps(THRESHOLDS, "threshold"):
        found[threshold] = simulate(usual._replace(threshold=threshold))
        run.point("threshold", "slowdown", threshold, found[threshold].slowdown)
    best = min(one.slowdown for one in found.values())
    best_at = min(found, key=lambda threshold: found[threshold].slowdown)
    if best_at != usual.threshold:
        run.absent(
            "threshold_over_best",
            f"for bursts of one driver {best_at} is best, not {usual.threshold}: what its node keeps waits "
            "while others idle; what it costs many drivers to forward everything is in figure 8b",
        )
    run.quantity("threshold_over_best", found[usual.threshold].slowdown / best)
    run.quantity("largest_threshold_over_best", found[max(THRESHOLDS)].slowdown / best)


def _alpha(run: ExperimentRun, usual: SchedulerSetting) -> None:
    found = {}
    for alpha in run.steps(ALPHAS, "alpha"):
        found[alpha] = simulate(usual._replace(alpha=alpha)).slowdown
        run.point("alpha", "slowdown", alpha, found[alpha])
    run.quantity("alpha_over_best", found[usual.alpha] / min(found.values()))
    run.quantity("worst_alpha_over_best", max(found.values()) / min(found.values()))
