"""The counts of an executor."""

from __future__ import annotations

from dataclasses import dataclass

from etcd_actions._internal.histogram import Distribution


@dataclass(frozen=True, kw_only=True)
class ExecutorStatistics:
    """The counts of an executor.

    Attributes:
        running: Number of actions that it runs.
        waiting: Number of these that wait for children, and hold no slot.
        open_actions: Number of actions that are not terminal.
        started: Number of attempts that it started.
        adopted: Number of attempts that another executor had started.
        ended: Number of actions that it ended, by phase.
        retries: Number of attempts that were followed by another one.
        attempt_times: How long attempts were followed here, in seconds, by outcome: a phase,
            ``RETRIED``, or ``ENDED_ELSEWHERE``.
        cache: Number of reads and writes of results, by the names of Flyte's statuses; ``STALE``
            counts the entries that could not be used any more.
        queued: Number of actions that wait for a slot or another resource here.
        unplaced: Number of actions that fit no live worker; 0 for an executor without an offer.
        lost_claims: Number of claims that another worker was faster to create.
    """

    running: int
    waiting: int
    open_actions: int
    started: int
    adopted: int
    ended: dict[str, int]
    retries: int
    attempt_times: dict[str, Distribution]
    cache: dict[str, int]
    queued: int = 0
    unplaced: int = 0
    lost_claims: int = 0
