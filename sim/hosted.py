"""What a simulated worker asks of an actor whose class was not written for the simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from sim.programs import Program, ProgramError


class UserActor(ABC):
    """An instance of a user's class. Its methods are programs of the simulator.

    Attributes:
        groups: method -> concurrency group, of those that were declared in one.
    """

    groups: Mapping[str, str]

    @abstractmethod
    def method(self, name: str) -> Callable[..., Any]:
        """What callers mean by the name of a method."""

    @abstractmethod
    def refusal(self, group: str) -> ProgramError:
        """What the caller of a concurrency group that does not exist is told."""

    @abstractmethod
    def farewell(self) -> Program:
        """What its process does at its end."""


class CoroutineActor(UserActor):
    """One whose methods are coroutines; what runs them is beside the calls that wait for them."""

    @abstractmethod
    def cancel(self, task_id: bytes) -> None:
        """A call that runs was cancelled."""


class LeaveError(ProgramError):
    """The actor ends itself with this call."""

    def __init__(self) -> None:
        super().__init__("leave", "the actor ended itself")
