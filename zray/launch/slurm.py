"""``zray slurm``: the batch script that runs a program on a cluster of its own inside one Slurm job.

The first node of the job is the head, one step of ``srun`` is all other nodes, and the program is a driver on
the head. Three things follow from what Slurm is: nodes are waited for by their step (``--block``), since what
leaves a step is killed; the key reaches them as the standard input of the step, so no file system needs to be
shared for it; and each way out of the script, the end of the time limit too, ends the cluster first.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from zray._version import __version__
from zray.launch.sizes import ARENA_SHARE, size_bytes

DEFAULT_TIMEOUT_S = 120.0
END_GRACE_S = 60
"""How long before its time limit a job is told to end."""
_DIRECTIVE_VALUE = re.compile(r"[A-Za-z0-9_.,:/+%@=\[\]-]+")


class SlurmJob(NamedTuple):
    """What ``zray slurm`` was told. ``None`` and empty: what the site does by default."""

    nodes: int
    cpus: int
    """Of each node."""
    script: tuple[str, ...]
    """The program and its arguments."""
    gpus: int = 0
    memory: str | None = None
    """Of each node, such as ``8G``."""
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    name: str = "zray"
    sbatch: tuple[str, ...] = ()
    """Further options of ``sbatch``, such as ``--qos=high``."""
    setup: tuple[str, ...] = ()
    """Shell lines that make ``python`` the right one, such as ``module load python``; run on each node."""
    python: str = "python3"
    port: int | None = None
    """Of the control store; ``None``: one that follows from the number of the job."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long the nodes may take to join."""


def batch_script(job: SlurmJob) -> str:
    """The script, for ``sbatch``.

    Raises:
        ValueError: for a value that cannot be in it, with what is allowed.
    """
    port = str(job.port) if job.port else "$((20000 + SLURM_JOB_ID % 20000))"
    return _SCRIPT.format(
        version=__version__,
        directives="\n".join(f"#SBATCH {line}" for line in _directives(job)),
        setup="\n".join(f"    {_one_line(line)}" for line in ("true", *job.setup)),
        python=_one_line(job.python),
        port=port,
        start=" ".join(_start_arguments(job)),
        timeout_s=f"{job.timeout_s:g}",
        script=shlex.join(job.script),
    )


def _directives(job: SlurmJob) -> list[str]:
    """The options of ``sbatch`` in the head of the script."""
    options: dict[str, object] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or None,
        "mem": job.memory and f"{size_bytes(job.memory) >> 20}M",
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:TERM@{END_GRACE_S}",
    }
    lines = [f"--{name}={_value(name, value)}" for name, value in options.items() if value is not None]
    for line in job.sbatch:
        if not line.startswith("-"):
            raise ValueError(f"{line!r} is no option of sbatch; write it as --sbatch=--qos=high")
        lines.append(_one_line(line))
    return lines


def _value(name: str, value: object) -> str:
    text = str(value)
    if not _DIRECTIVE_VALUE.fullmatch(text):
        raise ValueError(f"--{name} cannot be {text!r}: letters, digits and _.,:/+%@=[]- are allowed")
    return text


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text or "\0" in text:
        raise ValueError(f"{text!r} is not one line of shell")
    return text


def _start_arguments(job: SlurmJob) -> list[str]:
    """What all nodes are told: what the job has of each, and not what the machine has."""
    found = ["--num-cpus", str(job.cpus), "--num-gpus", str(job.gpus)]
    if job.memory:
        memory = size_bytes(job.memory)
        found += ["--object-store-memory", str(int(memory * ARENA_SHARE))]
        found += ["--resources", shlex.quote(f'{{"memory": {memory}}}')]
    return found


_SCRIPT = """\
#!/bin/bash
{directives}

# Written by zray slurm {version}: a cluster on the nodes of this job, and one program on it.
set -euo pipefail
set -m  # what runs in the background has a process group of its own, which can be ended as a whole
umask 077

setup() {{
{setup}
}}

zray() {{
    {python} -m zray.cli "$@"
}}

# On every node but the first: be a node until the step ends. The key of the cluster is the standard input.
join() {{
    set -eu
    umask 077
    setup
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    trap : TERM  # it is for the node, which this shell waits for
    cat >"$place/cluster.key"
    zray start --block --json --address "$1" --key-file "$place/cluster.key" --cluster "$2" {start}
}}

end() {{
    setup
    zray stop --cluster "$1"
}}

setup
name=zray-$SLURM_JOB_ID
port={port}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n '$p')
address=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
# Asked on another node, since many hosts know themselves as 127.0.1.1.
address=$(srun -N 1 -n 1 --nodelist="$last" getent ahostsv4 "$address" </dev/null | sed -n '1s/ .*//p')
place=$(mktemp -d)
export ZRAY_KEY_FILE=$place/cluster.key
others=$((SLURM_JOB_NUM_NODES - 1))
joiners=
driver=

finish() {{
    code=$?
    trap - EXIT
    trap : TERM INT
    if [ -n "$driver" ]; then
        kill -- "-$driver" 2>/dev/null || true
    fi
    if [ -n "$joiners" ]; then
        srun --overlap --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$first" \\
            bash -c "$(declare -f setup zray end); end \\"\\$@\\"" end "$name" </dev/null ||
            kill -- "-$joiners" 2>/dev/null || true
        wait "$joiners" 2>/dev/null || true
    fi
    end "$name" || true
    rm -rf "$place"
    exit "$code"
}}
trap finish EXIT
trap 'exit 143' TERM INT

zray start --head --port "$port" --node-ip-address "$address" --cluster "$name" {start}
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$first" \\
        --cpus-per-task="$SLURM_CPUS_PER_TASK" --input=all --kill-on-bad-exit=0 \\
        bash -c "$(declare -f setup zray join); join \\"\\$@\\"" join "$address:$port" "$name" \\
        <"$ZRAY_KEY_FILE" &
    joiners=$!
fi
zray wait-for-nodes "$SLURM_JOB_NUM_NODES" --address "$address:$port" --timeout {timeout_s}

# In the background, because a shell hears signals only between commands and while it waits.
zray run --address "tcp://$address:$port" {script} &
driver=$!
code=0
wait "$driver" || code=$?
driver=
exit "$code"
"""
