"""Objects on disk, with real files and a disk that is really full."""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from zray.errors import OutOfDiskError
from zray.store.arena import Arena, ArenaView
from zray.store.spill import DELETE, SPILL, DiskOutcome, SpillDirectory, SpillWorker

# Newer Pythons warn of a fork beside threads, such as those of numpy; these children only read and exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MIB = 1 << 20
A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))


@pytest.fixture
def directory(tmp_path: Path) -> SpillDirectory:
    return SpillDirectory(str(tmp_path))


def names(directory: SpillDirectory) -> list[str]:
    return sorted(os.listdir(directory.path))


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * MIB + 1])
def test_what_was_written_is_read(directory: SpillDirectory, size: int) -> None:
    data = np.arange(size, dtype=np.uint64).astype(np.uint8)
    directory.write(A, data)
    view = directory.open_view(A, size)
    assert view.readonly
    assert bytes(view) == data.tobytes()
    assert names(directory) == [A.hex()]


def test_a_file_may_be_deleted_while_it_is_looked_at(directory: SpillDirectory) -> None:
    directory.write(A, b"a" * MIB)
    array = np.frombuffer(directory.open_view(A, MIB), np.uint8)
    directory.delete(A)
    assert names(directory) == []
    assert (array == ord("a")).all()
    with pytest.raises(FileNotFoundError):
        directory.open_view(A, MIB)


def test_deleting_what_is_not_there_is_no_error(directory: SpillDirectory) -> None:
    directory.delete(A)


def test_a_file_of_another_size_is_refused(directory: SpillDirectory) -> None:
    directory.write(A, b"12345")
    with pytest.raises(ValueError, match="has 5 bytes, not 6"):
        directory.open_view(A, 6)


def test_writing_again_replaces_the_whole_file(directory: SpillDirectory) -> None:
    directory.write(A, b"long" * 100)
    directory.write(A, b"short")
    assert bytes(directory.open_view(A, 5)) == b"short"


def test_the_directory_and_its_files_are_for_this_user_alone(directory: SpillDirectory) -> None:
    directory.write(A, b"secret")
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    assert os.stat(directory.path_of(A)).st_mode & 0o777 == 0o600


def test_a_created_file_has_its_name_once_it_is_sealed(directory: SpillDirectory) -> None:
    file = directory.create(A, 10)
    assert file.copy_in(5, b"world") == 5
    assert file.copy_in(0, np.frombuffer(b"hello", np.uint8)) == 5
    with pytest.raises(FileNotFoundError):
        directory.open_view(A, 10)
    file.seal()
    file.abort()  # too late: does nothing
    assert bytes(directory.open_view(A, 10)) == b"helloworld"


@pytest.mark.parametrize(("offset", "data"), [(-1, b"1"), (0, b"12345"), (4, b"1")])
def test_bytes_outside_a_created_file_are_refused(
    directory: SpillDirectory, offset: int, data: bytes
) -> None:
    file = directory.create(A, 4)
    with pytest.raises(ValueError, match="of a file of 4"):
        file.copy_in(offset, data)
    file.abort()
    assert names(directory) == []


def test_what_a_dead_process_left_half_written_is_deleted_by_its_id(directory: SpillDirectory) -> None:
    pid = os.fork()
    if pid == 0:
        directory.create(A, 100).copy_in(0, b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    assert names(directory) == [A.hex() + ".part"]
    directory.delete(A)
    assert names(directory) == []


def test_another_process_reads_the_file(directory: SpillDirectory) -> None:
    directory.write(A, b"shared")
    pid = os.fork()
    if pid == 0:
        same = SpillDirectory(directory.path)
        os._exit(0 if bytes(same.open_view(A, 6)) == b"shared" else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_clear_spares_what_is_not_an_objects_file(directory: SpillDirectory) -> None:
    directory.write(A, b"1")
    directory.create(B, 1)
    for name in ("notes.txt", "abc", ".part"):
        Path(directory.path, name).touch()
    directory.remove()
    assert names(directory) == [".part", "abc", "notes.txt"]


def test_remove_takes_the_directory_too_and_may_be_repeated(directory: SpillDirectory) -> None:
    directory.write(A, b"1")
    directory.remove()
    directory.remove()
    assert not os.path.exists(directory.path)


def test_a_full_disk_is_a_typed_error_and_leaves_nothing(small_disk: Path) -> None:
    directory = SpillDirectory(str(small_disk))
    directory.write(A, bytes(3 * MIB))
    with pytest.raises(OutOfDiskError) as caught:
        directory.write(B, bytes(2 * MIB))
    assert caught.value.need_bytes == 2 * MIB
    with pytest.raises(OutOfDiskError):
        directory.create(B, 2 * MIB)
    assert names(directory) == [A.hex()]
    directory.delete(A)
    directory.write(B, bytes(2 * MIB))
    assert names(directory) == [B.hex()]


# --- the worker ----------------------------------------------------------------------------------


def test_jobs_are_done_and_reported_in_order_by_the_thread(directory: SpillDirectory) -> None:
    reports: SimpleQueue[tuple[DiskOutcome, int]] = SimpleQueue()
    worker = SpillWorker(directory, lambda outcome: reports.put((outcome, threading.get_ident())))
    for object_id in (A, B, A):
        assert worker.spill(object_id, object_id * 1000)
    worker.delete(A)
    assert worker.spill(C, b"c")
    outcomes, threads = zip(*(reports.get() for _ in range(5)), strict=True)
    assert worker.close()
    assert outcomes == (
        DiskOutcome(SPILL, A, None),
        DiskOutcome(SPILL, B, None),
        DiskOutcome(SPILL, A, None),
        DiskOutcome(DELETE, A, None),
        DiskOutcome(SPILL, C, None),
    )
    assert len(dict.fromkeys(threads)) == 1
    assert threads[0] != threading.get_ident()
    assert names(directory) == [B.hex(), C.hex()]


def test_an_extent_is_spilled_and_released_before_the_report(directory: SpillDirectory) -> None:
    arena = Arena(MIB)
    view = ArenaView(arena.path, MIB)
    view.copy_in(0, b"spilled!" * 1000)
    events: SimpleQueue[object] = SimpleQueue()
    worker = SpillWorker(directory, events.put)
    assert worker.spill(A, view.read(0, 8000, lambda: events.put("released")))
    assert events.get() == "released"
    assert events.get() == DiskOutcome(SPILL, A, None)
    assert bytes(directory.open_view(A, 8000)) == b"spilled!" * 1000
    assert worker.close()
    view.close()
    arena.close()


def test_memory_is_released_after_a_failure_too(small_disk: Path) -> None:
    arena = Arena(8 * MIB)
    view = ArenaView(arena.path, 8 * MIB)
    events: SimpleQueue[object] = SimpleQueue()
    worker = SpillWorker(SpillDirectory(str(small_disk)), events.put)
    assert worker.spill(A, view.read(0, 8 * MIB, lambda: events.put("released")))
    assert events.get() == "released"
    outcome = events.get()
    assert isinstance(outcome, DiskOutcome)
    assert isinstance(outcome.error, OutOfDiskError)
    assert worker.spill(B, b"fits")
    assert events.get() == DiskOutcome(SPILL, B, None)
    assert worker.close()
    view.close()
    arena.close()


def test_any_error_is_reported_and_the_worker_goes_on(directory: SpillDirectory) -> None:
    events: SimpleQueue[DiskOutcome] = SimpleQueue()
    worker = SpillWorker(directory, events.put)
    os.mkdir(directory.path_of(A))
    worker.delete(A)
    assert isinstance(events.get().error, OSError)
    assert worker.spill(A, b"a")
    assert isinstance(events.get().error, OSError)
    assert worker.spill(B, np.arange(10)[::2])
    assert isinstance(events.get().error, BufferError)
    assert worker.spill(C, b"c")
    assert events.get().error is None
    assert worker.close()
    assert names(directory) == [A.hex(), C.hex()]


def test_too_many_spills_are_refused_at_once_and_closing_reports_the_rest(directory: SpillDirectory) -> None:
    entered, go_on = threading.Event(), threading.Event()
    outcomes: deque[DiskOutcome] = deque()

    def report(outcome: DiskOutcome) -> None:
        outcomes.append(outcome)
        entered.set()
        go_on.wait()

    worker = SpillWorker(directory, report, spills_max=2)
    assert worker.spill(A, b"a")
    entered.wait()  # A is done; the thread is held up in its report
    assert worker.spill(B, b"b")
    assert worker.spill(C, b"c")
    assert not worker.spill(A, b"refused")
    worker.delete(A)  # a delete is never refused
    assert not worker.close(timeout_s=0.01)
    assert not worker.spill(A, b"refused")
    go_on.set()
    assert worker.close()
    assert [(o.kind, o.object_id, type(o.error)) for o in outcomes] == [
        (SPILL, A, type(None)),
        (SPILL, B, InterruptedError),
        (SPILL, C, InterruptedError),
        (DELETE, A, type(None)),
    ]
    assert names(directory) == []
