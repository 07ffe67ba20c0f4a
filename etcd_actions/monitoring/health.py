"""Whether the process lives, and whether it is fit to be used."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from etcd_actions.client import ActionsClient
from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.monitoring.lag import Heads, Lag

_ASK_ETCD_EVERY = 1.0
_ETCD_ANSWERS_WITHIN = 2.0


@dataclass(frozen=True)
class Check:
    """One thing that must be so.

    Attributes:
        name: What it is about.
        reason: Why it is not so; empty where it is.
    """

    name: str
    reason: str = ""

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
        return [*self._checks_here(), await self._check_etcd()]

    def _checks_here(self) -> list[Check]:
        statistics = self._client.statistics()
        reflector = statistics.reflector
        if reflector is None or not reflector.synced:
            listed = Check("listed", "the first list is not finished")
        else:
            listed = Check("listed")
        if reflector is None:
            stream = Check("stream", "nothing is watched")
        elif reflector.silence > self._heard_within:
            stream = Check("stream", f"etcd has been silent for {reflector.silence:.0f} s")
        else:
            stream = Check("stream")
        now = trio.current_time()
        failing = [
            key
            for router in (statistics.router, statistics.outbox)
            if router is not None
            for key in router.failing
            if now - key.since > self._failing_for
        ]
        handlers = Check("handlers")
        if failing:
            first = failing[0]
            handlers = Check(
                "handlers",
                f"{len(failing)} keys fail for more than {self._failing_for:.0f} s, such as "
                f"{first.key.decode(errors='backslashreplace')}: {first.error}",
            )
        draining = Check("draining", "it is about to end" if self.draining else "")
        return [draining, listed, stream, handlers, self._check_contained()]

    def _check_contained(self) -> Check:
        parked = self._client.containment.parked
        if not parked:
            return Check("contained")
        first = parked[0]
        return Check(
            "contained",
            f"{len(parked)} units failed unexpectedly and wait for another try, such as "
            f"{first.kind} {first.identity}: {first.error}",
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
            else:
                self._heads.saw(found.revision, trio.current_time())
                self._answer = Check("etcd")
            self._asked_at = trio.current_time()
            return self._answer
