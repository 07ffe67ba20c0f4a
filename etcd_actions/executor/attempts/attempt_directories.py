"""Where attempts are in the state directory, those of the version before among them.

That version named directories by the uid alone. What it started is followed on there, so nothing
is started twice because of an upgrade. But a uid alone does not say whose attempt it is: the first
object that asks has it, for good, and it counts as a success only where its own outputs say so.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import structlog

from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory, lacks_resources
from etcd_actions.model import Incarnation

_PRESENT: Final = re.compile(r"-[0-9a-f]{40}$")
_BEFORE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_log = structlog.get_logger(__name__)


def place_of(state_dir: Path, incarnation: Incarnation, attempt: int) -> AttemptDirectory:
    """Where an attempt is, or is to be.

    Args:
        state_dir: The executor's directory.
        incarnation: Whose attempt.
        attempt: Which, from 1 on.

    Raises:
        OSError: This cannot be told now, for want of descriptors or memory.
    """
    place = AttemptDirectory(state_dir, incarnation, attempt)
    path = state_dir / "attempts" / _name_before(incarnation.uid) / str(attempt)
    try:
        path.lstat()
    except OSError as error:
        if lacks_resources(error):
            raise
        return place
    before = AttemptDirectory.at(path, incarnation, is_inferred=True)
    if place.was_started or not (before.was_started or before.is_alive):
        return place
    if not before.note_object():
        _log.warning(
            "attempt_of_another_object", directory=str(path), object=place.path.parent.name
        )
        return place
    return before


def directories_of(incarnation: Incarnation) -> set[str]:
    """The names of the directories that may have attempts of an object."""
    return {incarnation.path_component, _name_before(incarnation.uid)}


def _name_before(uid: str) -> str:
    """What the version before called the directory of an object."""
    # A uid may be the name of another object's directory of today.
    if _BEFORE.fullmatch(uid) and not _PRESENT.search(uid):
        return uid
    return "." + hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()
