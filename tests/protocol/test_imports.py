"""What the first import of the messages brings along."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys, {first}
assert "typing_extensions" not in sys.modules
import typing_extensions
assert typing_extensions.TypedDict
"""

BESIDE = """
import sys, threading
here, on = threading.Event(), threading.Event()
other = threading.Thread(target=lambda: (here.set(), on.wait()))
other.start()
here.wait()
import zray.protocol
on.set()
other.join()
assert "typing_extensions" in sys.modules
"""


def test_what_msgspec_could_use_is_left_to_who_wants_it() -> None:
    for first in ("zray.protocol.messages", "zray.services.gcs"):
        done = subprocess.run(
            [sys.executable, "-c", ALONE.format(first=first)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_beside_another_thread_nothing_is_hidden() -> None:
    """It may be in the midst of the same import, and would be told that there is no such module."""
    done = subprocess.run([sys.executable, "-c", BESIDE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
