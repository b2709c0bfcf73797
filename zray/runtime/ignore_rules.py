"""Which files of a directory stay behind: patterns as in ``.gitignore``.

A pattern without a slash, or with one at its end only, matches a name at any depth; any other is relative to
the directory that it was given for. ``*`` and ``?`` stop at slashes, ``**`` does not; a slash at the end
means directories only; ``!`` takes back what a pattern before it said. The last pattern that matches decides.
What is in a directory that stays behind stays behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class _Rule(NamedTuple):
    matches: re.Pattern[str]
    keeps: bool
    only_directories: bool


class IgnoreRules:
    """The patterns that hold in one directory and below.

    Args:
        patterns: lines as in ``.gitignore``; empty ones and comments are skipped.
        base: where they are relative to, as a path with slashes below the root; empty for the root.
        outer: the rules of the directory above, which come first.
    Raises:
        ValueError: for a pattern with a bracket that is never closed.
    """

    def __init__(self, patterns: Iterable[str], base: str = "", outer: IgnoreRules | None = None) -> None:
        rules = [rule for pattern in patterns if (rule := _rule_of(pattern, base)) is not None]
        self._rules: Sequence[_Rule] = [*(outer._rules if outer is not None else ()), *rules]

    def leaves_out(self, path: str, *, is_directory: bool) -> bool:
        """Whether a path, with slashes and below the root, stays behind."""
        for rule in reversed(self._rules):
            if (is_directory or not rule.only_directories) and rule.matches.fullmatch(path):
                return not rule.keeps
        return False


def _rule_of(line: str, base: str) -> _Rule | None:
    pattern = line.rstrip("\n").rstrip(" ") if not line.endswith("\\ ") else line
    if not pattern or pattern.startswith("#"):
        return None
    keeps = pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    only_directories = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    anywhere = "/" not in pattern
    prefix = re.escape(base) + "/" if base else ""
    try:
        body = _expression_of(pattern.removeprefix("/"))
        return _Rule(
            re.compile(prefix + ("(?:.*/)?" if anywhere else "") + body, re.DOTALL), keeps, only_directories
        )
    except re.error as error:
        raise ValueError(f"{line!r} is no pattern for files: {error}") from None


_TOKEN = re.compile(r"/\*\*/|^\*\*/|/\*\*$|\*+|\?|\[!?\]?[^\]]*\]|\\.|.", re.DOTALL)


_SPECIAL_IN_SETS = re.compile(r"[\\\[&~|^]")


def _expression_of(pattern: str) -> str:
    parts = []
    for token in _TOKEN.findall(pattern):
        if token == "/**/":
            parts.append("/(?:.*/)?")
        elif token == "**/":
            parts.append("(?:.*/)?")
        elif token == "/**":
            parts.append("/.+")
        elif token.startswith("*"):
            parts.append("[^/]*")
        elif token == "?":
            parts.append("[^/]")
        elif token.startswith("[") and len(token) > 1:
            inside = token[1:-1]
            negated = inside.startswith("!")
            escaped = _SPECIAL_IN_SETS.sub(r"\\\g<0>", inside[negated:])
            parts.append(f"[^/{escaped}]" if negated else f"[{escaped}]")
        else:
            parts.append(re.escape(token[1:] if len(token) == 2 and token[0] == "\\" else token))
    return "".join(parts)
