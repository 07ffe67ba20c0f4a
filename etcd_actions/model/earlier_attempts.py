"""An object's notes on its earlier attempts, for which Flyte's object has no field.

``status`` has the error of the last attempt only, and none once the next attempt begins. So the
write that begins an attempt also notes the outcome of the attempt before, in an annotation of
ours. One write does both, so no crash can separate them, and no conflation can lose the note.
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
"""Bytes of all notes together. Beyond them the oldest messages are removed, then the oldest
notes."""


class EarlierAttempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of an attempt that another one followed."""

    attempt: int
    ended: str = ""
    """RFC 3339; when the next one began."""
    entries: int = 0
    """Entries of ``status.phaseHistory`` at that time: later ones belong to later attempts."""
    code: str = ""
    kind: str = ""
    message: str = ""


_decoder = msgspec.json.Decoder(list[EarlierAttempt])


def earlier_attempts(action: ActionObject) -> Sequence[EarlierAttempt]:
    """An object's notes, by attempt; none if they cannot be decoded."""
    return _read(action.metadata.annotations.get(ANNOTATION_ATTEMPTS, ""))


def note_earlier(
    tree: dict[str, Any],
    attempt: int,
    error: ErrorState | None,
    *,
    entries: int,
    ended: str,
) -> None:
    """Note the outcome of an attempt in an object's tree.

    Args:
        tree: Of a codec's ``decode_tree``; changed in place.
        attempt: Which attempt.
        error: Why it failed; None if it is not known.
        entries: Entries of the history before the next attempt adds one.
        ended: When the next one begins, RFC 3339.

    Raises:
        DecodeError: The annotations are not an object.
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
    """A text in valid UTF-8 of at most `most` characters; of a longer one, its two ends."""
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
        # Another writer replaced it. The notes are lost; the attempt continues.
        return ()
    return sorted(found, key=lambda each: each.attempt)
