"""What the interpreter makes of an exception that ends a process: its exit code, and what it prints."""

from __future__ import annotations

import sys

EXIT_RAISED = 1


def exit_code_of(error: BaseException | None) -> int:
    """As whoever started the process sees it: one byte; 0 without an error."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        return EXIT_RAISED
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else EXIT_RAISED


def print_ending(error: BaseException) -> None:
    """Print its traceback; of ``sys.exit()`` only a message that was given instead of a code."""
    if not isinstance(error, SystemExit):
        from zray.serialize.values import format_user_traceback  # not for the zygote, which forks workers

        print(format_user_traceback(error), file=sys.stderr)
    elif not isinstance(error.code, int | None):
        print(error.code, file=sys.stderr)
