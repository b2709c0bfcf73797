"""Actors: ``@zray.remote`` on a class, handles, methods, ``kill``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.api import options as option_rules
from zray.api import session
from zray.api.refs import ObjectRef
from zray.errors import ActorDiedError
from zray.ids import short
from zray.serialize.functions import NO_ARGS, captured_refs, dump_args, export

if TYPE_CHECKING:
    from zray.runtime.client import Client

_METHOD_OPTIONS = "__zray_method_options__"


class ActorClass:
    """A class whose instances are actors. ``.remote()`` starts one and returns its handle."""

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self._class = cls
        self._options = options
        self.__name__ = cls.__name__
        self.__doc__ = cls.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self._class.__name__
        raise TypeError(f"actor class {name} cannot be instantiated directly; use {name}.remote()")

    def __repr__(self) -> str:
        return f"ActorClass({self._class.__name__})"

    def options(self, **options: Any) -> ActorClass:
        """The same class with some options changed."""
        changed = option_rules.merged(option_rules.ACTOR_DEFAULTS, options, "an actor")
        return ActorClass(self._class, {**self._options, **{name: changed[name] for name in options}})

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor; returns at once. An error of the constructor reaches every call.

        Raises:
            TypeError: if the arguments do not fit the constructor.
        """
        _check_constructor(self._class, args, kwargs)
        client = session.current()
        function_id, code = export(self._class)
        name = self._class.__qualname__
        descriptor = option_rules.describe_actor(function_id, name, self._options)
        constructor = inspect.getattr_static(self._class, "__init__")
        blob, deps = dump_args(args, kwargs, ObjectRef, constructor)
        actor_id, returns = client.submit(descriptor, code, captured_refs(self._class), blob, deps)
        creation = ObjectRef[Any](returns[0], client)
        return ActorHandle(actor_id, creation, name, _methods_of(self._class))

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._class, self._options)


def _check_constructor(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{cls.__name__}(): {error}") from None


def _methods_of(cls: type) -> dict[str, int]:
    """Name -> number of return values of every callable attribute, ``__call__`` included."""
    methods = {}
    for name in dir(cls):
        if name.startswith("__") and name != "__call__":
            continue
        attribute = inspect.getattr_static(cls, name)
        function = getattr(attribute, "__func__", attribute)
        if callable(function):
            methods[name] = getattr(function, _METHOD_OPTIONS, option_rules.METHOD_DEFAULTS)["num_returns"]
    return methods


def method(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of one method of an actor class: ``@zray.method(num_returns=2)``."""
    checked = option_rules.merged(option_rules.METHOD_DEFAULTS, options, "a method")

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _METHOD_OPTIONS, checked)
        return function

    return mark


class ActorHandle:
    """A reference to an actor; may be passed to tasks and other actors.

    When the last handle is gone the actor ends, after the calls that it already has.
    """

    def __init__(self, actor_id: bytes, creation: ObjectRef[Any], name: str, methods: dict[str, int]) -> None:
        self._actor_id = actor_id
        self._creation = creation  # its object stands for the handles
        self._name = name
        self._methods = methods

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("_") and name not in self.__dict__.get("_methods", ()):
            raise AttributeError(name)
        num_returns = self._methods.get(name)
        if num_returns is None:
            raise AttributeError(f"actor class {self._name} has no method {name!r}")
        return ActorMethod(self, name, num_returns)

    def _check_session(self, client: Client) -> None:
        if self._creation._client is not client:
            raise ActorDiedError(short(self._actor_id), "its session has ended")

    @property
    def __call__(self) -> ActorMethod:
        """``handle.__call__.remote()``, if the class has that method; to call the handle is an error."""
        return ActorMethod(self, "__call__", self._methods.get("__call__", 1))

    def __repr__(self) -> str:
        return f"ActorHandle({self._name}, {short(self._actor_id)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is ActorHandle and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._actor_id, self._creation, self._name, self._methods)


class ActorMethod:
    """One method of one actor."""

    __slots__ = ("_handle", "_name", "_num_returns")

    def __init__(self, handle: ActorHandle, name: str, num_returns: int) -> None:
        self._handle = handle
        self._name = name
        self._num_returns = num_returns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"actor methods cannot be called directly; use {self._name}.remote()")

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options."""
        checked = option_rules.merged({"num_returns": self._num_returns}, options, f"method {self._name}")
        return ActorMethod(self._handle, self._name, checked["num_returns"])

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; calls from one process run in the order in which they are made.

        Returns:
            an ``ObjectRef``; a list of them for ``num_returns`` above one; ``None`` for zero.
        Raises:
            ActorDiedError: if the handle is of a session that was shut down.
        """
        client = session.current()
        handle = self._handle
        handle._check_session(client)
        blob, deps = NO_ARGS
        if args or kwargs:
            blob, deps = dump_args(args, kwargs, ObjectRef, f"{handle._name}.{self._name}")
        returns = client.call_actor(
            handle._actor_id, handle._creation.id, self._name, self._num_returns, blob, deps
        )
        if self._num_returns == 1:
            return ObjectRef(returns[0], client)
        return [ObjectRef(object_id, client) for object_id in returns] or None


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once; calls without a result fail with ``ActorDiedError``.

    Raises:
        TypeError: if ``actor`` is not a handle.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"zray.kill takes an actor handle, not {actor!r}")
    client = session.current()
    actor._check_session(client)
    client.kill_actor(actor._actor_id)
