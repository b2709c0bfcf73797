"""The append-only log on a real file system: torn and damaged files, full disks, compaction, locks."""

from __future__ import annotations

import logging
import pickle
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zray.runtime.append_log import LOG_NAME, AppendLog
from zray.runtime.record_log import MAGIC, LogCorruptError, LogUnavailableError, LogWriteError

HEADER_BYTES = 12
PAYLOADS = [b"first", b"", b"\0" * 40, b"fourth"]
RECORD_ENDS = [len(MAGIC)]
for _payload in PAYLOADS:
    RECORD_ENDS.append(RECORD_ENDS[-1] + HEADER_BYTES + len(_payload))


def open_log(directory: Path | str, compact_bytes: int = 1 << 20) -> tuple[AppendLog, list[bytes]]:
    """An open log and all it held."""
    log = AppendLog(str(directory), sync=False, compact_bytes=compact_bytes)
    try:
        return log, [bytes(payload) for payload in log.replay()]
    except BaseException:
        log.close()
        raise


def contents(directory: Path | str) -> list[bytes]:
    log, found = open_log(directory)
    log.close()
    return found


def write(directory: Path | str, payloads: list[bytes]) -> Path:
    log, _ = open_log(directory)
    for payload in payloads:
        log.append(payload)
    log.close()
    return Path(directory) / LOG_NAME


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Let every write beyond ``size_bytes`` of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("sync", [False, True])
def test_what_was_appended_is_replayed_in_order(tmp_path: Path, sync: bool) -> None:
    log = AppendLog(str(tmp_path / "made"), sync=sync, compact_bytes=1)
    assert list(log.replay()) == []
    for payload in PAYLOADS:
        log.append(payload)
    log.close()
    assert contents(tmp_path / "made") == PAYLOADS


def test_every_cut_of_the_file_gives_whole_records_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, PAYLOADS)
    whole = file.read_bytes()
    for size_bytes in (*range(40), *range(40, len(whole), 5)):
        file.write_bytes(whole[:size_bytes])
        caplog.clear()
        log, found = open_log(tmp_path)
        ends = [end for end in RECORD_ENDS if end <= max(size_bytes, len(MAGIC))]
        assert found == PAYLOADS[: len(ends) - 1]
        assert log.cut_bytes == max(size_bytes, len(MAGIC)) - ends[-1]
        assert [f"cut off {log.cut_bytes} bytes" in text for text in caplog.messages] == [True] * bool(
            log.cut_bytes
        )
        log.append(b"next")
        log.close()
        assert contents(tmp_path) == [*found, b"next"]


@pytest.mark.parametrize("byte", range(len(MAGIC), RECORD_ENDS[-2], 3))
def test_damage_before_an_intact_record_is_an_error_that_says_where(tmp_path: Path, byte: int) -> None:
    file = write(tmp_path, PAYLOADS)
    damaged = bytearray(file.read_bytes())
    damaged[byte] ^= 0x41
    file.write_bytes(damaged)
    with pytest.raises(LogCorruptError) as caught:
        contents(tmp_path)
    assert caught.value.offset == max(end for end in RECORD_ENDS if end <= byte)
    assert str(caught.value.offset) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("byte", range(RECORD_ENDS[-2], RECORD_ENDS[-1], 3))
def test_damage_of_the_last_record_is_a_torn_tail(tmp_path: Path, byte: int) -> None:
    file = write(tmp_path, PAYLOADS)
    damaged = bytearray(file.read_bytes())
    damaged[byte] ^= 0x41
    file.write_bytes(damaged)
    assert contents(tmp_path) == PAYLOADS[:-1]


def test_long_tail_of_zeros_is_cut_quickly(tmp_path: Path) -> None:
    """File systems that lost power in the middle of an append may leave the new size and no content."""
    file = write(tmp_path, PAYLOADS)
    with file.open("ab") as appended:
        appended.truncate(file.stat().st_size + (32 << 20))
    assert contents(tmp_path) == PAYLOADS


@settings(max_examples=20, deadline=None)
@given(payloads=st.lists(st.binary(max_size=60), max_size=5), junk=st.binary(max_size=200))
def test_junk_behind_the_records_is_cut(payloads: list[bytes], junk: bytes) -> None:
    directory = tempfile.mkdtemp()
    try:
        with write(directory, payloads).open("ab") as appended:
            appended.write(junk)
        assert contents(directory) == payloads
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("content", [b"something else", b"zraylog2", b"\0" * 100])
def test_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOG_NAME).write_bytes(content)
    with pytest.raises(LogCorruptError, match="not a log"):
        contents(tmp_path)
    assert (tmp_path / LOG_NAME).read_bytes() == content


def test_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogUnavailableError, match="cannot keep a log here: Not a directory"):
        contents(tmp_path / "file" / "data")


def test_directory_that_is_gone_is_not_brought_back(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailableError, match="what it is to be in is not there; make that first"):
        contents(tmp_path / "gone" / "data")
    assert not list(tmp_path.iterdir())


def test_disk_that_is_full_at_the_start_is_a_clear_error(tmp_path: Path) -> None:
    write(tmp_path, PAYLOADS)
    with files_limited_to(0), pytest.raises(LogUnavailableError, match="cannot keep a log here"):
        contents(tmp_path)
    assert contents(tmp_path) == PAYLOADS


def test_second_process_is_told_who_has_the_log(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path)
    with pytest.raises(LogUnavailableError, match="in use by process"):
        open_log(tmp_path)
    log.close()
    assert contents(tmp_path) == []


def test_full_disk_fails_the_append_and_leaves_no_half_record(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path)
    log.append(b"before")
    size_bytes = (tmp_path / LOG_NAME).stat().st_size
    with files_limited_to(size_bytes + 20), pytest.raises(LogWriteError, match="could not be written"):
        log.append(b"x" * 100)
    assert (tmp_path / LOG_NAME).stat().st_size == size_bytes
    log.append(b"after")
    log.close()
    assert contents(tmp_path) == [b"before", b"after"]


def test_compaction_replaces_the_history_and_goes_on(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, compact_bytes=1000)
    while not log.wants_compaction:
        log.append(b"x" * 90)
    assert 1000 <= log.size_bytes < 1200
    assert log.compact(iter([b"state", b"more"]))
    assert not log.wants_compaction
    log.append(b"after")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["lock", LOG_NAME]
    log.close()
    assert contents(tmp_path) == [b"state", b"more", b"after"]


def test_large_snapshot_must_double_before_the_next_compaction(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, compact_bytes=100)
    log.compact([b"x" * 1000])
    log.append(b"y" * 500)
    assert not log.wants_compaction
    log.append(b"y" * 500)
    assert log.wants_compaction
    log.close()


def test_compaction_without_room_keeps_the_old_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, _ = open_log(tmp_path, compact_bytes=10)
    log.append(b"precious")
    with files_limited_to(50), caplog.at_level(logging.WARNING):
        assert not log.compact([b"x" * 100])
    assert "cannot be compacted now" in caplog.text
    assert not log.wants_compaction
    log.append(b"next")
    log.close()
    assert contents(tmp_path) == [b"precious", b"next"]


def test_compaction_that_died_half_way_is_forgotten(tmp_path: Path) -> None:
    write(tmp_path, PAYLOADS)
    (tmp_path / "shard.log.new").write_bytes(MAGIC + b"half")
    assert contents(tmp_path) == PAYLOADS
    assert not (tmp_path / "shard.log.new").exists()
