"""Environments with files and packages: working_dir, py_modules, pip; on this node and on others."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import zray
from tests import clusters, conformance
from tests.support import eventually
from zray.cluster_utils import Cluster
from zray.exceptions import RuntimeEnvSetupError, TaskCancelledError
from zray.util import state

PATIENCE_S = 60


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a module, a program, and things that are to stay behind."""
    (tmp_path / "helper_of_packages.py").write_text("VALUE = 42\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "data.txt").write_text("data")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    (tmp_path / ".gitignore").write_text("*.log\n/build/\n")
    (tmp_path / "noise.log").write_text("noise")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "output").write_text("output")
    return tmp_path


def wheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    """A wheel with one module that knows its version."""
    module = f"VERSION = {version!r}\n"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    stem = f"{name}-{version}"
    files = {
        f"{name}.py": module,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{stem}.dist-info/RECORD"] = "\n".join([*record, f"{stem}.dist-info/RECORD,,", ""])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_inside, text in files.items():
            archive.writestr(name_inside, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def pip(folder: Path, *packages: str) -> dict[str, Any]:
    return {"packages": list(packages), "pip_install_options": ["--no-index", "--find-links", str(folder)]}


@zray.remote
def look() -> tuple[str, list[str], int]:
    import helper_of_packages  # type: ignore[import-not-found]

    here = Path.cwd()
    files = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    return str(here), [file for file in files if "__pycache__" not in file], helper_of_packages.VALUE


@zray.remote
def version_of(name: str) -> str:
    import importlib

    return str(importlib.import_module(name).VERSION)


@zray.remote
def pid_and_place() -> tuple[int, str]:
    return os.getpid(), os.getcwd()


class TestWorkingDir:
    def test_is_a_copy_without_what_stays_behind(self, folder: Path) -> None:
        mine = look.options(runtime_env={"working_dir": str(folder), "excludes": ["deep/**/data.txt"]})
        place, files, value = zray.get(mine.remote(), timeout=PATIENCE_S)
        assert place != str(folder)
        assert files == [".gitignore", "helper_of_packages.py", "program"]
        assert value == 42

    def test_a_program_in_it_runs(self, folder: Path) -> None:
        @zray.remote(runtime_env={"working_dir": str(folder)})
        def run() -> str:
            import subprocess

            return subprocess.run(["./program"], capture_output=True, text=True, check=True).stdout

        assert zray.get(run.remote(), timeout=PATIENCE_S) == "ran\n"

    def test_equal_content_is_one_place_and_other_content_another(self, folder: Path, tmp_path: Path) -> None:
        def place() -> str:
            mine = pid_and_place.options(runtime_env={"working_dir": str(folder)})
            return zray.get(mine.remote(), timeout=PATIENCE_S)[1]

        first = place()
        assert place() == first
        (folder / "noise.log").write_text("more noise, which stays behind")
        assert place() == first
        (folder / "helper_of_packages.py").write_text("VALUE = 43\n")
        second = place()
        assert second != first
        found = zray.get(look.options(runtime_env={"working_dir": str(folder)}).remote(), timeout=PATIENCE_S)
        assert (found[0], found[2]) == (second, 43)

    def test_a_zip_file(self, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(folder / "helper_of_packages.py", "helper_of_packages.py")
        found = zray.get(look.options(runtime_env={"working_dir": str(path)}).remote(), timeout=PATIENCE_S)
        assert found[1:] == (["helper_of_packages.py"], 42)

    def test_what_a_task_submits_inherits_it(self, folder: Path) -> None:
        @zray.remote(num_cpus=0)
        def outer() -> Any:
            return os.getcwd(), zray.get(look.options(num_cpus=0).remote())[0]

        mine = outer.options(runtime_env={"working_dir": str(folder)})
        here, below = zray.get(mine.remote(), timeout=PATIENCE_S)
        assert here == below
        again, below = zray.get(mine.remote(), timeout=PATIENCE_S)  # of a worker that unpacks nothing
        assert here == again == below

    def test_an_actor_and_its_next_life(self, folder: Path) -> None:
        @zray.remote(max_restarts=1, max_task_retries=1, runtime_env={"working_dir": str(folder)})
        class Placed:
            def place(self) -> str:
                return os.getcwd()

            def pid(self) -> int:
                return os.getpid()

        actor = Placed.remote()
        place = zray.get(actor.place.remote(), timeout=PATIENCE_S)
        os.kill(zray.get(actor.pid.remote()), 9)
        assert zray.get(actor.place.remote(), timeout=PATIENCE_S) == place

    def test_too_much_of_it(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = """
            import zray
            zray.init(num_cpus=1)
            f = zray.remote(int)
            try:
                f.options(runtime_env={"working_dir": "."}).remote()
            except ValueError as error:
                print(error)
        """
        with clusters.place() as place:
            (place.folder / "large.bin").write_bytes(bytes(200_000))
            process = place.start(program, environment={"ZRAY_PACKAGE_BYTES_MAX": "100000"})
            done = clusters.finish(process)
        assert "large.bin (200,000 bytes)" in done.stdout, done.stderr
        assert "excludes" in done.stdout

    def test_the_directory_of_a_whole_job(self) -> None:
        program = """
            import os, zray
            open("mine_of_the_job.py", "w").write("NAME = 'job'")
            zray.init(num_cpus=1, runtime_env={"working_dir": ".", "env_vars": {"KIND": "job"}})
            @zray.remote
            def f():
                import mine_of_the_job
                return mine_of_the_job.NAME, os.environ["KIND"], "environments" in mine_of_the_job.__file__
            print(zray.get([f.remote() for _ in range(3)]))
            print(zray.get_runtime_context().runtime_env["working_dir"][:7])
        """
        with clusters.place() as place:
            done = place.run(program)
        assert done.stdout.strip() == f"{[('job', 'job', True)] * 3}\nzray://", done.stderr


class TestPyModules:
    def test_a_package_a_file_and_a_wheel(self, folder: Path, tmp_path: Path) -> None:
        package = tmp_path / "inner" / "package_of_packages"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("VERSION = 'package'\n")
        (package / "lines.py").write_text("VERSION = 'part'\n")
        made = wheel(tmp_path, "wheel_of_packages", "3.1")
        mine = version_of.options(
            runtime_env={"py_modules": [package, folder / "helper_of_packages.py", str(made)]}
        )
        names = ("package_of_packages", "package_of_packages.lines", "wheel_of_packages")
        assert zray.get([mine.remote(name) for name in names], timeout=PATIENCE_S) == [
            "package",
            "part",
            "3.1",
        ]

    def test_with_a_working_dir(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "other_of_packages.py").write_text("VERSION = 'other'\n")
        mine = {"working_dir": folder / "deep", "py_modules": [tmp_path / "other_of_packages.py"]}

        @zray.remote(runtime_env=mine)
        def use() -> tuple[str, str]:
            import other_of_packages  # type: ignore[import-not-found]

            return Path("er/data.txt").read_text(), other_of_packages.VERSION

        assert zray.get(use.remote(), timeout=PATIENCE_S) == ("data", "other")


class TestPip:
    def test_versions_beside_each_other(self, tmp_path: Path) -> None:
        for version in ("1.0", "2.0"):
            wheel(tmp_path, "versioned_of_packages", version)
        wheel(tmp_path, "needing_of_packages", "1.0", "versioned_of_packages==1.0")
        one = version_of.options(runtime_env={"pip": pip(tmp_path, "needing_of_packages")})
        two = version_of.options(runtime_env={"pip": pip(tmp_path, "versioned_of_packages>1.5")})
        refs = [function.remote("versioned_of_packages") for function in (one, two, one)]
        assert zray.get(refs, timeout=PATIENCE_S) == ["1.0", "2.0", "1.0"]

    def test_an_error_has_the_words_of_the_installer(self, tmp_path: Path) -> None:
        mine = version_of.options(runtime_env={"pip": pip(tmp_path, "no_such_package_at_all")})
        with pytest.raises(RuntimeEnvSetupError, match=r"(?s)pip.*exit code.*No matching distribution"):
            zray.get(mine.remote("x"), timeout=PATIENCE_S)

        @zray.remote(runtime_env={"pip": pip(tmp_path, "no_such_package_at_all")})
        class Never:
            def call(self) -> None: ...

        with pytest.raises(RuntimeEnvSetupError, match="No matching distribution"):
            zray.get(Never.remote().call.remote(), timeout=PATIENCE_S)

    def test_a_requirements_file_and_progress(self) -> None:
        program = """
            import zray
            zray.init(num_cpus=1)
            @zray.remote(runtime_env={"pip": "wanted.txt"})
            def use():
                import listed_of_packages
                return listed_of_packages.VERSION
            print(zray.get(use.remote()))
        """
        with clusters.place() as place:
            wheel(place.folder, "listed_of_packages", "7.0")
            (place.folder / "wanted.txt").write_text("# what is wanted\nlisted_of_packages>=7\n")
            options = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(place.folder)}
            done = clusters.finish(place.start(program, environment=options))
        assert "7.0" in done.stdout, done.stderr
        assert "[pip] Successfully installed listed_of_packages-7.0" in done.stdout.replace("-of-", "_of_")

    def test_uv_or_what_to_do_without_it(self, tmp_path: Path) -> None:
        import shutil

        wheel(tmp_path, "quick_of_packages", "1.0")
        options = ["--no-index", "--find-links", str(tmp_path)]
        wanted = {"packages": ["quick_of_packages"], "uv_pip_install_options": options}
        ref = version_of.options(runtime_env={"uv": wanted}).remote("quick_of_packages")
        if shutil.which("uv"):
            assert zray.get(ref, timeout=PATIENCE_S) == "1.0"
        else:
            with pytest.raises(RuntimeEnvSetupError, match="no uv"):
                zray.get(ref, timeout=PATIENCE_S)

    def test_one_that_takes_too_long(self, tmp_path: Path) -> None:
        _slow_source(tmp_path)
        mine = version_of.options(
            runtime_env={"pip": pip(tmp_path, "slow_of_packages"), "config": {"setup_timeout_seconds": 1}}
        )
        with pytest.raises(RuntimeEnvSetupError, match="more than 1 s"):
            zray.get(mine.remote("slow_of_packages"), timeout=PATIENCE_S)

    def test_one_that_is_cancelled_while_it_installs(self, tmp_path: Path) -> None:
        """Its build goes, too, and what it held is free for the next."""
        started = _slow_source(tmp_path)
        ref = version_of.options(runtime_env={"pip": pip(tmp_path, "slow_of_packages")}).remote("x")
        eventually(started.exists, PATIENCE_S)
        zray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            zray.get(ref, timeout=PATIENCE_S)
        eventually(lambda: not _builds_in(tmp_path), PATIENCE_S)

    def test_a_worker_that_is_killed_while_it_installs(self, tmp_path: Path) -> None:
        """The next attempt finds no lock held, and nothing half made."""
        started = _slow_source(tmp_path)
        wanted = {"pip": pip(tmp_path, "slow_of_packages")}
        ref = version_of.options(runtime_env=wanted, max_retries=1, name="killed").remote("slow_of_packages")
        eventually(started.exists, PATIENCE_S)
        (row,) = [row for row in state.list_workers() if row["state"] == "busy"]
        wheel(tmp_path, "slow_of_packages", "1.1")
        os.kill(row["pid"], signal.SIGKILL)
        with pytest.raises(ModuleNotFoundError):  # the module of the wheel has another name
            zray.get(version_of.options(runtime_env=wanted).remote("no_module"), timeout=PATIENCE_S)
        assert zray.get(ref, timeout=PATIENCE_S) == "1.1"
        eventually(lambda: not _builds_in(tmp_path), PATIENCE_S)


def _builds_in(folder: Path) -> list[int]:
    """Processes that build the source that never ends."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or ())
    ]


def _slow_source(folder: Path) -> Path:
    """A source distribution whose build never ends; returns the file that says that it began."""
    import tarfile

    started = folder / "started"
    setup = f"import time; open({str(started)!r}, 'w').close(); time.sleep(600)"
    source = folder / "slow_of_packages-1.0"
    source.mkdir()
    (source / "setup.py").write_text(setup)
    backend = f"""
        def build_wheel(*_args, **_named): {setup}
        def get_requires_for_build_wheel(*_args, **_named): {setup}
    """
    (source / "backend.py").write_text(textwrap.dedent(backend))
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (source / "pyproject.toml").write_text(project)
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: slow_of_packages\nVersion: 1.0\n")
    with tarfile.open(folder / "slow_of_packages-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    return started


@pytest.mark.parametrize(
    ("environment", "error", "what"),
    [
        ({"working_dir": "/no/such/folder"}, ValueError, "not a directory"),
        ({"working_dir": "https://example.org/a.zip"}, ValueError, "download"),
        ({"excludes": ["*.log"]}, ValueError, "working_dir"),
        ({"py_modules": "text"}, TypeError, "list"),
        ({"py_modules": [3]}, TypeError, "3"),
        ({"py_modules": ["/no/such/module"]}, ValueError, "no directory"),
        ({"pip": ["a"], "uv": ["a"]}, ValueError, "not both"),
        ({"pip": {"packages": ["a"], "pip_check": True}}, ValueError, "pip_check"),
        ({"pip": {"pip_install_options": ["-v"]}}, ValueError, "no packages"),
        ({"pip": [1]}, TypeError, "strings"),
        ({"config": {"eager_install": True}}, ValueError, "eager_install"),
        ({"config": {"setup_timeout_seconds": 0}}, ValueError, "positive"),
    ],
)
def test_refused(environment: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        look.options(runtime_env=environment)


def test_a_broken_zip_file(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="no zip file"):
        look.options(runtime_env={"working_dir": str(tmp_path / "broken.zip")}).remote()


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """Instead of the node of this module's other tests."""
    zray.shutdown()
    with Cluster(True, head_node_args={"num_cpus": 1, "object_store_memory": 64 << 20}) as cluster:
        cluster.add_node(num_cpus=1, object_store_memory=64 << 20, resources={"there": 1})
        zray.init(cluster.address)
        yield cluster
        zray.shutdown()
    zray.init(num_cpus=2)


def test_on_another_node(two_nodes: Cluster, folder: Path) -> None:
    """Small ones travel as they are, large ones are copied in chunks."""
    for size in (10, 3_000_000):
        (folder / "noise.bin").write_bytes(os.urandom(size))
        mine = look.options(resources={"there": 1}, runtime_env={"working_dir": str(folder)})
        place, files, value = zray.get(mine.remote(), timeout=PATIENCE_S)
        assert "noise.bin" in files
        assert (value, place != str(folder)) == (42, True)
        here, *_ = zray.get(
            look.options(runtime_env={"working_dir": str(folder)}).remote(), timeout=PATIENCE_S
        )
        assert here
