"""The state of this process and its etcd, for the page: all clients share a sample."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from etcd_actions import __version__
from etcd_actions.server.caller import CALLER

if TYPE_CHECKING:
    from etcd_actions.client import ActionsClient
    from etcd_actions.dead_letters import DeadLetter
    from etcd_actions.etcd.member_states import MemberState
    from etcd_actions.follow.workqueue import WorkQueueStatistics
    from etcd_actions.pipeline.watching_settings import ShardStatistics, WatchingStatistics
    from etcd_actions.server.application import Calls
    from etcd_actions.server.front.page_streams import Lines
    from etcd_actions.server.streams import Streams
    from etcd_actions.watch import ReflectorStatistics

_EVERY: Final = 2.0
"""Seconds between two samples."""
# The most dead letters, and characters of a text, that are shown.
_MOST_DEAD_LETTERS: Final = 50
_MOST_OF_A_TEXT: Final = 500


class Check(Protocol):
    """A condition of health; see :class:`etcd_actions.monitoring.Check`."""

    @property
    def name(self) -> str:
        """The part that it is about."""

    @property
    def reason(self) -> str:
        """Why it does not hold; empty if it holds."""

    @property
    def is_vital(self) -> bool:
        """Whether the process is unready without it."""


class Lag(Protocol):
    """How far a watch is behind; see :class:`etcd_actions.monitoring.lag.Lag`."""

    @property
    def revisions(self) -> int:
        """How many revisions it has yet to deliver."""

    @property
    def seconds(self) -> float:
        """How long ago the oldest of them was first read."""


@dataclass(frozen=True, kw_only=True)
class ClusterSources:
    """Functions of packages above this one that return parts of the state.

    Attributes:
        members: Returns the states of etcd's members; the first call takes 4 s at most.
        checks: Makes the checks of health; it may call etcd, and takes 2 s at most.
        lag: Returns how far a watch is behind.
        executor: Returns the counts of the local executor; None without one.
    """

    members: Callable[[], Awaitable[Sequence[MemberState]]]
    checks: Callable[[], Awaitable[Sequence[Check]]]
    lag: Callable[[ReflectorStatistics], Lag]
    executor: Callable[[], Mapping[str, int] | None]


class ClusterState:
    """Samples the state while a stream is open, once for all streams.

    Args:
        client: Its statistics are shown.
        sources: See :class:`ClusterSources`.
        calls: The calls of the service.
        streams: The open streams.
        runs: Returns the number of runs; None if it is unknown.

    Attributes:
        samples: Number of samples that were taken.
    """

    def __init__(
        self,
        client: ActionsClient,
        sources: ClusterSources,
        calls: Calls,
        streams: Streams,
        runs: Callable[[], int | None],
    ) -> None:
        self._client = client
        self._sources = sources
        self._calls = calls
        self._streams = streams
        self._runs = runs
        self._lock = trio.Lock()
        self._sampled_at = float("-inf")
        self._sample: dict[str, Any] = {}
        self.samples = 0

    async def lines(self) -> Lines:
        """The state for one client, every two seconds until it disconnects."""
        with self._streams.open_for_page() as stream:
            while not stream.has_ended:
                sample = await self._sampled()
                yield {**sample, **self._of_projects(self._client.statistics())}
                await stream.wait(_EVERY)

    async def _sampled(self) -> dict[str, Any]:
        async with self._lock:
            if trio.current_time() - self._sampled_at < _EVERY * 0.75:
                return self._sample
            self.samples += 1
            checks = await self._sources.checks()
            self._sample = self._read(checks, await self._sources.members())
            self._sampled_at = trio.current_time()
            return self._sample

    def _read(self, checks: Sequence[Check], members: Sequence[MemberState]) -> dict[str, Any]:
        statistics = self._client.statistics()
        reflector, outbox, handlers = statistics.reflector, statistics.outbox, statistics.handlers
        watch: dict[str, Any] = {}
        if reflector is not None:
            lag = self._sources.lag(reflector)
            watch = {
                "revision": reflector.revision,
                "keys": reflector.keys,
                "streaming": reflector.streaming,
                "silence": min(reflector.silence, 1e9),
                "lagRevisions": lag.revisions,
                "lagSeconds": lag.seconds,
                "reconnects": sum(reflector.reconnects.values()),
                "relists": sum(reflector.relists.values()),
            }
        ended = self._calls.ended
        return {
            "at": round(time.time() * 1000),
            "version": __version__,
            "checks": [
                {"name": each.name, "reason": each.reason, "vital": each.is_vital}
                for each in checks
            ],
            "members": [_member(each) for each in members],
            "watch": watch,
            "leader": statistics.elected,
            "checkpoint": statistics.checkpoint,
            "member": statistics.member,
            "shardMembers": len(statistics.members),
            "shards": [_shard(each) for each in statistics.shards],
            "queues": {
                "handlers": _queue(handlers),
                "reports": None if outbox is None else _queue(outbox),
                "deferred": statistics.deferred,
                "undelivered": statistics.undelivered,
            },
            "counts": {
                "changes": 0 if reflector is None else reflector.events,
                "reports": sum(statistics.reported.values()),
                "failed reports": sum(statistics.failed.values()),
                "requests": sum(ended.values()),
                "refused requests": sum(n for (_, code), n in ended.items() if code != "ok"),
                "updates sent": self._streams.sent,
            },
            "streams": len(self._streams),
            "subscriptions": statistics.subscriptions,
            "runs": self._runs(),
            "executor": self._sources.executor(),
            "contained": sum(self._client.containment.failures.values()),
        }

    def _of_projects(self, statistics: WatchingStatistics) -> dict[str, Any]:
        """The parts that name actions, limited to the projects that the client may use."""
        caller = CALLER.get()
        rejected = [
            each for each in statistics.dead_letters if caller.may_use(each.action_id.project)
        ]
        found: dict[str, Any] = {
            "deadLetters": {
                "count": len(rejected),
                "shown": [
                    {
                        "action": _action(each),
                        "what": each.what,
                        "error": (each.unreadable or each.error)[:_MOST_OF_A_TEXT],
                        "last": each.last,
                        "times": each.times,
                    }
                    for each in rejected[-_MOST_DEAD_LETTERS:]
                ],
            }
        }
        if caller.projects is not None:
            # The reasons name keys.
            found["checks"] = [
                {**each, "reason": each["reason"] and "see the log of the service"}
                for each in self._sample["checks"]
            ]
            # Its range begins with the name of a run.
            hidden = dict.fromkeys(("start", "end", "problem"), "")
            found["shards"] = [{**each, **hidden} for each in self._sample["shards"]]
        return found


def _action(dead_letter: DeadLetter) -> str:
    """The path of a dead letter's action; its key if it cannot be decoded."""
    if dead_letter.unreadable:
        return dead_letter.dead_letter_key.decode(errors="backslashreplace")
    found = dead_letter.action_id
    return f"{found.project}/{found.domain}/{found.run}/{found.name}"


def _queue(queue: WorkQueueStatistics | None) -> dict[str, int]:
    if queue is None:
        return {"keys": 0, "changes": 0, "failing": 0}
    return {"keys": queue.keys, "changes": queue.pending_changes, "failing": len(queue.failing)}


def _shard(shard: ShardStatistics) -> dict[str, Any]:
    return {
        "id": f"{shard.id:04d}",
        "start": shard.start,
        "end": shard.end,
        "owner": shard.owner,
        "target": shard.target,
        "duty": shard.duty,
        "owned": shard.owned,
        "keys": shard.keys,
        "silence": None if shard.silence is None else min(shard.silence, 1e9),
        "pending": shard.pending,
        "ownerless": shard.ownerless,
        "problem": shard.problem[:_MOST_OF_A_TEXT],
    }


def _member(state: MemberState) -> dict[str, Any]:
    member, status = state.member, state.status
    found: dict[str, Any] = {
        "name": member.name or f"{member.id:x}",
        "up": state.is_up,
        "reason": state.reason[:_MOST_OF_A_TEXT],
        "learner": member.is_learner,
    }
    if status is not None:
        found |= {
            "leads": status.leader == status.member_id,
            "hasLeader": status.leader != 0,
            "version": status.version,
            "revision": status.revision,
            "size": status.db_size,
            "inUse": status.db_size_in_use,
            "quota": status.db_size_quota,
            "errors": list(status.errors),
        }
    return found
