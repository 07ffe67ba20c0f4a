"""An object's notes on its earlier attempts, for which Flyte's object has no field.

``status`` has one error, and none once the next attempt begins. So the write that begins an
attempt notes how the one before ended, in an annotation of ours. One transaction does both: no
crash, and no reader that skips states, can come between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model.names import ANNOTATION_ATTEMPTS
from etcd_actions.model.taskaction import ActionObject, ErrorState

MOST_OF_A_MESSAGE: Final = 2048
"""Characters of an earlier error's message that an object keeps."""
MOST_TOGETHER: Final = 16 * 1024
"""Bytes that all of them may take; beyond them the oldest messages go, then the oldest."""


class EarlierAttempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt ended that another one followed."""

    attempt: int
    ended: str = ""
    """RFC 3339; when the next one began."""
    entries: int = 0
    """How long ``status.phaseHistory`` was then: what follows is not this attempt's."""
    code: str = ""
    kind: str = ""
    message: str = ""


_decoder = msgspec.json.Decoder(list[EarlierAttempt])


def earlier_attempts(action: ActionObject) -> Sequence[EarlierAttempt]:
    """What an object has noted, by attempt; nothing where it cannot be read."""
    text = action.metadata.annotations.get(ANNOTATION_ATTEMPTS, "")
    return _read(text)


def note_earlier(
    tree: dict[str, Any],
    attempt: int,
    error: ErrorState | None,
    *,
    entries: int,
    ended: str,
) -> None:
    """Note in an object's tree how an attempt ended.

    Args:
        tree: What a codec's ``decode_tree`` gave; changed in place.
        attempt: Which attempt.
        error: Why it failed; None if it is not known.
        entries: How long the history is, before the next attempt has any of it.
        ended: When the next one begins, RFC 3339.

    Raises:
        DecodeError: The object has something else in the place of the annotations.
    """
    metadata = tree.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(annotations, dict | None):
        raise DecodeError("metadata.annotations: not an object")
    annotations = annotations or {}
    before = annotations.get(ANNOTATION_ATTEMPTS, "")
    error = error or ErrorState()
    noted = EarlierAttempt(
        attempt,
        ended,
        entries,
        shortened(error.code, 256),
        shortened(error.kind, 64),
        shortened(error.message, MOST_OF_A_MESSAGE),
    )
    kept = [each for each in _read(before) if each.attempt < attempt]
    annotations[ANNOTATION_ATTEMPTS] = _bounded([*kept, noted])
    metadata["annotations"] = annotations


def shortened(text: str, most: int) -> str:
    """A text that can be stored: its beginning and its end, where it is longer than that."""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= most:
        return text
    gap = " [...] "
    kept = max(most - len(gap), 2)
    return text[: kept // 2] + gap + text[-(kept - kept // 2) :]


def _bounded(attempts: list[EarlierAttempt]) -> str:
    texts = [msgspec.json.encode(each) for each in attempts]
    size = sum(map(len, texts))
    for number, each in enumerate(attempts[:-1]):
        if size <= MOST_TOGETHER:
            break
        size -= len(texts[number])
        texts[number] = msgspec.json.encode(msgspec.structs.replace(each, message=""))
        size += len(texts[number])
    while size > MOST_TOGETHER and len(texts) > 1:
        size -= len(texts.pop(0))
    return f"[{b','.join(texts).decode()}]"


def _read(text: object) -> Sequence[EarlierAttempt]:
    if not isinstance(text, str) or not text:
        return ()
    try:
        found = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):
        # Another writer replaced it. Its content is lost; the attempt continues.
        return ()
    return sorted(found, key=lambda each: each.attempt)
