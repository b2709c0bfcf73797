"""Seeds -> scenarios -> verdicts: draw what is tested, not only when it fails.

``scenario_of(seed)`` draws topology, workload and which nemeses strike how often; a run of it is judged. A
failing one is made smaller while it fails in the same way, and told with the one command that replays it.
"""

from __future__ import annotations

import multiprocessing
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sim.costs import Costs, CostsError, load_costs
from sim.kernel import stream
from sim.run import PASSED, VERDICTS, Verdict, run_scenario
from sim.scenario import (
    ClusterPart,
    FaultsPart,
    NetworkPart,
    PhasesPart,
    Scenario,
    ScenarioError,
    WorkloadPart,
    load,
)
from sim.workload import KINDS

TRAINING_KINDS = ("allreduce", "parameter_server")
LATER_KINDS = (
    "empty",
    "lone",
    "choosy",
    "actors",
    "groups",
    "copies",
    "detached",
    *TRAINING_KINDS,
    "streams",
    "leavers",
)
"""Not drawn with the others, so that what a seed draws stays what it was."""
RATES = {
    "worker_crash": 200.0, "worker_crash_creating": 200.0, "worker_freeze": 100.0, "driver_crash": 20.0,
    "shard_crash": 40.0, "partition": 40.0, "clog": 300.0, "disk_slow": 20.0, "spill_failure": 0.2,
    "worker_start_failure": 0.2, "worker_start_hang": 0.05,
}  # fmt: skip
"""Up to how often each nemesis strikes in the swarm."""
NODE_RATES = {"node_crash": 15.0, "node_freeze": 8.0, "peer_partition": 60.0}
"""The same for those of clusters."""
LATER_NODE_RATES = {"node_silence": 8.0, "link_loss": 10.0}
"""The same, each drawn apart so that what was drawn before there were these stays what it was."""
CLUSTER_SEEDS = 500_000
"""All seeds from here on draw clusters of several nodes, which exchange tasks and objects."""
CHAINED_SEEDS = 700_000
"""All seeds from here on draw such clusters on shards that are replicated."""
ACTOR_SEEDS = 900_000
"""All seeds from here on draw clusters of several nodes whose programs make actors on all of them."""
GROUP_SEEDS = 1_000_000
"""All seeds from here on draw clusters of several nodes, and programs that use placement groups."""
SCHEDULER_SEEDS = 1_200_000
"""All seeds from here on draw clusters with several global schedulers, half of them on replicated shards."""
FLUSHING_SEEDS = 1_100_000
"""All seeds from here on draw clusters of several nodes on shards that flush, half of them replicated."""
OFFLOAD_SEEDS = 1_300_000
"""All seeds from here on draw clusters whose nodes give queued tasks to idle ones at once."""
TRAINING_SEEDS = 1_400_000
"""All seeds from here on draw such clusters, and programs of distributed training."""
COPY_SEEDS = 1_500_000
"""All seeds from here on draw clusters of several nodes whose programs put values on several of them."""
DETACHED_SEEDS = 1_600_000
"""All seeds from here on draw clusters whose nodes die, and programs with detached actors."""
MESSAGE_SEEDS = 1_700_000
"""All seeds from here on draw clusters whose processes die over single messages of every kind."""
STREAM_SEEDS = 1_900_000
"""All seeds from here on draw programs that stream, on one node or on several."""
LEAVER_SEEDS = 2_000_000
"""All seeds from here on draw programs whose actors end themselves; in half, processes die over messages."""
REPLICATED_SHARE = 1 / 3
"""Of the seeds below this share draws replicated shards."""
CLUSTER_SHARE = 0.5
"""Of this many seeds below it, too, unless their shards are replicated; drawn apart like ``LONE_SHARE``."""
LONE_SHARE = 0.15
"""Of this many seeds the workload is ``lone``, drawn apart so that the others are what they were before."""
CHOOSY_SHARE = 0.2
"""Of this many clusters the workload is ``choosy``; drawn apart like ``LONE_SHARE``."""
CHAIN_RATES = {"replica_crash": 30.0, "replica_partition": 30.0, "master_crash": 10.0}
"""The same of replicated shards."""
SCHEDULER_RATES = {"scheduler_crash": 30.0, "scheduler_freeze": 12.0}
"""The same of processes with a global scheduler."""
TWIN_RATE = 12.0
"""The same of a node and a head that die in one moment."""
SHRINK_RUNS_MAX = 60
FIRST_COSTS = "costs_2026_11_23.json"
"""Those of regressions that name no others, beside their file."""


class Failure(NamedTuple):
    """One seed that did not pass."""

    seed: int
    scenario: Scenario
    verdict: Verdict


def scenario_of(seed: int) -> Scenario:
    """The scenario that the swarm draws from a seed: a plain one, or that with replicas or more nodes."""
    plain = plain_scenario_of(seed)
    if seed >= LEAVER_SEEDS:
        return _leaving(seed, plain)
    if seed >= STREAM_SEEDS:
        return _streaming(seed, plain)
    if seed >= MESSAGE_SEEDS:
        return _over_messages(seed, plain)
    if seed >= DETACHED_SEEDS:
        return _with_detached(seed, _clustered(seed, plain))
    if seed >= COPY_SEEDS:
        return _with_copies(seed, _clustered(seed, plain))
    if seed >= TRAINING_SEEDS:
        return _training(seed, _impatient(seed, _clustered(seed, plain)))
    if seed >= OFFLOAD_SEEDS:
        return _impatient(seed, _clustered(seed, plain))
    if seed >= SCHEDULER_SEEDS:
        return _with_schedulers(seed, _clustered(seed, plain))
    if seed >= FLUSHING_SEEDS:
        return _flushing(seed, plain)
    if seed >= GROUP_SEEDS:
        return _grouped(_clustered(seed, plain))
    if seed >= ACTOR_SEEDS:
        return _with_actors(seed, _clustered(seed, plain))
    if seed >= CHAINED_SEEDS:
        return _replicated(_clustered(seed, plain), **_draw_replicas(seed), **_draw_twins(seed))
    if seed >= CLUSTER_SEEDS:
        return _clustered(seed, plain)
    if stream(seed, "swarm/replicas").random() <= REPLICATED_SHARE:
        return _replicated(plain, **_draw_replicas(seed))
    is_clustered = stream(seed, "swarm/clusters").random() < CLUSTER_SHARE
    return _clustered(seed, plain) if is_clustered else plain


def plain_scenario_of(seed: int) -> Scenario:
    """What is drawn from a seed without replicas, and without nodes that exchange anything."""
    random = stream(seed, "swarm")
    rates: dict[str, Any] = {}
    for name, most in RATES.items():
        present, share = random.random() < 0.35, random.random()
        if present:
            rates[name] = round(most * share * share, 4)
    plain_kinds = [name for name in KINDS if name not in LATER_KINDS]
    kind: Any = random.choice(plain_kinds)
    if stream(seed, "swarm/lone").random() < LONE_SHARE:
        kind = "lone"
    pressed = kind in ("memory_pressure", "shuffle", "references", "mixed")
    cluster = ClusterPart(
        nodes=random.choice((1, 1, 1, 2)),
        shards=random.choice((1, 1, 2, 3)),
        drivers=random.choice((1, 1, 2, 3)),
        cpus=random.choice((1, 2, 4, 8)),
        arena_kib=random.choice((2048, 4096, 65_536)) if pressed else 65_536,
        compact_messages=random.choice((5, 50, 500)),
    )
    network = NetworkPart(
        random.choice((5, 30, 500)), random.choice((0, 20, 500)), random.choice((20, 2_000))
    )
    workload = WorkloadPart(
        kind, tasks=random.randint(5, 150), depth=random.randint(1, 4), fan_out=random.randint(1, 4),
        task_us=random.choice((10, 500, 5_000)), object_kib=random.choice((16, 64, 256)),
        actors=random.randint(1, 4), retries=random.choice((-1, -1, 3, 0)),
    )  # fmt: skip
    rates["outage_ms"] = random.choice((2, 20, 100))
    phases = PhasesPart(faulty_s=round(random.uniform(0.02, 0.5), 3) if len(rates) > 1 else 0.0)
    return Scenario(
        f"swarm-{seed}", "drawn from its seed", check_every=random.choice((1, 3)), strict=True,
        cluster=cluster, network=network, workload=workload, faults=FaultsPart(**rates), phases=phases,
    )  # fmt: skip


def _clustered(seed: int, plain: Scenario) -> Scenario:
    """The same with more nodes, tasks that spread, and nodes that die, freeze or lose each other."""
    random = stream(seed, "swarm/nodes")
    rates: dict[str, float] = {}
    for name, most in NODE_RATES.items():
        present, share = random.random() < 0.4, random.random()
        if present:
            rates[name] = round(most * share * share, 4)
    cluster = msgspec.structs.replace(
        plain.cluster, nodes=random.choice((2, 3, 4)), cpus=min(plain.cluster.cpus, 4),
        backlog_per_slot=random.choice((-1, -1, 0, 2)),
    )  # fmt: skip
    faulty_s = round(random.uniform(0.02, 0.5), 3)
    for name, most in LATER_NODE_RATES.items():
        apart = stream(seed, f"swarm/{name}")
        if apart.random() < 0.3:
            rates[name] = round(most * apart.random(), 4)
    faults = msgspec.structs.replace(plain.faults, **rates)
    if stream(seed, "swarm/choosy").random() < CHOOSY_SHARE:
        plain = _with(plain, "workload", "kind", "choosy")
    phases = PhasesPart(faulty_s if rates or plain.phases.faulty_s else 0.0, liveness_s=60.0, quiet_s=40.0)
    return msgspec.structs.replace(
        plain, check_every=random.choice((1, 3)), cluster=cluster, faults=faults, phases=phases
    )


def _with_actors(seed: int, clustered: Scenario) -> Scenario:
    """The same cluster, whose programs make actors on all nodes; some of their processes die as well."""
    random = stream(seed, "swarm/actors")
    worker_crash = random.choice((0.0, 0.0, round(40 * random.random(), 2)))
    workload = msgspec.structs.replace(
        clustered.workload, kind="actors", tasks=random.randint(5, 80), actors=random.randint(1, 5)
    )
    faults = msgspec.structs.replace(clustered.faults, worker_crash=worker_crash)
    return msgspec.structs.replace(clustered, workload=workload, faults=faults)


def _with_schedulers(seed: int, clustered: Scenario) -> Scenario:
    """The same with several global schedulers, whose processes die, or stop for a while."""
    random = stream(seed, "swarm/schedulers")
    shards = random.choice((2, 3, 4))
    cluster = msgspec.structs.replace(
        clustered.cluster, shards=shards, global_schedulers=random.randint(2, shards)
    )
    rates = {name: round(most * random.random(), 4) for name, most in SCHEDULER_RATES.items()}
    scenario = msgspec.structs.replace(
        clustered,
        cluster=cluster,
        faults=msgspec.structs.replace(clustered.faults, **rates),
        phases=msgspec.structs.replace(clustered.phases, faulty_s=max(clustered.phases.faulty_s, 0.2)),
    )
    kind = random.choice(("as drawn", "as drawn", "choosy", "actors", "groups"))
    if kind == "groups":
        scenario = _grouped(scenario)
    elif kind != "as drawn":
        scenario = _with(scenario, "workload", "kind", kind)
    if random.random() < 0.5:
        return scenario
    return _replicated(scenario, **_draw_replicas(seed), **_draw_twins(seed))


def _with_detached(seed: int, clustered: Scenario) -> Scenario:
    """Three or four nodes that die, on shards that may be chains, with detached actors on all of them."""
    random = stream(seed, "swarm/detached")
    worker_crash = random.choice((0.0, 0.0, round(30 * random.random(), 2)))
    workload = msgspec.structs.replace(
        clustered.workload, kind="detached", tasks=random.randint(10, 70), actors=random.randint(1, 4)
    )
    cluster = msgspec.structs.replace(
        clustered.cluster, nodes=random.choice((3, 4, 4)), drivers=random.choice((2, 3)), backlog_per_slot=-1
    )
    node_crash = round(random.choice((0.5, 1.0, 2.0, 15.0)) * random.uniform(0.5, 1.5), 4)
    faults = msgspec.structs.replace(clustered.faults, worker_crash=worker_crash, node_crash=node_crash)
    phases = msgspec.structs.replace(clustered.phases, faulty_s=round(random.uniform(0.2, 4.0), 3))
    drawn = msgspec.structs.replace(
        clustered, workload=workload, cluster=cluster, faults=faults, phases=phases
    )
    return _replicated(drawn, **_draw_replicas(seed)) if random.random() < 0.25 else drawn


def _grouped(clustered: Scenario) -> Scenario:
    """The same with placement groups; every node has room for those that are waited for."""
    return msgspec.structs.replace(
        clustered,
        cluster=msgspec.structs.replace(clustered.cluster, cpus=max(2, clustered.cluster.cpus)),
        workload=msgspec.structs.replace(clustered.workload, kind="groups"),
    )


def _impatient(seed: int, clustered: Scenario) -> Scenario:
    """The same on unequal nodes, with queues that are evened out all the time."""
    random = stream(seed, "swarm/uneven")
    node_cpus = tuple(random.choice((1, 2, 4)) for _ in range(clustered.cluster.nodes))
    return msgspec.structs.replace(
        clustered,
        cluster=msgspec.structs.replace(
            clustered.cluster, node_cpus=node_cpus, heartbeat_ms=20, offload_patience_ms=0
        ),
        workload=msgspec.structs.replace(
            clustered.workload, task_us=max(500, clustered.workload.task_us),
            tasks=clustered.workload.tasks + 50,
        ),
    )  # fmt: skip


def _training(seed: int, impatient: Scenario) -> Scenario:
    """The same with training that makes anew whatever is lost: a fault in a sum would be a wrong value."""
    kind: Any = stream(seed, "swarm/training").choice(TRAINING_KINDS)
    workload = msgspec.structs.replace(impatient.workload, kind=kind, retries=-1)
    return msgspec.structs.replace(impatient, workload=workload)


def _over_messages(seed: int, plain: Scenario) -> Scenario:
    """A cluster of any of the kinds above, without other faults than deaths over single messages."""
    random = stream(seed, "swarm/messages")
    clustered = _clustered(seed, plain)
    drawn = random.choice((
        lambda: clustered,
        lambda: _with_actors(seed, clustered),
        lambda: _grouped(clustered),
        lambda: _with_schedulers(seed, clustered),
        lambda: _impatient(seed, clustered),
        lambda: _training(seed, _impatient(seed, clustered)),
        lambda: _flushing(seed, plain),
        lambda: _with_copies(seed, clustered),
        lambda: _with_detached(seed, clustered),
    ))()  # fmt: skip
    if random.random() < 0.4 and drawn.cluster.replicas == 1:
        drawn = _replicated(drawn, **_draw_replicas(seed))
    rate = 10.0 ** random.uniform(1.0, 3.0)
    drivers = max(3, drawn.cluster.drivers)  # of one nobody could kill the node
    return msgspec.structs.replace(
        drawn,
        cluster=msgspec.structs.replace(drawn.cluster, drivers=drivers),
        faults=FaultsPart(message_death=round(rate, 2), outage_ms=drawn.faults.outage_ms),
        phases=msgspec.structs.replace(drawn.phases, faulty_s=round(random.uniform(0.05, 0.6), 3)),
    )


def _streaming(seed: int, plain: Scenario) -> Scenario:
    """The same with streams, on a cluster or not."""
    random = stream(seed, "swarm/streams")
    drawn = _clustered(seed, plain) if random.random() < 0.5 else plain
    work = {"kind": "streams", "tasks": random.randint(8, 120), "retries": random.choice((-1, -1, 3))}
    return msgspec.structs.replace(drawn, workload=msgspec.structs.replace(drawn.workload, **work))


def _leaving(seed: int, plain: Scenario) -> Scenario:
    """The same with actors that end themselves, on a cluster or not."""
    random = stream(seed, "swarm/leavers")
    drawn = _clustered(seed, plain) if random.random() < 2 / 3 else plain
    work = {"kind": "leavers", "tasks": random.randint(5, 40)}
    faults = {"message_death": random.choice((0.0, 10.0))}
    return msgspec.structs.replace(
        drawn,
        workload=msgspec.structs.replace(drawn.workload, **work),
        faults=msgspec.structs.replace(drawn.faults, **faults),
    )


def _with_copies(seed: int, clustered: Scenario) -> Scenario:
    """The same with copies of what is put; in two of three nodes die one at a time: nothing may be lost."""
    random = stream(seed, "swarm/copies")
    changes: dict[str, Any] = {"driver_crash": 0.0, "partition": 0.0, "clog": 0.0}
    if random.random() < 2 / 3:
        changes |= {"node_crash": 0.0, "node_freeze": 0.0, "node_silence": 0.0, "keeper_crash": 0.5}
        changes["shard_crash"] = random.choice((0.0, 0.0, 0.3))
    workload = msgspec.structs.replace(
        clustered.workload,
        kind="copies",
        tasks=random.randint(10, 60),
        task_us=random.choice((1_000, 400_000)),
    )
    return msgspec.structs.replace(
        clustered,
        cluster=msgspec.structs.replace(clustered.cluster, nodes=random.choice((2, 3, 4, 5))),
        workload=workload,
        faults=msgspec.structs.replace(clustered.faults, **changes),
        phases=msgspec.structs.replace(clustered.phases, faulty_s=random.choice((0.5, 20.0))),
    )


def _replicated(plain: Scenario, replicas: int, **rates: float) -> Scenario:
    """The same with shards that are chains."""
    return msgspec.structs.replace(
        plain,
        cluster=msgspec.structs.replace(plain.cluster, replicas=replicas),
        faults=msgspec.structs.replace(plain.faults, **rates),
        phases=msgspec.structs.replace(plain.phases, faulty_s=max(plain.phases.faulty_s, 0.3)),
    )


def _flushing(seed: int, plain: Scenario) -> Scenario:
    """Clusters whose shards have room for a few rows, on disks that are slow or full at times."""
    random = stream(seed, "swarm/flushing")
    drawn = _clustered(seed, plain)
    if random.random() < 0.5:
        drawn = _replicated(drawn, **_draw_replicas(seed), **_draw_twins(seed))
    cluster = msgspec.structs.replace(
        drawn.cluster, gcs_memory_bytes=random.choice((1, 2_000, 20_000)), shards=min(drawn.cluster.shards, 2)
    )
    faults = msgspec.structs.replace(
        drawn.faults, flush_failure=random.choice((0.0, 0.2, 1.0)), disk_slow=random.choice((0.0, 5.0, 40.0))
    )
    return msgspec.structs.replace(drawn, cluster=cluster, faults=faults)


def _draw_replicas(seed: int) -> dict[str, Any]:
    """How many replicas each shard has, and what strikes them.

    From a stream of its own, so that all other draws are as they were before there were replicas.
    """
    random = stream(seed, "swarm/replicas")
    random.random()  # whether there are any, in the lowest seeds
    drawn: dict[str, Any] = {"replicas": random.choice((2, 2, 3))}
    for name, most in CHAIN_RATES.items():
        drawn[name] = round(most * random.random(), 4)
    return drawn


def _draw_twins(seed: int) -> dict[str, Any]:
    """How often a node dies together with the head of a chain, in some seeds."""
    random = stream(seed, "swarm/twins")
    return {"twin_crash": round(TWIN_RATE * random.random(), 4)} if random.random() < 0.4 else {}


def run_seed(seed: int) -> tuple[int, Verdict]:
    """One run of the swarm."""
    return seed, run_scenario(scenario_of(seed), seed)[0]


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[tuple[int, Verdict]]:
    """Verdicts as they come, from this process or from several."""
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=200) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=2)


# --- smaller -------------------------------------------------------------------------------------


def shrink(scenario: Scenario, seed: int, kind: int, tell: Callable[[str], None]) -> Scenario:
    """A smaller scenario that fails in the same way with the same seed."""
    runs = 0
    improved = True
    while improved and runs < SHRINK_RUNS_MAX:
        improved = False
        for smaller in _smaller(scenario):
            runs += 1
            if run_scenario(smaller, seed)[0].kind == kind:
                scenario, improved = smaller, True
                tell(f"still fails: {difference(smaller)}")
                break
            if runs >= SHRINK_RUNS_MAX:
                break
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    for name in FaultsPart.__struct_fields__:
        if name != "outage_ms" and getattr(scenario.faults, name):
            yield _with(scenario, "faults", name, 0.0)
    for part, name, least in (
        ("cluster", "nodes", 1), ("cluster", "drivers", 1), ("cluster", "shards", 1), ("cluster", "cpus", 1),
        ("cluster", "replicas", 1), ("cluster", "global_schedulers", 1),
        ("workload", "tasks", 1), ("workload", "depth", 1), ("workload", "fan_out", 1),
        ("workload", "actors", 1), ("network", "jitter_us", 0),
    ):  # fmt: skip
        value = getattr(getattr(scenario, part), name)
        for smaller in dict.fromkeys((least, value // 2, value - 1)):
            if least <= smaller < value:
                yield _with(scenario, part, name, smaller)


def _with(scenario: Scenario, part: str, name: str, value: Any) -> Scenario:
    changed = msgspec.structs.replace(getattr(scenario, part), **{name: value})
    return msgspec.structs.replace(scenario, **{part: changed})


def difference(scenario: Scenario) -> str:
    """What is not the default, in one line."""
    found: list[str] = []
    for part in ("cluster", "network", "workload", "faults", "phases"):
        given = getattr(scenario, part)
        default = type(given)()
        pairs = [(name, getattr(given, name)) for name in given.__struct_fields__]
        found += [f"{part}.{name}={value!r}" for name, value in pairs if value != getattr(default, name)]
    return " ".join(found)


def as_toml(scenario: Scenario) -> str:
    """A scenario as the text of its file."""
    lines = [f'name = "{scenario.name}"', f'about = "{scenario.about}"']
    lines += [f"check_every = {scenario.check_every}", f"strict = {str(scenario.strict).lower()}"]
    lines.append(f'policy = "{scenario.policy}"')
    for part in ("cluster", "network", "workload", "faults", "phases"):
        lines += ["", f"[{part}]"]
        for name, value in msgspec.structs.asdict(getattr(scenario, part)).items():
            lines.append(f"{name} = {_toml_of(value)}")
    return "\n".join(lines) + "\n"


def _toml_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{msgspec.json.encode(key).decode()} = {value[key]}" for key in value) + "}"
    return msgspec.json.encode(value).decode()


# --- regressions ---------------------------------------------------------------------------------


class Regression(NamedTuple):
    """A run that failed once and must pass now."""

    name: str
    seed: int
    scenario: Scenario
    story: str
    costs: Costs
    """Those that it failed with: others would move its schedule."""
    is_open: bool = False
    """The bug is known and not mended yet."""


def regressions(path: Path) -> list[Regression]:
    """The runs of a ``regressions.toml``: each names a seed of the swarm, or a scenario with changes.

    Raises:
        ScenarioError: naming the entry that is wrong.
    """
    found = []
    for number, entry in enumerate(tomllib.loads(path.read_text(encoding="utf-8")).get("run", [])):
        try:
            seed = int(entry["seed"])
            name = entry.get("scenario")
            drawn = plain_scenario_of if entry.get("plain") else scenario_of
            scenario = drawn(seed) if name is None else load(name)
            for key, value in entry.get("changes", {}).items():
                part, _, field = key.partition(".")
                scenario = _with(scenario, part, field, value)
            is_open = bool(entry.get("open"))
            costs = load_costs(path.with_name(entry.get("costs", FIRST_COSTS))).costs
            found.append(Regression(entry["name"], seed, scenario, entry["story"], costs, is_open))
        except (KeyError, TypeError, AttributeError, CostsError) as error:
            raise ScenarioError(f"{path}: run {number}: {error!r}") from None
    return found


def describe_failure(failure: Failure, replay: str) -> str:
    """Everything that the next person needs."""
    verdict = failure.verdict
    return "\n".join(
        (
            f"seed {failure.seed}: {VERDICTS[verdict.kind]} (exit code {verdict.kind})",
            verdict.detail.rstrip(),
            f"scenario: {difference(failure.scenario)}",
            f"strikes: {verdict.strikes}   digest: {verdict.digest}",
            "last lines of the story:",
            *(f"  {line}" for line in verdict.story),
            f"replay: {replay}",
        )
    )


def worst(kinds: Iterable[int]) -> int:
    """The exit code of a swarm: correctness before crash before liveness."""
    order = (5, 3, 4, PASSED)
    seen = tuple(kinds)
    return next((kind for kind in order if kind in seen), PASSED)
