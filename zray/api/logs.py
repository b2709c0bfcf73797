"""The log files of all nodes of a cluster, read through the nodes."""

from __future__ import annotations

import base64
import codecs
import fnmatch
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from zray.api.cluster import report
from zray.api.everywhere import AT, rows
from zray.errors import ClusterUnavailableError

PIECE_BYTES = 256 << 10
"""Asked for at a time; nodes give no more."""
FOLLOW_INTERVAL_S = 0.2
SILENCE_S = 3.0
"""How long a node is waited for."""
NODE_CHARACTERS = 8
"""Of a node's id, in front of the names of its files."""
_KINDS = {".out": "worker_out", ".err": "worker_err"}


def files(node_id: str | None = None) -> list[dict[str, Any]]:
    """``path``, ``name``, ``node_id`` and ``size_bytes`` of every log file, or of those of one node.

    The path is the name; if the files are of several nodes, with the beginning of the node's id in front.

    Args:
        node_id: in hex, or the beginning of it.
    """
    found = rows("logs")
    if node_id:
        found = [row for row in found if row["node_id"].startswith(node_id)]
        if not found:
            raise ValueError(f"no living node has an id that begins with {node_id}")
    several = len({row["node_id"] for row in found}) > 1
    for row in found:
        row["path"] = f"{row['node_id'][:NODE_CHARACTERS]}/{row['name']}" if several else row["name"]
    return sorted(found, key=lambda row: (row["node_id"], row["name"]))


def list_logs(node_id: str | None = None, glob_filter: str | None = None) -> dict[str, list[str]]:
    """The log files by kind: ``worker_out``, ``worker_err``, ``node``.

    Args:
        node_id: of one node, in hex; otherwise of all, their names with the beginning of their node's id.
        glob_filter: such as ``*worker*``.
    """
    kinds: dict[str, list[str]] = {}
    for row in files(node_id):
        if fnmatch.fnmatch(row["path"], glob_filter or "*"):
            kinds.setdefault(_KINDS.get(row["name"][-4:], "node"), []).append(row["path"])
    return kinds


def get_log(
    filename: str | None = None,
    *,
    node_id: str | None = None,
    actor_id: str | None = None,
    task_id: str | None = None,
    pid: int | None = None,
    suffix: str = "out",
    tail: int = -1,
    follow: bool = False,
    encoding: str | None = "utf-8",
    errors: str | None = "replace",
) -> Iterator[str]:
    """The text of one log file, piece by piece.

    Args:
        filename: as ``list_logs`` names it.
        node_id: whose file it is, if several have one of that name; in hex, or the beginning of it.
        actor_id, task_id, pid: instead of a name: of the worker that is this actor, runs this task, or is
            this process. Files of workers that have ended have names only.
        suffix: ``out`` or ``err``, of a worker.
        tail: begin with so many lines at the end; -1: with the first.
        follow: wait for more, for ever.
        encoding, errors: of the text.
    Raises:
        ValueError: if there is no such file, or more than one.
        ClusterUnavailableError: if its node does not answer.
    """
    if filename is None:
        node_id, filename = _file_of_worker(actor_id, task_id, pid, suffix)
    elif actor_id or task_id or pid:
        raise ValueError("a file has a name, or is the one of an actor, task or process")
    node, name = _find(filename, node_id)
    decode = codecs.getincrementaldecoder(encoding or "utf-8")(errors or "strict").decode
    return _text(_bytes(node, name, _start_of_tail(node, name, tail), follow), decode)


def _text(pieces: Iterator[bytes], decode: Any) -> Iterator[str]:
    for piece in pieces:
        if text := decode(piece):
            yield text
    if rest := decode(b"", final=True):
        yield rest


def _find(filename: str, node_id: str | None) -> tuple[str, str]:
    """``(node id, name)`` of a file."""
    found = [row for row in files(node_id) if filename in (row["path"], row["name"])]
    exact = [row for row in found if row["path"] == filename]
    found = exact if len(exact) == 1 else found
    if not found:
        raise ValueError(f"there is no log file {filename}; list_logs() and `zray logs` name what there is")
    if len(found) > 1:
        paths = ", ".join(row["path"] for row in found)
        raise ValueError(f"several nodes have a log file {filename}: say which of {paths}")
    return found[0]["node_id"], found[0]["name"]


def _file_of_worker(
    actor_id: str | None, task_id: str | None, pid: int | None, suffix: str
) -> tuple[str, str]:
    if not (actor_id or task_id or pid):
        raise ValueError("which log file? say filename=, actor_id=, task_id= or pid=")
    if suffix not in ("out", "err"):
        raise ValueError(f"suffix is 'out' or 'err', not {suffix!r}")
    for row in rows("workers"):
        runs = task_id is not None and task_id in row["tasks"][:1]
        if runs or (actor_id and row["actor_id"] == actor_id) or (pid and row["pid"] == pid):
            return row["node_id"], f"worker-{int(row['worker_id'][-8:], 16)}.{suffix}"
    asked = f"is actor {actor_id}" if actor_id else f"runs task {task_id}" if task_id else f"is process {pid}"
    raise ValueError(
        f"no living worker {asked}; list_logs() and `zray logs` name the files of all, former ones too"
    )


# --- bytes ---------------------------------------------------------------------------------------


def _bytes(node_id: str, name: str, start: int, follow: bool) -> Iterator[bytes]:
    while True:
        found = _piece(node_id, name, start, PIECE_BYTES)
        data = base64.b64decode(found["data"])
        start = found["start"] + len(data)
        if data:
            yield data
        elif not follow:
            return
        else:
            time.sleep(FOLLOW_INTERVAL_S)


def _start_of_tail(node_id: str, name: str, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin."""
    if lines < 0:
        return 0
    end: int = _piece(node_id, name, 0, 0)["size_bytes"]
    if not lines:
        return end
    start, wanted = end, lines + 1  # the newline in front of them, too
    while start > 0:
        size = min(PIECE_BYTES, start)
        data = base64.b64decode(_piece(node_id, name, start - size, size)["data"])
        if start == end and not data.endswith(b"\n"):
            wanted -= 1  # the last line is unfinished
        for position in range(len(data) - 1, -1, -1):
            if data[position] == 10:
                wanted -= 1
                if not wanted:
                    return start - size + position + 1
        start -= size
    return 0


def _piece(node_id: str, name: str, start: int, size: int) -> dict[str, Any]:
    found = report(f"{AT}{node_id}/logs/{start}/{size}/{name}")
    if found["silent"]:
        raise ClusterUnavailableError(f"node {node_id[:NODE_CHARACTERS]} does not answer", SILENCE_S)
    document: dict[str, Any] = msgspec.json.decode(found["nodes"][0]["body"])
    if "error" in document:
        raise ValueError(document["error"])
    return document
