"""The command line of ``zray-gcs``."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence

from zray.ids import ID_BYTES
from zray.runtime.endpoints import endpoint_of
from zray.runtime.gcs_options import DEFAULT_LISTEN, REPLICAS_MAX, SHARDS_MAX, GcsOptions


def options_from(argv: Sequence[str]) -> GcsOptions:
    """What the command line says; what makes no sense ends the program with code 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.replica is None) == bool(arguments.master):
        parser.error("--replica and --master belong together")
    if arguments.replica is not None and arguments.cluster_id is None:
        parser.error("--replica asks for --cluster-id, the same for all replicas of all shards")
    if arguments.trace is not None and (arguments.replica is not None or arguments.master_of):
        parser.error("--trace records a shard that is not replicated")
    shard, shard_count = arguments.shard
    schedulers = arguments.global_schedulers
    if schedulers is not None and not 1 <= schedulers <= shard_count:
        parser.error(f"--global-schedulers is between 1 and the number of shards, {shard_count}")
    return GcsOptions(
        listen=arguments.listen,
        shard=shard,
        shard_count=shard_count,
        data_dir=arguments.data_dir,
        memory_max=arguments.memory_max,
        flush_dir=arguments.flush_dir,
        storage=arguments.storage or (None if arguments.data_dir else os.environ.get("ZRAY_STORAGE")),
        cluster_id=arguments.cluster_id,
        sync=arguments.sync == "group",
        parent_pid=arguments.parent_pid,
        trace=arguments.trace,
        replica=arguments.replica,
        master=arguments.master or "",
        master_of=arguments.master_of,
        global_schedulers=schedulers,
        log_level=arguments.log_level,
    )


def _shard_of_many(text: str) -> tuple[int, int]:
    try:
        shard, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/1") from None
    if not 0 <= shard < count <= SHARDS_MAX:
        raise argparse.ArgumentTypeError(f"{text}: 0 <= I < N <= {SHARDS_MAX} does not hold")
    return shard, count


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > REPLICAS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number up to {REPLICAS_MAX}")
    return int(text)


def _bytes(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _id_in_hex(text: str) -> bytes:
    with contextlib.suppress(ValueError):
        an_id = bytes.fromhex(text)
        if len(an_id) == ID_BYTES:
            return an_id
    raise argparse.ArgumentTypeError(f"{text!r} is not {2 * ID_BYTES} hex digits")


def _endpoint(text: str) -> str:
    try:
        return endpoint_of(text, may_be_wild=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zray-gcs",
        description="Serve one shard of zray's global control store; the first ones host a global scheduler.",
    )
    add = parser.add_argument
    add(
        "--listen",
        type=_endpoint,
        default=DEFAULT_LISTEN,
        metavar="ENDPOINT",
        help="tcp://HOST:PORT or ipc://PATH (default: %(default)s)",
    )
    add(
        "--shard",
        type=_shard_of_many,
        default=(0, 1),
        metavar="I/N",
        help="which shard of how many (default: 0/1)",
    )
    add(
        "--global-schedulers",
        type=_count,
        metavar="G",
        help="the first G shards have a global scheduler beside them; the same for all shards "
        "(default: $ZRAY_GLOBAL_SCHEDULERS, or 2)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data-dir",
        metavar="DIR",
        help="keep a log there, made if it is missing, and recover from it (default: memory only)",
    )
    where.add_argument(
        "--storage", metavar="URL",
        help="keep it in a Redis or Valkey server: redis://HOST:PORT/N (default: $ZRAY_STORAGE)",
    )  # fmt: skip
    add(
        "--memory-max", type=_bytes, metavar="BYTES",
        help="of task rows in memory, the others are on disk (default: $ZRAY_GCS_MEMORY_MAX, or no limit)",
    )  # fmt: skip
    add(
        "--flush-dir",
        metavar="DIR",
        help="where they go (default: DIR of the log, or that of temporary files)",
    )
    add(
        "--cluster-id",
        type=_id_in_hex,
        metavar="HEX",
        help="32 hex digits (default: that of the log, or a new one)",
    )
    add(
        "--sync",
        choices=("none", "group"),
        default="none",
        help="none: survive the death of the process; group: of the machine, too (default: %(default)s)",
    )
    add("--replica", type=_count, metavar="R", help="be replica R of the shard's chain; asks for --master")
    add("--master", type=_endpoint, metavar="ENDPOINT", help="of a replica: where the master is")
    add(
        "--master-of", type=_count, default=0, metavar="COUNT",
        help="be the master of the chains of all shards, COUNT replicas each, and no shard",
    )  # fmt: skip
    add("--log-level", type=str.upper, choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    add("--trace", metavar="FILE", help="record what the shard decides, for zray sim replay")
    add("--parent-pid", type=int, metavar="PID", help="end when that process does")
    return parser  # fmt: skip
