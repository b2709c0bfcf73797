"""The log of a shard in a Redis or Valkey server, for sites that run one: same contract as a file.

Three keys for each shard, in one hash slot: ``{PREFIX:NAME}:log``, a list whose first element is the magic
and each other one a checksummed record; ``{PREFIX:NAME}:owner``, the token of the process that may write;
and ``{PREFIX:NAME}:compactions``, how often the list was replaced. Whoever has read a log to its end becomes
its owner, and whoever was it before cannot write any more: its next write fails and it ends. So of two
processes that both think they are the shard only one can acknowledge anything.

The one invariant: a record is acknowledged only when it is in the list at the place where its writer expects
it. A script checks owner and length and appends, as one step. So an answer that was lost is asked for again
without harm, and a server that came back with less than it had acknowledged is noticed.

A server that does not answer is waited for, up to ``storage_timeout_ns``; then the shard ends, as on a full
disk. How durable a write is when the server's machine fails is up to the server; ``sync`` insists.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

from zray.config import Config
from zray.runtime.record_log import (
    HEADER,
    MAGIC,
    LogCorruptError,
    LogUnavailableError,
    LogWriteError,
    RecordLog,
    encode_record,
    payload_of,
)

log = logging.getLogger("zray.log")

Answer = TypeVar("Answer")

DEFAULT_PREFIX = "zray"
VALUE_BYTES_MAX = 512 << 20
"""What one element of a list can hold."""
PAGE_RECORDS = 256
"""Records that are read, or written by a compaction, at once."""
RETRY_INTERVAL_S = 0.05
CONNECT_TIMEOUT_S = 1.0
DRAFT_LIFE_S = 3600
"""After this long the server forgets a compaction that did not come to its end."""

_NOT_OWNER = -1
_OTHER_LENGTH = -2
_OTHER_LIST = -3

# KEYS: log, compactions. ARGV: token, magic. Returns how often the log was replaced.
_LOOK = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and (kind ~= 'list' or redis.call('LINDEX', KEYS[1], 0) ~= ARGV[2]) then
    return redis.error_reply('NOTALOG')
end
return tonumber(redis.call('GET', KEYS[2]) or '0')
"""
# KEYS: owner, log, compactions. ARGV: token, elements that were read, how often replaced before, magic.
# Returns the owner before.
_CLAIM = f"""
if (redis.call('GET', KEYS[3]) or '0') ~= ARGV[3] then return {_OTHER_LIST} end
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[2]) == 0 then redis.call('RPUSH', KEYS[2], ARGV[4]) end
local length = redis.call('LLEN', KEYS[2])
if length > tonumber(ARGV[2]) then return {_OTHER_LENGTH} end
if length < tonumber(ARGV[2]) then return {_OTHER_LIST} end
local before = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return before or ''
"""
# KEYS: owner, log. ARGV: token, elements before, record. Returns the elements after.
_APPEND = f"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {_NOT_OWNER} end
local length = redis.call('LLEN', KEYS[2])
if length == tonumber(ARGV[2]) then return redis.call('RPUSH', KEYS[2], ARGV[3]) end
if length == ARGV[2] + 1 and redis.call('LINDEX', KEYS[2], -1) == ARGV[3] then return length end
return {_OTHER_LENGTH}
"""
# KEYS: draft. ARGV: token, elements before, seconds to live, records.
_DRAFT = """
if redis.call('LLEN', KEYS[1]) == tonumber(ARGV[2]) then redis.call('RPUSH', KEYS[1], unpack(ARGV, 4)) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""
# KEYS: owner, log, draft, compactions. ARGV: token, elements before, elements of the draft.
# Returns the elements after.
_REPLACE = f"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {_NOT_OWNER} end
local length = redis.call('LLEN', KEYS[2])
if redis.call('EXISTS', KEYS[3]) == 0 and length == tonumber(ARGV[3]) then return length end
if length ~= tonumber(ARGV[2]) then return {_OTHER_LENGTH} end
redis.call('PERSIST', KEYS[3])
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('INCR', KEYS[4])
return tonumber(ARGV[3])
"""


class RedisLog(RecordLog):
    """The log of the shard ``name`` in the server at ``url``.

    Args:
        url: ``redis://[USER:PASSWORD@]HOST:PORT/DATABASE``, ``rediss://`` for TLS or ``unix://PATH``;
            ``?prefix=WORD`` lets several clusters share a database.
        sync: whether the server must write each record to its disk before it acknowledges.

    Raises:
        LogUnavailableError: if the server cannot be used: not there in time, no log under that key, may
            drop keys, or not durable enough.
    """

    record_bytes_max = VALUE_BYTES_MAX - HEADER.size

    def __init__(self, url: str, name: str, *, sync: bool, config: Config) -> None:
        url, prefix = _split_prefix(url)
        self._slot = f"{{{prefix}:{name}}}"
        super().__init__(f"{_without_password(url)}, key {self._slot}:log", config.log_compact_bytes)
        self._timeout_s = config.storage_timeout_ns / 1e9
        self._token = os.urandom(16).hex()
        self._elements = 0
        self._client, self._errors = _connect(url, self.path, self._timeout_s)
        self._scripts = {
            text: self._client.register_script(text) for text in (_LOOK, _CLAIM, _APPEND, _DRAFT, _REPLACE)
        }
        try:
            self._check_server(sync)
            self._compactions = int(self._run(_LOOK, ("log", "compactions"), MAGIC))
        except BaseException:
            self.close()
            raise

    def _key(self, what: str) -> str:
        return f"{self._slot}:{what}"

    # --- opening -----------------------------------------------------------------------------------

    def _check_server(self, sync: bool) -> None:
        policy = self._setting("maxmemory-policy")
        if policy not in ("noeviction", None) and not policy.startswith("volatile-"):
            detail = (
                f"the server drops keys when it is full (maxmemory-policy {policy}); set it to noeviction"
            )
            raise LogUnavailableError(self.path, detail)
        if sync and (self._setting("appendonly"), self._setting("appendfsync")) != ("yes", "always"):
            detail = "writes are not on the server's disk when it says so: set appendonly yes and "
            raise LogUnavailableError(self.path, f"{detail}appendfsync always, or leave out --sync group")

    def _setting(self, name: str) -> str | None:
        """A setting of the server; ``None`` if it does not tell, as some sites forbid."""
        try:
            found = self._ask(lambda: self._client.config_get(name))
        except LogUnavailableError as error:
            if not self._is_refusal(error.__cause__):
                raise
            return None
        value = found.get(name)
        return value.decode() if isinstance(value, bytes) else value

    # --- reading -----------------------------------------------------------------------------------

    def replay(self) -> Iterator[bytes]:
        """Every payload in order.

        Raises:
            LogCorruptError: if a record is damaged. None is ever cut off: the server stores one as a whole
                or not at all, so each was acknowledged.
            LogUnavailableError: if the server does not answer.
        """
        self._elements, self.size_bytes = 1, len(MAGIC)
        while page := self._page():
            for record in page:
                payload = payload_of(record)
                if payload is None:
                    position = self._elements
                    raise LogCorruptError(
                        self.path, position,
                        f"element {position} is damaged: restore the server from a copy, or cut the list "
                        f"there (LTRIM 0 {position - 1}) to give up all that follows",
                    )  # fmt: skip
                self._elements += 1
                self.size_bytes += len(record)
                yield payload

    def _page(self) -> list[bytes]:
        """The next records; none once all are read, and the log is ours.

        Not before: who finds that this is the log of another shard must leave that one alone.
        """
        first = self._elements
        while True:
            page: list[bytes] = self._ask(
                lambda: self._client.lrange(self._key("log"), first, first + PAGE_RECORDS - 1)
            )
            if page or self._claim():
                return page

    def _claim(self) -> bool:
        """Become the one who may write, unless the log has grown, and forget what the one before left."""
        before = self._run(
            _CLAIM, ("owner", "log", "compactions"), str(self._elements), str(self._compactions), MAGIC
        )
        if before == _OTHER_LENGTH:
            return False
        if before == _OTHER_LIST:
            detail = "another process replaced this log while it was read; start again if that one is to go"
            raise LogUnavailableError(self.path, detail)
        if before and before.decode() != self._token:
            self._ask(lambda: self._client.delete(self._key(f"draft:{before.decode()}")))
        return True

    # --- writing -----------------------------------------------------------------------------------

    def append(self, payload: bytes) -> None:
        """Store one record; the server has it when this returns.

        Raises:
            LogWriteError: if it has not, or may not.
        """
        if len(payload) > self.record_bytes_max:
            raise LogWriteError(self.path, f"a record of {len(payload)} bytes is larger than a value can be")
        record = encode_record(payload)
        try:
            elements = self._run(_APPEND, ("owner", "log"), str(self._elements), record)
        except LogUnavailableError as error:
            raise LogWriteError(self.path, f"a record could not be stored: {error.detail}") from error
        self._elements = self._checked(elements)
        self.size_bytes += len(record)

    def compact(self, payloads: Iterable[bytes]) -> bool:
        """Write a second list and rename it over the log; see :meth:`RecordLog.compact`."""
        draft = f"draft:{self._token}"
        try:
            elements, size_bytes = self._write_draft(draft, payloads)
            found = self._run(
                _REPLACE, ("owner", "log", draft, "compactions"), str(self._elements), str(elements)
            )
        except LogUnavailableError as error:
            if self._is_refusal(error.__cause__):  # it answers, and has no room
                log.warning("%s: cannot be compacted now: %s", self.path, error.detail)
                self._snapshot_bytes = self.size_bytes
                self._ask(lambda: self._client.delete(self._key(draft)))
                return False
            raise LogWriteError(self.path, f"the compaction was cut off: {error.detail}") from error
        self._elements = self._checked(found)
        log.info("%s: compacted from %d to %d bytes", self.path, self.size_bytes, size_bytes)
        self.size_bytes = self._snapshot_bytes = size_bytes
        return True

    def _write_draft(self, draft: str, payloads: Iterable[bytes]) -> tuple[int, int]:
        """A new list of these records: its elements, and their size in bytes."""
        self._ask(lambda: self._client.delete(self._key(draft)))
        records = chain([MAGIC], map(encode_record, payloads))
        elements, size_bytes = 0, 0
        while page := list(islice(records, PAGE_RECORDS)):
            self._run(_DRAFT, (draft,), str(elements), str(DRAFT_LIFE_S), *page)
            elements += len(page)
            size_bytes += sum(map(len, page))
        return elements, size_bytes

    def _checked(self, elements: int) -> int:
        """What a script returned, if that is a length.

        Raises:
            LogWriteError: if the log is not ours any more, or not what it was.
        """
        if elements == _NOT_OWNER:
            detail = (
                "another process has opened this log, or the server lost it; this one cannot write any more"
            )
            raise LogWriteError(self.path, detail)
        if elements == _OTHER_LENGTH:
            detail = f"the server does not have the {self._elements} elements that it acknowledged"
            raise LogWriteError(self.path, detail)
        return elements

    def close(self) -> None:
        """Let go of the connection; the log stays ours until somebody opens it."""
        self._client.close()

    # --- the server ----------------------------------------------------------------------------------

    def _run(self, script: str, keys: tuple[str, ...], *arguments: str | bytes) -> Any:
        call = self._scripts[script]
        names = [self._key(key) for key in keys]
        return self._ask(lambda: call(keys=names, args=[self._token, *arguments]))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """The server's answer. A question may be asked again if its answer was lost.

        Raises:
            LogUnavailableError: if there is none in time, or the server refuses.
        """
        deadline = time.monotonic() + self._timeout_s
        has_complained = False
        while True:
            try:
                return question()
            except self._errors.RedisError as error:
                if self._is_refusal(error):
                    detail = (
                        "there is something else under this key" if "NOTALOG" in str(error) else str(error)
                    )
                    raise LogUnavailableError(self.path, f"the server refuses: {detail}") from error
                if time.monotonic() > deadline:
                    detail = f"the server does not answer for {self._timeout_s:g} s ({error})"
                    raise LogUnavailableError(self.path, detail) from error
                if not has_complained:
                    log.warning(
                        "%s: the server does not answer (%s); nothing is acknowledged, and this process ends "
                        "in %g s if that goes on", self.path, error, self._timeout_s,
                    )  # fmt: skip
                    has_complained = True
            time.sleep(RETRY_INTERVAL_S)

    def _is_refusal(self, error: BaseException | None) -> bool:
        """Whether the server has answered, and asking again would change nothing.

        One that has become a replica is being replaced: whoever takes over will answer.
        """
        errors = self._errors
        if isinstance(error, errors.AuthenticationError):
            return True
        return isinstance(error, errors.ResponseError) and not isinstance(error, errors.ReadOnlyError)


def _connect(url: str, path: str, timeout_s: float) -> tuple[Any, Any]:
    """A client that has not connected yet, and the module of its errors.

    Raises:
        LogUnavailableError: if the package is missing, or the URL makes no sense.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise LogUnavailableError(path, "needs the package redis: pip install 'zray[redis]'") from None
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(CONNECT_TIMEOUT_S, timeout_s),
            retry=Retry(NoBackoff(), 0),  # what may be asked again, and for how long, is decided here
        )
    except ValueError as error:
        raise LogUnavailableError(path, f"not a URL of a server: {error}") from None
    return client, redis.exceptions


def _split_prefix(url: str) -> tuple[str, str]:
    """The URL without ``?prefix=``, and that prefix."""
    parts = urlsplit(url)
    words = parse_qs(parts.query).get("prefix", [DEFAULT_PREFIX])
    query = "&".join(word for word in parts.query.split("&") if word and not word.startswith("prefix="))
    return urlunsplit(parts._replace(query=query)), words[-1]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
