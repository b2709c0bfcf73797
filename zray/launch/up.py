"""``zray up`` and ``zray down``: a cluster on hosts that ssh reaches.

First every host is looked at, so that most of what can go wrong does before anything runs. Then the head
starts, then all others at once. The invariant: a host where this command started a node, or may have, is
told to stop it if the cluster does not come up as a whole; what ran before is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Condition

from zray.launch.cluster_file import ClusterFile, HostEntry, NodeSettings
from zray.launch.orders import HostOrder, HostReport, LaunchError
from zray.launch.ssh import give_order

AT_ONCE_MAX = 32
"""Connections that are open at the same time."""

Say = Callable[[str], None]


class Starts:
    """Orders to start that are under way, and whether any more may be given.

    A thread that was just begun when its maker is interrupted is one that no pool waits for.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._under_way = 0
        self._over = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Give one.

        Raises:
            LaunchError: if they are over.
        """
        with self._changed:
            if self._over:
                raise LaunchError("it was not told to start any more")
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Give no more, and wait for those under way; each has a bound of its own."""
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: not self._under_way)


Outcome = HostReport | LaunchError


def up(cluster: ClusterFile, say: Say) -> HostReport:
    """Start what does not run yet; the report of the head.

    Args:
        say: hears a sentence about each host.
    Raises:
        LaunchError: naming each host that failed and why; what was started here is stopped again.
    """
    entries = cluster.hosts
    looks = _all_or_none("look at", entries, _give_each(cluster, entries, "look"))
    ours = [entry for entry, look in zip(entries, looks, strict=True) if not look.was_running]
    starts = Starts()
    try:
        return _start_all(cluster, say, starts)
    except BaseException:
        starts.end()
        if ours:
            say(f"stopping what was started on {_names(ours)}")
            for failure in _failures(_give_each(cluster, ours, "stop")):
                say(f"  {failure}")
        raise


def _start_all(cluster: ClusterFile, say: Say, starts: Starts) -> HostReport:
    head_entry, *others = cluster.hosts
    outcomes = _give_each(cluster, [head_entry], "start", starts=starts)
    (head,) = _all_or_none("start the head on", [head_entry], outcomes)
    say(f"{head_entry.host}: {_how(head)}, with the control store at {' '.join(head.control_store)}")
    outcomes = _give_each(cluster, others, "start", head=head, starts=starts)
    for entry, outcome in zip(others, outcomes, strict=True):
        if isinstance(outcome, HostReport):
            say(f"{entry.host}: {_how(outcome)}")
    _all_or_none("start nodes on", others, outcomes)
    return head


def down(cluster: ClusterFile, say: Say) -> None:
    """Stop what runs: the nodes first, then the head.

    Raises:
        LaunchError: naming each host where that failed; all others were told to stop.
    """
    head_entry, *others = cluster.hosts
    failures: list[LaunchError] = []
    for entries in (others, [head_entry]):
        outcomes = _give_each(cluster, entries, "stop")
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, HostReport):
                say(f"{entry.host}: {'stopped' if outcome.was_running else 'nothing ran there'}")
        failures += _failures(outcomes)
    if failures:
        raise _together("stop nodes on", 1 + len(others), failures)


def order_for(cluster: ClusterFile, entry: HostEntry, action: str, head: HostReport | None) -> HostOrder:
    """What a host is told; ``head`` is the report of the head, where one runs already."""
    is_head = head is None
    common = {name: getattr(entry, name) for name in NodeSettings.__struct_fields__}
    return HostOrder(
        action=action,  # type: ignore[arg-type]
        cluster=cluster.name,
        environment=entry.environment,
        timeout_s=cluster.timeout_s,
        head=is_head,
        port=cluster.port if is_head else 0,
        gcs_shards=cluster.gcs_shards,
        gcs_replicas=cluster.gcs_replicas,
        control_store=head.control_store if head else (),
        key=head.key if head else "",
        settings=NodeSettings(**common),
    )


def _give_each(
    cluster: ClusterFile, entries: Sequence[HostEntry], action: str, *, head: HostReport | None = None,
    starts: Starts | None = None,
) -> list[Outcome]:  # fmt: skip
    """Order the same of several hosts at once; what became of each, in their order."""

    def give(entry: HostEntry) -> Outcome:
        try:
            with starts.one() if starts is not None else nullcontext():
                return give_order(entry, order_for(cluster, entry, action, head))
        except LaunchError as error:
            return error

    with ThreadPoolExecutor(max_workers=AT_ONCE_MAX) as pool:
        return list(pool.map(give, entries))


def _all_or_none(deed: str, entries: Sequence[HostEntry], outcomes: Sequence[Outcome]) -> list[HostReport]:
    """The reports, if there is one of each host.

    Raises:
        LaunchError: naming every host that failed.
    """
    failures = _failures(outcomes)
    if failures:
        raise _together(deed, len(entries), failures)
    return [outcome for outcome in outcomes if isinstance(outcome, HostReport)]


def _failures(outcomes: Sequence[Outcome]) -> list[LaunchError]:
    return [outcome for outcome in outcomes if isinstance(outcome, LaunchError)]


def _together(deed: str, total: int, failures: Sequence[LaunchError]) -> LaunchError:
    lines = "".join(f"\n  {failure}" for failure in failures)
    return LaunchError(f"could not {deed} {len(failures)} of {total} hosts:{lines}")


def _how(report: HostReport) -> str:
    return f"{'runs already' if report.was_running else 'started'}, node {report.node_id}"


def _names(entries: Sequence[HostEntry]) -> str:
    return ", ".join(entry.host for entry in entries)
