"""The keys of uploads, and of the trash that their collector moves them into; no I/O.

The collector removes units: all keys below ``content/<digest>`` or ``named/<root>`` of one
deployment, or the directory of one run's inputs.
"""

from __future__ import annotations

import re
from typing import Final

_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_TRASH: Final = "trash"
_UPLOADS: Final = ("content", "named")


def trash_key(deployment: str, moved: int, key: str) -> str:
    """The key of an upload in the trash, from which it is deleted later.

    Args:
        deployment: The deployment's name.
        moved: The time of the move, in seconds of the wall clock.
        key: The upload's own key.
    """
    return f"{trash_of(deployment)}/{moved}/{key}"


def trash_of(deployment: str) -> str:
    """The prefix of a deployment's trash."""
    return f"{_TRASH}/{deployment}"


def parse_trash(key: str) -> tuple[int, str] | None:
    """The time of an upload's move, and its own key; None for a key that is not in the trash."""
    parts = key.split("/", 3)
    if len(parts) < 4 or parts[0] != _TRASH or not (parts[2].isascii() and parts[2].isdigit()):
        return None
    return int(parts[2]), parts[3]


def unit_of(key: str, deployment: str) -> str | None:
    """The unit of a key; None if it is another deployment's, or no upload."""
    parts = key.split("/")
    if len(parts) < 6 or parts[3] != deployment:
        return None
    if parts[0] == "inputs" and _DIGEST.fullmatch(parts[4]):
        return f"inputs/{parts[4]}"
    if parts[0] != "uploads" or len(parts) < 7 or parts[4] not in _UPLOADS:
        return None
    if parts[4] == "content" and not _DIGEST.fullmatch(parts[5]):
        return None
    return f"{parts[4]}/{parts[5]}"
