"""Deletes the records of runs that ended long ago, with the histories of their actions.

A record stays when the objects of its run expire: it is what a list of runs shows. It goes after a
time of its own, and never while its root goes on. Dead letters are left alone: each says of an
action what somebody has yet to accept.

Each deletion compares the revision of what was read, and the one of a record also that its root is
as it was. So any process may do it, at any time; one is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog
import trio

from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored import StoredTaskAction
from etcd_actions.errors import DecodeError, EtcdError
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    KeyRange,
    KeyValue,
    Txn,
)
from etcd_actions.model import ActionId, Keyspace, Phase
from etcd_actions.model.names import ROOT_ACTION, parse_key
from etcd_actions.runs.record import RunRecord, decode_history, decode_record
from etcd_actions.store import Store

_ENDS: Final = frozenset(phase.value for phase in Phase if phase.is_terminal)
_MOST_EVERY: Final = 6 * 3600.0
_LEAST_EVERY: Final = 60.0
# Between two records, so that a sweep is never all that etcd does.
_PAUSE: Final = 0.005

_log = structlog.get_logger(__name__)


class Collected(msgspec.Struct, frozen=True):
    """What one sweep deleted."""

    records: int = 0
    histories: int = 0


class RunCollector:
    """See the module's text.

    Args:
        store: Where the records are.
        keys: Under which keys; those of all namespaces are looked at.
        keep: For how long a run is kept after its end.
        clock: The time.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        keep: timedelta,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._keys = keys
        self._keep = keep
        self._clock = clock

    async def run(self, leads: Callable[[], bool]) -> None:
        """Sweep again and again while ``leads`` says so; does not return.

        While etcd refuses it waits for the next time.
        """
        every = max(_LEAST_EVERY, min(_MOST_EVERY, self._keep.total_seconds() / 100))
        while True:
            if leads():
                try:
                    collected = await self.sweep()
                except EtcdError as error:
                    _log.warning("runs_not_collected", error=str(error))
                else:
                    if collected.records:
                        _log.info(
                            "runs_collected",
                            records=collected.records,
                            histories=collected.histories,
                        )
            await trio.sleep(every)

    async def sweep(self) -> Collected:
        """Delete what is old enough now. Cancelled, it did a part of it.

        Raises:
            EtcdError: etcd did not do it; a part may be done.
        """
        before = self._clock() - self._keep
        records = histories = 0
        old = [
            kv.key
            async for kv in self._store.each(KeyRange.of_prefix(self._keys.runs))
            if _is_old(kv, before)
        ]
        for key in old:
            await trio.sleep(_PAUSE)
            # Read again: a page may be as old as the sweep is long.
            seen = await self._store.get(key)
            if seen is None or not _is_old(seen, before):
                continue
            fence = await self._root_is_over(seen)
            if fence is None:
                continue
            histories += await self._delete_histories(seen)
            task = self._keys.run_tasks + seen.key.removeprefix(self._keys.runs)
            if await self._delete(seen, fence, task):
                records += 1
        return Collected(records, histories)

    async def _root_is_over(self, seen: KeyValue) -> Compare | None:
        """What holds while the root is as it is, over or gone; None where it goes on."""
        try:
            namespace, run = parse_key(self._keys.runs, seen.key)
            keys = self._keys.within(namespace)
            root = keys.task_action(ActionId("", "", run, ROOT_ACTION))
        except (DecodeError, ValueError):
            return None
        kv = await self._store.get(root)
        if kv is not None:
            try:
                if not StoredTaskAction.of(kv).is_terminal:
                    return None
            except DecodeError:
                # Whether it is over nobody knows.
                return None
        revision = 0 if kv is None else kv.mod_revision
        return Compare(root, CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision)

    async def _delete_histories(self, seen: KeyValue) -> int:
        """Delete the histories of a run's actions; those of ``<run>-<more>`` stay."""
        record = decode_record(seen.value)
        namespace, run = parse_key(self._keys.runs, seen.key)
        prefix = self._keys.histories + f"{namespace}/{run}-".encode()
        count = 0
        async for kv in self._store.each(KeyRange.of_prefix(prefix)):
            try:
                history = decode_history(kv.value)
            except DecodeError:
                continue
            if (history.project, history.domain, history.run) != (
                record.project,
                record.domain,
                record.name,
            ):
                continue
            # One that was made since is of a run that has the name now.
            if history.create_revision > seen.mod_revision or await self._goes_on(kv):
                continue
            count += await self._delete(kv, None)
        return count

    async def _goes_on(self, history: KeyValue) -> bool:
        """Whether the action of a history is not over."""
        name = history.key[len(self._keys.histories) :]
        kv = await self._store.get(self._keys.prefix + name)
        if kv is None:
            return False
        try:
            return not StoredTaskAction.of(kv).is_terminal
        except DecodeError:
            return True

    async def _delete(self, seen: KeyValue, fence: Compare | None, *beside: bytes) -> bool:
        """Delete a key as it was read, and what goes with it."""
        unchanged = Compare(
            seen.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, seen.mod_revision
        )
        compares = (unchanged,) if fence is None else (unchanged, fence)
        deletes = [Delete(KeyRange.of_key(key)) for key in (seen.key, *beside)]
        return (await self._store.txn(Txn(compares, deletes, ()))).succeeded


def _is_old(kv: KeyValue, before: datetime) -> bool:
    """Whether a run ended so long ago, or was created then and nobody knows of its end."""
    try:
        record = decode_record(kv.value)
    except DecodeError:
        return False
    return _ended(record) < before


def _ended(record: RunRecord) -> datetime:
    status = record.status
    if status is None or status.phase not in _ENDS or status.ended is None:
        # Of one whose root goes on that is asked for later.
        return record.created
    return status.ended
