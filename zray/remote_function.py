"""``zray.remote_function``: what Ray has under ``ray.remote_function``."""

from zray.api.remote import RemoteFunction

__all__ = ["RemoteFunction"]
