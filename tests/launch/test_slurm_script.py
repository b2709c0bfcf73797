"""The text of the batch script: what it asks for, and what is refused."""

from __future__ import annotations

import re
import subprocess

import pytest

from zray.launch.sizes import size_bytes
from zray.launch.slurm import SlurmJob, batch_script

SMALL = SlurmJob(nodes=2, cpus=3, script=("train.py", "--rate", "0.1", "it's mine; rm -rf $HOME"))


def directives(job: SlurmJob) -> list[str]:
    lines = batch_script(job).splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]


def check(script: str) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=script, text=True, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_job_asks_for_what_it_was_told() -> None:
    assert directives(SMALL) == [
        "--job-name=zray", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=3", "--signal=B:TERM@60",
    ]  # fmt: skip
    large = SMALL._replace(
        gpus=2, memory="1.5G", time="1-02:00:00", partition="a,b", account="ada", sbatch=("--qos=high",)
    )
    assert directives(large)[-6:] == [
        "--mem=1536M", "--time=1-02:00:00", "--partition=a,b", "--account=ada", "--signal=B:TERM@60",
        "--qos=high",
    ]  # fmt: skip
    assert "--num-cpus 3 --num-gpus 2 --object-store-memory 483183820" in batch_script(large)


@pytest.mark.parametrize(
    "job",
    [
        SMALL,
        SMALL._replace(nodes=1, memory="8G", port=7000),
        SMALL._replace(
            setup=("module load python", "source '/a b/bin/activate'"), python="conda run -n x python"
        ),
    ],
)
def test_the_script_is_bash(job: SlurmJob) -> None:
    check(batch_script(job))


def test_arguments_of_the_program_reach_it_as_they_are() -> None:
    line = next(line for line in batch_script(SMALL).splitlines() if line.startswith("zray run "))
    program = f"address=a; port=1; zray() {{ printf '<%s>' \"$@\"; }}\n{line.removesuffix('&')}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "<run><--address><tcp://a:1><train.py><--rate><0.1><it's mine; rm -rf $HOME>"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"partition": "a\n#SBATCH --uid=0"}, "--partition cannot be"),
        ({"time": "1 day"}, "--time cannot be '1 day'"),
        ({"sbatch": ("qos=high",)}, "'qos=high' is no option of sbatch"),
        ({"sbatch": ("--qos=a\nrm -rf .",)}, "is not one line of shell"),
        ({"setup": ("",)}, "is not one line of shell"),
        ({"python": "py\nthon"}, "is not one line of shell"),
        ({"memory": "much"}, "'much' is not an amount of memory"),
        ({"memory": "10"}, "at least 1M"),
    ],
)
def test_nonsense_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        batch_script(SMALL._replace(**change))  # type: ignore[arg-type]


def test_sizes() -> None:
    sizes = ("1M", "512MiB", "8G", "1.5GiB", "2T", "1048576")
    assert [size_bytes(text) >> 20 for text in sizes] == [1, 512, 8192, 1536, 2 << 20, 1]
