"""The changes that a mark makes in an object's metadata: texts are set, a finalizer is removed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from etcd_actions.codecs.object_tree import set_texts
from etcd_actions.errors import DecodeError

NO_TEXTS: Final[Mapping[str, str]] = MappingProxyType({})
"""No labels, or no annotations."""


class Released(NamedTuple):
    """A value without the finalizer.

    Attributes:
        value: The new bytes; the old ones if nothing changed.
        held: Whether it still has finalizers.
        deleting: Whether its deletion was requested.
    """

    value: bytes
    held: bool
    deleting: bool

    @property
    def delete(self) -> bool:
        """Whether the object has to be deleted instead of written, as by an API server."""
        return self.deleting and not self.held


def release_tree(
    tree: dict[str, Any],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    finalizer: str | None,
    *,
    key: bytes,
    revision: int,
) -> bool:
    """Set labels and annotations, and remove a finalizer, in place.

    Returns:
        Whether anything changed.

    Raises:
        DecodeError: ``metadata`` or one of these fields has another type.
    """
    changed = set_texts(tree, "labels", labels, key=key, revision=revision)
    changed |= set_texts(tree, "annotations", annotations, key=key, revision=revision)
    metadata = tree["metadata"]
    finalizers = metadata.get("finalizers")
    if finalizer is None or finalizers is None:
        return changed
    if not isinstance(finalizers, list):
        raise DecodeError("metadata.finalizers: not a list", key=key, revision=revision)
    kept = [each for each in finalizers if each != finalizer]
    if len(kept) == len(finalizers):
        return changed
    if kept:
        metadata["finalizers"] = kept
    else:
        del metadata["finalizers"]
    return True


def released(value: bytes, tree: dict[str, Any]) -> Released:
    """The result for a value and its changed tree."""
    metadata = tree["metadata"]
    return Released(
        value, bool(metadata.get("finalizers")), bool(metadata.get("deletionTimestamp"))
    )
