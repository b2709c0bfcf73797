"""``zray.runtime_context``: what Ray has under ``ray.runtime_context``."""

from zray.api.context import RuntimeContext, get_runtime_context

__all__ = ["RuntimeContext", "get_runtime_context"]
