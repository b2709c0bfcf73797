"""``zray.types``: what Ray has under ``ray.types``."""

from zray.api.refs import ObjectRef

__all__ = ["ObjectRef"]
