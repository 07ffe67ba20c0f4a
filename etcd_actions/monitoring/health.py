"""Whether the process is alive, and whether it can serve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import trio

from etcd_actions._internal.containment import Parked, describe
from etcd_actions.client import ActionsClient
from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.monitoring.lag import Heads, Lag
from etcd_actions.watch import ReflectorStatistics

_CALL_ETCD_EVERY = 1.0
_ETCD_ANSWERS_WITHIN = 2.0
_STREAM_FAILURES = 3
"""A stream counts as lost after this many failures in a row; a restart of etcd causes one."""
_PARKED_AGAIN = 10.0
"""Seconds for which a unit that has failed repeatedly may be parked."""
_PARKED_ONCE = 90.0
"""Seconds for which a unit that has failed once may be parked."""
_PROGRESS_WITHIN = 6.0
"""Seconds in which a watch without lag reaches a revision that is not of its keys."""
_IDLE_WITHIN = 60.0
"""The same for an etcd whose progress notifications are not reliable: idle ranges are read."""


@dataclass(frozen=True)
class Check:
    """One condition of health.

    Attributes:
        name: The part that it is about.
        reason: Why it fails; empty if it passes.
        is_vital: Whether its failure makes the process not ready; otherwise, degraded.
    """

    name: str
    reason: str = ""
    is_vital: bool = True

    @property
    def ok(self) -> bool:
        """Whether it passes."""
        return not self.reason


class Health:
    """Checks a client and its etcd.

    Each check is a unit of :mod:`etcd_actions._internal.containment`: if it raises, it fails with
    that reason, and the other checks still run.

    Args:
        client: The client that is checked.
        etcd: Its connection.
        prefix: A key below which it may read.
        silence_limit: Seconds for which etcd's stream may be silent.
        failing_for: Seconds for which a handler may fail.

    Attributes:
        draining: Whether the process is about to end.
        quorum_loss: Returns the reason if etcd has lost its quorum, as ``QuorumMonitor.loss``.
    """

    def __init__(
        self,
        client: ActionsClient,
        etcd: Etcd,
        prefix: bytes,
        *,
        silence_limit: float,
        failing_for: float = 60.0,
    ) -> None:
        self._client = client
        self._etcd = etcd
        self._key = KeyRange.of_key(prefix)
        self._silence_limit = silence_limit
        self._failing_for = failing_for
        self._calling = trio.Lock()
        self._called_at = float("-inf")
        self._answer = Check("etcd", "it was not called yet")
        self._heads = Heads()
        self.draining = False
        self.quorum_loss: Callable[[], str] = str

    @property
    def is_serving(self) -> bool:
        """Whether clients should call; runs the checks that need no call to etcd."""
        return not self.draining and all(check.ok for check in self._local_checks())

    @property
    def is_ready(self) -> bool:
        """Whether all vital checks pass; uses the last answer of etcd."""
        return self.is_serving and self._answer.ok

    def lag(self, reflector: ReflectorStatistics) -> Lag:
        """The lag of the watch, at the last read of :meth:`ready`."""
        patience = _PROGRESS_WITHIN if reflector.reports_progress else _IDLE_WITHIN
        return self._heads.lag(reflector.revision, trio.current_time(), patience)

    async def ready(self) -> list[Check]:
        """Run all checks; calls etcd at most once a second. A cancellation changes nothing."""
        # An undecodable value affects one action only, and no other process could decode it.
        values = replace(self._made("values", self._values), is_vital=False)
        # Clients are served nevertheless, and another process may record.
        recording = replace(self._made("recording", self._recording), is_vital=False)
        return [*self._local_checks(), await self._check_etcd(), values, recording]

    def _local_checks(self) -> list[Check]:
        return [
            self._made("draining", lambda: "it is about to end" if self.draining else ""),
            self._made("listed", self._listed),
            self._made("stream", self._stream),
            self._made("handlers", self._handlers),
            self._made("contained", self._contained),
        ]

    def _made(self, name: str, reason: Callable[[], str]) -> Check:
        try:
            return Check(name, reason())
        except BaseException as error:
            return self._failed(name, error)

    def _failed(self, name: str, error: BaseException) -> Check:
        failure = self._client.containment.caught("check", name, error)
        return Check(name, f"the check failed: {describe(failure)}")

    def _listed(self) -> str:
        statistics = self._client.statistics()
        reflector = statistics.reflector
        if reflector is None and statistics.watching:
            # Other processes watch all shards.
            return ""
        if reflector is None or not reflector.synced:
            return "the first list is not finished"
        return ""

    def _stream(self) -> str:
        statistics = self._client.statistics()
        reflector = statistics.reflector
        if reflector is None:
            return "" if statistics.watching else "nothing is watched"
        if reflector.failures >= _STREAM_FAILURES and not reflector.streaming:
            return self.quorum_loss() or (
                f"no stream is open: {reflector.failures} attempts failed, the last with: "
                f"{reflector.failure}"
            )
        if math.isinf(reflector.silence):
            return "etcd has sent nothing yet"
        if reflector.silence > self._silence_limit:
            return f"etcd has been silent for {reflector.silence:.0f} s"
        return ""

    def _handlers(self) -> str:
        statistics = self._client.statistics()
        now = trio.current_time()
        failing = [
            key
            for queue in (statistics.handlers, statistics.outbox)
            if queue is not None
            for key in queue.failing
            if now - key.since > self._failing_for
        ]
        if not failing:
            return ""
        first = failing[0]
        return (
            f"{len(failing)} keys fail for more than {self._failing_for:.0f} s, such as "
            f"{first.key.decode(errors='backslashreplace')}: {first.error}"
        )

    def _contained(self) -> str:
        # A single failure needs no action: the next try may succeed.
        now = trio.current_time()
        parked = [unit for unit in self._client.containment.parked if _matters(unit, now)]
        if not parked:
            return ""
        first = parked[0]
        return (
            f"{len(parked)} units failed unexpectedly and wait for a retry, such as "
            f"{first.kind} {first.identity}: {first.error}"
        )

    def _recording(self) -> str:
        statistics = self._client.statistics()
        if statistics.refused:
            return statistics.refused
        problems = [
            f"shard {each.id:04d}: {each.problem}" for each in statistics.shards if each.problem
        ]
        return "; ".join(problems[:3])

    def _values(self) -> str:
        statistics = self._client.statistics()
        count, since = len(statistics.undecodable), statistics.undecodable_since
        if not count or since is None:
            return ""
        key, reason = next(iter(statistics.undecodable.items()))
        at = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
        return (
            f"{count} keys cannot be read, the first since {at}, such as "
            f"{key.decode(errors='backslashreplace')}: {reason}; their actions are neither "
            "reported nor marked: see etcd-actions doctor"
        )

    async def _check_etcd(self) -> Check:
        """Make a linearizable read: it needs a quorum, which a status call does not."""
        async with self._calling:
            if trio.current_time() - self._called_at < _CALL_ETCD_EVERY:
                return self._answer
            try:
                with trio.fail_after(_ETCD_ANSWERS_WITHIN):
                    found = await self._etcd.range(self._key, limit=1, keys_only=True)
            except trio.TooSlowError:
                self._answer = Check("etcd", f"no answer within {_ETCD_ANSWERS_WITHIN:g} s")
            except EtcdError as error:
                self._answer = Check("etcd", str(error))
            except BaseException as error:
                self._answer = self._failed("etcd", error)
            else:
                self._heads.saw(found.revision, trio.current_time())
                self._answer = Check("etcd")
            if not self._answer.ok and (loss := self.quorum_loss()):
                self._answer = Check("etcd", loss)
            self._called_at = trio.current_time()
            return self._answer


def _matters(unit: Parked, now: float) -> bool:
    return now - unit.since > (_PARKED_AGAIN if unit.failures > 1 else _PARKED_ONCE)
