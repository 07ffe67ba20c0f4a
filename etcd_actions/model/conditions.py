"""Writing a phase: the conditions, history and labels that Flyte's executor would write.

All functions change a codec's tree in place, so that all other fields stay. ``docs/status.md``
has the table of phases and conditions, with its source in Flyte.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model import names
from etcd_actions.model.phase import (
    CONDITION_WAITING,
    FAILURES,
    TERMINAL,
    Condition,
    Phase,
    phase_of,
)
from etcd_actions.model.taskaction import ErrorState, parse_time

MAX_MESSAGE: Final = 32768
"""Characters of a condition's message that Kubernetes accepts; the rest is truncated."""

MAX_HISTORY: Final = 1000
"""Entries of the phase history. Beyond them the oldest are removed, except the first."""


class _Form(NamedTuple):
    """How a phase is stored: the condition that is ``True``, with the executor's texts."""

    kind: str
    reason: str
    message: str = ""
    progress: str = ""
    """The message of ``Progressing=False`` in a terminal phase; empty: the same as `message`."""
    history: str = ""
    """The message of its entry in the history."""


_SUCCEEDED: Final = "TaskAction completed successfully"
_COMPLETED: Final = "TaskAction has completed"
_ABORTED: Final = "TaskAction was aborted"

_FORMS: Final = {
    Phase.QUEUED: _Form("Progressing", "Queued"),
    Phase.WAITING_FOR_RESOURCES: _Form("Progressing", "Queued"),
    Phase.INITIALIZING: _Form("Progressing", "Initializing"),
    Phase.RUNNING: _Form("Progressing", "Executing"),
    Phase.PAUSED: _Form("Progressing", "Paused"),
    Phase.SUCCEEDED: _Form("Succeeded", "Completed", _SUCCEEDED, _COMPLETED),
    Phase.RECOVERED: _Form("Succeeded", "Recovered"),
    Phase.FAILED: _Form("Failed", "PermanentFailure"),
    Phase.TIMED_OUT: _Form("Failed", "TimedOut"),
    Phase.ABORTED: _Form("Failed", "Aborted", _ABORTED, history=_ABORTED),
}

_WAITING: Final = "WaitingForResources"
_DECIDING: Final = ("Progressing", "Succeeded", "Failed")

_ALL: Final = frozenset(Phase) - {Phase.UNSPECIFIED}

FOLLOWERS: Final = {
    Phase.UNSPECIFIED: _ALL,
    # Which of the two comes first depends on the plugin.
    Phase.QUEUED: _ALL,
    Phase.WAITING_FOR_RESOURCES: _ALL,
    Phase.INITIALIZING: TERMINAL | {Phase.INITIALIZING, Phase.RUNNING, Phase.PAUSED},
    Phase.RUNNING: TERMINAL | {Phase.RUNNING, Phase.PAUSED},
    Phase.PAUSED: TERMINAL | {Phase.PAUSED, Phase.RUNNING},
    **{phase: frozenset({phase}) for phase in TERMINAL},
}
"""The phases that may follow each phase within one attempt; a phase may be repeated."""


def rfc3339(time: datetime) -> str:
    """Format a time as Kubernetes does: UTC, seconds without a fraction, ``Z``."""
    return time.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def write_phase(
    tree: dict[str, Any],
    phase: Phase,
    *,
    now: datetime,
    reason: str | None = None,
    message: str | None = None,
    attempts: int | None = None,
    cache_status: int | None = None,
    error: ErrorState | None = None,
) -> bool:
    """Write the phase of an action into its object's tree.

    Conditions change as by Kubernetes' ``meta.SetStatusCondition``: a condition is found by
    its type, keeps its place, and gets a new ``lastTransitionTime`` only if its status changes.
    The history gets an entry unless its last entry is the same phase of the same attempt. A
    terminal phase also sets the two labels that the executor's garbage collector selects by.

    If the object is in this phase already, its reason and message stay unless the caller gives
    others. Whether the phase may follow the present one is the caller's check, see `FOLLOWERS`.

    Args:
        tree: A TaskAction's tree, of a codec's ``decode_tree``; changed in place.
        phase: The phase; UNSPECIFIED changes no conditions, history, labels or error.
        now: When the phase began, aware.
        reason: Another reason that Flyte reads as the same phase (``Signaled``).
        message: For people; truncated at `MAX_MESSAGE`. None: the error's message, or the
            executor's text for this phase.
        attempts: The attempt, from 1 on; None changes nothing. A higher one than the object's
            starts a new sequence of phases.
        cache_status: A number of ``flyteidl2.core.CatalogCacheStatus``; None changes nothing.
        error: Why it failed. A new phase without one removes the stored error.

    Returns:
        Whether anything changed.

    Raises:
        DecodeError: One of these fields has another type in the object.
        ValueError: The reason means another phase, or is malformed; the tree is unchanged.
    """
    form = _FORMS.get(phase)
    if form is not None and reason is not None:
        _check_reason(phase, form.kind, reason)
    status = _object(tree, "status", "status")
    stored = status.get("attempts") or 0
    new_attempt = attempts is not None and attempts > max(stored, 1)
    changed = False
    if attempts is not None:
        changed |= _set(status, "attempts", attempts)
    if cache_status is not None:
        changed |= _set(status, "cacheStatus", cache_status)
    if form is not None:
        if message is None and error is not None:
            message = error.message or None
        change = _Change(status, phase, form, rfc3339(now), new_attempt)
        changed |= change.apply(reason, None if message is None else message[:MAX_MESSAGE])
        if error is not None or change.is_new:
            stored_error = msgspec.to_builtins(error) if phase in FAILURES and error else None
            changed |= _set(status, "errorState", stored_error)
        if change.is_new and phase.is_terminal:
            _set_end_labels(tree, change.conditions)
    if status:
        tree["status"] = status
    return changed


def _check_reason(phase: Phase, kind: str, reason: str) -> None:
    if not _REASON.fullmatch(reason):
        raise ValueError(f"{reason!r} is not a valid reason of a condition: write it in CamelCase")
    meant = phase_of((Condition(kind, "True", reason),))
    expected = Phase.QUEUED if phase is Phase.WAITING_FOR_RESOURCES else phase
    if meant is not expected:
        raise ValueError(f"the reason {reason!r} means {meant.name}, not {phase.name}")


_REASON: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,1022}[A-Za-z0-9_])?")


class _Change:
    """The change of ``status`` to a phase."""

    def __init__(
        self, status: dict[str, Any], phase: Phase, form: _Form, now: str, new_attempt: bool
    ) -> None:
        self.conditions = _list(status, "conditions")
        self._status = status
        self._phase = phase
        self._form = form
        self._now = now
        self._is_new_attempt = new_attempt
        self.is_new = new_attempt or phase_of(map(_stored, self.conditions)) is not phase
        """Whether the object had another phase, or another attempt, before."""

    def apply(self, reason: str | None, message: str | None) -> bool:
        """Write conditions and history; return whether that changed anything."""
        form = self._form
        if not self.is_new and reason is None and message is None:
            return False
        before = self._find(form.kind)
        if self.is_new or before is None:
            text = form.message if message is None else message
            reason = reason or form.reason
        else:
            text = _text(before, "message") if message is None else message
            reason = reason or _text(before, "reason")
        changed = self._write(reason, text)
        if self.is_new:
            self._add_to_history(reason, form.history if message is None else message)
        if changed:
            self._status["conditions"] = self.conditions
        return changed or self.is_new

    def _write(self, reason: str, message: str) -> bool:
        form = self._form
        changed = self._drop_others()
        if self._phase.is_terminal:
            changed |= self._set_condition("Progressing", "False", reason, form.progress or message)
        for kind in _DECIDING:
            entry = self._find(kind)
            if kind != form.kind and entry is not None and entry.get("status") == "True":
                changed |= self._set_condition(kind, "False", reason, message)
        changed |= self._set_condition(form.kind, "True", reason, message)
        if self._phase is Phase.WAITING_FOR_RESOURCES:
            changed |= self._set_condition(CONDITION_WAITING, "True", _WAITING, message)
        return changed

    def _drop_others(self) -> bool:
        """Remove our own condition if it no longer holds, and repetitions of a type."""
        kept: list[dict[str, Any]] = []
        unwanted: set[str] = set()
        if self.is_new or self._phase is not Phase.WAITING_FOR_RESOURCES:
            unwanted.add(CONDITION_WAITING)
        for entry in self.conditions:
            kind = _text(entry, "type")
            if kind not in unwanted:
                kept.append(entry)
            if kind in _DECIDING or kind == CONDITION_WAITING:
                unwanted.add(kind)
        changed = len(kept) != len(self.conditions)
        self.conditions[:] = kept
        return changed

    def _find(self, kind: str) -> dict[str, Any] | None:
        return next((entry for entry in self.conditions if entry.get("type") == kind), None)

    def _set_condition(self, kind: str, status: str, reason: str, message: str) -> bool:
        entry = self._find(kind)
        expected = {"status": status, "reason": reason, "message": message}
        if entry is None:
            entry = {"type": kind, "lastTransitionTime": self._now, **expected}
            # `phase_of` reads in order: ours has to precede the condition that it refines.
            at = 0 if kind == CONDITION_WAITING else len(self.conditions)
            self.conditions.insert(at, entry)
            return True
        if all(entry.get(field) == text for field, text in expected.items()):
            return False
        if entry.get("status") != status:
            entry["lastTransitionTime"] = self._now
        entry.update(expected)
        return True

    def _add_to_history(self, reason: str, message: str) -> None:
        history = _list(self._status, "phaseHistory")
        name = _WAITING if self._phase is Phase.WAITING_FOR_RESOURCES else reason
        if history and history[-1].get("phase") == name and not self._is_new_attempt:
            return
        entry = {"phase": name, "occurredAt": self._now}
        if message:
            entry["message"] = message
        history.append(entry)
        del history[1 : 1 + max(0, len(history) - MAX_HISTORY)]
        self._status["phaseHistory"] = history


class _StoredCondition(NamedTuple):
    type: str
    status: str
    reason: str


def _stored(entry: dict[str, Any]) -> _StoredCondition:
    return _StoredCondition(_text(entry, "type"), _text(entry, "status"), _text(entry, "reason"))


def _set_end_labels(tree: dict[str, Any], conditions: list[dict[str, Any]]) -> None:
    end = next(
        entry["lastTransitionTime"]
        for entry in conditions
        if entry.get("status") == "True" and entry.get("type") in ("Succeeded", "Failed")
    )
    time = parse_time(end, "status.conditions.lastTransitionTime")
    metadata = _object(tree, "metadata", "metadata")
    labels = _object(metadata, "labels", "metadata.labels")
    labels[names.LABEL_TERMINATION_STATUS] = "terminated"
    if time is not None:
        labels[names.LABEL_COMPLETED_TIME] = time.astimezone(UTC).strftime("%Y-%m-%d.%H-%M")
    metadata["labels"] = labels
    tree["metadata"] = metadata


# --- trees ------------------------------------------------------------------------------


def _object(tree: dict[str, Any], field: str, path: str) -> dict[str, Any]:
    """A field that is an object; if it is absent or null a new one, not yet in the tree."""
    found = tree.get(field)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DecodeError(f"{path}: not an object")
    return found


def _list(status: dict[str, Any], field: str) -> list[dict[str, Any]]:
    found = status.get(field)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DecodeError(f"status.{field}: not a list of objects")
    return found


def _text(entry: dict[str, Any], field: str) -> str:
    found = entry.get(field)
    if found is not None and not isinstance(found, str):
        raise DecodeError(f"status.conditions.{field}: not a text")
    return found or ""


def _set(status: dict[str, Any], field: str, expected: object) -> bool:
    """Set a field, or remove it if its new value is empty, as Go's ``omitempty`` does."""
    if (status.get(field) or None) == (expected or None):
        return False
    if expected:
        status[field] = expected
    else:
        del status[field]
    return True
