"""The command ``zray doctor``: try every link of a cluster in both directions, and name what is wrong."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def add_command(commands: Any) -> None:
    """Add the subcommand to a parser."""
    doctor = commands.add_parser("doctor", help="say whether this machine and a cluster can reach each other")
    doctor.set_defaults(function=_doctor)
    doctor.add_argument("--address", required=True, metavar="HOST:PORT", help="of the control store")
    doctor.add_argument(
        "--node-ip-address", metavar="HOST",
        help="where a node of this machine would listen (default: what leads to --address)",
    )  # fmt: skip
    doctor.add_argument(
        "--node-port", type=int, metavar="P", help="its control port, the next one is for bulk (default: any)"
    )
    doctor.add_argument("--key-file", type=os.path.abspath, metavar="FILE", help="key of the cluster")


def _doctor(given: argparse.Namespace) -> int:
    """1 if anything is wrong."""
    from zray.config import Config
    from zray.runtime.doctor import examine
    from zray.runtime.endpoints import endpoint_of

    if given.node_port is not None and not 0 < given.node_port < 65_535:
        given.subparser.error(f"--node-port is between 1 and 65534, not {given.node_port}")
    config = Config.from_environment()
    if given.key_file:
        config = config._replace(key_file=given.key_file)
    problems = 0
    address = endpoint_of(given.address)
    for finding in examine(address, config, host=given.node_ip_address, port=given.node_port):
        problems += bool(finding.problem)
        print(f"WRONG {finding.what}: {finding.problem}" if finding.problem else f"ok    {finding.what}")
    print(f"{problems} {'problem' if problems == 1 else 'problems'}" if problems else "nothing is wrong")
    return 1 if problems else 0
