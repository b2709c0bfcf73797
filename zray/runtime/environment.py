"""Runtime environments: what a worker's process is like before it runs a user's code.

An environment is a dict with the keys of ``FIELDS``, as canonical JSON: two are equal if their texts are. A
worker takes on one environment for good, and runs only tasks that ask for an equal one
(``core/worker_pool.py``). A directory of the driver is named by its path at first, and by its content once it
is *published*, as a package of the cluster (``packages.py``): from then on equal means of equal content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from zray.runtime.packages import is_uri, object_of

FIELDS = ("env_vars", "working_dir", "py_modules", "excludes", "pip", "uv", "config")
REFUSED = {
    "conda": "give packages as pip or uv, or start zray from the environment that the tasks are to run in",
    "py_executable": "workers are forked, and run the Python that started their node",
    "container": "start the nodes inside containers",
    "java_jars": "zray runs Python only",
    "image_uri": "start the nodes inside containers",
    "nsight": "start the node under the profiler",
    "worker_process_setup_hook": "call it at the start of the task",
}
INSTALLERS = {
    "pip": {"packages": (), "pip_install_options": ()},
    "uv": {"packages": (), "uv_pip_install_options": ()},
}
"""What may be said of each, in a dict; its packages alone are a list or a file of them."""
SETUP_TIMEOUT_S = 600

Pack = Callable[[str, Sequence[str], str], str]
"""``(path, excludes, directory inside) -> uri``: packs and keeps it."""


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
    given = {name: value for name, value in environment.items() if value}
    if "pip" in given and "uv" in given:
        raise ValueError("runtime_env takes pip or uv, not both: one installer makes one set of packages")
    if "excludes" in given and not ("working_dir" in given or "py_modules" in given):
        raise ValueError(
            "excludes says what stays behind of working_dir and py_modules, and there is neither"
        )
    return _text({name: _CHECKS[name](value) for name, value in given.items()})


def _text(environment: Mapping[str, Any]) -> str:
    return json.dumps(environment, sort_keys=True, separators=(",", ":")) if environment else ""


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
    text = os.fspath(path)
    if is_uri(text):
        return text
    _refuse_remote("working_dir", text)
    text = os.path.abspath(text)
    if not (os.path.isdir(text) or (os.path.isfile(text) and text.endswith(".zip"))):
        raise ValueError(f"working_dir {text} is not a directory of this machine, nor a .zip file")
    return text


def _checked_modules(modules: Any) -> list[str]:
    if isinstance(modules, str | os.PathLike) or not isinstance(modules, Sequence):
        raise TypeError(f"py_modules is a list of modules and of paths, not {modules!r}")
    return [_checked_module(module) for module in modules]


def _checked_module(module: Any) -> str:
    if isinstance(module, ModuleType):
        places = list(getattr(module, "__path__", ()))
        module = places[0] if places else getattr(module, "__file__", None) or module.__name__
    if not isinstance(module, str | os.PathLike):
        raise TypeError(f"py_modules is a list of modules and of paths; this one has {module!r}")
    text = os.fspath(module)
    if is_uri(text):
        return text
    _refuse_remote("py_modules", text)
    text = os.path.abspath(text)
    if not (os.path.isdir(text) or (os.path.isfile(text) and text.endswith((".py", ".zip", ".whl")))):
        raise ValueError(f"py_modules: {text} is no directory, .py, .zip or .whl file of this machine")
    return text


def _refuse_remote(what: str, text: str) -> None:
    if "://" in text:
        raise ValueError(f"{what} is a path on this machine: download {text} first, or mount it")


def _checked_excludes(patterns: Any) -> list[str]:
    return _checked_strings("excludes", patterns)


def _checked_strings(what: str, strings: Any) -> list[str]:
    if isinstance(strings, str) or not isinstance(strings, Sequence):
        raise TypeError(f"{what} is a list of strings, not {strings!r}")
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"{what} is a list of strings; this one has {string!r}")
    return list(strings)


def _checked_packages(tool: str, given: Any) -> dict[str, list[str]]:
    """Packages of an installer, from a list, a requirements file, or a dict with options of the installer."""
    if not isinstance(given, Mapping):
        given = {"packages": given}
    for name in given:
        if name not in INSTALLERS[tool]:
            raise ValueError(f"{tool} does not take {name!r}: there are {', '.join(INSTALLERS[tool])}")
    packages = given.get("packages") or ()
    if isinstance(packages, str | os.PathLike):
        with open(packages, encoding="utf-8") as file:  # its own error names it
            packages = [line for line in map(str.strip, file) if line and not line.startswith("#")]
    checked = {"packages": _checked_strings(f"{tool} packages", packages)}
    if not checked["packages"]:
        raise ValueError(f"{tool} has no packages: {given!r}")
    options = next(name for name in INSTALLERS[tool] if name != "packages")
    if given.get(options):
        checked[options] = _checked_strings(options, given[options])
    return checked


def _checked_config(config: Any) -> dict[str, int]:
    if not isinstance(config, Mapping):
        raise TypeError(f"config is a dict, not {config!r}")
    for name, value in config.items():
        if name != "setup_timeout_seconds":
            raise ValueError(f"config does not take {name!r}: there is setup_timeout_seconds")
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"setup_timeout_seconds is a whole number, not {value!r}")
        if value == 0 or value < -1:
            raise ValueError(f"setup_timeout_seconds is positive, or -1 for no bound; not {value}")
    return dict(config)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "env_vars": _checked_variables,
    "working_dir": _checked_directory,
    "py_modules": _checked_modules,
    "excludes": _checked_excludes,
    "pip": lambda given: _checked_packages("pip", given),
    "uv": lambda given: _checked_packages("uv", given),
    "config": _checked_config,
}


def merged(outer: str, inner: str) -> str:
    """What a task runs in that asks for ``inner`` inside ``outer``: variables add up, others are replaced."""
    if not outer or not inner:
        return outer or inner
    above, below = json.loads(outer), json.loads(inner)
    variables = {**above.get("env_vars", {}), **below.get("env_vars", {})}
    if "pip" in below or "uv" in below:  # one set of packages replaces the other, whoever installs it
        above = {name: value for name, value in above.items() if name not in INSTALLERS}
    both = {**above, **below}
    if variables:
        both["env_vars"] = variables
    return _text(both)


def published(environment: str, pack: Pack) -> str:
    """The text with the names of packages in place of paths.

    Args:
        environment: an environment with or without paths.
        pack: makes a package of a path.
    """
    wanted = as_dict(environment)
    excludes = wanted.pop("excludes", ())
    directory, modules = wanted.get("working_dir"), wanted.get("py_modules", ())
    if directory is not None and not is_uri(directory):
        wanted["working_dir"] = pack(directory, excludes, "")
    if modules:
        wanted["py_modules"] = [
            # A directory is a module by its own name; a file is found in the package's root.
            module if is_uri(module) else pack(module, excludes, _module_name(module))
            for module in modules
        ]
    return _text(wanted)


def has_paths(environment: str) -> bool:
    """Whether publishing might change anything."""
    return any(f'"{name}":' in environment for name in ("working_dir", "py_modules"))


def _module_name(path: str) -> str:
    return os.path.basename(path) if os.path.isdir(path) else ""


@lru_cache(maxsize=256)
def packages_of(environment: str) -> tuple[bytes, ...]:
    """The objects that a published environment is unpacked from."""
    wanted = as_dict(environment)
    uris = [wanted["working_dir"]] if "working_dir" in wanted else []
    uris += wanted.get("py_modules", ())
    return tuple(dict.fromkeys(object_of(uri) for uri in uris))


def as_dict(environment: str) -> dict[str, Any]:
    """The environment that a text stands for."""
    return dict(json.loads(environment)) if environment else {}
