"""The machines of clients, workers and a node, back to back over links that delay and encode every message.

Drivers, workers and actors are played by small programs that do what the API does: put, submit, call, get,
pass references on inside arguments, results and other values, and drop handles whenever they like. No object
may be freed while any process refers to it, every ``get`` must see the value, and in the end all is freed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from zray import ids
from zray.config import Config
from zray.core.actors import SERVER_SUFFIX
from zray.core.client import ClientMachine, MethodCall
from zray.core.identity import NodeIdentity
from zray.core.machine import DISK, RUNTIME, WORKER_POOL, pump
from zray.core.node import Node
from zray.core.task_context import TaskContext
from zray.core.worker import WorkerMachine
from zray.protocol.codec import decode_for_node, decode_for_process, encode_batch
from zray.protocol.local_messages import DeleteFile, KillWorker, Spilled, StartWorker, WorkerExited
from zray.protocol.messages import (
    ACTOR,
    ACTOR_DEAD,
    ACTOR_RESTARTING,
    DRIVER,
    EXTENT,
    FILE,
    INLINE,
    PROTOCOL_VERSION,
    TASK,
    WORKER,
    ActorState,
    Call,
    Created,
    Describe,
    EndLease,
    Hello,
    LeasedRun,
    Reply,
    Run,
    Value,
)

NODE = b"node"
NODE_ID = b"N" * 16
FUNCTION = b"f" * 16
LARGE = 256
MS = 1_000_000
S = 1_000_000_000
PLAIN = Describe(b"plain".ljust(16), FUNCTION, "plain", 1, (("CPU", 10_000),), 3)
PAIR = Describe(b"pair".ljust(16), FUNCTION, "pair", 2, (), 3)
ACTOR_CLASS = Describe(b"actor".ljust(16), FUNCTION, "Actor", 1, (), 0, ACTOR)
OPS = (*("put", "submit", "get") * 2, *("call", "drop") * 4, "store", "create_actor", "alone")

Program = Iterator[Callable[[], bool]]
"""Yields what it waits for: it goes on once the function answers true."""


class Link:
    """One direction between two processes: frames, in order."""

    def __init__(self, decode: Callable[[bytes], list[Any]]) -> None:
        self.frames: deque[bytes] = deque()
        self.decode = decode

    def send(self, messages: list[Any]) -> None:
        self.frames.append(encode_batch(messages))

    def receive(self) -> list[Any]:
        return self.decode(self.frames.popleft())


class Peer:
    """A driver or worker: the machines of a client, and what the API does with them."""

    def __init__(self, world: World, address: bytes, root: bytes) -> None:
        self.world, self.address, self.random = world, address, world.random
        self.machine = ClientMachine(node=NODE, config=Config())
        self.out, self.objects, self.calls = self.machine.out, self.machine.objects, self.machine.calls
        self.handles: list[bytes] = []
        self.actors: list[bytes] = []  # handles of actors
        self.context = TaskContext(root)
        self.program: Program = iter(())
        self.waits_for: Callable[[], bool] = lambda: True
        self.finished = False

    # --- the runtime -------------------------------------------------------------------------------

    def flush(self) -> None:
        if self.random.random() < 0.3:
            self.machine.catch_up()
        self.machine.settle()
        self.machine.check()
        for destination in dict.fromkeys(destination for destination, _ in self.out):
            messages = [message for to, message in self.out if to == destination]
            self.world.link(self.address, destination).send(messages)
        self.out.clear()

    def advance(self) -> None:
        """Let the program run until it waits or ends."""
        if not self.finished and self.waits_for():
            try:
                self.waits_for = next(self.program)
            except StopIteration:
                self.finished = True
            self.flush()

    def hear(self, source: bytes, message: Any) -> None:
        if isinstance(message, Reply):
            assert message.task_id in self.calls.actor_of_call
        elif isinstance(message, ActorState) and message.state in (ACTOR_DEAD, ACTOR_RESTARTING):
            assert not self.calls.pending(message.actor_id), "a handle of its calls keeps the actor"
        if type(message) in self.machine.HANDLERS:
            pump(self.machine, [(source, message)], self.world.now_ns)

    def answer_to(self, key: bytes | int) -> Iterator[Callable[[], bool]]:
        questions = self.machine.questions
        yield lambda: questions.is_answered(key)
        return questions.take(key)

    # --- the API -----------------------------------------------------------------------------------

    def pick(self, most: int = 2) -> tuple[bytes, ...]:
        """Some of the handles, to be passed on."""
        count = self.random.randrange(most + 1)
        return tuple(self.random.choice(self.handles) for _ in range(count)) if self.handles else ()

    def put(self) -> None:
        object_id = self.context.next_put_id()
        self.machine.keep(object_id, object_id, self.pick())
        self.handles.append(object_id)

    def store(self) -> Program:
        object_id, contained = self.context.next_put_id(), self.pick()
        yield from self.write(object_id, contained)
        self.machine.stored(object_id, contained, written=True)
        self.handles.append(object_id)
        for inner in contained:
            self.objects.drop(inner)

    def write(self, object_id: bytes, contained: tuple[bytes, ...], holder: bytes = b"") -> Program:
        """Create and write a large value; the refs inside are held until the caller drops them."""
        for inner in contained:
            self.objects.hold(inner)
        self.machine.ask_room(object_id, LARGE, holder)
        self.world.write(object_id, (yield from self.answer_to(object_id)))

    def submit(self, kind: Describe, alone: bool = False) -> None:
        machine = self.machine
        if kind.descriptor_id not in machine.described:
            machine.describe(kind, b"code")
        deps, borrowed = (self.pick(), self.pick()) if kind.kind == TASK and not alone else ((), ())
        leased = len(machine.leased.under_way)
        _, returns = machine.submit(self.context, kind, b"".join(borrowed), deps, borrowed)
        self.world.leased += len(machine.leased.under_way) - leased
        (self.actors if kind.kind == ACTOR else self.handles).extend(returns)

    def call(self) -> None:
        if not self.actors:
            return
        handle = self.random.choice(self.actors)
        actor_id, deps, borrowed = ids.producer_of(handle), self.pick(), self.pick()
        method = MethodCall("m", self.random.randrange(3))
        args = b"".join(borrowed)
        _, returns = self.machine.call_actor(self.context, actor_id, handle, method, args, deps, borrowed)
        self.handles += returns

    def get(self, object_id: bytes) -> Program:
        """Fetch a value, look at it, and take up the references inside."""
        self.objects.hold(object_id)
        taken: dict[bytes, Value] = {}
        while (want := self.objects.take_all((object_id,), taken)) is not None:
            yield lambda want=want: want.done
            self.objects.end_want(want)
        yield from self.look(object_id, taken[object_id])
        self.objects.drop(object_id)

    def look(self, object_id: bytes, value: Value) -> Program:
        self.world.read(object_id, value)
        contained = value.contained
        yield lambda: True  # anything may happen before the value is unpickled
        for inner in contained:
            self.objects.borrow(inner)
            self.handles.append(inner)
        if value.kind == EXTENT:
            self.world.read(object_id, value)
            self.objects.unpinned.append(object_id)

    def alone(self) -> Program:
        """One task after the other: after a few the node leases a worker."""
        for _ in range(12):
            self.submit(PLAIN, alone=True)
            if self.random.random() < 0.95:
                yield from self.get(self.handles[-1])

    def drop_one(self) -> None:
        if self.handles:
            self.objects.drop(self.handles.pop(self.random.randrange(len(self.handles))))

    def drop_all(self) -> None:
        while self.handles:
            self.drop_one()
        while self.actors:
            handle = self.actors.pop()
            self.objects.drop(handle)

    def some_ops(self, count: int) -> Program:
        for _ in range(count):
            op = self.random.choice(OPS)
            if op == "put":
                self.put()
            elif op == "store":
                yield from self.store()
            elif op == "submit":
                self.submit(self.random.choice((PLAIN, PAIR)))
            elif op == "create_actor" and isinstance(self, Driver):
                self.submit(ACTOR_CLASS)
            elif op == "call" and isinstance(self, Driver):
                self.call()
            elif op == "alone" and isinstance(self, Driver):
                yield from self.alone()
            elif op == "get" and self.handles and self.may_get:
                yield from self.get(self.random.choice(self.handles))
            elif op == "drop":
                self.drop_one()
            if self.random.random() < 0.3:
                yield lambda: True

    may_get = True


class Driver(Peer):
    """A program of random deeds that in the end looks at all it has and drops it."""

    def __init__(self, world: World, address: bytes, root: bytes) -> None:
        super().__init__(world, address, root)
        self.out.append((NODE, Hello(PROTOCOL_VERSION, DRIVER, 1, root)))
        self.program = self.main()

    def main(self) -> Program:
        yield from self.some_ops(50)
        for object_id in list(dict.fromkeys(self.handles)):
            yield from self.get(object_id)
        self.drop_all()


class PlayedWorker(Peer):
    """Runs tasks, or is an actor."""

    def __init__(self, world: World, address: bytes) -> None:
        super().__init__(world, address, ids.NIL_ID)
        self.out.append((NODE, Hello(PROTOCOL_VERSION, WORKER, 1, ids.NIL_ID, "ipc://w")))
        self.work = WorkerMachine(self.machine)
        self.program = self.main()

    def hear(self, source: bytes, message: Any) -> None:
        if isinstance(message, Call):
            self.work.on_call(self.world.now_ns, source, message)
        elif type(message) in self.work.HANDLERS:
            pump(self.work, [(source, message)], self.world.now_ns)
        else:
            super().hear(source, message)

    def main(self) -> Program:
        while True:
            yield lambda: bool(self.work.runs or self.work.calls or self.work.exiting)
            if self.work.runs:
                yield from self.run_task(self.work.runs.popleft())
            elif self.work.calls:
                yield from self.serve(*self.work.calls.popleft())
            else:
                self.drop_all()
                return

    def get(self, object_id: bytes) -> Program:
        self.work.block(self.context.task_id)
        yield from super().get(object_id)
        self.work.unblock(self.context.task_id)

    def serve(self, source: bytes, message: Call | LeasedRun | EndLease) -> Program:
        if isinstance(message, Call):
            yield from self.run_call(source, message)
        elif isinstance(message, EndLease):
            self.work.end_lease(message)
        elif self.work.is_wanted(message):
            yield from self.run_leased(source, message)

    def run_leased(self, source: bytes, message: LeasedRun) -> Program:
        self.context = TaskContext(message.spec.task_id)
        yield from self.some_ops(self.random.randrange(3))
        values: list[Value] = []
        yield from self.pack(ids.first_return_id(message.spec.task_id), b"", values)
        (value,) = values
        self.work.leased_done(source, message, value, MS, failed=False)
        self.let_go_of(values)
        self.drop_all()

    def let_go_of(self, values: list[Value]) -> None:
        """What a large value contains was held while it was written."""
        for value in values:
            if value.kind == EXTENT:
                for inner in value.contained:
                    self.objects.drop(inner)

    def run_task(self, run: Run) -> Program:
        self.context = TaskContext(run.task_id)
        kind = self.work.descriptors[run.descriptor_id]
        for ready in run.deps:
            yield from self.look(ready.object_id, ready.value)
        self.take_up(run.args)
        if kind.kind == ACTOR:
            values: list[Value] = [Value(INLINE, ids.first_return_id(run.task_id))]
        else:
            yield from self.some_ops(self.random.randrange(4))
            values = []
            for object_id in ids.return_ids(run.task_id, kind.num_returns):
                yield from self.pack(object_id, b"", values)
        self.work.done(run, tuple(values), 1 * MS, failed=False)
        self.let_go_of(values)
        self.drop_all()

    def take_up(self, args: bytes) -> None:
        """Unpickle the references inside arguments."""
        for start in range(0, len(args), ids.ID_BYTES):
            object_id = args[start : start + ids.ID_BYTES]
            self.objects.borrow(object_id)
            self.handles.append(object_id)

    def pack(self, object_id: bytes, holder: bytes, values: list[Value]) -> Program:
        """One result: small or large, with or without references inside."""
        contained = self.pick()
        self.machine.share(contained)
        if contained and holder:
            yield from self.answer_to(self.machine.ask_hold_for(holder, contained))
        if self.random.random() < 0.6:
            values.append(Value(INLINE, object_id, 0, 0, contained))
            return
        yield from self.write(object_id, contained, holder)
        values.append(self.machine.large_result(object_id, LARGE, contained, seals=bool(holder)))

    def run_call(self, caller: bytes, call: Call) -> Program:
        self.context = TaskContext(call.task_id)
        acquires = self.objects.acquires
        for object_id in call.deps:
            self.objects.borrow(object_id)
        for object_id in call.deps:
            yield from self.get(object_id)
        self.take_up(call.args)
        yield from self.some_ops(self.random.randrange(3))
        values: list[Value] = []
        for object_id in ids.return_ids(call.task_id, call.num_returns):
            yield from self.pack(object_id, caller, values)
        if self.objects.acquires != acquires:
            yield from self.answer_to(self.machine.ask_whether_heard())
        self.out.append((caller, Reply(call.task_id, tuple(values))))
        self.let_go_of(values)
        for object_id in call.deps:
            self.objects.drop(object_id)
        if self.random.random() < 0.5:  # else the actor keeps them in its state
            self.drop_all()

    @property
    def may_get(self) -> bool:  # type: ignore[override]
        """A task waits for nothing that may wait for it."""
        return False


class World:
    """The node, its peers, and the links between them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        config = Config(run_ahead_tasks_max=2, worker_idle_ns=1 << 60)
        identity = NodeIdentity(node_id=NODE_ID, arena_bytes=4 * LARGE)
        self.node = Node(identity, total=(("CPU", 20_000),), shards=(), config=config)
        self.now_ns = 1 * S
        self.leased = 0  # tasks that went straight to a worker
        self.peers: dict[bytes, Peer] = {}
        self.links: dict[tuple[bytes, bytes], Link] = {}
        self.disk: deque[Any] = deque()
        self.memory: dict[int, bytes] = {}
        self.files: dict[bytes, None] = {}
        for number in (1, 2):
            root = bytes([number]) * 8 + bytes(8)
            self.peers[b"driver%d" % number] = Driver(self, b"driver%d" % number, root)
        for peer in list(self.peers.values()):
            peer.flush()

    def link(self, source: bytes, destination: bytes) -> Link:
        key = source, destination.removesuffix(SERVER_SUFFIX)
        if key not in self.links:
            self.links[key] = Link(decode_for_node if destination == NODE else decode_for_process)
        return self.links[key]

    # --- arena and disk ----------------------------------------------------------------------------

    def write(self, object_id: bytes, created: Created) -> None:
        if created.kind == EXTENT:
            self.memory[created.offset] = object_id
        else:
            self.files[object_id] = None

    def read(self, object_id: bytes, value: Value) -> None:
        if value.kind == EXTENT:
            assert self.memory[value.offset] == object_id
        elif value.kind == FILE:
            assert object_id in self.files
        else:
            assert (value.kind, value.data) == (INLINE, object_id)

    # --- moves -------------------------------------------------------------------------------------

    def pump(self, batch: list[tuple[bytes, Any]]) -> None:
        before = [object_id for object_id, entry in self.node.store.objects.items() if entry.known]
        pump(self.node, batch, self.now_ns)
        self.node.check()
        for object_id in before:
            if object_id not in self.node.store.objects:
                for peer in self.peers.values():
                    local = peer.objects.objects.get(object_id)
                    assert local is None or not local.known, f"{object_id.hex()} freed under {peer.address!r}"
        out, self.node.out[:] = list(self.node.out), []
        for destination, message in out:
            if destination == DISK:
                self.disk.append(message)
            elif isinstance(message, StartWorker):
                worker = self.peers[message.worker_id] = PlayedWorker(self, message.worker_id)
                worker.flush()
            elif isinstance(message, KillWorker):
                raise AssertionError("nobody is to be killed")
            elif destination not in (RUNTIME, WORKER_POOL):
                self.link(NODE, destination).send([message])

    def move_link(self) -> bool:
        full = [key for key, link in self.links.items() if link.frames]
        if not full:
            return False
        source, destination = self.random.choice(full)
        messages = self.links[source, destination].receive()
        if destination == NODE:
            self.pump([(source, message) for message in messages])
        elif destination in self.peers:
            peer = self.peers[destination]
            for message in messages:
                peer.hear(source, message)
            if self.random.random() < 0.5:
                peer.flush()
        return True

    def move_peer(self) -> bool:
        able = [peer for peer in self.peers.values() if not peer.finished and peer.waits_for()]
        if not able:
            return False
        self.random.choice(able).advance()
        return True

    def move_disk(self) -> bool:
        if not self.disk:
            return False
        message = self.disk.popleft()
        if isinstance(message, DeleteFile):
            self.files.pop(message.object_id, None)
        else:
            assert self.memory[message.offset] == message.object_id
            self.files[message.object_id] = None
            self.pump([(RUNTIME, Spilled(message.object_id))])
        return True

    def move_end(self) -> bool:
        """An actor that was told to end is gone."""
        ended = [p for p in self.peers.values() if isinstance(p, PlayedWorker) and p.finished]
        for worker in ended:
            worker.flush()
            link = self.link(worker.address, NODE)
            while link.frames:
                self.pump([(worker.address, message) for message in link.receive()])
            del self.peers[worker.address]
            self.pump([(RUNTIME, WorkerExited(worker.address, 0))])
        return bool(ended)

    def run(self) -> None:
        """Move at random until nobody can move any more."""
        moves = [self.move_link, self.move_link, self.move_peer, self.move_disk, self.move_end]
        idle = 0
        while idle < 3:
            self.now_ns += self.random.randrange(3) * MS
            if any([move() for move in self.random.sample(moves, 2)]):
                idle = 0
                continue
            for peer in self.peers.values():
                peer.flush()
            if not any(move() for move in moves):
                idle += 1
                self.now_ns += self.node.config.stranger_patience_ns
                self.pump([])
        assert all(peer.finished for peer in self.peers.values() if isinstance(peer, Driver))


def run_world(seed: int) -> World:
    """One world from beginning to end; a failing seed replays exactly."""
    world = World(seed)
    world.run()
    for peer in world.peers.values():
        assert not peer.objects.objects
        assert not peer.calls.actor_of_call
    node = world.node
    assert not node.scheduler.tasks
    assert not node.store.objects
    assert not node.store.mapped
    assert not node.references.handed
    assert not any(client.promised for client in node.clients.values())
    assert node.store.extents.used_bytes == 0
    assert not world.files
    assert node.pool.resources.free == node.pool.resources.total
    assert not node.leases.by_worker
    return world


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_freed_too_early_and_everything_in_the_end(seed: int) -> None:
    run_world(seed)


def test_some_tasks_of_these_worlds_are_leased() -> None:
    assert sum(run_world(seed).leased for seed in range(10)) > 20
