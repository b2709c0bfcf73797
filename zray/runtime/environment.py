"""Runtime environments: what a worker's process is like before it runs a user's code.

An environment is a dict with the keys of ``FIELDS``, as canonical JSON: two are equal if their texts are. A
worker takes on one environment for good, and runs only tasks that ask for an equal one
(``core/worker_pool.py``).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from zray.errors import RuntimeEnvSetupError

FIELDS = ("env_vars", "working_dir")
REFUSED = {
    "pip": "install the packages in the Python that starts zray, on every node",
    "uv": "install the packages in the Python that starts zray, on every node",
    "conda": "start zray from the environment that the tasks are to run in",
    "py_modules": "put the modules into working_dir, or on the driver's sys.path, which workers share",
    "py_executable": "workers are forked, and run the Python that started their node",
    "container": "start the nodes inside containers",
    "image_uri": "start the nodes inside containers",
    "nsight": "start the node under the profiler",
    "worker_process_setup_hook": "call it at the start of the task",
    "config": "zray has no runtime environment agent to configure",
    "excludes": "a working_dir is used where it lies and not copied",
}


def canonical(environment: Any) -> str:
    """The text of an environment, empty for none.

    Raises:
        TypeError, ValueError: for what is no environment, with the reason.
    """
    if environment is None:
        return ""
    if not isinstance(environment, Mapping):
        raise TypeError(f"runtime_env is a dict, not {environment!r}")
    for name in environment:
        if name not in FIELDS:
            reason = REFUSED.get(name, f"there are {', '.join(FIELDS)}")
            raise ValueError(f"runtime_env does not take {name!r}: {reason}")
    checked: dict[str, Any] = {}
    variables = environment.get("env_vars")
    if variables:
        checked["env_vars"] = _checked_variables(variables)
    if environment.get("working_dir"):
        checked["working_dir"] = _checked_directory(environment["working_dir"])
    return json.dumps(checked, sort_keys=True, separators=(",", ":")) if checked else ""


def _checked_variables(variables: Any) -> dict[str, str]:
    if not isinstance(variables, Mapping):
        raise TypeError(f"env_vars is a dict of strings, not {variables!r}")
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env_vars is a dict of strings; this one has {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"no environment variable is called {name!r}, or has such a value")
    return dict(variables)


def _checked_directory(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"working_dir is a path, not {path!r}")
    text = os.path.abspath(os.fspath(path))
    if not os.path.isdir(text):
        raise ValueError(f"working_dir {text} is not a directory of this machine")
    return text


def merged(outer: str, inner: str) -> str:
    """What a task runs in that asks for ``inner`` inside ``outer``: variables add up, others are replaced."""
    if not outer or not inner:
        return outer or inner
    above, below = json.loads(outer), json.loads(inner)
    variables = {**above.get("env_vars", {}), **below.get("env_vars", {})}
    both = {**above, **below}
    if variables:
        both["env_vars"] = variables
    return json.dumps(both, sort_keys=True, separators=(",", ":"))


def as_dict(environment: str) -> dict[str, Any]:
    """The environment that a text stands for."""
    return dict(json.loads(environment)) if environment else {}


def take_on(environment: str) -> None:
    """Make this process such an environment.

    Raises:
        RuntimeEnvSetupError: naming the part that cannot be had here.
    """
    wanted = as_dict(environment)
    os.environ.update(wanted.get("env_vars", {}))
    directory = wanted.get("working_dir")
    if directory is None:
        return
    try:
        os.chdir(directory)
    except OSError as error:
        raise RuntimeEnvSetupError(f"working_dir {directory}: {error.strerror}") from None
    if directory not in sys.path:
        sys.path.insert(0, directory)
