"""What a task's container names as its image, where the image's definition is stored here."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

REGISTRY: Final = "etcd-actions"
"""What references of stored definitions begin with: no registry of images has this name."""

_REFERENCE: Final = re.compile(rf"{REGISTRY}/(\S{{1,512}})@sha256:([0-9a-f]{{64}})")


class ImageReference(NamedTuple):
    """One stored definition.

    Attributes:
        name: What the SDK calls the image, ``<name>:<tag>``.
        digest: Of the definition, in hexadecimal digits: it never means another one.
    """

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{REGISTRY}/{self.name}@sha256:{self.digest}"


def parse_reference(text: str) -> ImageReference | None:
    """Read what :class:`ImageReference` writes; None for any other image."""
    found = _REFERENCE.fullmatch(text)
    return None if found is None else ImageReference(found[1], found[2])
