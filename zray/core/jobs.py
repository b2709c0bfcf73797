"""A driver and all that follows from it, as one node knows it."""

from __future__ import annotations

from zray.core.machine import Address
from zray.protocol.messages import JobContext


class Job:
    """What the workers of a job must know; found in ``LocalScheduler.jobs``."""

    __slots__ = ("context", "ended", "home", "job_id")

    def __init__(self, context: JobContext) -> None:
        self.job_id = context.job_id
        self.context = context
        self.ended = False  # its driver is gone
        self.home: Address = b""  # the node of its driver, unless that is this one


def remember(jobs: dict[bytes, Job], context: JobContext) -> None:
    """A job of another node has tasks for this one."""
    if context.job_id not in jobs:
        jobs[context.job_id] = Job(context)
