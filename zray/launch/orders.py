"""What ``zray up`` says to a host, and what the host answers: one JSON document each way.

The order is the standard input of a command that ssh runs, so the key of the cluster is on no command line
and in no environment. The report is the last line of output that begins with ``REPORT_MARK``: shells of
hosts like to print greetings.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from zray._version import __version__
from zray.errors import ZrayError
from zray.launch.cluster_file import NodeSettings

ORDER_BYTES_MAX = 1 << 20
REPORT_MARK = "zray-host-report: "


class LaunchError(ZrayError):
    """A cluster could not be started or ended as asked: which host, and why."""


class HostOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done on a host."""

    action: Literal["look", "start", "stop"]
    cluster: str
    environment: dict[str, str] = {}
    timeout_s: float = 60.0
    head: bool = False
    port: int = 0
    """Of a head: where its control store listens."""
    gcs_shards: int = 1
    gcs_replicas: int = 1
    control_store: tuple[str, ...] = ()
    """Of any other host: its endpoints, a text for each shard with commas between replicas."""
    key: str = ""
    """Of any other host: the content of the key file of the cluster."""
    settings: NodeSettings = NodeSettings()


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """How that went."""

    version: str = __version__
    error: str = ""
    was_running: bool = False
    """Whether a node of the cluster ran there before the order."""
    node_id: str = ""
    address: str = ""
    """Where drivers of that host reach the node."""
    control_store: tuple[str, ...] = ()
    key: str = ""
    """Of a head: the content of the key file."""
    key_file: str = ""


def encode_report(report: HostReport) -> str:
    """The line of output that carries a report."""
    return f"\n{REPORT_MARK}{msgspec.json.encode(report).decode()}\n"


def find_report(output: str) -> HostReport | None:
    """The report in the output of a host; ``None`` if there is none that can be read."""
    for line in reversed(output.splitlines()):
        if line.startswith(REPORT_MARK):
            try:
                return msgspec.json.decode(line.removeprefix(REPORT_MARK), type=HostReport)
            except msgspec.DecodeError:
                return None
    return None
