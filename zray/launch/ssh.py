"""Give an order to a host with the OpenSSH client of this machine.

Nothing of ssh is done here: keys, agents, jump hosts and known hosts are those of ``~/.ssh/config`` and of
the cluster file. The client never asks anything of a person (``BatchMode``), and ends if the other side is
silent.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import msgspec

from zray._version import __version__
from zray.launch.cluster_file import HostEntry
from zray.launch.orders import HostOrder, HostReport, LaunchError, find_report

ALIVE_INTERVAL_S = 5
ALIVE_COUNT_MAX = 3
"""So many unanswered questions, one each interval, end a connection."""
TRANSPORT_MARGIN_S = 15.0
"""How much longer the client is waited for than the host may take for its order."""
SSH_FAILED = 255
"""The client's exit code for its own failures, and not those of the command."""
COMPLAINT_CHARS_MAX = 500


def give_order(entry: HostEntry, order: HostOrder) -> HostReport:
    """Have an order obeyed on a host; its report.

    Raises:
        LaunchError: if the host cannot be reached, has no zray or another version of it, or cannot obey.
    """
    try:
        done = subprocess.run(
            ssh_command(entry, order.timeout_s), input=msgspec.json.encode(order),
            capture_output=True, timeout=order.timeout_s + TRANSPORT_MARGIN_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{entry.host}: no answer within {error.timeout:g} s") from None
    report = find_report(done.stdout.decode(errors="replace"))
    if report is None:
        raise LaunchError(f"{entry.host}: {_complaint(entry, done)}")
    if report.version != __version__:
        both = f"it has zray {report.version} and this machine has {__version__}"
        raise LaunchError(f"{entry.host}: {both}; install the same on both")
    if report.error:
        raise LaunchError(f"{entry.host}: {report.error}")
    return report


def ssh_command(entry: HostEntry, timeout_s: float) -> list[str]:
    """The command line of the client; the order is its input.

    Raises:
        LaunchError: if there is no client.
    """
    client = shutil.which("ssh")
    if client is None:
        raise LaunchError("there is no ssh on this machine; install the OpenSSH client")
    command = [client, "-T"]
    options = [
        *entry.ssh_options,
        "BatchMode=yes",
        f"ConnectTimeout={max(1, round(timeout_s))}",
        f"ServerAliveInterval={ALIVE_INTERVAL_S}",
        f"ServerAliveCountMax={ALIVE_COUNT_MAX}",
    ]
    if entry.identity_file:
        command += ["-i", os.path.expanduser(entry.identity_file)]
        options.append("IdentitiesOnly=yes")
    for option in options:
        command += ["-o", option]
    command += ["-p", str(entry.ssh_port)] if entry.ssh_port else []
    command += ["-l", entry.user] if entry.user else []
    return [*command, "--", entry.host, f"{entry.python} -m zray.launch.host"]


def _complaint(entry: HostEntry, done: subprocess.CompletedProcess[bytes]) -> str:
    """Why there is no report, as far as its output tells."""
    said = done.stderr.decode(errors="replace").strip()[-COMPLAINT_CHARS_MAX:]
    if done.returncode == SSH_FAILED:
        return f"ssh failed: {said or 'without a word'}"
    if "No module named" in said and "zray" in said:
        return f"{entry.python} has no zray, or an older one, there; install it, or set python ({said})"
    return f"{entry.python} ended with code {done.returncode} there and made no report; it said: {said}"
