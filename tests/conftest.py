"""What all tests share: hypothesis profiles, the golden-bytes flag, and the checks for leftovers."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sim.user_code import DeadlockError
from tests import conformance
from tests.leftovers import RUN_VARIABLE, leftovers, segments, threads_left

TESTS = Path(__file__).parent
REAL_PROCESSES = ("integration", "chaos")
"""Folders whose tests start processes."""

# Deadlines measure the machine, not the code. CI draws the same examples every time; elsewhere they vary.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write tests/protocol/golden.json anew; review the change as a diff",
    )
    parser.addoption("--nodes", type=int, default=1, help="of the clusters of tests that run on any")
    parser.addoption("--simulate", action="store_true", help="those tests in virtual time instead")
    parser.addoption("--shards", type=int, default=1, help="of their control stores")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--simulate"):
        conformance.simulate()
    conformance.resize(config.getoption("--nodes"), config.getoption("--shards"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("one_node")
    if mark is not None and item.config.getoption("--nodes") > 1:
        pytest.skip(f"on one node only: {mark.args[0]}")
    mark = item.get_closest_marker("not_simulated")
    if mark is not None and item.config.getoption("--simulate"):
        pytest.skip(f"not in virtual time: {mark.args[0]}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Watch every test that starts processes, whether or not it asks for it.

    On several nodes only those of modules run that make their cluster with ``tests.conformance``.
    """
    if config.getoption("--nodes") > 1 or config.getoption("--simulate"):
        others = [item for item in items if not hasattr(getattr(item, "module", None), "conformance")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).parts[0] in REAL_PROCESSES:
            # First, so that it is torn down after every other fixture of the session.
            item.fixturenames.insert(0, "nothing_left_behind")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What ``zray.simulate`` refuses by name is skipped with its reason."""
    if not item.config.getoption("--simulate"):
        return (yield)
    try:
        return (yield)
    except (NotImplementedError, DeadlockError) as error:
        if "zray.simulate()" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def in_virtual_time() -> Iterator[None]:
    """With ``--simulate``: a simulated cluster for every test of a module that wants one."""
    with conformance.virtual_time():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a module that leaves a thread behind: whoever forks next would copy the locks it holds."""
    yield
    left = threads_left()
    assert not left, f"threads that outlive their tests: {left}"


@pytest.fixture(scope="session")
def nothing_left_behind() -> Iterator[None]:
    """Fail the run if its tests leave a process, a socket file or a shared memory segment behind."""
    run = uuid.uuid4().hex
    folder = Path(tempfile.mkdtemp(prefix="zt"))  # short: the path of a socket has 107 bytes at most
    before = segments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN_VARIABLE, run)
        patch.setenv("TMPDIR", str(folder))
        patch.delenv("ZRAY_TMPDIR", raising=False)  # it would win over TMPDIR
        patch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
        yield
    found = leftovers(run, folder, before)
    shutil.rmtree(folder, ignore_errors=True)
    assert not found, "left behind:\n" + "\n".join(found)
