"""``zray.dag``: graphs of tasks and calls, bound first and executed later."""

from typing import Any

from zray.api.dag import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
)
from zray.api.refused import absent

__all__ = [
    "ClassMethodNode",
    "ClassNode",
    "DAGNode",
    "FunctionNode",
    "InputAttributeNode",
    "InputNode",
    "MultiOutputNode",
]


def __getattr__(name: str) -> Any:
    raise absent(__name__, name)
