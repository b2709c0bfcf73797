"""``zray.simulate``: a user's own program on a cluster that exists only in virtual time.

Inside ``with zray.simulate(...)`` the API is the usual one, and the user's functions really run; where and
when they run is decided by the machines of ``zray.core`` in the simulator. A task takes as long as is
declared for it, or as its code was measured to compute; ``time.sleep`` passes virtual time. With declared
durations a run depends on its seed alone.
"""

from __future__ import annotations

import gc
import math
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace

from sim import chrome
from sim.cluster import Span
from sim.costs import Costs, default_costs
from sim.operations import Work
from sim.process import Process
from sim.programs import InterruptError
from sim.run import summary_of
from sim.scenario import ClusterPart, FaultsPart, NetworkPart, PhasesPart, Scenario
from sim.user_code import CrashedHereError, Perform, UserRun
from sim.worker import SimWorker
from zray import ids
from zray.api import virtual_loop
from zray.api.simulated_actor import actor_of, given, raised, raised_by_call
from zray.api.simulated_client import FOREVER_S, NS_PER_S, SETTLE_NS, SimulatedClient
from zray.api.virtual_process import VirtualProcesses
from zray.config import Config
from zray.core.placement import SCHEDULING
from zray.protocol.messages import ACTOR, Describe
from zray.runtime import own_client
from zray.runtime.own_client import ActorIdentity
from zray.serialize.functions import load_args
from zray.serialize.values import load

Durations = Mapping[str, float] | Callable[[str, Random], float | None] | None
COLLECT_EVERY = 1_000
MEASURED_MAX = 10_000
CHECK_EVERY = 1_000


class Simulation:
    """A simulated cluster, for ``with``; made by :func:`simulate`.

    Attributes:
        forgotten: name -> how many results nobody asked for, known at the end.
        measured: name -> seconds of processor time of the last runs, where no duration was declared.
    """

    def __init__(
        self, scenario: Scenario, seed: int, durations: Durations, *, config: Config, costs: Costs,
        namespace: str,
    ) -> None:  # fmt: skip
        self._scenario, self._seed, self._durations = scenario, seed, durations
        self.namespace = namespace
        self._config, self._costs = config, costs
        self._random = Random(f"{seed}/durations")
        self.clients: dict[bytes, SimulatedClient] = {}
        self.actor_names: dict[bytes, str] = {}
        self.measured: dict[str, deque[float]] = {}
        self.forgotten: dict[str, int] = {}
        self.undeleted: dict[bytes, Any] = {}  # process -> its actor, until the farewell that deletes it
        self.clock_ns = 0  # processor time of the thread of user code when it went on
        self._ungot: dict[bytes, str] = {}
        self._measuring: dict[int, tuple[str, list[int]]] = {}  # thread -> (name, its processor time)
        self._collector_was_on = True
        self._started_ns = self._ended_ns = 0
        self._bodies = 0
        self._codes: dict[bytes, int] = {}  # function id -> its number in this run
        self._kinds: dict[bytes, Describe] = {}  # descriptor id -> descriptor in this run
        self.run: UserRun

    # --- with --------------------------------------------------------------------------------------

    def __enter__(self) -> Simulation:
        """
        Raises:
            RuntimeError: if this process is connected to a real cluster, or to another simulated one.
        """
        if own_client.get() is not None:
            raise RuntimeError("this process uses zray already; call zray.shutdown() before zray.simulate()")
        self.processes = VirtualProcesses(self, threading.current_thread())
        self.run = UserRun(self._scenario, self._seed, self._wake, config=self._config, costs=self._costs)
        self._collector_was_on = gc.isenabled()
        gc.disable()  # when it runs depends on more than the seed; see ``program``
        self.processes.install()
        self._policy = virtual_loop.install(self)
        self._wake(self.run.driver, self.run.perform)
        self.run.perform(Work(1, self.run.working))
        self._started_ns = self.run.now_ns
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._ended_ns = self.run.now_ns
        objects = self.run.driver.objects
        unfinished = sum(not objects.is_ready(object_id) for object_id in self._ungot)
        try:
            self.run.end() if error is None else self.run.abandon()
        finally:
            self.processes.remove()
            virtual_loop.remove(self._policy)
            own_client.use(None)
            own_client.become_actor(None)
            own_client.on_save_wanted(None)
            if self._collector_was_on:
                gc.enable()
        for name in self._ungot.values():
            self.forgotten[name] = self.forgotten.get(name, 0) + 1
        if error is not None:
            error.add_note(f"in zray.simulate(), {self.now_s:.6f} virtual seconds after the start")
        elif unfinished and self.forgotten:
            what = ", ".join(f"{count} of {name}()" for name, count in sorted(self.forgotten.items()))
            warnings.warn(
                f"{unfinished} tasks had not ended when the program did, because nobody waited for them: "
                f"results that were never got: {what}; call zray.get() on their refs",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip

    def _wake(self, process: Process, perform: Perform) -> None:
        """User code of this process is about to go on."""
        client = self.clients.get(process.address)
        if client is None:
            self.clients = {name: one for name, one in self.clients.items() if one.process.alive}
            client = self.clients[process.address] = SimulatedClient(self, process)
        client.settle()
        client.perform = perform
        own_client.use(client, in_worker=True)  # type: ignore[arg-type]
        own_client.become_actor(client.actor)
        checkpoints = process.checkpoints
        own_client.on_save_wanted(None if checkpoints is None else checkpoints.machine.want)

    # --- user code ---------------------------------------------------------------------------------

    def learn(self, descriptor: Describe, code: bytes) -> Describe:
        """A function or class will be run by workers; its descriptor in this run.

        The ids of code are digests of pickles, which differ from one process to the next where a class
        is pickled by value. Here they are numbered.
        """
        known = self._kinds.get(descriptor.descriptor_id)
        if known is not None:
            return known
        number = self._codes.setdefault(descriptor.function_id, len(self._codes))
        known = self._kinds[descriptor.descriptor_id] = replace(
            descriptor, descriptor_id=ids.content_id(b"kind %d" % len(self._kinds)),
            function_id=ids.content_id(b"code %d" % number),
        )  # fmt: skip
        self._add_code(known, descriptor.function_id, code)
        return known

    def _add_code(self, descriptor: Describe, function_id: bytes, code: bytes) -> None:
        def load_code(client: SimulatedClient) -> Any:
            client.functions.add(function_id, code)
            return client.functions.get(function_id, descriptor.name)

        def task(payload: list[Any], duration_ns: int, *values: Any) -> Any:
            return self.program(descriptor.name, duration_ns, payload, values, load_code, descriptor)

        self.run.codes.setdefault(descriptor.function_id.hex(), task)

    def program(
        self, name: str, duration_ns: int, payload: list[Any], values: tuple[Any, ...],
        load_code: Callable[[SimulatedClient], Any], descriptor: Describe | None,
    ) -> Any:  # fmt: skip
        """The program of one task, constructor or method."""

        def body(process: SimWorker, perform: Perform) -> Any:
            client = self.clients[process.address]
            making = process.making[process.context.task_id]
            if duration_ns < 0:
                self._measuring[threading.get_ident()] = name, []
            try:
                if duration_ns >= 0:
                    perform(Work(duration_ns, self.run.working))
                self.clock_ns = time.thread_time_ns()
                args, kwargs = load_args(payload[0], [load(value[0], "an argument") for value in values])
                code = load_code(client)
                if descriptor is None or descriptor.kind != ACTOR:
                    making.kept = code(*args, **kwargs)
                    return given(client, name, making, making.kept)
                restarts = process.context.attempt
                client.actor = ActorIdentity(process.context.task_id, descriptor.actor_name, restarts, code)
                own_client.become_actor(client.actor)
                return actor_of(self, process, name, code, args, kwargs)
            except (CrashedHereError, InterruptError):
                raise
            except BaseException as error:
                if descriptor is None:
                    raise raised_by_call(client, name, error) from None
                creates = descriptor.kind == ACTOR
                raise raised(
                    name, error, process.context, retry_on=descriptor.retry_on, creates=creates
                ) from None
            finally:
                self._end_body(client)

        return self.run.program(body)

    def _end_body(self, client: SimulatedClient) -> None:
        """A call of user code is over; what it let go of is counted once its result is on its way."""
        found = self._measuring.pop(threading.get_ident(), None)
        if found is not None:
            name, spent = found
            last_ns = time.thread_time_ns() - self.clock_ns
            seconds = (sum(spent) + last_ns) / NS_PER_S
            self.measured.setdefault(name, deque(maxlen=MEASURED_MAX)).append(seconds)
            client.process._debt_ns += last_ns
        self._bodies += 1
        if self._bodies % COLLECT_EVERY == 0:
            gc.collect()
        self.run.cluster.kernel.after(SETTLE_NS, client.send_settled)

    def charge(self, client: SimulatedClient) -> None:
        """Let a task pay for what it computed since it last went on, if it is measured."""
        found = self._measuring.get(threading.get_ident())
        if found is not None:
            spent_ns = time.thread_time_ns() - self.clock_ns
            found[1].append(spent_ns)
            client.process._debt_ns += spent_ns

    def duration_ns(self, name: str, declared_s: float | None) -> int:
        """How long a task takes; -1: as long as it is measured to."""
        seconds = declared_s
        if seconds is None and callable(self._durations):
            seconds = self._durations(name, self._random)
        elif seconds is None and isinstance(self._durations, Mapping):
            seconds = self._durations.get(name, self._durations.get(name.rpartition(".")[2]))
        if seconds is None:
            return -1
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{name}() cannot take {seconds} s")
        return round(seconds * NS_PER_S)

    def until_ns(self, timeout_s: float | None) -> int | None:
        """The end of a wait in virtual time."""
        if timeout_s is None:
            return None
        until_ns = self.run.now_ns + math.ceil(min(timeout_s, 1e9) * NS_PER_S)
        self.run.deadline_ns = max(self.run.deadline_ns, until_ns)
        return until_ns

    def note_submitted(self, name: str, returns: Sequence[bytes], deps: Sequence[bytes]) -> None:
        """Somebody has to ask for these, and has asked for those."""
        for object_id in returns:
            self._ungot[object_id] = name
        self.note_got(deps)

    def note_got(self, object_ids: Sequence[bytes]) -> None:
        """These results are used."""
        for object_id in object_ids:
            self._ungot.pop(object_id, None)

    # --- what came of it ---------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Virtual seconds since the program began."""
        return (self.run.now_ns - self._started_ns) / NS_PER_S

    @property
    def makespan_s(self) -> float:
        """Virtual seconds from the begin of the program to its end, or until now."""
        return ((self._ended_ns or self.run.now_ns) - self._started_ns) / NS_PER_S

    @property
    def utilisation(self) -> float:
        """Share of all CPU time in which a task ran."""
        cluster = self.run.cluster
        cpus = sum(node.cpus for node in cluster.nodes)
        return cluster.work_ns / max(1.0, self.makespan_s * NS_PER_S * cpus)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every task and call that ran: name, node, worker, start and end in virtual seconds."""
        return [
            {
                "name": span.name, "node": node_of(span), "worker": int.from_bytes(span.worker[12:], "big"),
                "task_id": span.task_id.hex(), "start_s": (span.start_ns - self._started_ns) / NS_PER_S,
                "end_s": (span.end_ns - self._started_ns) / NS_PER_S,
            }
            for span in self.run.cluster.spans or ()
        ]  # fmt: skip

    @property
    def digest(self) -> str:
        """Equal for two runs in which the same tasks ran in the same places at the same times."""
        return blake2b(repr(self.events).encode(), digest_size=16).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The numbers of the run: tasks, messages, bytes, retries, forwards, latencies."""
        numbers = summary_of(self.run.cluster)._asdict()
        numbers["makespan_ns"] = round(self.makespan_s * NS_PER_S)
        return {**numbers, "utilisation": self.utilisation}

    def chrome(self, path: str | os.PathLike[str]) -> None:
        """Write a trace that Perfetto opens."""
        chrome.write(self.run.cluster, Path(path))

    def gantt(self, path: str | os.PathLike[str]) -> None:
        """Draw what ran where, as PNG, SVG, PDF or HTML.

        Raises:
            MissingExtraError: without matplotlib.
        """
        from sim.plots import draw_gantt

        draw_gantt(self.run.cluster, Path(path))


def node_of(span: Span) -> int:
    """The number of the node where something ran."""
    return int(span.worker[4:12])


def simulate(
    *, nodes: int = 1, cpus: int = 4, seed: int = 0, resources: Mapping[str, float] | None = None,
    object_store_memory: int = 1 << 30, durations: Durations = None,
    faults: Mapping[str, float] | None = None, policy: str = "paper", latency_s: float | None = None,
    namespace: str = "simulated",
) -> Simulation:  # fmt: skip
    """A cluster in virtual time, for ``with``: what is called inside runs there.

    Args:
        nodes, cpus: how many nodes, and CPUs of each.
        seed: of everything that is drawn; with declared durations a run depends on nothing else.
        resources: what every node has besides CPUs, such as ``{"GPU": 2}``.
        object_store_memory: bytes of each node's store.
        durations: seconds by name of function (``f``, ``Class.method``), or a function of the name and a
            ``random.Random``. What it leaves out, or answers with ``None``, is measured. An option
            ``_duration_s`` of a task comes first.
        faults: mean strikes per virtual second, such as ``{"worker_crash": 0.5}``; see
            ``docs/simulation.md``.
        policy: when tasks are forwarded and where they go: a name in ``zray.core.placement.SCHEDULING``.
        latency_s: from one process to another; default: as measured on one machine.
        namespace: of the names of its actors.
    Raises:
        ValueError: for values that make no sense.
    """
    costs = default_costs()
    latency_us = costs.link_ns / 1e3 if latency_s is None else latency_s * 1e6
    if policy not in SCHEDULING:
        raise ValueError(f"no policy {policy!r}; there are {', '.join(sorted(SCHEDULING))}")
    if faults and "driver_crash" in faults:
        raise ValueError("the driver is this process: driver_crash cannot strike it")
    try:
        shape = {
            "nodes": nodes, "cpus": cpus, "resources": dict(resources or {}),
            "arena_kib": max(1, object_store_memory >> 10), "drivers": 1,
        }  # fmt: skip
        scenario = Scenario(
            "simulate", strict=False, check_every=CHECK_EVERY, policy=policy,  # type: ignore[arg-type]
            cluster=msgspec.convert(shape, ClusterPart),
            network=msgspec.convert({"latency_us": round(latency_us), "jitter_us": 0}, NetworkPart),
            faults=msgspec.convert(dict(faults or {}), FaultsPart),
            phases=PhasesPart(faulty_s=FOREVER_S if faults else 0.0),
        )  # fmt: skip
    except msgspec.ValidationError as error:
        raise ValueError(f"zray.simulate(): {error}") from None
    return Simulation(
        scenario, seed, durations, config=Config.from_environment(), costs=costs, namespace=namespace
    )
