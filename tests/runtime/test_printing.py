"""How a driver shows what workers print: prefixed, folded on terminals only, never in the way of an error."""

from __future__ import annotations

import io
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
