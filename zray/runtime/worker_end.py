"""How a worker ends in the midst of something: as the interpreter would, had it run only the user's code."""

from __future__ import annotations

import atexit
import faulthandler
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from zray.runtime import output
from zray.runtime.exit_codes import exit_code_of, print_ending

if TYPE_CHECKING:
    from zray.runtime.client import Client

_STDERR = 2


def bound_farewell(timeout_s: float) -> None:
    """What the user's code does from now on (``__ray_shutdown__``, exit handlers) ends in time or is cut off.

    Then the worker's log says in which line every thread was.
    """
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=_STDERR)


def end_worker(client: Client, error: BaseException) -> NoReturn:
    """End this actor because of ``error``: exit handlers run, and what it said and printed is heard."""
    print_ending(error)
    bound_farewell(client.config.farewell_timeout_ns / 1e9)
    atexit._run_exitfuncs()
    output.flush()
    client.tell_all()
    client.say_last_words()
    _end(error)


def end_fork(error: BaseException | None) -> NoReturn:
    """End a process that was forked from a worker, whose link and exit handlers are not its own."""
    if error is not None:
        print_ending(error)
    _end(error)


def _end(error: BaseException | None) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code_of(error))
