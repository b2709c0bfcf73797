"""Clients of a replicated control store that write, read, compare-and-set and delete keys all the time.

What they ask and hear goes into a history (``history.py``). A request that is not answered in time is not
repeated: another one follows, so every operation reached one replica, once, or none. An answer that comes
after all, of a head that was stopped for one, counts. Some keys are shared by all clients and fought over;
others are written once and looked for at the end.

A process of its own: ``python -m tests.chaos.store_clients --history FILE ENDPOINTS...``, for each shard the
endpoints of its replicas with commas between them. Lines of its input are questions, answered by lines of
JSON: ``members``, the chain of the first shard by the newest epoch that a client heard of; ``read``, which
reads all keys, how many there are. When the input ends they are read once more.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from typing import Any

from tests.chaos.history import Answered, Asked, HistoryFile
from tests.chaos.registers import CAS, DELETE, GET, PUT
from zray.config import Config
from zray.ids import random_id, shard_of
from zray.protocol.cluster import FromScheduler
from zray.protocol.codec import batch_decoder
from zray.protocol.messages import (
    TABLE_KV,
    ChainEpoch,
    FromShard,
    TableCas,
    TableDelete,
    TableGet,
    TablePage,
    TablePut,
    TableReply,
    TableScan,
)
from zray.runtime.endpoints import replica_address
from zray.runtime.transport import Transport

PREFIX = "chaos/"
PAGE_ENTRIES = 5_000
ANSWER_S = 0.5
"""After so long a request counts as unanswered."""
PROBE_S = 0.1
"""How often replicas are asked for their head."""
PATIENCE_S = 60.0
HOT_KEYS = 3
HOT_OPERATIONS = 400
"""Of all clients together on the hot keys, until there are new ones: it keeps the histories of keys short."""


class Keys:
    """Which keys there are, shared by all clients of a process."""

    def __init__(self) -> None:
        self._used: dict[str, None] = {}
        self._lock = threading.Lock()
        self._drawn = 0

    def hot(self, draw: random.Random) -> str:
        """One that all clients work on."""
        with self._lock:
            self._drawn += 1
            key = f"{PREFIX}hot/{self._drawn // HOT_OPERATIONS}/{draw.randrange(HOT_KEYS)}"
            self._used[key] = None
        return key

    def known(self) -> list[str]:
        """All of them, so far."""
        with self._lock:
            return list(self._used)

    def fresh(self, who: str, number: int) -> str:
        """One that is written once."""
        key = f"{PREFIX}once/{who}/{number}"
        with self._lock:
            self._used[key] = None
        return key


class StoreClient:
    """One client; not for several threads.

    Args:
        who: its name in the history.
        shards: for each shard the endpoints of its replicas, by number.
    """

    def __init__(self, who: str, shards: list[list[str]], history: HistoryFile, config: Config) -> None:
        self.who, self.history = who, history
        self.replicas = [
            [replica_address(shard, n) for n in range(len(ends))] for shard, ends in enumerate(shards)
        ]
        self.transport = Transport(random_id(), batch_decoder(FromShard | FromScheduler), config)
        for addresses, endpoints in zip(self.replicas, shards, strict=True):
            for address, endpoint in zip(addresses, endpoints, strict=True):
                self.transport.connect(address, endpoint, may_drop=True)
        self.epochs: dict[int, ChainEpoch] = {}
        self.heads: dict[int, bytes] = {}
        self.tokens = 0
        self.unanswered: dict[int, None] = {}
        self.asked_around_at = 0.0

    # --- operations --------------------------------------------------------------------------------

    def operate(
        self, kind: str, key: str, given: str | None = None, expected: str | None = None
    ) -> tuple[bool, str | None] | None:
        """Ask once, and note it; the answer: whether it did, and the value. ``None``: there is none."""
        shard = shard_of(key.encode(), len(self.replicas))
        head = self._head(shard)
        token = self._token()
        self.history.add(Asked(self.who, token, kind, key, given, expected, time.monotonic_ns()))
        self.unanswered[token] = None
        self.transport.send(head, [_request(token, kind, key, given, expected)])
        reply = self._await(shard, head, token)
        return None if reply is None else (reply.ok, _text(reply.value))

    def read_back(self, keys: Keys) -> int:
        """Read every key, as one that was asked for when its page was, and answered when that came.

        How many that are.
        """
        known = keys.known()
        for shard in range(len(self.replicas)):
            found: dict[str, tuple[str, int, int]] = {}
            began_ns = time.monotonic_ns()
            after = PREFIX.encode()
            while True:
                asked_ns = time.monotonic_ns()
                page = self._page(shard, after)
                for key, value in page.entries:
                    if key.startswith(PREFIX.encode()):
                        found[key.decode()] = value.decode(), asked_ns, time.monotonic_ns()
                after = page.entries[-1][0] if page.entries else after
                if not page.entries or not after.startswith(PREFIX.encode()):
                    break
            nothing = (None, began_ns, time.monotonic_ns())
            for key in known:
                if shard_of(key.encode(), len(self.replicas)) == shard:
                    value, asked_ns, answered_ns = found.get(key, nothing)
                    token = self._token()
                    self.history.add(
                        Asked(self.who, token, GET, key, None, None, asked_ns),
                        Answered(self.who, token, value is not None, value, answered_ns),
                    )
        return len(known)

    def _page(self, shard: int, after: bytes) -> TablePage:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            head, token = self._head(shard), self._token()
            self.transport.send(head, [TableScan(token, TABLE_KV, after, PAGE_ENTRIES)])
            page = self._await(shard, head, token)
            if page is not None:
                return page
        raise TimeoutError(f"shard {shard} gives no page within {PATIENCE_S} s")

    def _token(self) -> int:
        self.tokens += 1
        return self.tokens

    # --- heads -------------------------------------------------------------------------------------

    def _await(self, shard: int, head: bytes, token: int) -> Any:
        """The answer; ``None`` if it does not come in time, or there is another head."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            for answer in self._receive():
                if getattr(answer, "token", None) == token:
                    return answer
            if self.heads.get(shard) != head:
                return None
            self.ask_around()
        del self.heads[shard]
        return None

    def _head(self, shard: int) -> bytes:
        deadline = time.monotonic() + PATIENCE_S
        while shard not in self.heads:
            self.ask_around()
            self._receive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"shard {shard} has no head for {PATIENCE_S} s")
        return self.heads[shard]

    def ask_around(self) -> None:
        """A question that changes nothing: the head answers it, the others name the head."""
        if time.monotonic() - self.asked_around_at < PROBE_S:
            return
        self.asked_around_at = time.monotonic()
        for addresses in self.replicas:
            for address in addresses:
                self.transport.send(address, [TableGet(self._token(), TABLE_KV, b"")])

    def _receive(self) -> list[Any]:
        """What came within some milliseconds; whose head is new is noted."""
        if not self.transport.readable():
            self.transport.wait(10)
        received = self.transport.receive(100)
        for source, answer in received:
            if isinstance(answer, ChainEpoch):
                self._learn(answer)
            elif isinstance(answer, TableReply | TablePage):
                self._answered(source)
                if answer.token in self.unanswered:
                    self._note(answer)
        return [answer for _, answer in received]

    def _note(self, answer: TableReply) -> None:
        del self.unanswered[answer.token]
        now_ns = time.monotonic_ns()
        self.history.add(Answered(self.who, answer.token, answer.ok, _text(answer.value), now_ns))

    def _learn(self, epoch: ChainEpoch) -> None:
        known = self.epochs.get(epoch.shard)
        if epoch.members and (known is None or epoch.epoch > known.epoch):
            self.epochs[epoch.shard] = epoch
            self.heads[epoch.shard] = epoch.members[0].address
        elif known is not None and epoch.epoch == known.epoch:
            self.heads.setdefault(epoch.shard, known.members[0].address)

    def _answered(self, source: bytes) -> None:
        """Only a head answers, perhaps one of before: that is no news if one is known."""
        for shard, addresses in enumerate(self.replicas):
            if source in addresses:
                self.heads.setdefault(shard, source)

    def close(self) -> None:
        self.transport.close(linger_ms=0)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _request(token: int, kind: str, key: str, given: str | None, expected: str | None) -> Any:
    name = key.encode()
    before = None if expected is None else expected.encode()
    if kind == GET:
        return TableGet(token, TABLE_KV, name)
    if kind == DELETE:
        return TableDelete(token, TABLE_KV, name, before)
    assert given is not None
    if kind == PUT:
        return TablePut(token, TABLE_KV, name, given.encode())
    return TableCas(token, TABLE_KV, name, before, given.encode())


class Load(threading.Thread):
    """Operations of one client, drawn from a seed, until it is told to stop."""

    def __init__(self, client: StoreClient, keys: Keys, draw: random.Random, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.client, self.keys, self.draw, self.pause_s = client, keys, draw, pause_s
        self.over = threading.Event()
        self.error: BaseException | None = None
        self.seen: dict[str, str | None] = {}

    def run(self) -> None:
        try:
            while not self.over.wait(self.pause_s):
                self.client.ask_around()
                self._step()
        except BaseException as error:
            self.error = error

    def _step(self) -> None:
        client, draw = self.client, self.draw
        value = f"{client.who}.{client.tokens}"
        kind = draw.choices([GET, PUT, CAS, DELETE, "once"], [30, 25, 25, 5, 15])[0]
        if kind == "once":
            client.operate(PUT, self.keys.fresh(client.who, client.tokens), value)
            return
        key = self.keys.hot(draw)
        expected = self.seen.get(key) if kind == CAS or draw.random() < 0.5 else None
        reply = client.operate(
            kind, key, value if kind in (PUT, CAS) else None, expected if kind in (CAS, DELETE) else None
        )
        if reply is not None:
            self.seen[key] = reply[1]


def members_of(clients: list[StoreClient]) -> list[int]:
    """The replicas of the first shard, the head first, by the newest epoch that one of them knows."""
    newest = max((c.epochs[0] for c in clients if 0 in c.epochs), key=lambda e: e.epoch, default=None)
    return [] if newest is None else [clients[0].replicas[0].index(m.address) for m in newest.members]


def main() -> int:
    """Operate until the input ends, then read everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+", metavar="ENDPOINTS")
    parser.add_argument("--history", required=True, metavar="FILE")
    parser.add_argument("--key-file", default="")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause-s", type=float, default=0.01, help="between two operations of one client")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shards = [endpoints.split(",") for endpoints in given.shards]
    config = Config(key_file=given.key_file)
    keys = Keys()
    with HistoryFile(given.history) as history:
        clients = [StoreClient(f"client{n}", shards, history, config) for n in range(given.clients)]
        loads = [
            Load(client, keys, random.Random(f"{given.seed}/{client.who}"), given.pause_s)
            for client in clients
        ]
        for load in loads:
            load.start()
        reader = StoreClient("reader", shards, history, config)
        while question := sys.stdin.readline().strip():
            answer = members_of(clients) if question == "members" else reader.read_back(keys)
            print(json.dumps(answer), flush=True)
        for load in loads:
            load.over.set()
        for load in loads:
            load.join()
            if load.error is not None:
                raise load.error
        reader.read_back(keys)
        for client in [*clients, reader]:
            client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
