"""A run service of our own: it keeps runs' records and actions' histories in etcd.

A root's state goes into its run's record whenever it changes; the history of an action is written
when an attempt follows another one, and when it is over. Until then its object says all of that.

What is stored says which state of which incarnation it is about, and is replaced by
compare-and-swap, by a newer one only. So a call may be repeated, cancelled, and come late, from a
leader that does not know that it leads no more: nothing it says can undo what is newer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import msgspec
import structlog

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.errors import (
    DecodeError,
    EtcdError,
    InvalidRequest,
    RequestTooLarge,
    RunServiceRejected,
    RunServiceUnavailable,
)
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ActionId,
    ActionObject,
    ActionUpdate,
    Keyspace,
    Phase,
)
from etcd_actions.runs.progress import (
    Told,
    history_of,
    is_another,
    is_news,
    is_of_another,
    is_root,
    new_record,
    status_of,
)
from etcd_actions.runs.run_record import (
    ActionHistory,
    Attempt,
    LaterForm,
    RunRecord,
    decode_history,
    decode_record,
    encode,
)
from etcd_actions.storage.store import Store

_MOST_SEEN: Final = 1024
_LARGEST_SEEN: Final = 16 * 1024
_INVALID_ARGUMENT: Final = 3
_FAILED_PRECONDITION: Final = 9

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_own_run_service(
    etcd: Etcd,
    keys: Keyspace,
    *,
    containment: Containment | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> AsyncIterator[OwnRunService]:
    """Keep runs' records and actions' histories below ``keys``.

    Args:
        etcd: The connection; it must live longer.
        keys: Whose `runs` and `histories` are written; the namespace is each action's own.
        containment: Where unexpected failures are counted.
        clock: The time, for what is deleted before it is over.
    """
    async with open_group_commit(etcd, containment) as commit:
        yield OwnRunService(Store(etcd, commit.txn, commit.get), keys, clock=clock)


async def history_of_action(
    store: Store, keys: Keyspace, action_id: ActionId
) -> ActionHistory | None:
    """The history of an action; None where none is kept, or it cannot be read.

    Raises:
        EtcdError: etcd cannot be asked.
    """
    try:
        seen = await store.get(keys.history(action_id))
        found = None if seen is None else decode_history(seen.value)
    except (DecodeError, ValueError):
        return None
    if found is None or (found.project, found.domain) != (action_id.project, action_id.domain):
        return None
    return found


class OwnRunService:
    """Implements :class:`~etcd_actions.run_service.RunService`; see the module's text."""

    keeps_order: Final = True

    def __init__(
        self, store: Store, keys: Keyspace, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        # What was there last, as a guess that spares a read.
        self._seen: OrderedDict[bytes, KeyValue] = OrderedDict()

    def wants(self, phase: Phase, deleted: bool) -> bool:
        """Every state: only an action's name tells a root from others."""
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Make a record for the run of a root that has none, as one that nobody created has not.

        Cancelled, it may have been made, which is safe.

        Raises:
            RunServiceUnavailable: etcd did not do it now.
            RunServiceRejected: The record cannot be written.
        """
        if not is_root(update):
            return

        def change(seen: KeyValue | None) -> bytes | None:
            record = _record(seen)
            if record is not None and not is_of_another(record, seen, update):
                return None
            return encode(new_record(update, action, self._clock()))

        await self._keep(self._run_key(update), change)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """See :meth:`update_action_state`; without the object less is known."""
        await self.update_action_state(update, None)

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Keep a state, unless a newer one is kept. Cancelled, it may have been kept.

        Args:
            update: The state.
            action: The object that it is a state of; None where that is gone.

        Raises:
            RunServiceUnavailable: etcd did not do it now.
            RunServiceRejected: It cannot be written.
        """
        if is_root(update):
            await self._keep_status(update, action)
        if update.action_type == ACTION_TYPE_TRACE:
            return
        if update.phase.is_terminal or update.is_deleted or update.attempts > 1:
            await self._keep_history(update, action)

    async def _keep_status(self, update: ActionUpdate, action: ActionObject | None) -> None:
        def change(seen: KeyValue | None) -> bytes | None:
            record = _record(seen)
            before = None if record is None else record.status
            if seen is not None and before is not None:
                told = Told(before.create_revision, before.revision, before.phase, before.attempts)
                if not is_news(update, told, seen):
                    return None
                if is_another(update, told, seen):
                    before = None
            if record is None or is_of_another(record, seen, update):
                record = new_record(update, action, self._clock())
            status = status_of(update, action, before, self._clock())
            return encode(msgspec.structs.replace(record, status=status))

        await self._keep(self._run_key(update), change)

    async def _keep_history(self, update: ActionUpdate, action: ActionObject | None) -> None:
        def change(seen: KeyValue | None) -> bytes | None:
            before = _history(seen)
            if seen is not None and before is not None:
                last = before.attempts[-1] if before.attempts else Attempt(number=1)
                told = Told(before.create_revision, before.revision, last.phase, last.number)
                if not is_news(update, told, seen):
                    return None
                if is_another(update, told, seen):
                    before = None
            after = history_of(update, action, before)
            is_over = update.phase.is_terminal or update.is_deleted
            if before is not None and not is_over and before.attempts[:-1] == after.attempts[:-1]:
                # Of what goes on the object says all but how the earlier ones ended.
                return None
            return encode(after)

        key = self._key(update, lambda keys: keys.history(update.action_id))
        await self._keep(key, change)

    def _run_key(self, update: ActionUpdate) -> bytes:
        return self._key(update, lambda keys: keys.run_record(update.action_id))

    def _key(self, update: ActionUpdate, key: Callable[[Keyspace], bytes]) -> bytes:
        try:
            return key(self._keys.within(update.namespace))
        except ValueError as error:
            raise RunServiceRejected(str(error), code=_INVALID_ARGUMENT) from None

    async def _keep(self, key: bytes, change: Callable[[KeyValue | None], bytes | None]) -> None:
        """Compare and swap until it is done, or there is nothing to be done.

        Raises:
            RunServiceUnavailable: etcd did not do it now.
            RunServiceRejected: It never will.
        """
        name = key.decode(errors="backslashreplace")
        seen = self._seen.pop(key, None)
        try:
            while True:
                value = change(seen)
                if value is None:
                    assert seen is not None
                    self._remember(seen)
                    return
                revision = 0 if seen is None else seen.mod_revision
                unchanged = Compare(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision)
                txn = Txn([unchanged], [Put(key, value)], [Get(KeyRange.of_key(key))])
                result = await self._store.txn(txn)
                if result.succeeded:
                    created = result.revision if seen is None else seen.create_revision
                    version = 1 if seen is None else seen.version + 1
                    self._remember(KeyValue(key, value, created, result.revision, version))
                    return
                found = result.responses[0]
                assert isinstance(found, RangeResult)
                seen = found.kvs[0] if found.kvs else None
        except LaterForm as error:
            raise RunServiceRejected(
                f"{name}: {error}: let the newest version lead", code=_FAILED_PRECONDITION
            ) from None
        except (RequestTooLarge, InvalidRequest) as error:
            raise RunServiceRejected(f"{name}: {error}", code=_INVALID_ARGUMENT) from error
        except EtcdError as error:
            raise RunServiceUnavailable(f"{name}: {error}") from error

    def _remember(self, kv: KeyValue) -> None:
        if len(kv.value) > _LARGEST_SEEN or not kv.key.startswith(self._keys.runs):
            return
        self._seen[kv.key] = kv
        self._seen.move_to_end(kv.key)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)


def _record(seen: KeyValue | None) -> RunRecord | None:
    if seen is None:
        return None
    try:
        return decode_record(seen.value)
    except LaterForm:
        raise
    except DecodeError as error:
        _replaced(seen, error)
        return None


def _history(seen: KeyValue | None) -> ActionHistory | None:
    if seen is None:
        return None
    try:
        return decode_history(seen.value)
    except LaterForm:
        raise
    except DecodeError as error:
        _replaced(seen, error)
        return None


def _replaced(seen: KeyValue, error: DecodeError) -> None:
    key = seen.key.decode(errors="backslashreplace")
    _log.error("record_replaced", key=key, revision=seen.mod_revision, reason=str(error))
