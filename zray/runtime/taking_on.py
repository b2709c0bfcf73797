"""How a worker takes on its environment, and how a driver's directories get to it.

The parts that take time or room are shared by the workers of a node (``environment_cache.py``); what is the
worker's own are its variables, its directory and its path. A part that cannot be had is a
``RuntimeEnvSetupError`` of the task that wanted it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zray.errors import RuntimeEnvSetupError, ZrayError
from zray.runtime import installers
from zray.runtime.environment import SETUP_TIMEOUT_S, as_dict, published
from zray.runtime.environment_cache import EnvironmentCache
from zray.runtime.packages import SCHEME, SUFFIX, Packer, object_of, unpack, uri_of
from zray.runtime.results import InputFailedError
from zray.serialize.values import dump, load

if TYPE_CHECKING:
    from zray.runtime.client import Client

Fetch = Callable[[Sequence[bytes]], dict[bytes, bytes | memoryview]]
_VARIABLE = "PYTHONPATH"


class Publisher:
    """Puts the directories of environments into the object store.

    A package is held by the process that put it, to its end: any later task may want it.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.packer = Packer(client.config.package_bytes_max)

    def publish(self, environment: str) -> str:
        """The text with the names of packages in place of paths.

        Raises:
            ValueError: for a directory with too much in it.
            OSError: for one that cannot be read.
        """
        return published(environment, self._pack)

    def _pack(self, path: str, excludes: Sequence[str], inside: str) -> str:
        uri, content = self.packer.pack(path, excludes, inside=inside)
        object_id = object_of(uri)
        if not self.client.objects.refers_to(object_id):
            self.client.put(dump(content, f"the package of {path}"), object_id)
        return uri


class EnvironmentTaker:
    """Makes this process what an environment says.

    Args:
        cache: the parts on this node.
        fetch: the bytes of objects, which this process holds from then on.
    """

    def __init__(self, cache: EnvironmentCache, fetch: Fetch) -> None:
        self.cache = cache
        self.fetch = fetch

    def take_on(self, environment: str) -> None:
        """Have every part, then become it; a second try after an error begins anew.

        Raises:
            RuntimeEnvSetupError: naming the part that cannot be had here.
        """
        wanted = as_dict(environment)
        seconds = wanted.get("config", {}).get("setup_timeout_seconds", SETUP_TIMEOUT_S)
        timeout_s = None if seconds < 0 else float(seconds)
        os.environ.update(wanted.get("env_vars", {}))  # an installer may want them
        path = [self._unpacked(uri, timeout_s, "py_modules") for uri in wanted.get("py_modules", ())]
        tool = installers.installer_of(wanted)
        if tool is not None:
            path.append(self._installed(tool, wanted[tool], timeout_s))
        if "working_dir" in wanted:
            directory = self._unpacked(wanted["working_dir"], timeout_s, "working_dir")
            os.chdir(directory)
            path.insert(0, directory)
        _prepend(path)

    def _unpacked(self, uri: str, timeout_s: float | None, what: str) -> str:
        def make(target: str) -> None:
            object_id = object_of(uri)
            content = load(self.fetch([object_id])[object_id], "a package")
            if not isinstance(content, bytes) or uri_of(content) != uri:
                raise ValueError("its content is not what its name says")
            unpack(content, target)

        key = uri.removeprefix(SCHEME).removesuffix(SUFFIX)
        return self._part(key, make, timeout_s, f"{what} {uri}")

    def _installed(self, tool: str, wanted: dict[str, Any], timeout_s: float | None) -> str:
        def make(target: str) -> None:
            installers.install(tool, wanted, target, timeout_s)

        return self._part(installers.key_of(tool, wanted), make, timeout_s, tool)

    def _part(self, key: str, make: Callable[[str], None], timeout_s: float | None, what: str) -> str:
        try:
            return self.cache.use(key, make, float("inf") if timeout_s is None else timeout_s)
        except RuntimeEnvSetupError:
            raise
        except InputFailedError:
            text = f"{what}: its package is lost, with the node that had it; submit the task once more"
            raise RuntimeEnvSetupError(text) from None
        except (ZrayError, OSError, ValueError) as error:
            raise RuntimeEnvSetupError(f"{what}: {error}") from error


def _prepend(path: list[str]) -> None:
    """Directories in front of what this process, and those it starts, import from."""
    sys.path[:] = [*path, *(known for known in sys.path if known not in path)]
    variable = os.environ.get(_VARIABLE)
    if path:
        os.environ[_VARIABLE] = os.pathsep.join([*path, *([variable] if variable else [])])
    importlib.invalidate_caches()
