"""``log_once`` and its switches, under Ray's names."""

from __future__ import annotations

import time
from typing import Any

from zray.api.refused import absent

PERIOD_S = 60.0
"""After which a key may be logged again, if :func:`enable_periodic_logging` was called."""
KEYS_MAX = 10_000
"""Remembered; the oldest is forgotten first."""

_logged: dict[str, float] = {}
_disabled = False
_periodic = False


def log_once(key: str) -> bool:
    """Whether something with this key is to be logged: true for the first time in this process."""
    if _disabled:
        return False
    now_s = time.monotonic()
    if key in _logged and not (_periodic and now_s - _logged[key] > PERIOD_S):
        return False
    _logged.pop(key, None)
    _logged[key] = now_s
    if len(_logged) > KEYS_MAX:
        del _logged[next(iter(_logged))]
    return True


def disable_log_once_globally() -> None:
    """From now on :func:`log_once` is false."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """From now on :func:`log_once` is true again, once a minute for each key."""
    global _disabled, _periodic
    _disabled, _periodic = False, True


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)
