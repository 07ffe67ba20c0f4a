"""Signals a condition: delivers the value that it waits for, once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from etcd_actions.actions.aborted_object import subject_of
from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.rewrite import rewrite, utc_now
from etcd_actions.actions.stored_action import StoredAction, describe
from etcd_actions.errors import DecodeError, FailedPrecondition, InvalidArgument
from etcd_actions.model import ActionId, Keyspace, Phase, flyte
from etcd_actions.model.conditions import rfc3339, write_phase
from etcd_actions.model.flyte_types import EnrichedIdentity, Literal
from etcd_actions.storage.store import Store

_TYPES: Final = {
    "integer": (1, "INTEGER"),
    "float_value": (2, "FLOAT"),
    "string_value": (3, "STRING"),
    "boolean": (4, "BOOLEAN"),
}
"""The number and the name of ``flyteidl2.core.SimpleType``, by the field of a primitive."""

_SIGNALED: Final = "Signaled"


async def signal(
    store: Store,
    keys: Keyspace,
    action_id: ActionId,
    value: bool | float | str | Literal,
    signalled_by: str | EnrichedIdentity = "",
    *,
    cache: ReadCache | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> StoredAction:
    """Deliver the value that a condition waits for, which ends it.

    One write stores the value, the subject, the time and the phase SUCCEEDED. Flyte's service
    stores the value, and its executor writes the phase later; here no executor is needed. The same
    value again changes nothing, also after the end. Only if the condition is signalled and not
    terminal, as by Flyte's service, the same value ends it.

    It is one compare-and-swap, retried if other writers were faster, so their changes stay. After a
    cancellation it was done completely or not at all.

    Args:
        store: Reads and writes the condition.
        keys: The keyspace.
        action_id: The condition.
        value: A boolean, an integer, a float or a string, or a literal with one.
        signalled_by: The subject; empty if it is not known. Of an identity it is that of its user,
            or else of its application.
        cache: The objects that were read or written last; the first write is based on it.
        clock: Returns the present time.

    Returns:
        The present condition. Reads that start afterwards return it or a newer one.

    Raises:
        InvalidArgument: The value is of another type, or not of the declared one.
        NotFound: There is no such action.
        FailedPrecondition: It is not a condition, has another value, or ended without one.
        DecodeError: The stored value cannot be decoded.
        ConfigError: ``flyteidl2`` is not installed.
        OutcomeUnknown: The answer was lost; the same signal again is safe.
        EtcdError: The write failed; nothing was changed.
    """
    if isinstance(value, (bool, int, float, str)):
        value = flyte.literal_of(value)
    number, kind = _type_of(value)
    subject = signalled_by if isinstance(signalled_by, str) else subject_of(signalled_by)
    data = value.SerializeToString(deterministic=True)

    def change(action: StoredAction, tree: dict[str, Any]) -> bool:
        who = describe(action.action_id)
        if not action.spec.is_condition:
            raise FailedPrecondition(
                f"{who} is a {action.spec.kind}: only conditions are signalled"
            )
        present = _present(action)
        if present is not None:
            if present != value and present.SerializeToString(deterministic=True) != data:
                raise FailedPrecondition(
                    f"{who} was signalled with another value"
                    + (f" by {action.status.signalled_by}" if action.status.signalled_by else "")
                )
            return not action.is_terminal and write_phase(
                tree, Phase.SUCCEEDED, now=clock(), reason=_SIGNALED
            )
        if action.is_terminal:
            raise FailedPrecondition(f"{who} has ended as {action.phase.name}")
        _check_type(action, number, kind)
        now = clock()
        status = tree["status"] = tree.get("status") or {}
        status["signalValue"] = msgspec.to_builtins(data)
        status["signalledAt"] = rfc3339(now)
        if subject:
            status["signalledBy"] = subject
        else:
            status.pop("signalledBy", None)
        write_phase(tree, Phase.SUCCEEDED, now=now, reason=_SIGNALED)
        return True

    return await rewrite(store, keys, action_id, change, field="value", cache=cache)


def _type_of(value: Literal) -> tuple[int, str]:
    field = None
    if value.WhichOneof("value") == "scalar" and value.scalar.WhichOneof("value") == "primitive":
        field = value.scalar.primitive.WhichOneof("value")
    if field not in _TYPES:
        what = f"a {field}" if field else "no scalar primitive"
        raise InvalidArgument("value", f"{what}: give a boolean, an integer, a float or a string")
    return _TYPES[field]


def _present(action: StoredAction) -> Literal | None:
    """The stored value; an undecodable one counts as none, as in Flyte."""
    try:
        return flyte.signal_value(action)
    except DecodeError:
        return None


def _check_type(action: StoredAction, number: int, kind: str) -> None:
    try:
        spec = flyte.condition_action(action)
    except DecodeError as error:
        raise DecodeError(error.reason, key=action.key, revision=action.revision) from None
    declared = spec.type if spec is not None else None
    if declared is not None and declared.WhichOneof("type") == "simple":
        if declared.simple == number:
            return
        expected = next((name for known, name in _TYPES.values() if known == declared.simple), None)
    else:
        expected = None
    raise InvalidArgument(
        "value",
        f"of type {kind}, but {describe(action.action_id)} waits for "
        + (f"type {expected}" if expected else "no type that can be signalled"),
    )
