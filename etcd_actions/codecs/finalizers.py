"""Finalizers, which delay the deletion of an object after it was requested."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from etcd_actions.errors import DecodeError

NO_TEXTS: Final[Mapping[str, str]] = MappingProxyType({})
"""No labels, or no annotations, are to be set."""


class Released(NamedTuple):
    """A value after a finalizer was taken away.

    Attributes:
        value: The new bytes; the old ones themselves where there was nothing to change.
        held: Whether it has finalizers still.
        deleting: Whether its deletion was requested.
    """

    value: bytes
    held: bool
    deleting: bool

    @property
    def delete(self) -> bool:
        """Whether the object is to be deleted instead of written, as an API server does."""
        return self.deleting and not self.held


def drop_finalizer(
    tree: dict[str, Any], finalizer: str, *, key: bytes = b"", revision: int = 0
) -> bool:
    """Take a finalizer out of ``metadata.finalizers``, in place; an empty list goes, too.

    Returns:
        Whether it was there; without it nothing is changed.

    Raises:
        DecodeError: There are finalizers that are no list.
    """
    metadata = tree["metadata"]
    finalizers = metadata.get("finalizers")
    if finalizers is None:
        return False
    if not isinstance(finalizers, list):
        raise DecodeError("metadata.finalizers: not a list", key=key, revision=revision)
    kept = [each for each in finalizers if each != finalizer]
    if len(kept) == len(finalizers):
        return False
    if kept:
        metadata["finalizers"] = kept
    else:
        del metadata["finalizers"]
    return True


def released(value: bytes, tree: dict[str, Any]) -> Released:
    """What a value's tree says of it."""
    metadata = tree["metadata"]
    return Released(
        value, bool(metadata.get("finalizers")), bool(metadata.get("deletionTimestamp"))
    )
