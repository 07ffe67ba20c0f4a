"""Changes the object of one action: read, change, write if it is still what was read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from etcd_actions.actions.stored import (
    StoredTaskAction,
    check_identity,
    check_incarnation,
    describe,
    missing,
)
from etcd_actions.codecs import codec_of
from etcd_actions.errors import (
    ClaimLost,
    EtcdError,
    InvalidArgument,
    LeaseNotFound,
    NotFound,
    OutcomeUnknown,
    RequestTooLarge,
)
from etcd_actions.etcd.api import Compare, KeyValue
from etcd_actions.model import ActionId, Incarnation, Keyspace
from etcd_actions.store import CasResult, Store

Change = Callable[[StoredTaskAction, dict[str, Any]], bool]
"""Changes the tree of an object in place, and says whether there was anything to change.

It is called again with the newer object whenever somebody else was faster, and after a lost
answer maybe with what it has written itself; an error of its own ends the attempt.
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
) -> StoredTaskAction:
    """Change a task's or condition's object, however often others change it meanwhile.

    All else in the object stays, in the form that it was stored in.

    Args:
        store: Where the object is.
        keys: Under which key.
        action_id: Which action; the organisation counts where both sides know it.
        change: What to do.
        field: What is named as the cause when the object becomes one that cannot be stored.
        fence: What must hold for the write to count, in the same transaction.
        incarnation: Which object is meant; by default the one that is there at first. One that
            is made under its key meanwhile is not changed.

    Returns:
        The object as it is now, written or found so, with its revision. Reads that begin
        after this see it or a newer one.

    Raises:
        NotFound: There is no such action, the object of its name is another action's, or it is
            another incarnation.
        ClaimLost: The fence does not hold.
        InvalidArgument: The identity makes no key, or the object would be too large.
        DecodeError: What is stored cannot be read.
        OutcomeUnknown: The answer was lost and the object was not changed when it was read
            again, or could not be read. The change may still be applied; asking for the
            same again does it once.
        EtcdError: etcd did not do it; nothing was changed.
    """
    try:
        key = keys.task_action(action_id)
    except ValueError as error:
        raise InvalidArgument("action_id", str(error)) from None
    seen = await store.get(key)
    while True:
        if seen is None:
            raise NotFound(missing(action_id, keys))
        codec = codec_of(seen.value)
        action = StoredTaskAction.of(seen)
        check_identity(action, action_id)
        incarnation = incarnation or action.incarnation
        check_incarnation(action, incarnation)
        tree = codec.decode_tree(seen.value, key=key, revision=seen.mod_revision)
        if not change(action, tree):
            return action
        try:
            value = codec.encode_tree(tree)
        except ValueError as error:
            raise InvalidArgument(field, f"the object cannot be stored: {error}") from None
        if value == seen.value:
            # The change says nothing that is not there.
            return action
        applied, current = await _write(store, seen, value, field, fence)
        if applied:
            assert current is not None
            return StoredTaskAction.of(current)
        unchanged = current is not None and current.mod_revision == seen.mod_revision
        if fence is not None and unchanged and value != seen.value:
            raise ClaimLost(f"{describe(action_id)} is claimed by somebody else, or by nobody")
        seen = current


async def _write(
    store: Store, seen: KeyValue, value: bytes, field: str, fence: Compare | None
) -> CasResult:
    try:
        return await store.compare_and_put(seen, value, fence=fence)
    except RequestTooLarge:
        raise InvalidArgument(
            field,
            f"with it the object has {len(value)} bytes, more than etcd takes "
            "(--max-request-bytes): make it shorter",
        ) from None
    except (OutcomeUnknown, LeaseNotFound) as lost:
        try:
            current = await store.get(seen.key)
        except EtcdError:
            raise lost from None
        if current is not None and current.mod_revision == seen.mod_revision:
            raise
        return CasResult(applied=False, current=current)


def utc_now() -> datetime:
    """The time, as a clock of the operations gives it."""
    return datetime.now(UTC)
