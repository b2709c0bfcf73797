"""Whether endpoints can be connected to, and in words for people why not."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from zray.core.machine import RUNTIME, Address
from zray.protocol.cluster import Knock, Knocked
from zray.runtime.endpoints import knock, why

TIMEOUT_S = 2.0
"""A connection that is not made by then will not be: its packets are dropped."""

_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


def problem_with(endpoint: str) -> str:
    """Why nobody can connect to ``endpoint`` from here; empty if one can."""
    try:
        knock(endpoint, TIMEOUT_S)
    except TimeoutError:
        return f"no answer within {TIMEOUT_S:g} s: a firewall drops it, or the host is down"
    except ConnectionRefusedError:
        return "refused: nothing listens at this port, or a firewall rejects it"
    except OSError as error:
        if error.errno in _NO_WAY:
            return f"{why(error)}: there is no way to it, or a firewall rejects it"
        return why(error) if error.errno else str(error)
    return ""


def answer_in_thread(question: Knock, post: Callable[[Address, Knocked], None]) -> None:
    """Try the endpoints and post what came of it, after :data:`TIMEOUT_S` for each at most."""
    threading.Thread(target=_answer, args=(question, post), name="zray-knock", daemon=True).start()


def _answer(question: Knock, post: Callable[[Address, Knocked], None]) -> None:
    problems = tuple(problem_with(endpoint) for endpoint in question.endpoints)
    post(RUNTIME, Knocked(question.asker, question.token, problems))
