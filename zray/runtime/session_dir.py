"""Session directories: where a node keeps its sockets, spill files and logs, and who cleans up after it.

    <base>/                 mode 0700, one per user: $ZRAY_TMPDIR/zray-<uid>, else $TMPDIR, else /tmp
        <8 hex digits>/     one session
            session.json    SessionInfo: kind, address, its processes as (pid, start time)
            adopted         paths outside the directory that go with it, each ended by NUL
            spill/ logs/    and the sockets, next to them so that their paths stay short
        .dead-<8 digits>/   a session on its way out

The one invariant: a session is removed only by a process that knows that all its processes are gone, or by
one of those processes. Liveness is judged by pid *and* start time, so a recycled pid fools nobody, and only
on the machine, boot and pid namespace that wrote the file: what cannot be judged is left alone. A session is
renamed before it is emptied, so of two that sweep at once one wins and the other finds nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterable
from itertools import islice

import msgspec

SOCKET_PATH_MAX = 107 if sys.platform.startswith("linux") else 103
"""Bytes of a Unix socket's path, without the final NUL (``sun_path`` in unix(7))."""
SOCKET_NAME_MAX = 40
"""Bytes of a socket's name inside its session: room for an id in hex and a prefix."""
SESSION_NAME_BYTES = 8
NODE_SOCKET = "node"
"""Where a node listens for the drivers and workers of its machine."""
BASE_PATH_MAX = SOCKET_PATH_MAX - SOCKET_NAME_MAX - SESSION_NAME_BYTES - len("//")

ENTRIES_MAX = 1024
"""Directory entries that one listing or sweep looks at; the next sweep sees the rest."""
UNREADABLE_GRACE_S = 60.0
"""A directory without a readable ``session.json`` may be one in the making until it is this old."""

_INFO_FILE = "session.json"
_ADOPTED_FILE = "adopted"
_TOMBSTONE = ".dead-"


class ProcessStamp(msgspec.Struct, frozen=True):
    """One process, for all time: ``start`` is opaque and differs between two lives of a pid."""

    pid: int
    start: int


class SessionInfo(msgspec.Struct):
    """Content of ``session.json``. ``processes[0]`` is the one that serves ``address``."""

    kind: str
    address: str = ""
    created_ns: int = 0  # wall clock, to tell the latest session
    machine: str = ""
    boot: str = ""
    processes: list[ProcessStamp] = []
    cluster: str = ""
    """The name that ``zray start --cluster`` gave; ``zray stop --cluster`` looks for it."""


_encode_info = msgspec.json.Encoder().encode
_decode_info = msgspec.json.Decoder(SessionInfo).decode


class Session:
    """One session directory and what its ``session.json`` says.

    Only one process at a time writes ``session.json``: who creates the session, then its node.
    """

    __slots__ = ("info", "path")

    def __init__(self, path: str, info: SessionInfo) -> None:
        self.path = path
        self.info = info

    @property
    def spill_dir(self) -> str:
        return os.path.join(self.path, "spill")

    @property
    def logs_dir(self) -> str:
        return os.path.join(self.path, "logs")

    def socket_path(self, name: str) -> str:
        """The path of the socket ``name``.

        Raises:
            ValueError: if ``name`` is not a plain file name of at most ``SOCKET_NAME_MAX`` bytes.
        """
        if not name or "/" in name or len(os.fsencode(name)) > SOCKET_NAME_MAX:
            raise ValueError(f"a socket's name has 1 to {SOCKET_NAME_MAX} bytes and no '/': {name!r}")
        return os.path.join(self.path, name)

    def set_address(self, address: str) -> None:
        """Publish where ``processes[0]`` takes connections."""
        self.info.address = address
        _write_info(self.path, self.info)

    def add_process(self, pid: int) -> None:
        """Keep the session for as long as the process ``pid`` lives, too; a dead one changes nothing."""
        start = process_start(pid)
        if start is not None:
            self.info.processes.append(ProcessStamp(pid, start))
            _write_info(self.path, self.info)

    def drop_process(self, pid: int) -> None:
        """Take :meth:`add_process` back: the process is gone."""
        self.info.processes = [process for process in self.info.processes if process.pid != pid]
        _write_info(self.path, self.info)


def base_dir() -> str:
    """The directory of this user's sessions; not created and not verified.

    Raises:
        OSError: ENAMETOOLONG if ``$ZRAY_TMPDIR`` leaves no room for the paths of sockets.
    """
    leaf = f"zray-{os.getuid()}"
    chosen = os.environ.get("ZRAY_TMPDIR")
    base = os.path.join(os.path.abspath(chosen or os.environ.get("TMPDIR") or "/tmp"), leaf)
    if len(os.fsencode(base)) <= BASE_PATH_MAX:
        return base
    if chosen:
        raise OSError(
            errno.ENAMETOOLONG,
            f"paths of sockets hold {SOCKET_PATH_MAX} bytes; set ZRAY_TMPDIR to a path of at most "
            f"{BASE_PATH_MAX - len(leaf) - 1}",
            chosen,
        )
    return os.path.join("/tmp", leaf)  # a long $TMPDIR is not a choice made for zray


def ensure_base_dir() -> str:
    """The directory of this user's sessions, made if it is missing.

    Raises:
        PermissionError: if it is not this user's alone.
        OSError: if it cannot be made.
    """
    base = base_dir()
    _ensure_private(base)
    return base


def create(kind: str, cluster: str = "") -> Session:
    """Make a session that lives as long as the calling process (see :meth:`Session.add_process`).

    Raises:
        PermissionError: if the base directory is not this user's alone.
        OSError: if a directory cannot be made.
    """
    base = ensure_base_dir()
    path = os.path.join(base, os.urandom(SESSION_NAME_BYTES // 2).hex())
    info = SessionInfo(kind, created_ns=time.time_ns(), machine=_machine(), boot=_boot(), cluster=cluster)
    os.mkdir(path, 0o700)
    session = Session(path, info)
    try:
        os.mkdir(session.spill_dir, 0o700)
        os.mkdir(session.logs_dir, 0o700)
        session.add_process(os.getpid())
    except OSError:  # a full disk: what there was room for is in nobody's way
        remove(path)
        raise
    return session


def load(path: str) -> Session:
    """The session at ``path``.

    Raises:
        OSError: if it is gone.
        ValueError: if its ``session.json`` is damaged.
    """
    try:
        with open(os.path.join(path, _INFO_FILE), "rb") as file:
            return Session(path, _decode_info(file.read()))
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}/{_INFO_FILE} is damaged: {error}") from None


def list_live() -> list[Session]:
    """This user's sessions on this machine with a process alive, the newest first."""
    found = (_load_or_none(entry.path) for entry in _entries(base_dir()))
    live = [session for session in found if session is not None and _has_live_process(session.info)]
    return sorted(live, key=lambda session: session.info.created_ns, reverse=True)


def latest() -> Session | None:
    """The newest session whose server is alive and has an address: what ``address="auto"`` means."""
    for session in list_live():
        if session.info.address and is_alive(session.info.processes[0]):
            return session
    return None


def sweep() -> int:
    """Remove sessions whose processes are all gone, and their adopted paths.

    Returns:
        int, how many this call removed. Any number of processes may sweep at once; no session is
        counted twice.
    """
    removed = 0
    for entry in _entries(base_dir()):
        if entry.name.startswith(_TOMBSTONE):
            _bury(entry.path)  # whoever began has died, or is at it: the rest is removed once, by either
        elif _is_stale(entry):
            removed += remove(entry.path)
    return removed


def adopt(path: str, resource: str) -> None:
    """Let ``resource``, an absolute path outside the session at ``path``, be removed with the session.

    Name it after the session: it is removed by name, perhaps by a sweep long after.
    """
    if not os.path.isabs(resource):
        raise ValueError(f"only an absolute path can be adopted: {resource!r}")
    with open(os.path.join(path, _ADOPTED_FILE), "ab") as file:
        file.write(os.fsencode(resource) + b"\0")


def remove(path: str) -> bool:
    """Remove the session at ``path`` and what it adopted, whoever is alive.

    Returns:
        bool, false if it was gone before, or another process was faster.
    """
    base, name = os.path.split(path)
    tombstone = os.path.join(base, _TOMBSTONE + name)
    try:
        os.rename(path, tombstone)
    except FileNotFoundError:
        _bury(tombstone)  # in case whoever renamed it died half-way
        return False
    _bury(tombstone)
    return True


def remove_path(path: str) -> None:
    """Remove a file or a tree as far as possible; links are not followed. What stays is swept later."""
    if not os.path.isdir(path) or os.path.islink(path):
        with contextlib.suppress(OSError):
            os.unlink(path)
        return
    for directory, subdirectories, files in os.walk(path, topdown=False):
        for name in files:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
        for name in subdirectories:
            _remove_subdirectory(os.path.join(directory, name))
    with contextlib.suppress(OSError):
        os.rmdir(path)


def process_start(pid: int) -> int | None:
    """When ``pid`` started, in a unit of the platform; ``None`` if it is gone or a zombie."""
    if not os.path.exists("/proc/self/stat"):
        return _process_start_by_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line[line.rindex(b")") + 2 :].split()  # the name before it may hold anything, even ")"
    state, start = fields[0], fields[19]
    return None if state in b"ZX" else int(start)


def is_alive(process: ProcessStamp) -> bool:
    """Whether this very process, and not another one under its pid, is alive."""
    return process_start(process.pid) == process.start


def _process_start_by_psutil(pid: int) -> int | None:
    import psutil  # 20 ms, and only needed where there is no /proc

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return None


def _machine() -> str:
    """Whose pids these are: the host, and on Linux the pid namespace."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{os.uname().nodename} {namespace}"


def _boot() -> str:
    """Names the boot on Linux, where start times count from it; empty where they are absolute."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _ensure_private(base: str) -> None:
    """Make ``base``, or verify that it is a directory that nobody else could have written to."""
    try:
        os.mkdir(base, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        remedy = "set ZRAY_TMPDIR to a directory where you may make others"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", base) from None
    found = os.lstat(base)
    mode = stat.S_IMODE(found.st_mode) & 0o777
    if stat.S_ISLNK(found.st_mode):
        problem = "it is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        problem = "it is not a directory"
    elif found.st_uid != os.getuid():
        problem = f"it belongs to user {found.st_uid}, not {os.getuid()}"
    elif mode != 0o700:
        problem = f"its mode is {mode:o}, not 700"
    else:
        return
    raise PermissionError(
        f"{base} is not safe to use: {problem}. Remove it, or set ZRAY_TMPDIR to a directory of yours"
    )


def _entries(base: str) -> list[os.DirEntry[str]]:
    """Up to ``ENTRIES_MAX`` directories of ``base``; none if there is no base yet."""
    try:
        with os.scandir(base) as entries:
            return [entry for entry in islice(entries, ENTRIES_MAX) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):  # the latter: ``create`` says what is wrong
        return []


def _write_info(path: str, info: SessionInfo) -> None:
    """Replace ``session.json`` as one step: readers see the old or the new one."""
    draft = os.path.join(path, _INFO_FILE + ".new")
    with open(draft, "wb") as file:
        file.write(_encode_info(info))
    os.replace(draft, os.path.join(path, _INFO_FILE))


def _load_or_none(path: str) -> Session | None:
    try:
        return load(path)
    except (OSError, ValueError):
        return None


def _has_live_process(info: SessionInfo) -> bool:
    """Whether a process of this machine, boot and namespace that wrote ``info`` is alive."""
    here = info.machine == _machine() and info.boot == _boot()
    return here and any(is_alive(process) for process in info.processes)


def _is_stale(entry: os.DirEntry[str]) -> bool:
    session = _load_or_none(entry.path)
    if session is None:
        return _age_s(entry.path) > UNREADABLE_GRACE_S
    return session.info.machine == _machine() and not _has_live_process(session.info)


def _age_s(path: str) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _bury(tombstone: str) -> None:
    """Remove a renamed session: first what it adopted, while the list of it is still there."""
    for resource in _adopted(tombstone):
        remove_path(resource)
    remove_path(tombstone)


def _adopted(path: str) -> Iterable[str]:
    try:
        with open(os.path.join(path, _ADOPTED_FILE), "rb") as file:
            return [os.fsdecode(name) for name in file.read().split(b"\0")[:-1]]
    except FileNotFoundError:
        return []


def _remove_subdirectory(path: str) -> None:
    try:
        os.rmdir(path)
    except NotADirectoryError:  # a link to a directory
        with contextlib.suppress(OSError):
            os.unlink(path)
    except OSError:
        pass
