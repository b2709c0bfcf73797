"""The file of flushed rows: what was written comes back as it was, or loudly not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from zray.ids import task_id
from zray.protocol.flushing import (
    ClearRows,
    DropRows,
    FlushRows,
    ReadRowPage,
    ReadRows,
    RowsFlushed,
    RowsRead,
)
from zray.protocol.messages import TaskRecord
from zray.runtime.row_file import RowFile, RowFileError


def rows(first: int, count: int, args: bytes = b"a" * 60) -> tuple[TaskRecord, ...]:
    return tuple(
        TaskRecord(task_id(b"p" * 8, number), b"p" * 16, b"d" * 16, args, (b"o" * 16,), b"n" * 16, 0, 0)
        for number in range(first, first + count)
    )


def place_of(file: RowFile) -> str:
    """The file itself, which has no name any more."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    [found] = [link for link in links if os.path.exists(link) and ".rows" in os.readlink(link)]
    return found


def test_rows_come_back_in_the_order_of_keys_or_as_asked(tmp_path: Path) -> None:
    file = RowFile(str(tmp_path))
    written = rows(0, 300) + rows(300, 2, args=bytes(100_000))
    assert file.carry_out(FlushRows(1, written[::-1])) == RowsFlushed(1)
    asked = written[7].task_id, written[301].task_id, written[0].task_id
    assert file.carry_out(ReadRows(2, asked)) == RowsRead(2, (written[7], written[301], written[0]))
    assert file.carry_out(ReadRowPage(3, written[9].task_id, 3)) == RowsRead(3, written[10:13])
    assert file.carry_out(ReadRowPage(4, written[300].task_id, 9)) == RowsRead(4, written[301:])
    assert tuple(file.all_rows()) == written
    file.close()


def test_a_row_is_written_over_dropped_and_all_are_cleared(tmp_path: Path) -> None:
    file = RowFile(str(tmp_path))
    file.carry_out(FlushRows(1, rows(0, 3)))
    file.carry_out(FlushRows(2, rows(1, 1, args=b"new")))
    file.carry_out(DropRows((rows(0, 1)[0].task_id, b"never there")))
    assert tuple(file.all_rows()) == rows(1, 1, args=b"new") + rows(2, 1)
    file.carry_out(ClearRows())
    assert not list(file.all_rows())
    file.close()


def test_nothing_of_it_has_a_name(tmp_path: Path) -> None:
    file = RowFile(str(tmp_path / "made"))
    file.carry_out(FlushRows(1, rows(0, 3)))
    assert os.listdir(tmp_path / "made") == []
    file.close()


def test_dropped_rows_give_their_room_back(tmp_path: Path) -> None:
    file = RowFile(str(tmp_path))
    for first in range(0, 20_000, 1000):
        file.carry_out(FlushRows(1, rows(first, 1000)))
    full_bytes = file.size_bytes
    for first in range(0, 18_000, 500):
        file.carry_out(DropRows(tuple(row.task_id for row in rows(first, 500))))
    assert file.size_bytes < full_bytes / 3
    assert tuple(file.all_rows()) == rows(18_000, 2000)
    file.close()


def test_a_full_disk_is_told_and_nothing_of_the_batch_is_there(tmp_path: Path) -> None:
    file = RowFile(str(tmp_path), bytes_max=1 << 20)
    number = 0
    while not (answer := file.carry_out(FlushRows(number, rows(1000 * number, 1000)))).error:
        number += 1
    assert "full" in answer.error
    assert str(tmp_path) in answer.error
    assert tuple(file.all_rows()) == rows(0, 1000 * number)
    file.carry_out(DropRows(tuple(row.task_id for row in rows(0, 1000))))
    assert file.carry_out(FlushRows(number, rows(1000 * number, 100))) == RowsFlushed(number)
    file.close()


@pytest.mark.parametrize("stride", [1, 97])
def test_a_damaged_file_is_refused_and_nothing_wrong_comes_back(tmp_path: Path, stride: int) -> None:
    """Garbage over all of the file, or here and there over keys and values: no row is wrong or missing."""
    file = RowFile(str(tmp_path))
    written = rows(0, 60_000)  # more than the cache holds
    for first in range(0, len(written), 1000):
        file.carry_out(FlushRows(1, written[first : first + 1000]))
    with open(place_of(file), "r+b", buffering=0) as damaged:
        size = os.fstat(damaged.fileno()).st_size
        for offset in range(4096 * 3, size - 4096, 4096 * stride):
            os.pwrite(damaged.fileno(), b"\x7fgarbage" * 128, offset + 1024)
    refused = 0
    for row in written[::251]:
        try:
            answer = file.carry_out(ReadRows(1, (row.task_id,)))
        except RowFileError:
            refused += 1
        else:
            assert answer == RowsRead(1, (row,))
    assert refused
    with pytest.raises(RowFileError, match="from its log"):
        list(file.all_rows())
    file.close()


def test_a_row_that_is_gone_is_an_error(tmp_path: Path) -> None:
    file = RowFile(str(tmp_path))
    with pytest.raises(RowFileError, match="is gone") as caught:
        file.carry_out(ReadRows(1, (b"k" * 16,)))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    file.close()


def test_a_place_that_cannot_have_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RowFileError, match=str(tmp_path)):
        RowFile(str(tmp_path / "file"))
    with pytest.raises(RowFileError, match="No such file"):
        RowFile(str(tmp_path / "gone" / "rows"))
    assert not (tmp_path / "gone").exists()
