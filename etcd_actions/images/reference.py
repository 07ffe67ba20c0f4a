"""References to stored definitions of images, in the form of the image of a task's container."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

REGISTRY: Final = "etcd-actions"
"""The first part of references to stored definitions: no registry of images has this name."""

_REFERENCE: Final = re.compile(rf"{REGISTRY}/(\S{{1,512}})@sha256:([0-9a-f]{{64}})")


class ImageReference(NamedTuple):
    """One stored definition.

    Attributes:
        name: The SDK's name of the image, ``<name>:<tag>``.
        digest: The definition's SHA-256, in hexadecimal digits.
    """

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{REGISTRY}/{self.name}@sha256:{self.digest}"


def parse_reference(text: str) -> ImageReference | None:
    """Parse the text of an :class:`ImageReference`; None for another image."""
    found = _REFERENCE.fullmatch(text)
    return None if found is None else ImageReference(found[1], found[2])
