"""Whether the process lives, and whether it is fit to be used."""

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

_ASK_ETCD_EVERY = 1.0
_ETCD_ANSWERS_WITHIN = 2.0
_PARKED_AGAIN = 10.0
"""Seconds after which a parked unit counts that has failed more than once."""
_PARKED_ONCE = 90.0
"""Seconds after which one counts that has failed once, and not healed since."""


@dataclass(frozen=True)
class Check:
    """One thing that must be so.

    Attributes:
        name: What it is about.
        reason: Why it is not so; empty where it is.
        is_vital: Whether the process is unfit without it; else it is fit, and degraded.
    """

    name: str
    reason: str = ""
    is_vital: bool = True

    @property
    def ok(self) -> bool:
        """Whether it is so."""
        return not self.reason


class Health:
    """Looks at a client and its etcd.

    Args:
        client: What is looked at.
        etcd: Its connection.
        prefix: A key below which it may read.
        heard_within: How many seconds etcd's stream may have been silent.
        failing_for: How many seconds a handler may fail.

    Each check is a unit of :mod:`etcd_actions._internal.containment`: one that raises has failed,
    and says so; the others are made.
    """

    def __init__(
        self,
        client: ActionsClient,
        etcd: Etcd,
        prefix: bytes,
        *,
        heard_within: float,
        failing_for: float = 60.0,
    ) -> None:
        self._client = client
        self._etcd = etcd
        self._key = KeyRange.of_key(prefix)
        self._heard_within = heard_within
        self._failing_for = failing_for
        self._asking = trio.Lock()
        self._asked_at = float("-inf")
        self._answer = Check("etcd", "it was not asked yet")
        self._heads = Heads()
        self.draining = False

    @property
    def is_serving(self) -> bool:
        """Whether calls make sense: what can be said without asking etcd."""
        return not self.draining and all(check.ok for check in self._checks_here())

    @property
    def is_ready(self) -> bool:
        """Whether all checks pass; of etcd, what it answered when it was last asked."""
        return self.is_serving and self._answer.ok

    def lag(self, revision: int) -> Lag:
        """How far a watch that gave out a revision is behind what :meth:`ready` found."""
        return self._heads.lag(revision, trio.current_time())

    async def ready(self) -> list[Check]:
        """All checks; etcd is asked once a second, at most."""
        return [*self._checks_here(), await self._check_etcd(), self._check_values()]

    def _checks_here(self) -> list[Check]:
        return [
            self._made("draining", self._draining),
            self._made("listed", self._listed),
            self._made("stream", self._stream),
            self._made("handlers", self._handlers),
            self._made("contained", self._contained),
        ]

    def _made(self, name: str, reason: Callable[[], str]) -> Check:
        try:
            return Check(name, reason())
        except BaseException as error:
            failure = self._client.containment.caught("check", name, error)
            return Check(name, f"the check failed: {describe(failure)}")

    def _draining(self) -> str:
        return "it is about to end" if self.draining else ""

    def _listed(self) -> str:
        reflector = self._client.statistics().reflector
        if reflector is None or not reflector.synced:
            return "the first list is not finished"
        return ""

    def _stream(self) -> str:
        reflector = self._client.statistics().reflector
        if reflector is None:
            return "nothing is watched"
        if math.isinf(reflector.silence):
            return "etcd has not been heard yet"
        if reflector.silence > self._heard_within:
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
        """A single failure is no reason for anybody to act: it may be over with the next try."""
        now = trio.current_time()
        parked = [unit for unit in self._client.containment.parked if _matters(unit, now)]
        if not parked:
            return ""
        first = parked[0]
        return (
            f"{len(parked)} units failed unexpectedly and wait for another try, such as "
            f"{first.kind} {first.identity}: {first.error}"
        )

    def _check_values(self) -> Check:
        """Bad data hurts only itself, and no other process reads it: this one stays fit."""
        check = self._made("values", self._values)
        return replace(check, is_vital=False)

    def _values(self) -> str:
        statistics = self._client.statistics()
        count, since = len(statistics.undecodable), statistics.undecodable_since
        if not count or since is None:
            return ""
        key, reason = next(iter(statistics.undecodable.items()))
        at = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
        return (
            f"{count} keys cannot be read, the first since {at}, such as "
            f"{key.decode(errors='backslashreplace')}: {reason}; their actions are neither told "
            "nor marked: see etcd-actions doctor"
        )

    async def _check_etcd(self) -> Check:
        """A linearizable read, which needs a quorum: more than a status tells."""
        async with self._asking:
            if trio.current_time() - self._asked_at < _ASK_ETCD_EVERY:
                return self._answer
            try:
                with trio.fail_after(_ETCD_ANSWERS_WITHIN):
                    found = await self._etcd.range(self._key, limit=1, keys_only=True)
            except trio.TooSlowError:
                self._answer = Check("etcd", f"no answer within {_ETCD_ANSWERS_WITHIN:g} s")
            except EtcdError as error:
                self._answer = Check("etcd", str(error))
            except BaseException as error:
                failure = self._client.containment.caught("check", "etcd", error)
                self._answer = Check("etcd", f"the check failed: {describe(failure)}")
            else:
                self._heads.saw(found.revision, trio.current_time())
                self._answer = Check("etcd")
            self._asked_at = trio.current_time()
            return self._answer


def _matters(unit: Parked, now: float) -> bool:
    return now - unit.since > (_PARKED_AGAIN if unit.failures > 1 else _PARKED_ONCE)
