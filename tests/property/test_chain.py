"""A chain of replicas under any interleaving, with lost and repeated frames, deaths, joins and cuts.

Whatever happens, one thing at a time: what was acknowledged is in every member's tables at rest, the tables
are equal, and no question is answered more often than it was asked.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.chain_world import CLIENT, MASTER, World
from zray.protocol.messages import TABLE_KV

keys = st.sampled_from([b"k%d" % number for number in range(6)])
choices = st.integers(0, 10_000)


class ChainOfReplicas(RuleBasedStateMachine):
    """Faults strike only a chain that is whole: any single failure at a time is survived."""

    @initialize(replicas=st.integers(2, 3))
    def begin(self, replicas: int) -> None:
        self.world = World(replicas)
        self.values = 0
        self.down: bytes | None = None
        self.world.settle(6)
        assert len(self.world.chain()) == replicas

    def is_whole(self) -> bool:
        world = self.world
        if self.down is not None or world.master is None or world.cut or len(world.replicas) < world.count:
            return False
        lists = {replica.newest.members for replica in world.replicas.values()}
        lists.add(world.master.chains[0].members)
        lives = {replica.me for replica in world.replicas.values()}
        return len(lists) == 1 and set(lists.pop()) == lives

    @rule(key=keys)
    def write(self, key: bytes) -> None:
        # One key is written by one request at a time, as a client that repeats must do.
        if all(put.key != key for put in self.world.puts.values()):
            self.values += 1
            self.world.put(key, b"v%d" % self.values)

    @rule(pick=choices, count=st.integers(1, 12), repeat=st.sampled_from([False, False, False, True]))
    def arrive(self, pick: int, count: int, repeat: bool) -> None:
        for step in range(count):
            busy = self.world.busy()
            if busy:
                link = busy[(pick + step) % len(busy)]
                repeat = repeat and CLIENT not in link
                self.world.deliver(link, keep=repeat and step == 0)

    @rule(pick=choices)
    def arrive_together(self, pick: int) -> None:
        self.world.deliver_all_to([MASTER, *self.world.addresses][pick % (1 + self.world.count)])

    @rule(pick=choices)
    def lose(self, pick: int) -> None:
        busy = [link for link in self.world.busy() if CLIENT not in link]
        if busy:
            self.world.links[busy[pick % len(busy)]].popleft()

    @rule(passed_ns=st.sampled_from([1, 10, 10, 30]))
    def time_passes(self, passed_ns: int) -> None:
        self.world.tick(passed_ns)
        if not self.is_whole():  # a second silence would be a second failure
            for link in [link for link in self.world.busy() if link[1] == MASTER]:
                while self.world.links[link]:
                    self.world.deliver(link)

    @rule()
    def ask_again(self) -> None:
        self.world.repeat()

    @precondition(lambda self: self.is_whole())
    @rule(pick=choices, seen=st.booleans())
    def die(self, pick: int, seen: bool) -> None:
        self.down = self.world.addresses[pick % self.world.count]
        self.world.kill(self.down, seen=seen)

    @precondition(lambda self: self.down is not None)
    @rule(from_log=st.booleans())
    def come_back(self, from_log: bool) -> None:
        assert self.down is not None
        self.world.start(self.down, from_log=from_log)
        self.down = None

    @precondition(lambda self: self.is_whole())
    @rule()
    def master_dies(self) -> None:
        self.world.kill_master()

    @precondition(lambda self: self.world.master is None)
    @rule()
    def master_comes_back(self) -> None:
        self.world.start_master()

    @precondition(lambda self: self.is_whole())
    @rule(pick=choices, cut_clients=st.booleans())
    def cut_off(self, pick: int, cut_clients: bool) -> None:
        """A replica cannot speak with its master, and perhaps with nobody but clients."""
        address = self.world.addresses[pick % self.world.count]
        others = [MASTER, *(self.world.addresses if cut_clients else ())]
        for other in others:
            self.world.cut[address, other] = self.world.cut[other, address] = None

    @precondition(lambda self: bool(self.world.cut))
    @rule()
    def mend(self) -> None:
        self.world.cut.clear()

    @precondition(lambda self: self.is_whole())
    @rule()
    def all_die_and_start_from_their_logs(self) -> None:
        for address in self.world.addresses:
            self.world.kill(address)
        for address in self.world.addresses:
            self.world.start(address, from_log=True)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.cut.clear()
        if self.down is not None:
            world.start(self.down)
        if world.master is None:
            world.start_master()
        world.settle(80)
        self.judge(world)

    def judge(self, world: World) -> None:
        chain = world.chain()
        assert len(chain) == world.count, "the chain is not whole again"
        assert not world.puts, f"never answered: {world.puts}"
        tables: list[Any] = [world.tables(replica) for replica in chain]
        assert all(table == tables[0] for table in tables), "tables differ at rest"
        entries = chain[0].shard.values[TABLE_KV].entries
        assert entries == world.acknowledged, (entries, world.acknowledged)
        for token, answers in world.answers.items():
            assert answers <= world.sent[token], f"{token} was asked {world.sent[token]} times"


TestChainOfReplicas = ChainOfReplicas.TestCase
TestChainOfReplicas.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
