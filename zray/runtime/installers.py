"""Python packages for a worker: pip or uv install them into a directory of their own, once per node.

They go into a directory and not into an environment with an interpreter of its own, because workers are
forked from a process that has everything imported (``zygote.py``). What zray itself imports before the fork
(numpy, msgspec, cloudpickle, ...) therefore stays as the node has it, whatever is installed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from zray.errors import RuntimeEnvSetupError
from zray.ids import content_id
from zray.runtime.environment import INSTALLERS

TAIL_LINES = 40
"""Of the installer's output, in the error."""
KEY_CHARACTERS = 24


def installer_of(environment: Mapping[str, Any]) -> str | None:
    """The tool that an environment wants packages from."""
    return next((tool for tool in INSTALLERS if tool in environment), None)


def key_of(tool: str, wanted: Mapping[str, Sequence[str]]) -> str:
    """Equal for equal packages, options and interpreters."""
    what = json.dumps([tool, wanted, sys.version, sys.executable], sort_keys=True)
    return f"{tool}-{content_id(what.encode()).hex()[:KEY_CHARACTERS]}"


def install(tool: str, wanted: Mapping[str, Sequence[str]], target: str, timeout_s: float | None) -> None:
    """Install packages into a directory; each line of the installer is printed, and so reaches the driver.

    Args:
        tool: ``pip`` or ``uv``.
        wanted: ``packages`` and the options of the tool.
        target: the directory.
        timeout_s: after which it is ended; ``None``: never.
    Raises:
        RuntimeEnvSetupError: with the end of the installer's output.
    """
    packages = ", ".join(wanted["packages"])
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    code, is_late = _run(_command(tool, wanted, target), tool, tail, timeout_s)
    if is_late:
        raise RuntimeEnvSetupError(
            f"{tool} needed more than {timeout_s:.0f} s for {packages}; raise setup_timeout_seconds in the "
            "'config' of the environment. It said:\n" + "\n".join(tail)
        )
    if code:
        raise RuntimeEnvSetupError(
            f"{tool} could not install {packages} (exit code {code}). It said:\n" + "\n".join(tail)
        )


def _run(command: list[str], tool: str, tail: deque[str], timeout_s: float | None) -> tuple[int, bool]:
    """Run an installer, printing what it says; its exit code, and whether it was ended for being late."""
    # In the process group of the worker, which is killed as a whole: the installer never outlives it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    is_late = threading.Event()

    def end_late() -> None:
        is_late.set()
        _end(process)

    timer = threading.Timer(timeout_s or 0.0, end_late)
    timer.daemon = True
    if timeout_s is not None:
        timer.start()
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in map(str.rstrip, process.stdout):
                tail.append(line)
                print(f"[{tool}] {line}")
        return process.wait(), is_late.is_set()
    except BaseException:  # its task was cancelled
        _end(process)
        process.wait()
        raise
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    """Kill an installer and what it started: a build that nobody waits for any more."""
    import psutil  # only who has to kill one needs it

    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()


def _command(tool: str, wanted: Mapping[str, Sequence[str]], target: str) -> list[str]:
    packages = wanted["packages"]
    if tool == "pip":
        options = wanted.get("pip_install_options", ())
        pip = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        return [*pip, "--progress-bar", "off", "--target", target, *options, "--", *packages]
    uv = shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))
    if uv is None:
        raise RuntimeEnvSetupError(
            "there is no uv on the PATH of this node, nor beside its Python; install it there, or use 'pip', "
            "which takes the same list of packages"
        )
    options = wanted.get("uv_pip_install_options", ())
    python = ["--python", sys.executable]
    return [uv, "pip", "install", "--no-progress", *python, "--target", target, *options, "--", *packages]
