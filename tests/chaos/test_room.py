"""Disks that are small, full or read-only, and shared memory that is not there: a typed error, or none.

The arena of a node is memory without a name (``docs/decisions/0005-memfd-arena.md``), so /dev/shm may be tiny
or read-only; what limits it is the largest file of a process, and the memory of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.clusters import Place, finish, place

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PROGRAM = """
import os, sys, zray
from zray.exceptions import *
try:
    zray.init(num_cpus=1, object_store_memory=int(sys.argv[1]))
except ZrayError as error:
    print(type(error).__name__, error)
    sys.exit()

@zray.remote
def talk(number):
    print("x" * 200_000)
    return number

kept = []
try:
    for number in range(30):
        kept.append(zray.put(bytes([number]) * 1_000_000))
except OutOfDiskError as error:
    print("refused", error)
print(all(zray.get(ref)[:1] == bytes([number]) for number, ref in enumerate(kept)), len(kept))
print(zray.get([talk.remote(number) for number in range(20)]) == list(range(20)))
kept.clear()
print(len(zray.get(zray.put(b"y" * 1_000_000))))
"""
STORE_BYTES = str(16 << 20)


@contextmanager
def small_disk(size: str, options: str = "rw") -> Iterator[Path]:
    """A file system of its own for the sessions of a place."""
    if os.geteuid():
        pytest.skip("mounting a small disk to fill needs root")
    path = Path(tempfile.mkdtemp(prefix="d"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        path.rmdir()
        pytest.skip(f"a small disk to fill cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
        path.rmdir()


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def run(here: Place, *prefix: str, store_bytes: str = STORE_BYTES, **environment: str) -> list[str]:
    """What the program prints; lines of its workers come with a name in front."""
    program = here.folder / "program.py"
    program.write_text(PROGRAM)
    done = finish(
        here.start_command([*prefix, sys.executable, str(program), store_bytes], environment=environment)
    )
    program.unlink()
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.endswith("xxx")]


def test_a_disk_that_fills_up_with_spilled_objects_and_logs(here: Place) -> None:
    """What is refused is said, what was taken is there, and the program goes on."""
    with small_disk("6m") as disk:
        refused, kept, tasks, again = run(here, ZRAY_TMPDIR=str(disk))
        assert refused.startswith("refused no room for an object of 100")
        assert "No space left" in refused
        assert kept.startswith("True")
        assert (tasks, again) == ("True", "1000000")
        assert not list(disk.glob("zray-*/*"))


@pytest.mark.parametrize("options", ["rw", "ro"])
def test_no_session_can_be_made(here: Place, options: str) -> None:
    with small_disk("64k", options) as disk:
        if options == "rw":
            with (disk / "fill").open("wb") as fill:
                _fill(fill.fileno())
        [said] = run(here, ZRAY_TMPDIR=str(disk))
        assert said.startswith("ClusterUnavailableError the node failed to start")
        assert ("Read-only" if options == "ro" else "No space left") in said
        assert not list(disk.glob("zray-*/*"))


def _fill(fd: int) -> None:
    with suppress(OSError):
        while True:
            os.write(fd, bytes(4096))


@pytest.mark.parametrize("options", ["size=4k", "size=64k,ro"])
def test_shared_memory_that_is_tiny_or_read_only_is_not_missed(here: Place, options: str) -> None:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("a /dev/shm of its own takes root and unshare")
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    assert run(here, "unshare", "-m", "sh", "-c", mount, "sh", store_bytes=str(64 << 20)) == [
        "True 30", "True", "1000000"
    ]  # fmt: skip


def test_an_arena_beyond_the_largest_file_of_a_process(here: Place) -> None:
    limit = 'ulimit -f 2000 && exec "$@"'  # of 512 or 1024 bytes
    [said] = run(here, "sh", "-c", limit, "sh")
    assert said.startswith(
        "ClusterUnavailableError the node failed to start: no room for an object of 16777216"
    )


def test_a_store_larger_than_the_memory_is_warned_of(here: Place) -> None:
    done = here.run(f"import zray\nzray.init(num_cpus=1, object_store_memory={1 << 44})\nprint(1)")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "a smaller object_store_memory spills to disk before" in done.stderr
