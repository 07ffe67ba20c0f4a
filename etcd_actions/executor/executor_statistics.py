"""What an executor tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutorStatistics:
    """What an executor does and has done.

    Attributes:
        running: Number of actions that it attends to.
        waiting: How many of them wait for children, and hold no slot.
        open_actions: Number of actions that are not over.
        started: Number of attempts that it started.
        adopted: Number of attempts that another executor had started.
        ended: Number of actions that it ended, by phase.
        retries: Number of attempts that were followed by another one.
        cache: What looking up and keeping results came to, by the names of Flyte's statuses;
            and how many entries could not be used any more, as ``STALE``.
    """

    running: int
    waiting: int
    open_actions: int
    started: int
    adopted: int
    ended: dict[str, int]
    retries: int
    cache: dict[str, int]
