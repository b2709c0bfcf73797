"""``RuntimeEnv``: a runtime environment as an object, checked when it is made; and as it travels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.runtime.environment import canonical, has_paths

if TYPE_CHECKING:
    from zray.runtime.client import Client


class RuntimeEnv(dict[str, Any]):
    """``RuntimeEnv(env_vars={...}, working_dir=..., pip=[...])``: a dict that ``runtime_env`` takes.

    Raises:
        TypeError, ValueError: for what no worker could be, with the reason.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        canonical(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return dict(self)


class RuntimeEnvConfig(dict[str, Any]):
    """``config`` of a runtime environment.

    Args:
        setup_timeout_seconds: how long its packages may take to be there; -1: without end.
        eager_install: taken for Ray's sake: an environment is made when a worker needs it.
        log_files: refused: the installer's lines are printed like output.
    """

    def __init__(
        self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None
    ) -> None:
        if log_files:
            raise ValueError("log_files is refused: what an installer says is printed by the task that waits")
        super().__init__(setup_timeout_seconds=setup_timeout_seconds)
        canonical({"config": dict(self)})


def published(client: Client, environment: str) -> str:
    """An environment as it travels: its directories are packages of the cluster.

    Raises:
        ValueError, OSError: as ``Publisher.publish``.
    """
    if not has_paths(environment):
        return environment
    if client.publisher is None:
        from zray.runtime.taking_on import Publisher

        client.publisher = Publisher(client)
    return client.publisher.publish(environment)
