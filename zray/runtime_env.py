"""``zray.runtime_env``: what Ray has under ``ray.runtime_env``."""

from zray.api.environments import RuntimeEnv, RuntimeEnvConfig

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
