"""Graphs of tasks and calls that are bound first and executed later, as often as wanted.

``f.bind(...)`` says what is to be done and does nothing. ``node.execute(...)`` submits everything below a
node, each once, with the refs of its inputs, and returns the ref of its own result. Values flow as in any
other task graph: nothing is waited for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

Done = dict["DAGNode", Any]
"""What each node of one execution became: a ref, a handle, an input."""

_CONTAINERS = (list, tuple, dict)


class DAGNode(ABC):
    """One node; its arguments may hold others, also inside lists, tuples and dicts."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs

    def execute(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Submit everything that this node needs, and the node itself; returns its ref or handle.

        Args:
            inputs, named_inputs: what the :class:`InputNode` of the graph stands for.
        Raises:
            ValueError: for inputs of a graph without :class:`InputNode`, or none where there is one.
        """
        order = _in_order(self)
        takes = any(isinstance(node, InputNode) for node in order)
        if takes != bool(inputs or named_inputs):
            verb = "needs" if takes else "takes no"
            raise ValueError(
                f"this graph {verb} inputs: execute() was given {len(inputs) + len(named_inputs)}"
            )
        given = _Inputs(inputs, named_inputs)
        done: Done = {}
        for node in order:
            done[node] = node._submit(done, given)
        return done[self]

    @abstractmethod
    def _submit(self, done: Done, given: _Inputs) -> Any: ...

    def _parts(self) -> tuple[Any, ...]:
        """What may hold nodes that come before this one."""
        return (self._args, self._kwargs)

    def _arguments(self, done: Done) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _filled(self._args, done), _filled(self._kwargs, done)


class FunctionNode(DAGNode):
    """A task to be."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._function = function

    def _submit(self, done: Done, given: _Inputs) -> Any:
        args, kwargs = self._arguments(done)
        return self._function.remote(*args, **kwargs)


class ClassNode(DAGNode):
    """An actor to be, made anew by each execution; its methods have ``bind`` too."""

    def __init__(self, actor_class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._actor_class = actor_class

    def _submit(self, done: Done, given: _Inputs) -> Any:
        args, kwargs = self._arguments(done)
        return self._actor_class.remote(*args, **kwargs)

    def __getattr__(self, name: str) -> _UnboundMethod:
        if name.startswith("_") or not callable(getattr(self._actor_class._class, name, None)):
            raise AttributeError(f"{self._actor_class!r} has no method {name!r}")
        return _UnboundMethod(self, name)


class _UnboundMethod:
    """A method of an actor to be."""

    def __init__(self, owner: ClassNode, name: str) -> None:
        self._owner = owner
        self._name = name
        self._options: dict[str, Any] = {}

    def options(self, **options: Any) -> _UnboundMethod:
        """The same method with other options."""
        changed = _UnboundMethod(self._owner, self._name)
        changed._options = {**self._options, **options}
        return changed

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call to be. Calls of one actor run in the order in which an execution reaches them."""
        return ClassMethodNode(self._owner, self._name, args, kwargs, self._options)


class ClassMethodNode(DAGNode):
    """A call to be: of an actor to be, or of one that there is."""

    def __init__(
        self,
        owner: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(args, kwargs)
        self._owner = owner
        self._name = name
        self._options = options or {}

    def _parts(self) -> tuple[Any, ...]:
        return (self._owner, self._args, self._kwargs)

    def _submit(self, done: Done, given: _Inputs) -> Any:
        args, kwargs = self._arguments(done)
        method = getattr(_filled(self._owner, done), self._name)
        return method.options(**self._options).remote(*args, **kwargs)


class _Inputs:
    """What ``execute`` was given."""

    def __init__(self, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.values = values
        self.named = named

    def whole(self) -> Any:
        """For a node that takes the input itself: there must be one."""
        if len(self.values) != 1 or self.named:
            raise ValueError(
                "a graph that uses its whole input takes exactly one; use input[0] or input.name"
            )
        return self.values[0]

    def part(self, key: int | str) -> Any:
        try:
            return self.values[key] if isinstance(key, int) else self.named[key]
        except LookupError:
            if isinstance(key, str) and len(self.values) == 1 and hasattr(self.values[0], key):
                return getattr(self.values[0], key)
            raise ValueError(f"execute() was given no input {key!r}") from None


class InputNode(DAGNode):
    """Stands for what ``execute`` is given: ``with InputNode() as x``, then ``x``, ``x[0]`` or ``x.name``."""

    def __init__(self) -> None:
        super().__init__((), {})

    def __enter__(self) -> InputNode:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        return InputAttributeNode(self, key)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(self, name)

    def _submit(self, done: Done, given: _Inputs) -> Any:
        return given


class InputAttributeNode(DAGNode):
    """One of several inputs."""

    def __init__(self, whole: InputNode, key: int | str) -> None:
        super().__init__((whole,), {})
        self._key = key

    def _submit(self, done: Done, given: _Inputs) -> Any:
        return given.part(self._key)


class MultiOutputNode(DAGNode):
    """Several nodes as one, whose execution returns a list."""

    def __init__(self, outputs: Sequence[DAGNode]) -> None:
        super().__init__(tuple(outputs), {})

    def _submit(self, done: Done, given: _Inputs) -> Any:
        return [done[node] for node in self._args]


def _nodes_in(value: Any) -> Iterator[DAGNode]:
    """Every node in nested lists, tuples and dicts, first to last."""
    if isinstance(value, DAGNode):
        yield value
    elif type(value) in _CONTAINERS:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _nodes_in(part)


def _in_order(last: DAGNode) -> list[DAGNode]:
    """Everything below a node and the node itself, each once and after what it needs. No recursion."""
    order: Done = {}
    stack = [(last, _nodes_in(last._parts()))]
    while stack:
        node, inputs = stack[-1]
        for before in inputs:
            if before not in order:
                stack.append((before, _nodes_in(before._parts())))
                break
        else:
            stack.pop()
            order[node] = None
    return list(order)


def _filled(value: Any, done: Done) -> Any:
    """The value with what its nodes became in their place."""
    if isinstance(value, DAGNode):
        found = done[value]
        return found.whole() if isinstance(found, _Inputs) else found
    if type(value) is dict:
        return {key: _filled(part, done) for key, part in value.items()}
    if type(value) in _CONTAINERS:
        return type(value)(_filled(part, done) for part in value)
    return value
