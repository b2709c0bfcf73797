"""The values of return objects: what a worker makes of what the user's code returned, yielded or raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import GeneratorType
from typing import Any

from zray import ids
from zray.config import Config
from zray.core.cancellation import cancelled_value
from zray.core.machine import Address
from zray.core.streams import item_id
from zray.errors import ActorDiedError, RuntimeEnvSetupError, TaskCancelledError, TaskError, ZrayError
from zray.protocol.messages import ACTOR, ERROR, EXTENT, INLINE, Value
from zray.runtime.client import Client
from zray.serialize.values import Serialized, dump, dump_error, dump_plain, format_user_traceback

NOTHING = (Value(INLINE, dump(None).to_bytes()),)
"""The values of what returns ``None``."""
RESULT_BYTES_MAX = 8 << 20
"""What the small results of one task, or copies of its error, take together in one message."""


class InputFailedError(Exception):
    """An argument's value is an error; the call ends with the same one."""

    def __init__(self, value: Value) -> None:
        super().__init__("an argument is an error")
        self.value = value


class Results:
    """Packs results into values, small ones inline, large ones into the store.

    Args:
        client: the link of this worker.
        config: limits.
    """

    def __init__(self, client: Client, config: Config) -> None:
        self.client = client
        self.config = config

    def pack(
        self, task_id: bytes, name: str, num_returns: int, result: Any, holder: Address = b""
    ) -> tuple[Value, ...]:
        """The values of the return objects.

        Args:
            task_id: of the task or call.
            name: of what ran, for errors.
            num_returns: how many values there must be.
            result: what it returned; several values come as a sequence, or from a generator.
            holder: the caller, if the values go straight to it.
        Raises:
            ValueError: for another number of values.
            SerializationError: for a value that cannot be pickled.
        """
        if num_returns == 1:
            if result is None:
                return NOTHING
            data = dump_plain(result)
            if data is not None and len(data) <= self.config.inline_bytes_max:  # as a rule
                return (Value(INLINE, data),)
            return (self.pack_one(ids.first_return_id(task_id), name, result, holder),)
        if num_returns == 0:
            return ()
        results, error = listed(result, num_returns)
        if error is None and len(results) != num_returns:
            raise ValueError(f"{name}() has num_returns={num_returns} and returned {len(results)} values")
        values: list[Value] = []
        inline_bytes_left = RESULT_BYTES_MAX
        inline_bytes_max = self.config.inline_bytes_max
        object_ids = ids.return_ids(task_id, num_returns)
        try:
            for object_id, one in zip(object_ids, results, strict=False):
                data = dump_plain(one)
                if data is None:
                    value = self.pack_one(object_id, name, one, holder, inline_bytes_left)
                elif len(data) <= inline_bytes_max and len(data) <= inline_bytes_left:
                    value = Value(INLINE, data)
                else:
                    value = self._keep(object_id, Serialized((data,), len(data)), holder, 0)
                inline_bytes_left -= len(value.data)
                values.append(value)
        except BaseException:
            self._abort(object_ids, values)
            raise
        if error is not None:
            values += self.errors(task_id, 0, name, num_returns - len(values), error, holder)
        return tuple(values)

    def pack_one(
        self,
        object_id: bytes,
        name: str,
        result: Any,
        holder: Address,
        inline_bytes_left: int = RESULT_BYTES_MAX,
    ) -> Value:
        """The value of one object. A large one for a ``holder`` is sealed, else its report seals it."""
        packed = dump(result, f"the return value of {name}()")
        return self._keep(object_id, packed, holder, inline_bytes_left)

    def _keep(self, object_id: bytes, packed: Serialized, holder: Address, inline_bytes_left: int) -> Value:
        client = self.client
        if packed.contained:
            with client.lock:
                client.machine.share(packed.contained)
            if holder:
                client.acquire_for(holder, packed.contained)
        if packed.total_bytes <= min(self.config.inline_bytes_max, inline_bytes_left):
            return Value(INLINE, packed.to_bytes(), 0, 0, packed.contained)
        written = client.store(object_id, packed, holder)
        with client.lock:
            return client.machine.large_result(
                object_id, packed.total_bytes, packed.contained, seals=bool(holder) and written
            )

    def _abort(self, object_ids: Sequence[bytes], values: Sequence[Value]) -> None:
        """A later return value failed: the room of the earlier ones is given back before anybody retries."""
        client = self.client
        with client.lock:
            for object_id, value in zip(object_ids, values, strict=False):
                if value.kind == EXTENT:
                    client.machine.abandon(object_id)

    def keep_items(self, task_id: bytes, name: str, result: Any) -> list[bytes]:
        """Put everything that a generator yields; the ids, each held once. An error becomes the last item."""
        client = self.client
        kept: list[bytes] = []
        try:
            for item in iterate(result, name):
                packed = dump(item, f"an item of {name}()")
                kept.append(client.put(packed, item_id(task_id, len(kept))))
        except Exception as error:
            (value,) = self.errors(task_id, 0, name, 1, error)
            object_id = item_id(task_id, len(kept))
            with client.lock:
                client.objects.keep(object_id, value)
            self.sent((value,))
            kept.append(object_id)
        return kept

    def errors(
        self,
        task_id: bytes,
        kind: int,
        name: str,
        count: int,
        error: BaseException,
        holder: Address = b"",
    ) -> tuple[Value, ...]:
        """One error for each of ``count`` return objects; refs inside it are held until :meth:`sent`."""
        if isinstance(error, InputFailedError):
            values = (error.value,) * count
            self._keep_inner(values, holder)
            return values
        if isinstance(error, TaskCancelledError) and not error.task_id:
            return (cancelled_value(task_id),) * count
        if isinstance(error, RuntimeEnvSetupError):
            return (Value(ERROR, dump_error(error)),) * count
        text = format_user_traceback(error)
        raised: ZrayError = TaskError(name, text, error)
        if kind == ACTOR:
            raised = ActorDiedError(ids.short(task_id), f"its constructor raised\n{text}", raised)
        contained: dict[bytes, None] = {}
        data = dump_error(raised, contained)
        if len(data) * count > RESULT_BYTES_MAX:
            small = TaskError(name, text[-(RESULT_BYTES_MAX // (8 * count)) :], None)
            small.add_note(f"the {type(error).__name__} itself takes {len(data)} bytes and was left out")
            data = dump_error(small)
            contained.clear()
        values = (Value(ERROR, data, 0, 0, tuple(contained)),) * count
        self._keep_inner(values, holder)
        return values

    def _keep_inner(self, values: tuple[Value, ...], holder: Address) -> None:
        """Hold what an error refers to, and have ``holder`` hold it once for each of its values."""
        contained = values[0].contained if values else ()
        if not contained:
            return
        client = self.client
        with client.lock:
            for object_id in contained:
                client.objects.borrow(object_id)
            client.machine.share(contained)
        for _ in values if holder else ():
            client.acquire_for(holder, contained)

    def sent(self, values: Sequence[Value]) -> None:
        """The message with these is in the outbox: what :meth:`errors` held may go."""
        if values and values[-1].kind == ERROR and values[-1].contained:
            self.client.dropped.extend(values[-1].contained)


def listed(result: Any, num_returns: int) -> tuple[Sequence[Any], BaseException | None]:
    """Several results as a sequence, and the error of a generator that raised after some of them."""
    if isinstance(result, GeneratorType):
        values: list[Any] = []
        try:
            for value in result:
                values.append(value)
                if len(values) > num_returns:
                    break  # too many already
        except Exception as error:
            return values[:num_returns], error
        return values, None
    return (list(result) if isinstance(result, Sequence) else [result]), None


def iterate(result: Any, name: str) -> Iterator[Any]:
    """What a task yields.

    Raises:
        TypeError: if it returned something that does not iterate like a generator.
    """
    if not hasattr(result, "__next__"):
        raise TypeError(f"{name}() is to yield its results, and returned {type(result).__name__}")
    yield from result
