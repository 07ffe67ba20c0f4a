"""The object of an aborted action: its phase, its reason, and its deletion timestamp."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    FINALIZER_RECORD,
    Phase,
)
from etcd_actions.model.conditions import rfc3339, write_phase
from etcd_actions.model.flyte_types import EnrichedIdentity


def aborted_value(
    kv: KeyValue,
    reason: str,
    by: str,
    *,
    now: datetime,
    delete: bool = False,
    finalizer: bool = True,
) -> bytes:
    """Return the value of an object with the phase ABORTED.

    If the object has another finalizer than ours, its deletion is requested as by an API server, so
    that the owner of that finalizer ends its work.

    Args:
        kv: The stored object.
        reason: The reason, for people.
        by: The subject that requested the abort.
        now: The present time.
        delete: Whether to request the deletion in any case.
        finalizer: Whether to add our finalizer to an object whose deletion is requested.

    Raises:
        DecodeError: The value cannot be decoded, or the new one not encoded.
    """
    codec = codec_of(kv.value)
    tree = codec.decode_tree(kv.value, key=kv.key, revision=kv.mod_revision)
    write_phase(tree, Phase.ABORTED, now=now, message=reason)
    annotations = tree["metadata"].get("annotations") or {}
    tree["metadata"]["annotations"] = annotations
    if reason:
        annotations[ANNOTATION_ABORT_REASON] = reason
    if by:
        annotations[ANNOTATION_ABORTED_BY] = by
    if not annotations:
        del tree["metadata"]["annotations"]
    finalizers = tree["metadata"].get("finalizers") or []
    if delete or any(each != FINALIZER_RECORD for each in finalizers):
        set_deletion_timestamp(tree, now, finalizer=finalizer)
    return encoded(kv, tree)


def encoded(kv: KeyValue, tree: dict[str, Any]) -> bytes:
    """Encode a tree in the object's form, after a change of neither spec nor managedFields.

    Raises:
        DecodeError: The tree cannot be encoded, for example because of its size.
    """
    unchanged = (tree.get("spec"), tree["metadata"].get("managedFields"))
    try:
        return codec_of(kv.value).encode_tree(tree, unchanged=unchanged)
    except (TypeError, ValueError) as error:
        reason = f"it cannot be changed: {error}"
        raise DecodeError(reason, key=kv.key, revision=kv.mod_revision) from None


def set_deletion_timestamp(tree: dict[str, Any], now: datetime, *, finalizer: bool = True) -> bool:
    """Request the deletion in an object's tree, and return whether that was new.

    Our finalizer delays the deletion until the terminal state is recorded. Without any finalizer an
    API server deletes the object at its next change, recorded or not.
    """
    metadata = tree["metadata"]
    if metadata.get("deletionTimestamp"):
        return False
    finalizers = metadata.get("finalizers") or []
    if finalizer and FINALIZER_RECORD not in finalizers:
        metadata["finalizers"] = [*finalizers, FINALIZER_RECORD]
    metadata["deletionTimestamp"] = rfc3339(now)
    metadata["deletionGracePeriodSeconds"] = 0
    metadata["generation"] = (metadata.get("generation") or 0) + 1
    return True


def subject_of(identity: EnrichedIdentity) -> str:
    """Return the subject of an identity: of its user, or else of its application."""
    subject: str = identity.user.id.subject or identity.application.id.subject
    return subject
