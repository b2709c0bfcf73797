"""The log in a real Redis server: what is acknowledged is there, whatever becomes of the server."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer, redis_server
from zray.config import Config
from zray.runtime.record_log import (
    LogCorruptError,
    LogUnavailableError,
    LogWriteError,
    RecordLog,
    encode_record,
    payload_of,
)
from zray.runtime.redis_log import PAGE_RECORDS, RedisLog

pytestmark = pytest.mark.slow

CONFIG = Config(storage_timeout_ns=500_000_000, log_compact_bytes=1 << 20)
PAYLOADS = [b"first", b"", b"\0" * 40, b"fourth \r\n"]
KEY = "{zray:0}:log"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as found:
        yield found


@pytest.fixture
def open_log() -> Iterator[Any]:
    """Opens a log and reads all of it; all are closed at the end."""
    opened: list[RedisLog] = []

    def open_one(url: str, name: str = "0", **options: Any) -> tuple[RedisLog, list[bytes]]:
        log = RedisLog(url, name, **{"sync": False, "config": CONFIG, **options})
        opened.append(log)
        return log, list(log.replay())

    yield open_one
    for log in opened:
        log.close()


def fill(log: RecordLog, payloads: list[bytes]) -> None:
    for payload in payloads:
        log.append(payload)


@pytest.mark.parametrize("sync", [False, True])
def test_what_was_appended_is_replayed_in_order(server: RedisServer, open_log: Any, sync: bool) -> None:
    log, found = open_log(server.url, sync=sync)
    assert found == []
    fill(log, PAYLOADS)
    again, found = open_log(server.url, sync=sync)
    assert found == PAYLOADS
    assert again.size_bytes == log.size_bytes
    assert open_log(server.url, "1")[1] == [], "every shard has a log of its own"
    assert open_log(f"{server.url}?prefix=other")[1] == [], "and every cluster"


def test_acknowledged_records_outlive_the_server(server: RedisServer, open_log: Any) -> None:
    log, _ = open_log(server.url)
    fill(log, PAYLOADS)
    server.kill()
    server.start()
    log.append(b"after")
    assert open_log(server.url)[1] == [*PAYLOADS, b"after"]


def test_a_log_of_many_pages_is_compacted_and_goes_on(server: RedisServer, open_log: Any) -> None:
    log, _ = open_log(server.url, config=CONFIG._replace(log_compact_bytes=1))
    many = [b"%d" % number for number in range(3 * PAGE_RECORDS + 7)]
    fill(log, many)
    assert open_log(server.url)[1] == many
    log, _ = open_log(server.url, config=CONFIG._replace(log_compact_bytes=1))
    assert log.wants_compaction
    kept = many[: PAGE_RECORDS + 1]
    assert log.compact(iter(kept)) is True
    assert not log.wants_compaction
    log.append(b"next")
    assert open_log(server.url)[1] == [*kept, b"next"]
    assert {key.decode() for key in server.client.scan_iter()} == {
        KEY,
        "{zray:0}:owner",
        "{zray:0}:compactions",
    }
    assert server.client.ttl(KEY) == -1, "a log does not expire"


def test_who_opens_it_last_has_it(server: RedisServer, open_log: Any) -> None:
    first, _ = open_log(server.url)
    first.append(b"mine")
    second, found = open_log(server.url)
    assert found == [b"mine"]
    for attempt in (lambda: first.append(b"late"), lambda: first.compact(iter([b"late"]))):
        with pytest.raises(LogWriteError, match="another process has opened this log"):
            attempt()
    second.append(b"mine now")
    assert open_log(server.url)[1] == [b"mine", b"mine now"]


def test_who_does_not_read_it_to_its_end_takes_it_from_nobody(server: RedisServer, open_log: Any) -> None:
    """Such as a process that finds that it is the log of another shard."""
    log, _ = open_log(server.url)
    log.append(b"one")
    stranger = RedisLog(server.url, "0", sync=False, config=CONFIG)
    assert next(stranger.replay()) == b"one"
    with pytest.raises(LogWriteError):
        stranger.append(b"not mine")
    stranger.close()
    log.append(b"two")
    assert open_log(server.url)[1] == [b"one", b"two"]


def test_what_is_written_while_it_is_read_is_read(server: RedisServer, open_log: Any) -> None:
    log, _ = open_log(server.url)
    log.append(b"one")
    reader = RedisLog(server.url, "0", sync=False, config=CONFIG)
    records = reader.replay()
    assert next(records) == b"one"
    log.append(b"two")
    assert list(records) == [b"two"]
    reader.append(b"three")
    with pytest.raises(LogWriteError):
        log.append(b"late")
    reader.close()
    assert open_log(server.url)[1] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("kept", [[b"one"], [b"one", b"two", b"three", b"four"]])
def test_what_is_replaced_while_it_is_read_is_not_mixed(
    server: RedisServer, open_log: Any, kept: list[bytes]
) -> None:
    log, _ = open_log(server.url)
    fill(log, [b"one", b"two"])
    reader = RedisLog(server.url, "0", sync=False, config=CONFIG)
    records = reader.replay()
    next(records)
    log.compact(iter(kept))
    with pytest.raises(LogUnavailableError, match="replaced this log while it was read"):
        list(records)
    reader.close()
    log.append(b"still mine")
    assert open_log(server.url)[1] == [*kept, b"still mine"]


def test_an_answer_that_was_lost_is_asked_for_again_without_harm(server: RedisServer, open_log: Any) -> None:
    """The connection breaks after the server has stored the record, every time."""
    log, _ = open_log(server.url)
    real = log._client.connection_pool
    lost = 0

    class Flaky:
        """A pool whose connections break once after each of their commands."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def get_connection(self, *arguments: Any, **options: Any) -> Any:
            nonlocal lost
            connection = real.get_connection(*arguments, **options)
            lost += 1
            if lost % 2:
                original = connection.read_response

                def read_response(*a: Any, **o: Any) -> Any:
                    connection.read_response = original
                    original(*a, **o)
                    connection.disconnect()
                    raise server.redis.exceptions.ConnectionError("cut off")

                connection.read_response = read_response
            return connection

    log._client.connection_pool = Flaky()
    fill(log, PAYLOADS)
    log.compact(iter([*PAYLOADS, b"fifth"]))
    log._client.connection_pool = real
    assert lost >= 2 * len(PAYLOADS)
    assert open_log(server.url)[1] == [*PAYLOADS, b"fifth"]


def test_a_server_that_is_away_is_waited_for_and_then_the_write_fails(
    server: RedisServer, open_log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log, _ = open_log(server.url, config=CONFIG._replace(storage_timeout_ns=20_000_000_000))
    server.kill()
    returns = threading.Thread(target=server.start)
    returns.start()
    log.append(b"waited")
    returns.join()
    impatient, found = open_log(server.url)
    assert found == [b"waited"]
    server.kill()
    started = time.monotonic()
    with pytest.raises(LogWriteError, match=r"the server does not answer for 0\.5 s"):
        impatient.append(b"lost")
    assert time.monotonic() - started < 10 * 0.5
    assert "nothing is acknowledged" in caplog.text
    with pytest.raises(LogUnavailableError, match="does not answer"):
        open_log(server.url)
    server.start()
    assert open_log(server.url)[1] == [b"waited"]


def test_a_server_that_is_frozen_is_as_one_that_is_away(server: RedisServer, open_log: Any) -> None:
    log, _ = open_log(server.url)
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LogWriteError, match="does not answer"):
        log.append(b"maybe")
    server.process.send_signal(signal.SIGCONT)
    assert open_log(server.url)[1] in ([], [b"maybe"]), "nobody was told"


@pytest.mark.parametrize("position", [1, 2, 4])
@pytest.mark.parametrize(
    "damage", [b"", b"garbage", encode_record(b"whole")[:-1], encode_record(b"x") + b"y"]
)
def test_a_damaged_record_keeps_it_from_opening(
    server: RedisServer, open_log: Any, position: int, damage: bytes
) -> None:
    log, _ = open_log(server.url)
    fill(log, PAYLOADS)
    server.client.lset(KEY, position, damage)
    with pytest.raises(LogCorruptError, match=f"element {position} is damaged") as error:
        open_log(server.url)
    assert f"LTRIM 0 {position - 1}" in str(error.value)
    server.client.ltrim(KEY, 0, position - 1)
    assert open_log(server.url)[1] == PAYLOADS[: position - 1], "the advice works"


def test_every_cut_and_every_flipped_byte_of_a_record_is_seen() -> None:
    record = encode_record(b"payload")
    assert payload_of(record) == b"payload"
    for end in range(len(record)):
        assert payload_of(record[:end]) is None
    for position in range(len(record)):
        assert payload_of(record[:position] + bytes([record[position] ^ 1]) + record[position + 1 :]) is None


@pytest.mark.parametrize("command", [["SET", KEY, "x"], ["RPUSH", KEY, "x"], ["HSET", KEY, "x", "y"]])
def test_a_key_that_is_no_log_is_left_alone(server: RedisServer, open_log: Any, command: list[str]) -> None:
    server.client.execute_command(*command)
    with pytest.raises(LogUnavailableError, match="something else under this key"):
        open_log(server.url)
    assert server.client.keys() == [KEY.encode()]


@pytest.mark.parametrize("loss", ["FLUSHALL", f"DEL {KEY}", f"LTRIM {KEY} 0 1"])
def test_a_server_that_lost_what_it_acknowledged_is_noticed(
    server: RedisServer, open_log: Any, loss: str
) -> None:
    log, _ = open_log(server.url)
    fill(log, PAYLOADS)
    server.client.execute_command(*loss.split())
    with pytest.raises(LogWriteError, match=r"the server lost it|does not have the 5 elements"):
        log.append(b"next")


def test_a_full_server_refuses_and_keeps_what_it_has(server: RedisServer, open_log: Any) -> None:
    log, _ = open_log(server.url)
    fill(log, PAYLOADS)
    server.client.config_set("maxmemory", "1")
    with pytest.raises(LogWriteError, match="refuses"):
        log.append(b"too much")
    assert log.compact(iter(PAYLOADS)) is False
    assert not log.wants_compaction
    server.client.config_set("maxmemory", "0")
    log.append(b"room again")
    assert open_log(server.url)[1] == [*PAYLOADS, b"room again"]


def test_a_server_that_cannot_keep_a_promise_is_refused(server: RedisServer, open_log: Any) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(LogUnavailableError, match="set it to noeviction"):
        open_log(server.url)
    server.client.config_set("maxmemory-policy", "volatile-lru")
    server.client.config_set("appendfsync", "everysec")
    open_log(server.url)
    with pytest.raises(LogUnavailableError, match="leave out --sync group"):
        open_log(server.url, sync=True)


def test_a_password_is_asked_for_and_never_told(server: RedisServer, open_log: Any) -> None:
    server.client.config_set("requirepass", "hidden")
    with pytest.raises(LogUnavailableError, match=r"the server refuses: .*auth"):
        open_log(server.url)
    with_password = server.url.replace("//", "//:hidden@")
    log, _ = open_log(with_password)
    assert "hidden" not in log.path
    server.client.close()
    with pytest.raises(LogUnavailableError) as error:
        open_log(with_password.replace("hidden", "wrong-one"))
    assert "wrong-one" not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1/0", "redis", "redis://127.0.0.1:many/0"])
def test_what_is_no_url_is_refused(open_log: Any, url: str) -> None:
    pytest.importorskip("redis", reason="the extra dev has the package redis")
    with pytest.raises(LogUnavailableError, match="not a URL of a server"):
        open_log(url)
