"""A whole Slurm on this machine: its controller and a few nodes, run by this user, for one test.

The nodes are daemons with ports of their own. Nothing of the machine is asked for who is who (``auth/none``),
so only this test should reach it: everything listens on loopback.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clusters import PATIENCE_S, Place
from tests.support import eventually

SBIN = "/usr/sbin:/usr/local/sbin"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=10
CommunicationParameters=NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _require_slurm() -> None:
    for program in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo"):
        if shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}") is None:
            pytest.skip(
                f"{program} is not installed: the packages slurmctld, slurmd and slurm-client have it"
            )


def _ports(count: int) -> list[int]:
    """Free ports of loopback, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _write(folder: Path, count: int) -> dict[str, str]:
    """The configuration; the variables by which the commands of Slurm find it."""
    import pwd

    for name in ("state", *(f"spool-n{number}" for number in range(count))):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    controller_port, *ports = _ports(1 + count)
    nodes = "\n".join(
        f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000"
        for number, port in enumerate(ports)
    )
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host, controller_port=controller_port, user=pwd.getpwuid(os.geteuid()).pw_name,
            folder=folder, nodes=nodes,
        )
    )  # fmt: skip
    return {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}


@contextmanager
def slurm_site(here: Place, count: int) -> Iterator[dict[str, str]]:
    """A Slurm with ``count`` idle nodes; yields the environment for its commands."""
    _require_slurm()
    folder = here.folder / "slurm"
    environment = {**os.environ, **_write(folder, count)}
    daemons: list[subprocess.Popen[bytes]] = []
    commands = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"n{number}"] for number in range(count))]
    try:
        for command in commands:
            with (folder / f"daemon-{len(daemons)}.out").open("wb") as output:
                daemons.append(
                    subprocess.Popen(
                        [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]],
                        env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                        start_new_session=True,
                    )
                )  # fmt: skip
        _await_idle(folder, daemons, environment, count)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(PATIENCE_S)


def _await_idle(
    folder: Path, daemons: list[subprocess.Popen[bytes]], environment: dict[str, str], count: int
) -> None:
    def idle() -> bool:
        if any(daemon.poll() is not None for daemon in daemons):
            said = "".join(path.read_text(errors="replace")[-500:] for path in folder.glob("*.[lo][ou][gt]"))
            pytest.skip(f"this machine cannot run the daemons of Slurm: {said}")
        asked = subprocess.run(
            ["sinfo", "--noheader", "--states=idle", "--format=%D"],
            env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        return asked.stdout.split() == [str(count)]

    eventually(idle, PATIENCE_S, "idle nodes of Slurm")
