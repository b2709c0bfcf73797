"""What environments are made of: ignored files, packages, and the cache on disk that processes share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.errors import RuntimeEnvSetupError
from zray.runtime.environment import canonical, merged, packages_of, published
from zray.runtime.environment_cache import EnvironmentCache
from zray.runtime.ignore_rules import IgnoreRules
from zray.runtime.packages import Packer, files_of, is_uri, object_of, unpack, uri_of
from zray.runtime.taking_on import EnvironmentTaker
from zray.serialize.values import dump

ROOT = Path(__file__).parents[2]
TREE = (
    "a.py", "a.log", "keep.log", "logs/a.txt", "deep/logs/b.txt", "deep/a.log", "build/x", "deep/build/y",
    "docs/[x].md", "docs/x.md", "docs/er/x.md", "with space.txt", "#hash", "!bang",
)  # fmt: skip


def make(folder: Path, names: tuple[str, ...] = TREE) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def kept(folder: Path, *patterns: str) -> list[str]:
    return sorted(file.name for file in files_of(str(folder), patterns))


# --- ignored files ---


@pytest.mark.skipif(shutil.which("git") is None, reason="git is what the patterns are compared with")
@pytest.mark.parametrize(
    "patterns",
    [
        ["*.log"], ["*.log", "!keep.log"], ["/build"], ["build/"], ["deep/*.log"], ["logs/"],
        ["docs/**"], ["**/logs"], ["deep/**/y"], ["docs/*.md"], ["docs/[[]x].md"], ["docs/?.md"],
        ["[!a].py"], ["a.*"], ["\\#hash"], ["# a comment", ""], ["\\!bang"], ["with space.txt"],
        ["*", "!*.py"], ["docs", "!docs/x.md"], ["**/er/*"], ["/deep/"], ["*/logs"],
    ],
)  # fmt: skip
def test_patterns_mean_what_git_takes_them_for(tmp_path: Path, patterns: list[str]) -> None:
    make(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("\n".join(patterns) + "\n")
    listed = ["git", "-c", "core.quotePath=off", "ls-files", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert kept(tmp_path, *patterns) == sorted(found.splitlines())


def test_a_gitignore_holds_below_its_place(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "deep" / ".gitignore").write_text("/a.log\nlogs\n")
    assert [name for name in kept(tmp_path) if name.startswith("deep")] == ["deep/.gitignore", "deep/build/y"]
    assert "a.log" in kept(tmp_path)


@given(st.text(alphabet="ab*?[]!/\\# .", max_size=12), st.text(alphabet="ab/", max_size=8))
def test_any_pattern_is_a_pattern_or_a_value_error(pattern: str, path: str) -> None:
    try:
        rules = IgnoreRules([pattern])
    except ValueError as error:
        assert "pattern" in str(error)  # noqa: PT017
    else:
        rules.leaves_out(path, is_directory=False)


def test_pipes_and_links_to_directories_stay_behind(tmp_path: Path) -> None:
    make(tmp_path, ("a", "inner/b"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert kept(tmp_path) == ["a", "inner/b", "link"]


# --- packages ---


def test_equal_content_is_one_package(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    os.utime(two / "a.py", (1, 1))
    (name, content), (other, again) = (Packer(1 << 20).pack(str(folder)) for folder in (one, two))
    assert (name, content) == (other, again)
    assert is_uri(name)
    assert name == uri_of(content)
    unpack(content, str(tmp_path / "three"))
    assert kept(tmp_path / "three") == sorted(TREE)


def test_what_has_not_changed_is_not_packed_again(tmp_path: Path) -> None:
    packer = Packer(1 << 20)
    make(tmp_path)
    name, content = packer.pack(str(tmp_path))
    assert packer.pack(str(tmp_path)) == (name, b"")
    (tmp_path / "a.py").write_text("other")
    other, content = packer.pack(str(tmp_path))
    assert other != name
    assert content


def test_a_package_that_leads_out_of_its_place_is_refused(tmp_path: Path) -> None:
    for evil in ("../outside", "/outside", "a/../../outside"):
        made = BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr(evil, "x")
        with pytest.raises(ValueError, match="outside"):
            unpack(made.getvalue(), str(tmp_path / "target"))
    assert not (tmp_path / "outside").exists()


@given(st.binary(max_size=200))
def test_garbage_is_no_package(content: bytes) -> None:
    with pytest.raises(ValueError, match="no zip file"):
        unpack(content, "/nonexistent/never")


# --- texts ---


def test_published_texts_name_content(tmp_path: Path) -> None:
    text = canonical(
        {"working_dir": tmp_path, "excludes": ["x"], "py_modules": [tmp_path], "env_vars": {"A": "1"}}
    )
    seen = []

    def pack(path: str, excludes: object, inside: str) -> str:
        seen.append((path, excludes, inside))
        return uri_of(inside.encode())

    made = published(text, pack)
    assert seen == [(str(tmp_path), ["x"], ""), (str(tmp_path), ["x"], tmp_path.name)]
    assert packages_of(made) == (object_of(uri_of(b"")), object_of(uri_of(tmp_path.name.encode())))
    assert published(made, pack) == made
    assert len(seen) == 2
    assert canonical(__import__("json").loads(made)) == made


def test_what_is_inside_replaces_packages_of_either_installer() -> None:
    outer = canonical({"pip": ["a"], "env_vars": {"A": "1"}})
    assert merged(outer, canonical({"uv": ["b"]})) == canonical({"uv": ["b"], "env_vars": {"A": "1"}})
    assert merged(outer, canonical({"env_vars": {"B": "2"}})) == canonical(
        {"pip": ["a"], "env_vars": {"A": "1", "B": "2"}}
    )


# --- the cache ---


def fill(path: str) -> None:
    (Path(path) / "content").write_text("x" * 1000)


def never(path: str) -> None:
    raise AssertionError("it is there already")


def test_each_part_is_made_once(tmp_path: Path) -> None:
    root = str(tmp_path / "parts")
    path = EnvironmentCache(root, 0).use("a", fill, 1.0)
    other = EnvironmentCache(root, 0)
    assert other.use("a", never, 1.0) == path
    assert other.use("a", never, 1.0) == path
    assert (Path(path) / "content").exists()


def test_what_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    cache = EnvironmentCache(str(tmp_path), 0)

    def fail(path: str) -> None:
        fill(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.use("a", fail, 1.0)
    assert os.listdir(tmp_path) == ["a.lock"]
    cache.use("a", fill, 1.0)


USER = """
import sys
from zray.runtime.environment_cache import EnvironmentCache
def make(path):
    open(path + "/content", "w").write("x" * 1000)
    if sys.argv[3:]:
        print("making", flush=True); sys.stdin.read()
EnvironmentCache(sys.argv[1], 0).use(sys.argv[2], make, 1.0)
print("using", flush=True); sys.stdin.read()
"""


def user(root: Path, key: str, *more: str) -> subprocess.Popen[str]:
    """A process that makes or uses a part until its input ends."""
    command = [sys.executable, "-c", textwrap.dedent(USER), str(root), key, *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == ("making\n" if more else "using\n")
    return process


def end(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate()


def test_only_what_nobody_uses_makes_room(tmp_path: Path) -> None:
    using = user(tmp_path, "used")
    end(user(tmp_path, "unused"))
    end(user(tmp_path, "newest"))
    try:
        cache = EnvironmentCache(str(tmp_path), 1500)  # of those that nobody uses, one fits
        cache.use("mine", fill, 1.0)
        assert sorted(name for name in os.listdir(tmp_path) if ".lock" not in name) == [
            "mine",
            "newest",
            "used",
        ]
    finally:
        end(using)


def test_a_killed_maker_holds_nobody_up(tmp_path: Path) -> None:
    end(user(tmp_path, "a", "slowly"))
    path = EnvironmentCache(str(tmp_path), 0).use("a", fill, 1.0)
    assert os.listdir(path) == ["content"]
    assert sorted(os.listdir(tmp_path)) == ["a", "a.lock"]


def test_a_maker_that_takes_too_long(tmp_path: Path) -> None:
    making = user(tmp_path, "a", "slowly")
    try:
        with pytest.raises(RuntimeEnvSetupError, match="setup_timeout_seconds"):
            EnvironmentCache(str(tmp_path), 0).use("a", never, 0.1)
    finally:
        end(making)


# --- what a worker does with them ---


def taker(root: Path, content: object) -> EnvironmentTaker:
    data = dump(content).to_bytes()
    return EnvironmentTaker(EnvironmentCache(str(root), 0), lambda ids: dict.fromkeys(ids, data))


@pytest.mark.parametrize("content", [b"", b"no zip file", "text", None])
def test_a_package_that_is_not_what_its_name_says(tmp_path: Path, content: object) -> None:
    text = f'{{"working_dir":"{uri_of(b"another")}"}}'
    with pytest.raises(RuntimeEnvSetupError, match="not what its name says"):
        taker(tmp_path, content).take_on(text)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []


def test_garbage_by_the_right_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeEnvSetupError, match="no zip file"):
        taker(tmp_path, b"garbage").take_on(f'{{"py_modules":["{uri_of(b"garbage")}"]}}')


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    name, content = Packer(1 << 20).pack(str(make(tmp_path / "tree")))
    monkeypatch.setattr("zray.runtime.taking_on.unpack", full)
    with pytest.raises(RuntimeEnvSetupError, match="No space left"):
        taker(tmp_path / "parts", content).take_on(f'{{"py_modules":["{name}"]}}')
