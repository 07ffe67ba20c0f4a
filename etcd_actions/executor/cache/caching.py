"""Uses and stores cached results. After a failure here the task runs as if there were no cache.

The result of a call is read before its action is started. If there is one, its outputs are written
as the action's own, and the action has succeeded. Else the action runs, and its result is stored.
If calls are serialized, one action makes the result; the others wait for it without a slot.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from etcd_actions._internal.clock import Clock
from etcd_actions._internal.untrusted_files import UnusableFile, in_thread
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.catalog import Entry, Found, digest_of
from etcd_actions.client import ActionsClient
from etcd_actions.errors import EtcdError
from etcd_actions.executor.cache.cache_keys import Call, call_of
from etcd_actions.executor.cache.cached_outputs import (
    MOST_IN_ETCD,
    Stale,
    fetch,
    read_outputs,
    store,
    write_outputs,
)
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.storage.claims import Claim, Claims

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

    from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
    from etcd_actions.executor.attempts.output_files import Outputs

# The numbers of ``flyteidl2.core.CatalogCacheStatus``.
DISABLED: Final = 0
MISS: Final = 1
HIT: Final = 2
POPULATED: Final = 3
LOOKUP_FAILURE: Final = 4
PUT_FAILURE: Final = 5
SKIPPED: Final = 6

UNIT: Final = "cache"
"""The kind of the boundary."""

# Seconds that the cache may take of a task's time.
_WITHIN: Final = 10.0
_FILES_WITHIN: Final = 8.0
# Seconds between reads of an action that waits for a reservation. If more actions than _MANY wait
# for one, the time grows with their number.
_LOOK_EVERY: Final = 1.0
_MANY: Final = 20
# Seconds until an action whose outputs' file system does not answer is started again.
_HANGS_AGAIN: Final = 30.0

_log = structlog.get_logger(__name__)


class Lookup(NamedTuple):
    """The result of a lookup.

    Attributes:
        status: The action's cache status, a number of ``CatalogCacheStatus``.
        waits: Seconds that the action has to wait, as a rule because another action makes the
            result; None: it runs now.
    """

    status: int
    waits: float | None = None


class CacheRequest(NamedTuple):
    """An attempt before its start, or after its success, whose cached result is read or stored."""

    name: str
    action: StoredAction
    template: TaskTemplate
    place: AttemptDirectory
    outputs: Outputs


class _Hangs(Exception):
    """The file system of an action's outputs does not answer."""


class Caching:
    """The cache of one executor.

    Args:
        client: Opens the catalogue.
        claims: Makes reservations.
        settings: See :class:`ExecutorSettings`.
        clock: The clock of the ages of results.
        wake: Called with an action that need not wait for a reservation any more.

    Attributes:
        results: Number of lookups and writes, by the names of Flyte's statuses.
    """

    def __init__(
        self,
        client: ActionsClient,
        claims: Claims,
        settings: ExecutorSettings,
        clock: Clock,
        wake: Callable[[str], None],
    ) -> None:
        self._keys = client.keys
        self._containment = client.containment
        self._claims = claims
        self._catalog = client.open_catalog(settings.cache_keep)
        self._off = settings.cache_keep <= 0
        self._state_dir = settings.state_dir
        self._clock = clock
        self._wake = wake
        # By action: the claim, None if it is not known whether it was made; key and subject.
        self._reserved: dict[str, tuple[Claim | None, bytes, str]] = {}
        # Keys and subjects of reservations whose release failed; locked while they are released.
        self._unreleased: list[tuple[bytes, str]] = []
        self._tidying = trio.Lock()
        self._waiting: defaultdict[bytes, set[str]] = defaultdict(set)
        # Entries that could not be used, by key and revision.
        self._unusable: set[tuple[bytes, int]] = set()
        self.results: Counter[str] = Counter()

    async def look(self, task: CacheRequest) -> Lookup:
        """Read the result of a task before its start, and use it if there is one."""
        if self._off or not task.template.metadata.discoverable:
            return Lookup(DISABLED)
        found = Lookup(LOOKUP_FAILURE)
        async with self._bounded(task.name):
            try:
                found = await self._look(task)
            except _Hangs as reason:
                _log.warning("outputs_unanswered", action=task.name, reason=str(reason))
                found = Lookup(LOOKUP_FAILURE, _HANGS_AGAIN)
        if found.waits is None:
            self.results[_NAMES[found.status]] += 1
        return found

    async def keep(self, task: CacheRequest) -> int | None:
        """Store the result of a task that succeeded; returns the cache status, if it is cached."""
        if self._off or not task.template.metadata.discoverable:
            return None
        status = PUT_FAILURE
        async with self._bounded(task.name):
            call = await call_of(self._keys, task.action, task.template)
            assert call is not None
            await self._put(task, call)
            status = POPULATED
        self.results[_NAMES[status]] += 1
        return status

    async def is_known(self, action: StoredAction, template: TaskTemplate, name: str) -> bool:
        """Whether a result is cached now, so that the action needs no slot. It may be stale."""
        if self._off or not template.metadata.discoverable:
            return False
        known = False
        async with self._bounded(name):
            call = await call_of(self._keys, action, template)
            if call is not None and not call.overwrites:
                known = await self._find(call) is not None
        return known

    async def reserve_again(self, task: CacheRequest) -> None:
        """Renew the reservation of an attempt that an earlier executor started."""
        if self._off or not task.template.metadata.cache_serializable:
            return
        async with self._bounded(task.name):
            call = await call_of(self._keys, task.action, task.template)
            if call is not None:
                await self._reserve(task, call)

    async def release(self, name: str) -> None:
        """Release the reservation of an action, and wake the actions that wait for it."""
        held = self._reserved.pop(name, None)
        if held is None:
            return
        claim, key, subject = held
        try:
            if claim is not None:
                await self._claims.release(claim)
            else:
                await self._claims.unreserve(key, subject)
        except BaseException as error:
            # Retried: on the lease of all claims the key would last as long as this process.
            self._unreleased.append((key, subject))
            if not isinstance(error, EtcdError):
                raise
            _log.warning("reservation_not_released", action=name, error=str(error))
        else:
            self._wake_all(key)

    async def tidy(self) -> None:
        """Release the reservations that could not be released before; call it now and then.

        Raises:
            EtcdError: etcd cannot be written; the rest is retried by the next call.
        """
        async with self._tidying:
            while self._unreleased:
                key, subject = self._unreleased[-1]
                if all(held[1:] != (key, subject) for held in self._reserved.values()):
                    await self._claims.unreserve(key, subject)
                    self._wake_all(key)
                self._unreleased.remove((key, subject))

    @asynccontextmanager
    async def _bounded(self, name: str) -> AsyncIterator[None]:
        """A boundary with a deadline: a failure is counted and logged."""
        with self._containment.unit(UNIT, name):
            with trio.move_on_after(_WITHIN) as scope:
                yield
            if scope.cancelled_caught:
                _log.warning("cache_not_used", action=name, reason="it takes too long")

    async def _look(self, task: CacheRequest) -> Lookup:
        call = await call_of(self._keys, task.action, task.template)
        assert call is not None
        self._waiting[call.reservation].discard(task.name)
        if not self._waiting[call.reservation]:
            del self._waiting[call.reservation]
        if await self._take_result(task, call):
            return Lookup(HIT)
        status = SKIPPED if call.overwrites else MISS
        if not call.serialized:
            return Lookup(status)
        if not await self._reserve(task, call):
            waiting = self._waiting[call.reservation]
            waiting.add(task.name)
            return Lookup(status, _LOOK_EVERY * max(1.0, len(waiting) / _MANY))
        # Another action may have stored a result before the reservation.
        return Lookup(HIT if await self._take_result(task, call) else status)

    async def _take_result(self, task: CacheRequest, call: Call) -> bool:
        if call.overwrites or (found := await self._find(call)) is None:
            return False
        declares = bool(task.template.interface.outputs.variables)
        try:
            data = await in_thread(
                _FILES_WITHIN,
                task.outputs,
                partial(fetch, self._state_dir, found.entry, declares_outputs=declares),
            )
        except Stale as reason:
            _log.info("cached_result_unusable", action=task.name, reason=str(reason))
            self.results["STALE"] += 1
            # No lookup uses it until it is deleted.
            self._unusable.add((call.entry, found.kv.mod_revision))
            await self._catalog.forget(found)
            self._unusable.remove((call.entry, found.kv.mod_revision))
            return False
        try:
            # A cancelled thread would continue, and write into the directory of a task that runs.
            with trio.CancelScope(shield=True):
                written = await in_thread(
                    _FILES_WITHIN, task.outputs, write_outputs, task.place, task.outputs, data
                )
        except UnusableFile as error:
            raise _Hangs(str(error)) from None
        if not written:
            return False
        _log.info("cached_result", action=task.name, run=found.entry.run, of=found.entry.action)
        await self._catalog.renew(found)
        return True

    async def _find(self, call: Call) -> Found | None:
        found = await self._catalog.look(call.entry, call.cache_key)
        if found is None or (call.entry, found.kv.mod_revision) in self._unusable:
            return None
        age = self._clock.wall() - found.entry.created.timestamp()
        return None if call.max_age is not None and age > call.max_age else found

    async def _put(self, task: CacheRequest, call: Call) -> None:
        data = await in_thread(_FILES_WITHIN, task.outputs, read_outputs, task.outputs)
        small = data is not None and len(data) <= MOST_IN_ETCD
        if data is not None and not small:
            await in_thread(_FILES_WITHIN, self._state_dir, store, self._state_dir, data)
        action_id, now = task.action.action_id, datetime.fromtimestamp(self._clock.wall(), UTC)
        await self._catalog.put(
            call.entry,
            Entry(
                cache_key=call.cache_key,
                org=action_id.org,
                project=action_id.project,
                domain=action_id.domain,
                run=action_id.run,
                action=action_id.name,
                attempt=max(task.action.status.attempts, 1),
                output_uri=str(task.outputs),
                digest="" if data is None else digest_of(data),
                outputs=data if small else None,
                created=now,
                kept_until=now,
            ),
        )

    async def _reserve(self, task: CacheRequest, call: Call) -> bool:
        subject = task.action.incarnation.path_component
        # Stored before the call: a cancelled call may have made the reservation.
        self._reserved[task.name] = (None, call.reservation, subject)
        if (call.reservation, subject) in self._unreleased:
            # An earlier one of the action is maybe being released: it would release this one.
            async with self._tidying:
                pass
        claim = await self._claims.reserve(call.reservation, subject)
        if claim is None:
            del self._reserved[task.name]
            return False
        self._reserved[task.name] = (claim, call.reservation, subject)
        return True

    def _wake_all(self, key: bytes) -> None:
        for name in self._waiting.pop(key, ()):
            self._wake(name)


_NAMES: Final = {
    DISABLED: "CACHE_DISABLED",
    MISS: "CACHE_MISS",
    HIT: "CACHE_HIT",
    POPULATED: "CACHE_POPULATED",
    LOOKUP_FAILURE: "CACHE_LOOKUP_FAILURE",
    PUT_FAILURE: "CACHE_PUT_FAILURE",
    SKIPPED: "CACHE_SKIPPED",
}
