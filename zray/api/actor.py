"""Actors: ``@zray.remote`` on a class, handles, methods, names, ``kill``, ``exit_actor``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from zray.api import options as option_rules
from zray.api import session
from zray.api.environments import published
from zray.api.generators import ObjectRefGenerator
from zray.api.refs import ObjectRef
from zray.core.checks import problem_of_actor_name
from zray.core.client import MethodCall
from zray.errors import ActorDiedError, PendingCallsLimitExceededError
from zray.ids import ID_BYTES, first_return_id, producer_of, short
from zray.protocol.user_messages import STREAM, ClaimName, FindName, ListNames, NameAnswer
from zray.runtime import environment, own_client
from zray.runtime.actor_class import (
    METHOD_OPTIONS,
    SPECIAL_METHODS,
    ActorExitRequest,
    is_async,
    is_saved,
)
from zray.serialize.functions import NO_ARGS, captured_refs, dump_args, export
from zray.serialize.values import dump, load

if TYPE_CHECKING:
    from zray.api.dag import ClassMethodNode, ClassNode
    from zray.protocol.messages import Describe
    from zray.runtime.client import Client

P = ParamSpec("P")
T = TypeVar("T")


class ActorClass(Generic[P, T]):
    """A class whose instances are actors. ``.remote()`` starts one and returns its handle."""

    def __init__(self, cls: type[T], options: dict[str, Any]) -> None:
        self._class = cls
        self._options = options
        self.__name__ = cls.__name__
        self.__doc__ = cls.__doc__
        self.__module__ = cls.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self._class.__name__
        raise TypeError(f"actor class {name} cannot be instantiated directly; use {name}.remote()")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        name = self._class.__name__
        raise TypeError(
            f"inherit from the plain class and make the subclass remote: {name} is remote already"
        )

    def __repr__(self) -> str:
        return f"ActorClass({self._class.__name__})"

    def options(self, **options: Any) -> ActorClass[P, T]:
        """The same class with some options changed."""
        changed = option_rules.merged(option_rules.ACTOR_DEFAULTS, options, "an actor")
        return ActorClass(self._class, {**self._options, **{name: changed[name] for name in options}})

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> ActorHandle:
        """Start an actor; returns at once. An error of the constructor reaches every call.

        Raises:
            TypeError: if the arguments do not fit the constructor.
            ActorAlreadyExistsError: a ``ValueError``, if the name is taken.
        """
        _check_constructor(self._class, args, kwargs)
        client = session.current()
        options = self._options
        _check_named(options)
        name, namespace = options["name"] or "", options["namespace"] or client.namespace
        if name:
            _check_name(namespace, name)
        limits = options["max_task_retries"] or 0, options["max_pending_calls"]
        shown = self._class.__qualname__, _methods_of(self._class), limits
        handle = dump(shown).to_bytes() if name else b""
        descriptor, code = self._describe(client, (namespace, name) if name else ("", ""), handle)
        constructor = inspect.getattr_static(self._class, "__init__")
        blob, deps = dump_args(args, kwargs, ObjectRef, constructor)
        task_id = client.reserve_task_id()
        if name:  # last of all: what fails before leaves no name behind
            existing = _settle_name(client, name, namespace, task_id + handle, options["get_if_exists"])
            if existing is not None:
                return existing
        captured = captured_refs(self._class)
        actor_id, returns = client.submit(descriptor, code, captured, blob, deps, task_id)
        return ActorHandle(actor_id, ObjectRef(returns[0], client.weak), *shown)

    def _describe(self, client: Client, actor_name: tuple[str, str], handle: bytes) -> tuple[Describe, bytes]:
        function_id, code = export(self._class)
        own = published(client, environment.canonical(self._options["runtime_env"]))
        descriptor = option_rules.describe_actor(
            function_id,
            self._class.__qualname__,
            self._options,
            is_async=is_async(self._class),
            environment=environment.merged(client.environment, own),
            actor_name=actor_name,
            handle=handle,
            is_saved=is_saved(self._class),
            outer_group=client.context.in_group,
        )
        return descriptor, code

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> ClassNode:
        """An actor to be, as a node of a graph (``zray.dag``)."""
        from zray.api.dag import ClassNode

        return ClassNode(self, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._class, self._options)


def _check_named(options: dict[str, Any]) -> None:
    if options["get_if_exists"] and not options["name"]:
        raise ValueError("get_if_exists needs a name")
    if options["name"] is not None and not options["name"]:
        raise ValueError("the name of an actor is not empty")


def _check_name(namespace: str, name: str) -> None:
    """Here, because a node would take such a question for garbage and not answer it."""
    problem = problem_of_actor_name(namespace, name)
    if problem:
        raise ValueError(f"{problem}: {name[:100]!r}")


def _check_constructor(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{cls.__name__}(): {error}") from None


def _methods_of(cls: type) -> dict[str, dict[str, Any]]:
    """Name -> options of every callable attribute that ``object`` has not; plain ones have no options."""
    methods: dict[str, dict[str, Any]] = {}
    for name in dir(cls):
        if hasattr(object, name) or name == "__class_getitem__":
            continue
        attribute = inspect.getattr_static(cls, name)
        function = getattr(attribute, "__func__", attribute)
        if not callable(function):
            continue
        options = dict(getattr(function, METHOD_OPTIONS, {}))
        if options.get("num_returns") is None and option_rules.is_generator(function):
            options["num_returns"] = "streaming"
        methods[name] = options
    return methods


@overload
def method(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def method(**options: Any) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def method(*functions: Callable[P, T], **options: Any) -> Any:
    """Options of one method of an actor class: ``@zray.method(num_returns=2)``; ``@zray.method`` has none."""
    if functions:
        if len(functions) > 1 or options or not callable(functions[0]):
            raise TypeError("write @zray.method(...) with options by keyword above a method")
        return functions[0]
    option_rules.merged(option_rules.METHOD_DEFAULTS, options, "a method")
    retries = options.get("retry_exceptions")
    if retries and options.get("max_task_retries") is None:
        raise ValueError("retry_exceptions of a method goes with its max_task_retries: say both")

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        if retries and option_rules.is_generator(function):
            raise ValueError(f"{function.__name__} is a generator, which is not run again when it raises")
        setattr(function, METHOD_OPTIONS, dict(options))
        return function

    return mark


class ActorHandle:
    """A reference to an actor; may be passed to tasks and other actors.

    When the last handle is gone the actor ends, after the calls that it already has.
    """

    def __init__(
        self,
        actor_id: bytes,
        creation: ObjectRef[Any],
        name: str,
        methods: dict[str, dict[str, Any]],
        limits: tuple[int, int] = (0, -1),
    ) -> None:
        self._actor_id = actor_id
        self._creation = creation  # its object stands for the handles
        self._name = name
        self._methods = methods
        self._limits = limits

    def __getattr__(self, name: str) -> ActorMethod:
        if name in SPECIAL_METHODS:
            return ActorMethod(self, name, {})
        if name.startswith("_") and name not in self.__dict__.get("_methods", ()):
            raise AttributeError(name)
        options = self._methods.get(name)
        if options is None:
            raise AttributeError(f"actor class {self._name} has no method {name!r}")
        return ActorMethod(self, name, options)

    def _check_session(self, client: Client) -> None:
        if self._creation._of is not client.weak:
            raise ActorDiedError(short(self._actor_id), "its session has ended")

    @property
    def __call__(self) -> ActorMethod:
        """``handle.__call__.remote()``, if the class has that method; to call the handle is an error."""
        return ActorMethod(self, "__call__", self._methods.get("__call__", {}))

    def __repr__(self) -> str:
        return f"ActorHandle({self._name}, {short(self._actor_id)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is ActorHandle and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._actor_id, self._creation, self._name, self._methods, self._limits)


class ActorMethod:
    """One method of one actor."""

    __slots__ = ("_call", "_handle", "_options")

    def __init__(self, handle: ActorHandle, name: str, options: dict[str, Any]) -> None:
        self._handle = handle
        self._options = options
        self._call = _method_call(name, options, handle._limits[0])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"actor methods cannot be called directly; use {self._call.name}.remote()")

    def __repr__(self) -> str:
        return f"ActorMethod({self._handle._name}.{self._call.name})"

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options."""
        option_rules.merged(option_rules.CALL_DEFAULTS, options, f"method {self._call.name}")
        return ActorMethod(self._handle, self._call.name, {**self._options, **options})

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the method; calls from one process start in the order in which they are made.

        Returns:
            an ``ObjectRef``; a list of them for ``num_returns`` above one; ``None`` for zero; an
            ``ObjectRefGenerator`` for a generator.
        Raises:
            ActorDiedError: if the handle is of a session that was shut down.
            PendingCallsLimitExceededError: beyond ``max_pending_calls``.
        """
        client = session.current()
        handle, call = self._handle, self._call
        if handle._creation._of is not client.weak:
            handle._check_session(client)
        pending_max = handle._limits[1]
        if pending_max > 0 and client.calls.pending(handle._actor_id) >= pending_max:
            raise PendingCallsLimitExceededError(handle._name, pending_max)
        blob, deps = NO_ARGS
        if args or kwargs:
            blob, deps = dump_args(args, kwargs, ObjectRef, f"{handle._name}.{call.name}")
        returns = client.call_actor(handle._actor_id, handle._creation.id, call, blob, deps)
        if call.returns == STREAM:
            end = ObjectRef[Any](returns[0], client.weak)
            bounded = call.unconsumed_max > 0
            return ObjectRefGenerator[Any](producer_of(returns[0]), end, client, bounded=bounded)
        if call.num_returns == 1:
            return ObjectRef(returns[0], client.weak)
        return [ObjectRef(object_id, client.weak) for object_id in returns] or None

    def bind(self, /, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call to be, as a node of a graph (``zray.dag``)."""
        from zray.api.dag import ClassMethodNode

        return ClassMethodNode(self._handle, self._call.name, args, kwargs, self._options)


_PLAIN_CALLS: dict[str, MethodCall] = {}


def _method_call(name: str, options: dict[str, Any], retries: int) -> MethodCall:
    if not options and not retries:  # the hot case
        plain = _PLAIN_CALLS.get(name)
        if plain is None:
            plain = _PLAIN_CALLS[name] = MethodCall(name)
        return plain
    count, returns = option_rules.returns_of(options.get("num_returns"), False)
    own_retries = options.get("max_task_retries")
    return MethodCall(
        name,
        count,
        returns,
        options.get("concurrency_group") or "",
        options.get("_generator_backpressure_num_objects") or 0,
        retries if own_retries is None else own_retries,
    )


# --- names ---------------------------------------------------------------------------------------


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor.

    Raises:
        ActorHandleNotFoundError: a ``ValueError``, if no living actor of the namespace has the name.
        ValueError: if none can have it.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of an actor is a string that is not empty, not {name!r}")
    client = session.current()
    namespace = namespace or client.namespace
    _check_name(namespace, name)
    found = _find(client, name, namespace)
    if found is None:
        from zray.exceptions import ActorHandleNotFoundError

        raise ActorHandleNotFoundError(
            f"no actor of namespace {namespace!r} is called {name!r}; "
            "zray.util.list_named_actors(all_namespaces=True) says which there are"
        )
    return found


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living actors of this namespace; of all as dicts with ``namespace`` and ``name``."""
    import msgspec

    client = session.current()
    asked = "" if all_namespaces else client.namespace
    answer = _ask(client, lambda token: ListNames(token, asked))
    pairs = msgspec.json.decode(answer.value or b"[]")
    if all_namespaces:
        return [{"namespace": namespace, "name": name} for namespace, name in pairs]
    return [name for _, name in pairs]


def _settle_name(
    client: Client, name: str, namespace: str, value: bytes, get_if_exists: bool
) -> ActorHandle | None:
    """Claim a name for an actor about to be made; or the actor that has it already.

    Raises:
        ActorAlreadyExistsError: if it is taken, and that actor is not wanted.
    """
    answer = _ask(client, lambda token: ClaimName(token, namespace, name, value))
    if answer.ok:
        return None
    if get_if_exists and answer.value:
        return _handle_from(answer.value)
    from zray.exceptions import ActorAlreadyExistsError

    raise ActorAlreadyExistsError(
        f"the name {name!r} is taken in namespace {namespace!r}; get_if_exists=True takes its actor"
    )


def _ask(client: Client, make: Callable[[int], Any]) -> NameAnswer:
    answer: NameAnswer = client.ask(make, client.config.init_timeout_ns / 1e9)
    return answer


def _find(client: Client, name: str, namespace: str) -> ActorHandle | None:
    answer = _ask(client, lambda token: FindName(token, namespace, name))
    return _handle_from(answer.value) if answer.ok and answer.value else None


def _handle_from(value: bytes) -> ActorHandle:
    from zray.api.refs import _unpickled_ref

    actor_id = value[:ID_BYTES]
    name, methods, limits = load(value[ID_BYTES:], "the handle of a named actor")
    return ActorHandle(actor_id, _unpickled_ref(first_return_id(actor_id)), name, methods, limits)


def own_handle() -> ActorHandle:
    """A handle of the actor whose code this is.

    Raises:
        RuntimeError: outside actors.
    """
    from zray.api.refs import _unpickled_ref

    identity = own_client.actor_identity()
    if identity is None:
        raise RuntimeError("only the code of an actor has a current actor")
    creation = _unpickled_ref(first_return_id(identity.actor_id))
    return ActorHandle(identity.actor_id, creation, identity.cls.__qualname__, _methods_of(identity.cls))


# --- ends ----------------------------------------------------------------------------------------


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once; calls without a result fail with ``ActorDiedError``.

    Args:
        actor: its handle.
        no_restart: with ``False`` an actor that has restarts left is made again.
    Raises:
        TypeError: if ``actor`` is not a handle.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"zray.kill takes an actor handle, not {actor!r}")
    client = session.current()
    actor._check_session(client)
    client.kill_actor(actor._actor_id, no_restart)


def exit_actor() -> NoReturn:
    """End the actor whose method this is, on purpose: it is not restarted. ``sys.exit()`` does the same.

    Calls that run end first, those that wait fail with ``ActorDiedError``, and exit handlers run.

    Raises:
        TypeError: outside an actor.
    """
    if not own_client.in_actor():
        raise TypeError("exit_actor() is for the methods of an actor")
    raise ActorExitRequest


def save_checkpoint() -> None:
    """Save the actor whose method this is, once the method has returned and before its caller hears of it.

    Raises:
        TypeError: outside an actor with ``__zray_save__`` and ``__zray_load__`` that may be restarted.
    """
    if not own_client.want_save():
        raise TypeError(
            "save_checkpoint() is for the methods of an actor with __zray_save__() and __zray_load__() and "
            "max_restarts above zero"
        )
