"""The sequential oracle: the same programs, one call after the other, with nothing of zray but its ids.

Every task runs at once where it is submitted, every method where it is called. Ids follow from parent and
counter as in the real system, so the value of each object of a run can be compared with the oracle's by
id.
"""

from __future__ import annotations

from typing import Any

from sim.detached import FindActor, MakeDetached
from sim.groups import EndGroup, MakeGroup, SpawnIn
from sim.programs import (
    ACTORS,
    FUNCTIONS,
    ActorRef,
    Await,
    CallActor,
    Compute,
    Emit,
    EndActor,
    Fetch,
    Forget,
    MakeActor,
    Program,
    ProgramError,
    Ref,
    Spawn,
    Store,
    pack,
    pack_args,
    pack_error,
    unpack,
    unpack_args,
    unpack_error,
)
from sim.streams import CallStream, CloseStream, NextItem, SpawnStream, Stream
from zray import ids
from zray.core.streams import item_id

Outcome = tuple[bool, bytes]
"""Whether it is an error, and the encoded value or error."""


class Oracle:
    """All values of one job.

    Args:
        root_task: the id of the driver.
    """

    def __init__(self, root_task: bytes) -> None:
        self.root_task = root_task
        self.values: dict[bytes, Outcome] = {}
        self.actors: dict[bytes, Any] = {}
        self.names: dict[str, ActorRef] = {}
        self.work_ns = 0  # all that the programs compute
        self.tasks = 0

    def run(self, program: Program) -> Any:
        """Run a driver's program; its result, or the :class:`ProgramError` that ended it."""
        try:
            return _Frame(self, self.root_task).drive(program)
        except ProgramError as error:
            return error

    def evaluate(self, task_id: bytes, code: Any, data: bytes, deps: tuple[bytes, ...], returns: int) -> None:
        """Run one task or method and keep what it returns."""
        object_ids = ids.return_ids(task_id, returns)
        self.tasks += 1
        try:
            args, _ = unpack_args(data, [self.data_of(dep) for dep in deps])
            result = _Frame(self, task_id).call(code, args)
        except ProgramError as error:
            outcomes = [(True, pack_error(error))] * returns
        else:
            results = [result] if returns == 1 else list(result or ())
            outcomes = [(False, pack(one).data) for one in results]
        self.values.update(zip(object_ids, outcomes, strict=True))

    def data_of(self, object_id: bytes) -> bytes:
        """The encoded value of an object.

        Raises:
            ProgramError: if it is an error.
        """
        is_error, data = self.values[object_id]
        if is_error:
            raise unpack_error(data)
        return data


class _Frame:
    """One task that runs: what it makes is numbered."""

    def __init__(self, oracle: Oracle, task_id: bytes) -> None:
        self.oracle = oracle
        self.task_id = task_id
        self.prefix = ids.child_prefix(task_id)
        self.counter = 0
        self.items = 0  # of the stream that it makes
        self.taken: dict[bytes, int] = {}  # items of streams that it reads

    def call(self, code: Any, args: list[Any]) -> Any:
        result = code(*args)
        return self.drive(result) if hasattr(result, "send") else result

    def drive(self, program: Program) -> Any:
        try:
            operation = next(program)
            while True:
                try:
                    result = self.perform(operation)
                except ProgramError as error:
                    operation = program.throw(error)
                else:
                    operation = program.send(result)
        except StopIteration as stop:
            return stop.value

    def perform(self, operation: Any) -> Any:
        oracle = self.oracle
        match operation:
            case Compute(duration_ns):
                oracle.work_ns += duration_ns
            case Spawn(function, args, returns):
                task_id = self._next_task()
                packed, deps = pack_args(args)
                oracle.evaluate(task_id, FUNCTIONS[function], packed.data, deps, returns)
                refs = [Ref(object_id) for object_id in ids.return_ids(task_id, returns)]
                return refs[0] if returns == 1 else refs
            case Fetch(refs):
                return [unpack(oracle.data_of(ref.object_id))[0] for ref in refs]
            case Await(refs):
                return [True] * len(refs)
            case Store(value):
                self.counter += 1
                ref = Ref(ids.put_id(self.prefix, self.counter))
                oracle.values[ref.object_id] = False, pack(value).data
                return ref
            case MakeActor(name, args):
                return self._make_actor(name, args)
            case MakeDetached(name, made):
                oracle.names[name] = self._make_actor(made.actor, made.args)
                return oracle.names[name]
            case FindActor(name):
                return oracle.names[name]
            case CallActor(handle, method, args):
                return self._call_actor(handle, method, args)
            case SpawnStream(function, args):
                packed, deps = pack_args(args)
                return self._stream(FUNCTIONS[function], packed.data, deps)
            case CallStream(handle, method, args):
                packed, deps = pack_args(args)
                return self._call_stream(handle, method, packed.data, deps)
            case Emit(value):
                object_id = item_id(self.task_id, self.items)
                oracle.values[object_id] = False, pack(value).data
                self.items += 1
            case NextItem(made):
                return self._next_item(made)
            case SpawnIn(_, _, spawn):
                return self.perform(spawn)
            case MakeGroup():
                return self._next_task()
            case EndActor() | Forget() | EndGroup() | CloseStream():
                return None
            case _:
                raise TypeError(f"{operation!r} is no operation")

    def _stream(self, code: Any, data: bytes, deps: tuple[bytes, ...]) -> Stream:
        task_id = self._next_task()
        self.oracle.evaluate(task_id, code, data, deps, 1)
        return Stream(task_id, Ref(ids.first_return_id(task_id)), False)

    def _call_stream(
        self, handle: ActorRef, method: str, data: bytes, deps: tuple[bytes, ...]
    ) -> Stream:  # fmt: skip
        made = self.oracle.actors.get(handle.actor_id)
        if made is not None:
            return self._stream(getattr(made, method), data, deps)
        end = Ref(ids.first_return_id(self._next_task()))
        self.oracle.values[end.object_id] = self.oracle.values[handle.object_id]
        return Stream(ids.producer_of(end.object_id), end, False)

    def _next_item(self, stream: Stream) -> Ref | None:
        index = self.taken.get(stream.task_id, 0)
        object_id = item_id(stream.task_id, index)
        if object_id not in self.oracle.values:
            self.oracle.data_of(stream.end.object_id)
            return None
        self.taken[stream.task_id] = index + 1
        return Ref(object_id)

    def _next_task(self) -> bytes:
        self.counter += 1
        return ids.task_id(self.prefix, self.counter)

    def _make_actor(self, name: str, args: tuple[Any, ...]) -> ActorRef:
        task_id = self._next_task()
        packed, deps = pack_args(args)

        def construct(*given: Any) -> None:
            self.oracle.actors[task_id] = ACTORS[name](*given)

        self.oracle.evaluate(task_id, construct, packed.data, deps, 1)
        return ActorRef(ids.first_return_id(task_id))

    def _call_actor(self, handle: ActorRef, method: str, args: tuple[Any, ...]) -> Ref:
        task_id = self._next_task()
        packed, deps = pack_args(args)
        made = self.oracle.actors.get(handle.actor_id)
        if made is None:  # its constructor failed: so do its calls
            self.oracle.values[ids.first_return_id(task_id)] = self.oracle.values[handle.object_id]
        else:
            self.oracle.evaluate(task_id, getattr(made, method), packed.data, deps, 1)
        return Ref(ids.first_return_id(task_id))
