"""A run service of our own: it keeps runs' records and actions' histories in etcd.

Each state of a root is written into its run's record. The history of an action is written when an
attempt follows another one, and when the action ends; before that its object has all of it.

Each record and history has the incarnation and the revision of its state. Only a newer state
replaces it, by compare-and-swap. So a call may be repeated, cancelled, or delayed, also by a former
leader: an older state never replaces a newer one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

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
from etcd_actions.etcd.api import Etcd, KeyValue
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ActionId,
    ActionObject,
    ActionUpdate,
    Keyspace,
)
from etcd_actions.run_service import RunService
from etcd_actions.run_service.protocol import MarkCompanions
from etcd_actions.runs.progress import (
    Recorded,
    history_of,
    is_another,
    is_news,
    is_of_another,
    is_root,
    new_record,
    status_of,
)
from etcd_actions.runs.run_record import (
    Attempt,
    decode_history,
    decode_record,
    encode,
)
from etcd_actions.storage.store import KeyChange, Store
from etcd_actions.storage.stored_form import LaterForm

_MOST_SEEN: Final = 1024
_LARGEST_SEEN: Final = 16 * 1024
_INVALID_ARGUMENT: Final = 3
_FAILED_PRECONDITION: Final = 9

_Stored = TypeVar("_Stored")

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
        etcd: The connection; it has to be closed later.
        keys: The prefixes `runs` and `histories`; the namespace is that of each action.
        containment: The boundaries of the process.
        clock: The time of an end without a stored time, such as a deletion.
    """
    async with open_group_commit(etcd, containment) as commit:
        yield OwnRunService(Store(etcd, commit.txn, commit.get), keys, clock=clock)


class OwnRunService(RunService):
    """Implements :class:`~etcd_actions.run_service.RunService` by keys in etcd."""

    keeps_order = True

    def __init__(
        self, store: Store, keys: Keyspace, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        # The last known values of keys: a guess that saves a read.
        self._seen: OrderedDict[bytes, KeyValue] = OrderedDict()

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Store a record for the run of a root that has none.

        Cancelled, it may have been stored, which is safe.

        Raises:
            RunServiceUnavailable: etcd is unavailable; a retry may help.
            RunServiceRejected: The record can never be written.
        """
        if not is_root(update):
            return

        def change(seen: KeyValue | None) -> bytes | None:
            record = _readable(seen, decode_record)
            if record is not None and not is_of_another(record, seen, update):
                return None
            return encode(new_record(update, action, self._clock()))

        await self._store_change(self._change(update, Keyspace.run_record, change))

    async def update_action_status(self, update: ActionUpdate) -> None:
        """As :meth:`update_action_state`, without the object, so with fewer facts."""
        await self.update_action_state(update, None)

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Store a state, unless a newer one is stored. Cancelled, it may have been stored.

        Args:
            update: The state.
            action: The object with this state; None if it is deleted.

        Raises:
            RunServiceUnavailable: etcd is unavailable; a retry may help.
            RunServiceRejected: The state can never be written.
        """
        for change in self._changes(update, action):
            await self._store_change(change)

    def mark_companions(self, update: ActionUpdate, action: ActionObject | None) -> MarkCompanions:
        """The writes of :meth:`update_action_state`, as changes for the transaction of the mark.

        Raises:
            RunServiceRejected: The state can never be written.
        """
        write = partial(self.update_action_state, update, action)
        return MarkCompanions(self._changes(update, action), write)

    def _changes(self, update: ActionUpdate, action: ActionObject | None) -> list[KeyChange]:
        changes = []
        if is_root(update):
            status = partial(self._with_status, update, action)
            changes.append(self._change(update, Keyspace.run_record, status))
        ended = update.phase.is_terminal or update.is_deleted
        if update.action_type != ACTION_TYPE_TRACE and (ended or update.attempts > 1):
            history = partial(_with_attempts, update, action)
            changes.append(self._change(update, Keyspace.history, history))
        return changes

    def _with_status(
        self, update: ActionUpdate, action: ActionObject | None, seen: KeyValue | None
    ) -> bytes | None:
        """The record of a run with a state of its root; None if it has a newer one."""
        record = _readable(seen, decode_record)
        before = None if record is None else record.status
        if seen is not None and before is not None:
            recorded = Recorded(
                before.create_revision, before.revision, before.phase, before.attempts
            )
            if not is_news(update, recorded, seen):
                return None
            if is_another(update, recorded, seen):
                before = None
        if record is None or is_of_another(record, seen, update):
            record = new_record(update, action, self._clock())
        status = status_of(update, action, before, self._clock())
        return encode(msgspec.structs.replace(record, status=status))

    def _change(
        self,
        update: ActionUpdate,
        key_of: Callable[[Keyspace, ActionId], bytes],
        change: Callable[[KeyValue | None], bytes | None],
    ) -> KeyChange:
        try:
            key = key_of(self._keys.within(update.namespace), update.action_id)
        except ValueError as error:
            raise RunServiceRejected(str(error), code=_INVALID_ARGUMENT) from None

        def checked(seen: KeyValue | None) -> bytes | None:
            try:
                return change(seen)
            except LaterForm as error:
                raise RunServiceRejected(
                    f"{_text(key)}: {error}: let the newest version lead",
                    code=_FAILED_PRECONDITION,
                ) from None

        return KeyChange(key, checked, self._seen.pop(key, None))

    async def _store_change(self, change: KeyChange) -> None:
        """Compare and swap until it is stored, or there is nothing to store.

        Raises:
            RunServiceUnavailable: etcd is unavailable; a retry may help.
            RunServiceRejected: etcd refuses it, or a later version wrote the stored value.
        """
        try:
            while not await self._store.change([change]):
                pass
        except (RequestTooLarge, InvalidRequest) as error:
            message = f"{_text(change.key)}: {error}"
            raise RunServiceRejected(message, code=_INVALID_ARGUMENT) from error
        except EtcdError as error:
            raise RunServiceUnavailable(f"{_text(change.key)}: {error}") from error
        if change.seen is not None:
            self._remember(change.seen)

    def _remember(self, kv: KeyValue) -> None:
        if len(kv.value) > _LARGEST_SEEN or not kv.key.startswith(self._keys.runs):
            return
        self._seen[kv.key] = kv
        self._seen.move_to_end(kv.key)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)


def _with_attempts(
    update: ActionUpdate, action: ActionObject | None, seen: KeyValue | None
) -> bytes | None:
    """The history of an action with a state of it; None if nothing has to be written."""
    before = _readable(seen, decode_history)
    if seen is not None and before is not None:
        last = before.attempts[-1] if before.attempts else Attempt(number=1)
        recorded = Recorded(before.create_revision, before.revision, last.phase, last.number)
        if not is_news(update, recorded, seen):
            return None
        if is_another(update, recorded, seen):
            before = None
    after = history_of(update, action, before)
    ended = update.phase.is_terminal or update.is_deleted
    if before is not None and not ended and before.attempts[:-1] == after.attempts[:-1]:
        # The object of a running action has all of it, except the outcomes of earlier attempts.
        return None
    return encode(after)


def _readable(seen: KeyValue | None, decode: Callable[[bytes], _Stored]) -> _Stored | None:
    """Decode a value; None without one, or for an unreadable one, which is replaced.

    Raises:
        LaterForm: A later version of this package wrote it.
    """
    if seen is None:
        return None
    try:
        return decode(seen.value)
    except LaterForm:
        raise
    except DecodeError as error:
        key, revision = _text(seen.key), seen.mod_revision
        _log.error("record_replaced", key=key, revision=revision, reason=str(error))
        return None


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
