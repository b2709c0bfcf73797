"""Directories of a driver as packages: zip files that are objects of the cluster, named by their content.

A package is packed where the directory is, put into the object store once, and fetched by the first worker
of each node that needs it. Its name is ``zray://<24 hex digits>.zip``; the digits are the digest of its bytes
and, followed by the suffix of values that were ``put``, the id of the object. So equal directories are one
object, whoever packed them, and whoever unpacks one can see that it is the right one.

Invariant: equal content gives equal bytes: names in order, no times, and of the mode only who may execute.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import NamedTuple

from zray import ids
from zray.runtime.ignore_rules import IgnoreRules

SCHEME = "zray://"
SUFFIX = ".zip"
WHOLE = (".zip", ".whl")
"""Files that are packages already."""
NAMES_MAX = 64
FILES_MAX = 100_000
"""Of one package."""
ALWAYS_LEFT_OUT = (".git/", "__pycache__/")
_IGNORE_FILE = ".gitignore"
_OLDEST = (1980, 1, 1, 0, 0, 0)  # what a zip file can say
_LARGEST_NAMED = 3


class PackedFile(NamedTuple):
    """A file that goes into a package."""

    name: str  # in the package, with slashes
    path: str
    size: int
    mtime_ns: int
    executable: bool


def uri_of(content: bytes) -> str:
    """The name of a package."""
    return SCHEME + ids.package_id(content).hex()[:24] + SUFFIX


def is_uri(text: str) -> bool:
    """Whether this is the name of a package, and not a path."""
    digits = text.removeprefix(SCHEME).removesuffix(SUFFIX)
    return text == SCHEME + digits + SUFFIX and len(digits) == 24 and set(digits) <= set("0123456789abcdef")


def object_of(uri: str) -> bytes:
    """The id of the object that a package is."""
    return ids.package_object_id(bytes.fromhex(uri.removeprefix(SCHEME).removesuffix(SUFFIX)))


class Packer:
    """Packs directories, and remembers what the newest were called, for as long as they do not change.

    Args:
        bytes_max: of the files of one package.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._names: dict[tuple[str, str], tuple[list[PackedFile], str]] = {}

    def pack(self, path: str, excludes: Sequence[str] = (), *, inside: str = "") -> tuple[str, bytes]:
        """The package of a directory or a file: its name, and its bytes unless they were packed before.

        Args:
            path: a directory; a ``.zip`` or ``.whl`` file, which is taken as it is; or a module's file.
            excludes: patterns as in ``.gitignore``, besides those in files of that name.
            inside: the directory in the package that everything goes into.
        Raises:
            ValueError: if there is too much of it, with the largest files; or if it is no zip file.
            OSError: if a part of it cannot be read.
        """
        is_file = os.path.isfile(path)
        files = [_described(path, os.path.basename(path))] if is_file else sorted(files_of(path, excludes))
        self._check_size(path, files)
        known, name = self._names.get((path, inside), (None, ""))
        if known == files:
            return name, b""
        if is_file and path.endswith(WHOLE):
            content = _read(path)
            check_zip(content, path)
        else:
            content = _zipped(files, inside)
        name = uri_of(content)
        self._names[path, inside] = files, name
        if len(self._names) > NAMES_MAX:
            del self._names[next(iter(self._names))]
        return name, content

    def _check_size(self, path: str, files: list[PackedFile]) -> None:
        total = sum(file.size for file in files)
        if total <= self.bytes_max and len(files) <= FILES_MAX:
            return
        largest = sorted(files, key=lambda file: -file.size)[:_LARGEST_NAMED]
        named = ", ".join(f"{file.name} ({file.size:,} bytes)" for file in largest)
        raise ValueError(
            f"{path} has {len(files):,} files with {total:,} bytes; a package has at most {FILES_MAX:,} "
            f"files and {self.bytes_max:,} bytes. The largest: {named}. Leave files out with 'excludes' or a "
            ".gitignore, or raise ZRAY_PACKAGE_BYTES_MAX"
        )


def files_of(root: str, excludes: Sequence[str]) -> Iterator[PackedFile]:
    """The files of a directory that are not left out; links to files as what they point to."""
    yield from _files_below(root, "", IgnoreRules([*ALWAYS_LEFT_OUT, *excludes]))


def _files_below(path: str, name: str, rules: IgnoreRules) -> Iterator[PackedFile]:
    own = os.path.join(path, _IGNORE_FILE)
    if os.path.isfile(own):
        with open(own, encoding="utf-8", errors="surrogateescape") as lines:
            rules = IgnoreRules(lines, name, rules)
    with os.scandir(path) as entries:
        found = list(entries)
    for entry in found:
        inner = f"{name}/{entry.name}" if name else entry.name
        is_directory = entry.is_dir(follow_symlinks=False)
        if rules.leaves_out(inner, is_directory=is_directory):
            continue
        if is_directory:
            yield from _files_below(entry.path, inner, rules)
        elif entry.is_file():  # no socket, no pipe, and no link to a directory, which may lead in a circle
            yield _described(entry.path, inner)


def _described(path: str, name: str) -> PackedFile:
    found = os.stat(path)
    return PackedFile(name, path, found.st_size, found.st_mtime_ns, bool(found.st_mode & stat.S_IXUSR))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _zipped(files: list[PackedFile], inside: str) -> bytes:
    import zipfile  # 10 ms that only who packs or unpacks pays

    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"{inside}/{file.name}" if inside else file.name, _OLDEST)
            entry.create_system = 3  # Unix, whose modes follow
            entry.external_attr = (stat.S_IFREG | (0o755 if file.executable else 0o644)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _read(file.path))
    return target.getvalue()


def check_zip(content: bytes, what: str) -> None:
    """
    Raises:
        ValueError: if it is no zip file, or one that would be unpacked outside of its place.
    """
    import zipfile

    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{what} is no zip file: {error}") from None
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{what} has a file outside of it: {name!r}")


def unpack(content: bytes, target: str) -> None:
    """Write the files of a package into a new directory.

    Raises:
        ValueError: as :func:`check_zip`.
        OSError: if they cannot be written; what was written stays.
    """
    import zipfile

    check_zip(content, "the package")
    with zipfile.ZipFile(BytesIO(content)) as archive:
        for entry in archive.infolist():
            path = archive.extract(entry, target)
            mode = entry.external_attr >> 16
            if mode & stat.S_IXUSR and not entry.is_dir():
                os.chmod(path, 0o755)
    os.makedirs(target, exist_ok=True)
