"""Map and reduce over real files: the identifiers of the standard library of this interpreter.

Shows:
- **tasks**: each tokenizes one shard of files, with Python's own ``tokenize``;
- **task dependencies**: a tree of merge tasks (fan-in 8) takes the references of its children as
  arguments, so no partial count passes through the driver;
- **an actor as shared state**: every task tells it how far it is, the driver draws that;
- **wait with a timeout**: the driver looks at the result ten times a second without blocking.

The result is compared with a count made in this process alone; the exit code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import keyword
import sys
import sysconfig
import time
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

import zray

FAN_IN = 8
REPORT_FILES = 8
"""A task reports to the progress actor once per this many files."""
LOOK_INTERVAL_S = 0.1
FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


# --- the work -------------------------------------------------------------------------------------


def count_names(path: str) -> Counter[str]:
    """How often each identifier occurs in one file; a file that stops being Python counts up to there."""
    counts: Counter[str] = Counter()
    try:
        with open(path, "rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                    counts[token.string] += 1
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
        pass  # the standard library's tests contain files that are broken on purpose
    return counts


@zray.remote
def count_shard(paths: list[str], progress: Any) -> Counter[str]:
    """Count one shard, and tell the progress actor now and then."""
    counts: Counter[str] = Counter()
    for start in range(0, len(paths), REPORT_FILES):
        some = paths[start : start + REPORT_FILES]
        for path in some:
            counts.update(count_names(path))
        progress.advance.remote(len(some))
    return counts


@zray.remote
def merge(*parts: Counter[str]) -> Counter[str]:
    """Add up some counts. The references given as arguments arrive as values."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


@zray.remote(num_cpus=0)
class Progress:
    """How many files are counted, for whoever asks."""

    def __init__(self) -> None:
        self.files = 0

    def advance(self, files: int) -> None:
        self.files += files

    def done(self) -> int:
        return self.files


# --- the program ----------------------------------------------------------------------------------


def library_files(limit: int | None) -> list[Path]:
    """The ``.py`` files of the standard library, subpackages included; with a limit, evenly spaced ones."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path for path in root.rglob("*.py") if FOREIGN_FOLDERS.isdisjoint(path.relative_to(root).parts)
    )
    if limit is None or limit >= len(files):
        return files
    return [files[index * len(files) // limit] for index in range(limit)]


def split_evenly(files: list[Path], shards: int) -> list[list[str]]:
    """Deal the files into shards of about equal size in bytes: largest first, always to the lightest."""
    piles: list[list[str]] = [[] for _ in range(min(shards, len(files)))]
    weights = [0] * len(piles)
    for size, path in sorted(((path.stat().st_size, str(path)) for path in files), reverse=True):
        lightest = weights.index(min(weights))
        piles[lightest].append(path)
        weights[lightest] += size
    return piles


def merge_tree(parts: list[Any]) -> Any:
    """Reference of the sum of ``parts``: ``FAN_IN`` of them per task, level by level."""
    while len(parts) > 1:
        parts = [merge.remote(*parts[start : start + FAN_IN]) for start in range(0, len(parts), FAN_IN)]
    return parts[0]


class ProgressLine:
    """A bar in a terminal; otherwise one plain line per quarter."""

    WIDTH = 40

    def __init__(self, total: int) -> None:
        self.total = total
        self.is_terminal = sys.stdout.isatty()
        self.quarter_shown = -1

    def show(self, done: int) -> None:
        share = done / self.total
        if self.is_terminal:
            filled = int(share * self.WIDTH)
            bar = "█" * filled + "·" * (self.WIDTH - filled)
            print(f"\r  {bar} {done:,} of {self.total:,} files", end="", flush=True)
        elif int(share * 4) > self.quarter_shown:
            self.quarter_shown = int(share * 4)
            print(f"  {done:,} of {self.total:,} files", flush=True)

    def end(self) -> None:
        if self.is_terminal:
            print()


def follow(result: Any, progress: Any, total: int) -> None:
    """Draw the progress until ``result`` is ready."""
    line = ProgressLine(total)
    while not zray.wait([result], timeout=LOOK_INTERVAL_S)[0]:
        try:
            line.show(zray.get(progress.done.remote()))
        except zray.exceptions.ActorDiedError:  # the count does not need it: go on without a picture
            zray.wait([result])
    line.show(total)
    line.end()


def count_in_parallel(files: list[Path], shards: int) -> Counter[str]:
    """The count by tasks, with progress shown on the way."""
    progress = Progress.remote()
    parts = [count_shard.remote(paths, progress) for paths in split_evenly(files, shards)]
    result = merge_tree(parts)
    follow(result, progress, len(files))
    return zray.get(result)


def count_alone(files: list[Path]) -> Counter[str]:
    """The same count in this process, to compare with."""
    total: Counter[str] = Counter()
    for path in files:
        total.update(count_names(str(path)))
    return total


def print_top(counts: Counter[str], top: int) -> None:
    """The table of the most frequent identifiers."""
    total = counts.total()
    print(f"\n  {'identifier':<20} {'times':>12} {'share':>8}")
    for word, times in counts.most_common(top):
        print(f"  {word:<20} {times:>12,} {times / total:>8.2%}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--quick`` fills in what was not given."""
    parser = argparse.ArgumentParser(
        description="Count the identifiers of the standard library with a tree of tasks."
    )
    parser.add_argument("--num-cpus", type=int, metavar="N", help="tasks at a time (default: every core)")
    parser.add_argument("--gcs-shards", type=int, metavar="N", help="shards of the global control store")
    parser.add_argument("--address", help="join a running cluster instead of starting one")
    parser.add_argument("--shards", type=int, metavar="N", help="map tasks (default: 64)")
    parser.add_argument("--limit", type=int, metavar="N", help="files to count (default: all)")
    parser.add_argument("--top", type=int, default=15, metavar="N", help="rows of the table (default: 15)")
    parser.add_argument("--quick", action="store_true", help="120 files in 12 shards, unless given otherwise")
    options = parser.parse_args(arguments)
    if options.address and (options.num_cpus or options.gcs_shards):
        parser.error("--num-cpus and --gcs-shards belong to a cluster started here, not to --address")
    options.shards = options.shards or (12 if options.quick else 64)
    options.limit = options.limit or (120 if options.quick else None)
    if min(options.shards, options.limit or 1) < 1:
        parser.error("--shards and --limit must be positive")
    return options


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``zray.init`` that were given."""
    given = {name: getattr(options, name) for name in ("num_cpus", "gcs_shards", "address")}
    return {name: value for name, value in given.items() if value is not None}


def main() -> int:
    """Run both counts, print timings and table. Returns the exit code."""
    options = parse_arguments()
    files = library_files(options.limit)
    size_mb = sum(len(path.read_bytes()) for path in files) / 1e6  # reads all: both counts find a warm cache
    print(f"{len(files):,} files, {size_mb:.1f} MB, {options.shards} shards")

    started = time.perf_counter()
    with zray.init(**connection(options)):
        ready = time.perf_counter()
        counts = count_in_parallel(files, options.shards)
        parallel_s = time.perf_counter() - ready
    print(f"zray:        {parallel_s:7.2f} s  (and {ready - started:.2f} s to start)")

    started = time.perf_counter()
    expected = count_alone(files)
    alone_s = time.perf_counter() - started
    print(f"one process: {alone_s:7.2f} s  (speed-up {alone_s / parallel_s:.2f})")

    print_top(counts, options.top)
    agrees = counts == expected
    print(f"\n{counts.total():,} identifiers, {len(counts):,} different: "
          f"{'the counts agree' if agrees else 'THE COUNTS DIFFER'}")  # fmt: skip
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
