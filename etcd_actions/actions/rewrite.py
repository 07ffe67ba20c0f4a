"""Changes the object of one action by compare-and-swap, based on the object that was read last."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.stored_action import (
    StoredAction,
    check_identity,
    check_incarnation,
    describe,
    missing,
)
from etcd_actions.codecs import codec_of
from etcd_actions.errors import (
    ClaimLost,
    EtcdActionsError,
    EtcdError,
    InvalidArgument,
    LeaseNotFound,
    NotFound,
    OutcomeUnknown,
    RequestTooLarge,
    Unavailable,
)
from etcd_actions.etcd.api import Compare, KeyValue
from etcd_actions.model import ActionId, Incarnation, Keyspace
from etcd_actions.storage.store import CasResult, Store

Change = Callable[[StoredAction, dict[str, Any]], bool]
"""Changes the tree of an object in place; returns whether it changed anything.

It must not change ``spec`` and ``metadata.managedFields``. It is called again with the newer object
if another writer was faster, and after a lost answer perhaps with the object that it has changed
before. An error that it raises ends the attempt.
"""


async def rewrite(
    store: Store,
    keys: Keyspace,
    action_id: ActionId,
    change: Change,
    *,
    field: str,
    fence: Compare | None = None,
    incarnation: Incarnation | None = None,
    cache: ReadCache | None = None,
    seen: StoredAction | None = None,
) -> StoredAction:
    """Change the object of a task or a condition, and retry while others change it.

    All other fields stay, in their stored form. The first write is based on ``seen`` or on the
    cached object, without a read, as in Kubernetes' ``GuaranteedUpdate``. Both may be old. So an
    error, or a change without effect, is accepted only for an object that was read.

    Args:
        store: Reads and writes the object.
        keys: The keyspace.
        action_id: The action; its organization counts if both sides have one.
        change: The change.
        field: The field that the error names if the changed object cannot be stored.
        fence: A compare in the transaction of the write.
        incarnation: Change only this object; by default the one of ``seen``, or else the one that
            is read first.
        cache: The objects that were read or written last; this call updates it.
        seen: The caller's last state of the object.

    Returns:
        The present object, written or found so. Reads that start afterwards return it or a newer
        one.

    Raises:
        NotFound: There is no such action, the object of its name is another action's, or it is
            another incarnation.
        ClaimLost: The fence failed.
        InvalidArgument: A part of the identity is empty or has a slash, ``seen`` is another action,
            or the object would be too large.
        DecodeError: The stored value cannot be decoded.
        OutcomeUnknown: The answer was lost, and the object was unchanged when it was read again, or
            could not be read. The change may still be applied; the same call again is safe.
        EtcdError: The write failed; nothing was changed.
    """
    try:
        key = keys.task_action(action_id)
    except ValueError as error:
        raise InvalidArgument("action_id", str(error)) from None
    cache = ReadCache() if cache is None else cache
    before = cache.get(key)
    if seen is not None:
        if seen.key != key:
            raise InvalidArgument("seen", f"it is action {describe(seen.action_id)}")
        incarnation = incarnation or seen.incarnation
        if before is None or before.mod_revision < seen.revision:
            before = seen.kv
    try:
        return await _rewrite(
            store, keys, action_id, key, before, change, field, fence, incarnation, cache
        )
    except Unavailable:
        cache.clear()
        raise


async def _rewrite(
    store: Store,
    keys: Keyspace,
    action_id: ActionId,
    key: bytes,
    before: KeyValue | None,
    change: Change,
    field: str,
    fence: Compare | None,
    incarnation: Incarnation | None,
    cache: ReadCache,
) -> StoredAction:
    sure = before is None
    if before is None:
        before = await store.get(key)
    while True:
        value = None
        try:
            if before is None:
                cache.forget(key)
                raise NotFound(missing(action_id, keys))
            action = StoredAction.of(before)
            check_identity(action, action_id)
            if sure:
                incarnation = incarnation or action.incarnation
            if incarnation is not None:
                check_incarnation(action, incarnation)
            value = _changed(before, action, change, field)
            if value is None and sure:
                cache.put(before)
                return action
        except EtcdActionsError:
            if sure:
                raise
        if before is None or value is None:
            before, sure = await store.get(key), True
            continue
        applied, current = await _write(store, before, value, field, fence, cache)
        if applied:
            assert current is not None
            cache.put(current)
            return StoredAction.of(current)
        unchanged = current is not None and current.mod_revision == before.mod_revision
        if fence is not None and unchanged:
            raise ClaimLost(f"{describe(action_id)} is claimed by another process, or not at all")
        before, sure = current, True


def _changed(before: KeyValue, action: StoredAction, change: Change, field: str) -> bytes | None:
    """The bytes of an object after a change; None if the change has no effect."""
    codec = codec_of(before.value)
    tree = codec.decode_tree(before.value, key=before.key, revision=before.mod_revision)
    # The specification and the managed fields are most of the bytes, and never change.
    unchanged = (tree.get("spec"), tree["metadata"].get("managedFields"))
    if not change(action, tree):
        return None
    try:
        value = codec.encode_tree(tree, unchanged=unchanged)
    except ValueError as error:
        raise InvalidArgument(field, f"the object cannot be stored: {error}") from None
    return None if value == before.value else value


async def _write(
    store: Store,
    before: KeyValue,
    value: bytes,
    field: str,
    fence: Compare | None,
    cache: ReadCache,
) -> CasResult:
    try:
        return await store.compare_and_put(before, value, fence=fence)
    except RequestTooLarge:
        raise InvalidArgument(
            field,
            f"with it the object has {len(value)} bytes, more than etcd takes "
            "(--max-request-bytes): make it shorter",
        ) from None
    except (OutcomeUnknown, LeaseNotFound) as lost:
        if isinstance(lost, OutcomeUnknown):
            # After a lost connection etcd may be a restored store.
            cache.clear()
        try:
            current = await store.get(before.key)
        except EtcdError:
            raise lost from None
        if current is not None and current.mod_revision == before.mod_revision:
            raise
        return CasResult(applied=False, current=current)


def utc_now() -> datetime:
    """The present time, in UTC: the default clock of the operations."""
    return datetime.now(UTC)
