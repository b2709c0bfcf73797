"""Instructions of three hot paths of ``zray.core``: ``python -m benchmarks.instructions``, and ``--help``.

Counted by valgrind, so a busy machine changes nothing: two runs of one tree agree to a few parts in a
thousand. The machines run alone, without sockets and processes:

- ``submit``: a client submits a task, and its batch is encoded;
- ``task``: a node takes a task, dispatches it, hears that it is done, tells its submitter, forgets it;
- ``object``: a node makes room for a large object, seals, shows and frees it.

Each path is counted at two numbers of operations, and the difference divided: what it takes to start Python
is not in it. Without valgrind the program says so and ends well.

``--against COMMIT`` counts that, too. ``--check`` compares with what ``instructions.json`` keeps, as CI does;
``--store`` writes them. They are of one build of the interpreter: with another one nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FEW, MANY = 200, 1_200
TOLERANCE = 0.05
ROOT = Path(__file__).resolve().parent.parent
STORED = Path(__file__).with_name("instructions.json")
CPU = (("CPU", 10_000),)
DRIVER = b"driver"
ROOT_TASK = b"R" * 8 + bytes(8)


def submit_path() -> Callable[[int], None]:
    """One submission by a client."""
    from zray.config import Config
    from zray.core.client import ClientMachine
    from zray.core.task_context import TaskContext
    from zray.protocol.codec import encode_batch
    from zray.protocol.messages import Describe

    client = ClientMachine(node=b"node", config=Config())
    context = TaskContext(ROOT_TASK)
    descriptor = Describe(b"D" * 16, b"F" * 16, "f", 1, CPU, 3)
    client.describe(descriptor, b"code")

    def once(number: int) -> None:
        _, (object_id,) = client.submit(context, descriptor, b"x" * 20, (), ())
        client.settle()
        encode_batch([message for _, message in client.out])
        client.out.clear()
        client.objects.drop(object_id)

    return once


class LoneNode:
    """A node with one driver and one worker that answer at once; its shards say nothing."""

    def __init__(self, shards: tuple[bytes, ...] = (b"shard",)) -> None:
        from zray.config import Config
        from zray.core.identity import NodeIdentity
        from zray.core.machine import WORKER_POOL, pump
        from zray.core.node import Node
        from zray.protocol.local_messages import StartWorker
        from zray.protocol.messages import DRIVER as ROLE_DRIVER
        from zray.protocol.messages import PROTOCOL_VERSION, WORKER, Describe, ExportFunction, Hello

        identity = NodeIdentity(node_id=b"N" * 16, arena_bytes=1 << 30)
        self.node = Node(identity, total=CPU, shards=shards, config=Config())
        self._pump, self.now_ns = pump, 1
        self.node.pool.start(1)
        started = [message for to, message in self.node.out if to == WORKER_POOL]
        self.worker = next(message.worker_id for message in started if isinstance(message, StartWorker))
        self.say(self.worker, Hello(PROTOCOL_VERSION, WORKER, 2, bytes(16)))
        self.say(DRIVER, Hello(PROTOCOL_VERSION, ROLE_DRIVER, 3, ROOT_TASK))
        self.say(DRIVER, ExportFunction(b"F" * 16, b"code"))
        self.say(DRIVER, Describe(b"D" * 16, b"F" * 16, "f", 1, CPU, 3))

    def say(self, source: bytes, message: object) -> list[tuple[bytes, object]]:
        """One message; what the node sends because of it."""
        self.now_ns += 1_000
        self._pump(self.node, [(source, message)], self.now_ns)
        effects = list(self.node.out)
        self.node.out.clear()
        return effects


def task_path(node: LoneNode | None = None) -> Callable[[int], None]:
    """One task of a node."""
    from zray import ids
    from zray.protocol.messages import INLINE, ObjectReady, Release, Run, Submit, TaskDone, Value

    world = LoneNode() if node is None else node
    prefix, values = ids.child_prefix(ROOT_TASK), (Value(INLINE, b"value"),)

    def once(number: int) -> None:
        task_id = ids.task_id(prefix, number + 1)
        ran = world.say(DRIVER, Submit(task_id, ROOT_TASK, b"D" * 16, b""))
        assert any(to == world.worker and isinstance(message, Run) for to, message in ran)
        told = world.say(world.worker, TaskDone(task_id, 0, values, 1_000))
        assert any(to == DRIVER and isinstance(message, ObjectReady) for to, message in told)
        world.say(DRIVER, Release((ids.first_return_id(task_id),)))

    return once


def object_path() -> Callable[[int], None]:
    """One large object of a node."""
    from zray import ids
    from zray.protocol.messages import Create, Created, Get, ObjectReady, Release, Seal, Unpin

    world = LoneNode()
    prefix = ids.child_prefix(ROOT_TASK)

    def once(number: int) -> None:
        object_id = ids.put_id(prefix, number + 1)
        made = world.say(DRIVER, Create(object_id, 100_000 + 64 * (number % 100)))
        assert any(isinstance(message, Created) for _, message in made)
        world.say(DRIVER, Seal(object_id))
        shown = world.say(DRIVER, Get((object_id,)))
        assert any(isinstance(message, ObjectReady) for _, message in shown)
        world.say(DRIVER, Unpin((object_id,)))
        world.say(DRIVER, Release((object_id,)))

    return once


PATHS = {"submit": submit_path, "task": task_path, "object": object_path}


def counted(root: Path, path: str, operations: int) -> int:
    """The instructions of a process that does so many operations with the tree at ``root``."""
    command = [
        "valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
        sys.executable, "-m", "benchmarks.instructions", "--run", path, str(operations),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"cannot count {path} in {root}:\n{done.stderr[-2_000:]}")
    return int(found[1].replace(",", ""))


def per_operation(root: Path, path: str) -> float:
    """Instructions of one operation."""
    return (counted(root, path, MANY) - counted(root, path, FEW)) / (MANY - FEW)


def interpreter() -> str:
    """What counts depend on besides the code."""
    return f"{sys.version} {os.uname().machine}"


def judge(counts: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The paths that take more than ``TOLERANCE`` more than before."""
    return [path for path, count in counts.items() if count > before[path] * (1 + TOLERANCE)]


def stored_counts() -> dict[str, float] | None:
    """The counts that are kept in this tree, or ``None`` if they are of another interpreter."""
    stored = json.loads(STORED.read_text())
    return stored["counts"] if stored["interpreter"] == interpreter() else None


def _counts_of(commit: str) -> dict[str, float]:
    from benchmarks.paired import base_commit, unpack

    with tempfile.TemporaryDirectory() as name:
        unpack(base_commit(commit), Path(name))
        return {path: per_operation(Path(name), path) for path in PATHS}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--against", metavar="COMMIT", help="count that, too, and compare")
    which.add_argument("--check", action="store_true", help="compare with the counts that are kept")
    which.add_argument("--store", action="store_true", help="keep these counts")
    which.add_argument("--run", nargs=2, metavar=("PATH", "OPERATIONS"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print; 1 if a path takes more than ``TOLERANCE`` more instructions than it did."""
    given = _arguments(argv)
    if given.run:
        once = PATHS[given.run[0]]()
        for number in range(int(given.run[1])):
            once(number)
        return 0
    if shutil.which("valgrind") is None:
        print("skipped: instructions are counted by valgrind, which is not installed here")
        return 0
    before = stored_counts() if given.check else _counts_of(given.against) if given.against else {}
    if before is None:
        print("skipped: the counts that are kept are of another interpreter; compare with --against COMMIT")
        return 0
    counts = {}
    for path in PATHS:
        counts[path] = per_operation(ROOT, path)
        was = f", {counts[path] / before[path]:.3f} of what it was" if before else ""
        print(f"{path:8} {counts[path]:10,.0f} instructions{was}", flush=True)
    if given.store:
        kept = {"interpreter": interpreter(), "counts": {path: round(n) for path, n in counts.items()}}
        STORED.write_text(json.dumps(kept, indent=2) + "\n")
    worse = judge(counts, before) if before else []
    if worse:
        print(f"longer by more than {TOLERANCE:.0%}: {', '.join(worse)}; if that is wanted: --store")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
