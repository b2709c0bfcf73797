"""Remote functions: ``@zray.remote`` on a function, ``.remote()`` to submit, ``.options()`` to vary."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from zray.api import options as option_rules
from zray.api import session
from zray.api.actor import ActorClass
from zray.api.environments import published
from zray.api.generators import ObjectRefGenerator
from zray.api.refs import ObjectRef
from zray.protocol.messages import Describe, InGroup
from zray.protocol.user_messages import STREAM
from zray.runtime import environment
from zray.serialize.functions import captured_refs, dump_args, export

if TYPE_CHECKING:
    from zray.api.dag import FunctionNode
    from zray.runtime.client import Client

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function that runs as a task. Made by ``zray.remote``; not called directly."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        self._function = function
        self._options = options
        self._name = getattr(function, "__qualname__", type(function).__name__)
        self._described: tuple[Describe, bytes, tuple[bytes, ...]] | None = None
        self._described_in = ""  # the environment that it was described for
        self._described_by = b""  # the client that has the packages of its environment, if there are any
        self._described_within: InGroup | None = None  # the placement group of the task that submits it
        self._arity_min, self._arity_max = _simple_arity(function)
        self._signature: inspect.Signature | None = None  # once a call needed it
        self._duration_s = options["_duration_s"]
        functools.update_wrapper(self, function, updated=())  # its attributes must not hide ours

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"remote function {self._name}() cannot be called directly; use {self._name}.remote(), "
            f"or {self._name}.__wrapped__() to run it here"
        )

    def __repr__(self) -> str:
        return f"RemoteFunction({self._name})"

    def options(self, **options: Any) -> RemoteFunction[P, Any]:
        """The same function with some options changed."""
        changed = option_rules.merged(option_rules.TASK_DEFAULTS, options, "a task")
        return RemoteFunction(self._function, {**self._options, **{name: changed[name] for name in options}})

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]:
        """Submit a task.

        Returns:
            an ``ObjectRef``; a list of them for ``num_returns`` above one; ``None`` for zero; an
            ``ObjectRefGenerator`` for a function that yields.
        Raises:
            TypeError: if the arguments do not fit the function's signature.
            SerializationError: if one cannot be pickled, naming the culprit.
        """
        if kwargs or not self._arity_min <= len(args) <= self._arity_max:
            self._check_arguments(args, kwargs)
        client = session.current()
        if (
            self._described is None
            or self._described_in != client.environment
            or self._described_within is not client.context.in_group
            or (self._described_by and self._described_by != client.identity)
        ):
            self._describe(client)
        assert self._described is not None
        descriptor, code, captured = self._described
        blob, deps = dump_args(args, kwargs, ObjectRef, self._function)
        if self._duration_s is not None:
            _declare_duration(client, self._duration_s)
        task_id, returns = client.submit(descriptor, code, captured, blob, deps)
        if descriptor.returns == STREAM:
            bounded = descriptor.unconsumed_max > 0
            end = ObjectRef[Any](returns[0], client.weak)
            return ObjectRefGenerator(task_id, end, client, bounded=bounded)  # type: ignore[return-value]
        if descriptor.num_returns == 1:
            return ObjectRef(returns[0], client.weak)
        return [ObjectRef(object_id, client.weak) for object_id in returns] or None  # type: ignore[return-value]

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionNode:
        """A task to be, as a node of a graph (``zray.dag``)."""
        from zray.api.dag import FunctionNode

        return FunctionNode(self, args, kwargs)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            if self._signature is None:
                self._signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # a builtin without a signature: the worker will tell
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None

    def _describe(self, client: Client) -> None:
        """Pickled at the first use, so that it sees what was defined after it."""
        function_id, code = export(self._function)
        outer, outer_group = client.environment, client.context.in_group
        own = published(client, environment.canonical(self._options["runtime_env"]))
        descriptor = option_rules.describe_task(
            function_id,
            self._name,
            self._options,
            is_generator=option_rules.is_generator(self._function),
            environment=environment.merged(outer, own),
            outer_group=outer_group,
        )
        self._described = descriptor, code, captured_refs(self._function)
        self._described_in, self._described_within = outer, outer_group
        self._described_by = client.identity if environment.packages_of(descriptor.environment) else b""

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)


def _declare_duration(client: Any, duration_s: float) -> None:
    """In a simulation the next task takes so long; a real one takes as long as it takes."""
    if hasattr(client, "declared_duration_s"):
        client.declared_duration_s = duration_s


def _simple_arity(function: Callable[..., Any]) -> tuple[int, int]:
    """How few and how many positional arguments surely fit; none if that takes a look at the signature."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_kwonlyargcount or inspect.ismethod(function):
        return 0, -1
    most = int(code.co_argcount)
    return most - len(getattr(function, "__defaults__", None) or ()), most


@overload
def remote(target: type[R], /) -> ActorClass[..., R]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(target: Any, /, **options: Any) -> Any: ...
@overload
def remote(**options: Any) -> Callable[[Any], Any]: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function remote, or a class an actor class: ``@remote``, ``@remote(num_cpus=2)``, ``remote(f)``.

    Raises:
        TypeError: if it is used on something that cannot be called, or with positional options.
        ValueError: for an unknown option, or an async function.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _make_remote(args[0], {})
    if args and not callable(args[0]):
        raise TypeError(f"zray.remote takes a function or a class, not {args[0]!r}; options go by keyword")
    if len(args) > 1:
        raise TypeError(f"zray.remote takes one function or class and options by keyword, not {args[1]!r}")
    if args:
        return _make_remote(args[0], options)
    if not options:
        raise TypeError("write @zray.remote without parentheses, or with options inside them")
    unknown = option_rules.TASK_DEFAULTS.keys() | option_rules.ACTOR_DEFAULTS.keys()
    option_rules.merged(dict.fromkeys(unknown, 0), options, "a task or actor")
    return lambda target: _make_remote(target, options)


def _make_remote(target: Any, options: dict[str, Any]) -> Any:
    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target!r} is remote already; use .options() to change its options")
    if inspect.isclass(target):
        checked = option_rules.merged(option_rules.ACTOR_DEFAULTS, options, f"actor class {target.__name__}")
        return ActorClass(target, checked)
    if not callable(target):
        raise TypeError(f"zray.remote takes a function or a class, not {target!r}")
    name = getattr(target, "__qualname__", repr(target))
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise ValueError(
            f"{name} is an async function, and a task has no event loop: make it a method of an actor, "
            "or call asyncio.run() in a plain function"
        )
    return RemoteFunction(target, option_rules.merged(option_rules.TASK_DEFAULTS, options, f"task {name}"))
