"""Which code this is: told with every trace and every file of measured costs.

Two processes decide alike if their machines are the same code and speak the same protocol, so a digest of the
sources says more than a version, which stays the same from one release to the next.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

from zray._version import __version__
from zray.protocol.messages import PROTOCOL_VERSION

PACKAGE = Path(__file__).resolve().parents[1]
DECIDING = ("core", "protocol", "config.py", "errors.py", "ids.py")
"""What a machine is made of, below the package."""
UNKNOWN = "unknown"


@cache
def code_digest() -> str:
    """A digest of the sources that decide, in 16 hex digits. Cost: some milliseconds, once."""
    digest = blake2b(digest_size=8)
    for name in DECIDING:
        place = PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def commit() -> str:
    """The commit that is checked out around the package; ``unknown`` for one that was installed."""
    try:
        git = PACKAGE.parent / ".git"
        if git.is_file():  # of a linked work tree
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        return _commit_of(git, head.removeprefix("ref:").strip())
    except (OSError, UnicodeDecodeError):
        return UNKNOWN


def _commit_of(git: Path, reference: str) -> str:
    common = git / "commondir"
    folders = [git, (git / common.read_text().strip()).resolve()] if common.exists() else [git]
    for folder in folders:
        if (folder / reference).exists():
            return (folder / reference).read_text().strip()
        packed = folder / "packed-refs"
        for line in packed.read_text().splitlines() if packed.exists() else ():
            if line.endswith(" " + reference):
                return line.split()[0]
    return UNKNOWN


def description() -> dict[str, str | int]:
    """Everything above, for a document."""
    return {
        "zray": __version__, "protocol": PROTOCOL_VERSION, "code": code_digest(), "commit": commit(),
    }  # fmt: skip
