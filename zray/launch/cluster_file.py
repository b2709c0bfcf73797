"""The file that describes a cluster for ``zray up``: which hosts, how to reach them, what each offers.

A file is TOML. What stands at its top is for every host; a host may say otherwise for itself. A key that
nobody knows is an error that says what is allowed, since a misspelt limit is worse than none.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec

from zray.runtime.node_options import CLUSTER_NAME, NodeOptions

HOSTS_MAX = 1000
DEFAULT_PORT = 6480

# No leading hyphen: these become arguments of ssh, and one would be taken for an option.
HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:%-]*$")]
UserName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65_534)]
SshOption = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9]*=[^\n\0]+$")]
ShellWords = Annotated[str, msgspec.Meta(pattern=r"^[^\n\0]+$")]
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class ClusterFileError(ValueError):
    """A file for ``zray up`` that makes no sense, with the file and the key."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the node of a host is told; ``None``: what ``zray start`` finds there."""

    num_cpus: Amount | None = None
    num_gpus: Amount | None = None
    resources: dict[str, Amount] = {}
    labels: dict[str, str] = {}
    """By which tasks can choose the node."""
    object_store_memory: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Bytes."""
    address: HostName | None = None
    """Where the other hosts reach this one (default: of the head, where ssh reached it)."""
    node_port: Port | None = None
    """First of the two tcp ports of the node (default: any two that are free)."""


class HostEntry(NodeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host. What is ``None`` or empty here is as at the top of the file."""

    host: HostName
    """As ``ssh`` takes it: a name, an address or an alias of ``~/.ssh/config``."""
    user: UserName | None = None
    ssh_port: Port | None = None
    identity_file: str | None = None
    python: ShellWords | None = None
    ssh_options: list[SshOption] = []
    environment: dict[VariableName, str] = {}


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    head: HostEntry
    nodes: Annotated[list[HostEntry], msgspec.Meta(max_length=HOSTS_MAX)] = []
    name: Annotated[str, msgspec.Meta(pattern=f"^{CLUSTER_NAME}$")]
    """By which its nodes are found again on the hosts (default: the name of the file)."""
    port: Port = DEFAULT_PORT
    """Of the control store, on the head; with several processes of it also the next ones."""
    gcs_shards: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    gcs_replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    """Of each shard, all on the head: they outlive each other, and not the host."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    """For each step on each host."""

    user: UserName | None = None
    ssh_port: Port | None = None
    identity_file: str | None = None
    python: ShellWords = "python3"
    """What the shell of the host runs as Python, with zray installed: ``~/venv/bin/python``,
    ``conda run -n mine python``."""
    ssh_options: list[SshOption] = []
    """As ``ssh -o`` takes them: ``ProxyJump=bastion``."""
    environment: dict[VariableName, str] = {}
    """Variables of the node and of all that runs on it."""

    @property
    def hosts(self) -> list[HostEntry]:
        """All hosts, the head first, each with what the top of the file says for it."""
        return [self._complete(entry) for entry in (self.head, *self.nodes)]

    def _complete(self, entry: HostEntry) -> HostEntry:
        return msgspec.structs.replace(
            entry,
            user=entry.user or self.user,
            ssh_port=entry.ssh_port or self.ssh_port,
            identity_file=entry.identity_file or self.identity_file,
            python=entry.python or self.python,
            ssh_options=[*entry.ssh_options, *self.ssh_options],  # of two equal ones ssh takes the first
            environment={**self.environment, **entry.environment},
        )


def load(path: str) -> ClusterFile:
    """The cluster that a file describes.

    Raises:
        OSError: if it cannot be read.
        ClusterFileError: if it makes no sense.
    """
    with open(path, "rb") as file:
        content = file.read()
    return parse(content, path)


def parse(content: bytes, path: str) -> ClusterFile:
    """The cluster that the content of a file describes; ``path`` names it, and is for messages.

    Raises:
        ClusterFileError: if it makes no sense.
    """
    try:
        document = msgspec.toml.decode(content)
        _refuse_unknown_keys(document)
        document.setdefault("name", os.path.splitext(os.path.basename(path))[0])
        cluster = msgspec.convert(document, ClusterFile)
        _refuse_twins(cluster)
        for entry in cluster.hosts:
            _check_amounts(entry)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ClusterFileError(f"{path}: {error}") from None
    return cluster


def _refuse_unknown_keys(document: dict[str, Any]) -> None:
    _refuse_unknown(document, ClusterFile, "at the top")
    nodes = document.get("nodes")
    for place, table in [("in [head]", document.get("head"))] + [
        (f"in [[nodes]] number {number}", table)
        for number, table in enumerate(nodes if isinstance(nodes, list) else [], 1)
    ]:
        if isinstance(table, dict):  # what else it may be, the types refuse
            _refuse_unknown(table, HostEntry, place)


def _refuse_unknown(table: dict[str, Any], kind: type[msgspec.Struct], place: str) -> None:
    for key in table:
        if key not in kind.__struct_fields__:
            allowed = ", ".join(sorted(kind.__struct_fields__))
            raise ValueError(f"{place}: there is no key {key!r}; allowed are {allowed}")


def _refuse_twins(cluster: ClusterFile) -> None:
    """One host has one node of a cluster: the name finds it again."""
    seen: dict[tuple[str, str | None, int | None], None] = {}
    for entry in cluster.hosts:
        who = entry.host, entry.user, entry.ssh_port
        if who in seen:
            raise ValueError(f"host {entry.host} is there twice")
        seen[who] = None


def _check_amounts(entry: HostEntry) -> None:
    for reserved, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if reserved in entry.resources:
            raise ValueError(f"host {entry.host}: give {reserved} as {key}")
    try:
        NodeOptions(
            num_cpus=entry.num_cpus, num_gpus=entry.num_gpus or 0, resources=dict(entry.resources)
        ).total()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"host {entry.host}: {error}") from None
