"""How a driver shows what workers print: prefixed, folded on terminals only, never in the way of an error."""

from __future__ import annotations

import io
import threading
from collections import deque

import pytest

from zray.protocol.user_messages import STDERR, STDOUT, Printed
from zray.runtime import printing
from zray.runtime.printing import LineFolder, show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def forget_what_was_folded() -> None:
    printing._folder = None


def test_a_file_gets_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Printed(STDOUT, "f", pid, "same\nagain") for pid in (1, 2)]
    show(deque([*lines, Printed(STDERR, "", 3, "wrong")]))
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "(f pid=1, ip=127.0.0.1) same",
        "(f pid=1, ip=127.0.0.1) again",
        "(f pid=2, ip=127.0.0.1) same",
        "(f pid=2, ip=127.0.0.1) again",
    ]
    assert err == "(worker pid=3, ip=127.0.0.1) wrong\n"


def test_a_terminal_gets_equal_lines_once(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    show(deque(Printed(STDOUT, "f", pid, "same") for pid in range(5)))
    assert terminal.getvalue().count("same") == 1
    printing.finish()
    assert "same [repeated 4x]" in terminal.getvalue()


def test_folding_has_an_end() -> None:
    folder = LineFolder(1.0)
    assert folder.shown(0.0, "a") == ["a"]
    assert folder.shown(0.5, "a") == []
    assert folder.shown(0.6, "b") == ["b"]
    assert folder.shown(1.2, "c") == ["a [repeated 1x]", "c"]
    assert folder.shown(1.3, "a") == ["a"]
    assert folder.rest() == []


def test_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stdout", closed)
    printed = deque([Printed(STDOUT, "f", 1, "text")])
    show(printed)
    assert not printed


class Slow(io.StringIO):
    """A terminal whose reader takes its time over the first line."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.takes = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.is_asked.set()
        show(deque())  # a signal handler that asks for something, in the midst of it
        assert self.takes.wait(10)
        return super().write(text)


def test_who_has_a_result_waits_for_what_another_thread_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("sys.stdout", slow)
    came = deque([Printed(STDOUT, "f", 1, "first\nsecond")])
    shower = threading.Thread(target=show, args=(came,))
    seen: list[int] = []
    asker = threading.Thread(target=lambda: (show(came), seen.append(slow.getvalue().count("\n"))))
    shower.start()
    assert slow.is_asked.wait(10)
    assert not came
    assert printing.is_showing()
    asker.start()
    slow.takes.set()
    for thread in (shower, asker):
        thread.join(10)
    assert seen == [2]
    assert not printing.is_showing()


def test_a_reader_that_stopped_holds_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("sys.stdout", slow)
    monkeypatch.setattr(printing, "OTHERS_S", 0.01)
    shower = threading.Thread(target=show, args=(deque([Printed(STDOUT, "f", 1, "first")]),))
    shower.start()
    assert slow.is_asked.wait(10)
    show(deque())  # comes back
    assert slow.getvalue() == ""
    slow.takes.set()
    shower.join(10)
    assert slow.getvalue().count("first") == 1
