"""Instances of users' classes in a simulation, and what comes of their code and that of tasks."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim.hosted import CoroutineActor, LeaveError, UserActor
from sim.operations import WaitFor, WhoAmI, user_error
from sim.programs import Emit, InterruptError, Partly, Program, ProgramError, pack_error
from sim.user_code import CrashedHereError
from zray.api.generators import from_kept
from zray.api.simulated_client import SimulatedClient, encoded
from zray.api.virtual_loop import VirtualLoop
from zray.core.streams import item_id
from zray.core.task_context import TaskContext
from zray.errors import ActorDiedError, RuntimeEnvSetupError, TaskCancelledError, TaskError
from zray.ids import short
from zray.protocol.messages import ERROR, Value
from zray.protocol.user_messages import DYNAMIC, STREAM, VALUES
from zray.runtime import own_client
from zray.runtime.actor_class import LOAD, SAVE, groups_of, is_async
from zray.runtime.actor_code import Outcome, ending_of, made, print_failed_farewell, shut_down
from zray.runtime.method_retries import method_of, policies_of
from zray.runtime.results import iterate, listed
from zray.runtime.running import here
from zray.serialize.functions import load_args
from zray.serialize.values import dump, dump_error, format_user_traceback, load

if TYPE_CHECKING:
    import asyncio

    from sim.making import Making
    from sim.worker import SimWorker
    from zray.api.simulation import Simulation


class SimulatedActor(UserActor):
    """An instance of a user's class.

    Args:
        simulation: the run.
        name: of the class.
        instance: what its constructor made.
    """

    def __init__(self, simulation: Simulation, name: str, instance: Any) -> None:
        self.simulation, self.name, self.instance = simulation, name, instance
        self.groups = groups_of(type(instance))
        self._retries = policies_of(type(instance))
        self.finish: Callable[[Any], Outcome] | None = None  # runs a coroutine in its loop, if it has one

    def method(self, name: str) -> Callable[..., Any]:
        """The program of a call."""

        def call(payload: list[Any], duration_ns: int, *values: Any) -> Any:
            return self.simulation.program(
                f"{self.name}.{name}", duration_ns, payload, values, lambda _: self.code_of(name), None
            )

        return call

    def code_of(self, name: str) -> Callable[..., Any]:
        """What a call runs."""
        return method_of(self.instance, name, self._retries)

    def refusal(self, group: str) -> ProgramError:
        """What the caller of a concurrency group that does not exist is told."""
        error = ValueError(f"actor class {self.name} has no concurrency group {group!r}")
        return user_error(dump_error(TaskError(self.name, format_user_traceback(error), error)))

    def farewell(self) -> Program:
        """It is told that it ends, deleted, and what it registered with ``atexit`` is called."""

        def body(process: SimWorker, perform: Callable[[Any], Any]) -> None:
            self._shut_down(process)
            self.simulation.processes.run_at_exit(process)

        return self.simulation.run.program(body)

    def _shut_down(self, process: SimWorker) -> None:
        actor, self.instance = self.instance, None
        self.simulation.undeleted.pop(process.address, None)
        try:
            shut_down(actor, _call, self.finish)
        except CrashedHereError:
            raise
        except BaseException as error:
            print_failed_farewell(self.name, error)

    def save(self) -> Program:
        """Its state, encoded."""
        return self._called(SAVE, ())

    def load(self, state: list[Any]) -> Program:
        """Become what :meth:`save` gave."""
        return self._called(LOAD, (state,))

    def _called(self, name: str, states: tuple[list[Any], ...]) -> Program:
        def body(process: SimWorker, perform: Callable[[Any], Any]) -> Any:
            try:
                args = [load(state[0], f"the checkpoint of {self.name}") for state in states]
                return encoded(f"{self.name}.{name}", getattr(self.instance, name)(*args))
            except (CrashedHereError, InterruptError):
                raise
            except BaseException as error:
                called = f"{self.name}.{name}"
                if name == LOAD:
                    raise raised(called, error, process.context, creates=True) from None
                raise raised_by_call(self.simulation.clients[process.address], called, error) from None

        return self.simulation.run.program(body)


class _Job:
    """One call of an actor with coroutines."""

    def __init__(self, context: TaskContext, making: Making) -> None:
        self.context = context
        self.making = making
        self.done = False
        self.result: Any = None
        self.error: ProgramError | None = None


class _AsyncActor(SimulatedActor, CoroutineActor):
    """One with coroutines: its calls run in one event loop, in virtual time."""

    def __init__(self, simulation: Simulation, name: str, instance: Any, loop: VirtualLoop) -> None:
        super().__init__(simulation, name, instance)
        self.loop = loop
        self.finish = loop.finish
        self._tasks: dict[bytes, asyncio.Task[None]] = {}

    def cancel(self, task_id: bytes) -> None:
        """A coroutine is cancelled where it waits."""
        task = self._tasks.get(task_id)
        if task is not None:
            self.loop.call_soon_threadsafe(task.cancel)

    def method(self, name: str) -> Callable[..., Any]:
        """The program of a call, which lets the loop run it."""

        def call(payload: list[Any], duration_ns: int, *values: Any) -> Program:
            process = yield WhoAmI()
            context = process.context
            job = _Job(context, process.making[context.task_id])
            self.loop.call_soon_threadsafe(self._spawn, job, name, duration_ns, payload, values)
            yield WaitFor(lambda: job.done)
            if job.error is not None:
                raise job.error
            return job.result

        return call

    def _spawn(self, job: _Job, *call: Any) -> None:
        self._tasks[job.context.task_id] = self.loop.create_task(self._run(job, *call))

    async def _run(self, job: _Job, method: str, duration_ns: int, payload: list[Any], values: Any) -> None:
        import asyncio

        here.set(job.context)
        client: Any = own_client.get()
        name = f"{self.name}.{method}"
        try:
            if job.context.is_cancelled:
                raise asyncio.CancelledError
            if duration_ns > 0:
                await asyncio.sleep(duration_ns / 1e9)
            args, kwargs = load_args(payload[0], [load(value[0], "an argument") for value in values])
            result = self.code_of(method)(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
            job.making.kept = result
            if job.making.returns == STREAM:
                await self._stream(client, name, job, result)
            job.result = given(client, name, job.making, result, streamed=True)
        except CrashedHereError:
            raise
        except asyncio.CancelledError:
            job.error = InterruptError()
        except BaseException as error:
            job.error = raised_by_call(client, name, error)
        finally:
            self._tasks.pop(job.context.task_id, None)
            job.done = True
            self.loop.rouse()

    async def _stream(self, client: SimulatedClient, name: str, job: _Job, result: Any) -> None:
        import asyncio

        process, task_id = client.process, job.context.task_id
        async for item in _as_async(result, name):
            client.hand_over(Emit(encoded(name, item), waits=False))
            while not process.may_emit(task_id):  # type: ignore[attr-defined]
                news = asyncio.Event()
                process.work.credits.watchers[task_id] = lambda news=news: (  # type: ignore[attr-defined]
                    self.loop.call_soon_threadsafe(news.set)
                )
                await news.wait()


async def _as_async(result: Any, name: str) -> Any:
    if hasattr(result, "__anext__"):
        async for item in result:
            yield item
        return
    for item in iterate(result, name):
        yield item


def actor_of(
    simulation: Simulation, process: SimWorker, name: str, cls: type, args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> SimulatedActor:  # fmt: skip
    """An instance of a user's class; one with coroutine methods is made in its loop."""
    if not is_async(cls):
        actor = SimulatedActor(simulation, name, _call(cls, args, kwargs))
    else:
        loop = VirtualLoop(simulation)
        actor = _AsyncActor(simulation, name, _made_in(loop, process, cls, args, kwargs), loop)
    if hasattr(cls, "__del__"):
        simulation.undeleted[process.address] = actor.instance
    return actor


def _made_in(
    loop: VirtualLoop, process: SimWorker, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    former, process.lender = process.lender, loop.begin(process)
    try:
        instance, error = loop.finish(made(_call, cls, args, kwargs))
    finally:
        process.lender = former
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame
    return instance


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def given(
    client: SimulatedClient, name: str, making: Making, result: Any, *, streamed: bool = False
) -> Any:  # fmt: skip
    """What a task or call returned or yields, encoded, as many values as it has return objects."""
    if not making.is_wanted and making.returns != VALUES:
        deque(result, maxlen=0)
        return None
    if making.returns == STREAM:
        if not streamed:
            for item in iterate(result, name):
                client.hand_over(Emit(encoded(name, item)))
        return encoded(name, None)
    if making.returns == DYNAMIC:
        result = from_kept(client, _kept(client, name, result))  # type: ignore[arg-type]
    if making.num_returns == 1:
        return encoded(name, result)
    results, error = ([], None) if making.num_returns == 0 else listed(result, making.num_returns)
    values = [encoded(name, one) for one in results]
    if error is not None:
        return Partly(values, raised(name, error, client.context))
    if len(results) != making.num_returns:
        raise ValueError(f"{name}() has num_returns={making.num_returns} and returned {len(results)} values")
    return values


def _kept(client: SimulatedClient, name: str, result: Any) -> list[bytes]:
    """Put everything that a generator yields; the ids, each held once. An error becomes the last item."""
    task_id, kept = client.context.task_id, list[bytes]()
    try:
        for item in iterate(result, name):
            kept.append(client.put(dump(item, f"an item of {name}()"), item_id(task_id, len(kept))))
    except Exception as error:
        value = Value(ERROR, pack_error(raised(name, error, client.context)))
        object_id = item_id(task_id, len(kept))
        client.objects.keep(object_id, value)
        kept.append(object_id)
    return kept


def raised_by_call(client: SimulatedClient, name: str, error: BaseException) -> ProgramError:
    """What it makes of an exception of a call, which may end the actor; does not return from a crash."""
    exit_code = ending_of(error)
    if exit_code:
        client.simulation.processes.end_worker(error)
    return LeaveError() if exit_code == 0 else raised(name, error, client.context)


def raised(
    name: str, error: BaseException, context: TaskContext, *, retry_on: bytes = b"", creates: bool = False
) -> ProgramError:  # fmt: skip
    """What the simulator makes of an exception of user code; ``creates``: it is to make an actor."""
    if context.is_cancelled and isinstance(error, KeyboardInterrupt):
        return InterruptError()
    if isinstance(error, TaskCancelledError) and not error.task_id:
        return InterruptError()
    is_final = False
    if retry_on:
        is_final = not isinstance(error, load(retry_on, "retry_exceptions"))
    if not isinstance(error, RuntimeEnvSetupError):
        text = format_user_traceback(error)
        error = TaskError(name, text, error)
        if creates:
            error = ActorDiedError(short(context.task_id), f"its constructor raised\n{text}", error)
    return user_error(dump_error(error), is_final=is_final)
