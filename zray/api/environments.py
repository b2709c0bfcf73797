"""``RuntimeEnv``: a runtime environment as an object, checked when it is made."""

from __future__ import annotations

from typing import Any

from zray.runtime.environment import canonical


class RuntimeEnv(dict[str, Any]):
    """``RuntimeEnv(env_vars={...}, working_dir=...)``: a dict that ``runtime_env`` takes.

    Raises:
        TypeError, ValueError: for what no worker could be, with the reason.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        canonical(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return dict(self)
