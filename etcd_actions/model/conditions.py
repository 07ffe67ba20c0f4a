"""Writing a phase: the conditions, history and labels that Flyte's executor would write.

Everything works on a codec's tree, in place, so that what is not named here stays. The table
is in ``docs/status.md``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model import names
from etcd_actions.model.phase import CONDITION_WAITING, Condition, Phase, phase_of
from etcd_actions.model.taskaction import ErrorState, parse_time

MAX_MESSAGE: Final = 32768
"""Characters of a condition's message that Kubernetes accepts; the rest is truncated."""

MAX_HISTORY: Final = 1000
"""Entries of the phase history; beyond them the oldest but the very first go."""


class _Form(NamedTuple):
    """How a phase is stored: the condition that is ``True``, and the executor's own words."""

    kind: str
    reason: str
    message: str = ""
    progress: str = ""
    """What ``Progressing=False`` says at an end; empty: the same message."""
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
_FAILURES: Final = (Phase.FAILED, Phase.TIMED_OUT, Phase.ABORTED)

_ENDS: Final = frozenset(phase for phase in Phase if phase.is_terminal)
_ALL: Final = frozenset(Phase) - {Phase.UNSPECIFIED}

FOLLOWERS: Final = {
    Phase.UNSPECIFIED: _ALL,
    # Which of the two comes first depends on the plugin.
    Phase.QUEUED: _ALL,
    Phase.WAITING_FOR_RESOURCES: _ALL,
    Phase.INITIALIZING: _ENDS | {Phase.INITIALIZING, Phase.RUNNING, Phase.PAUSED},
    Phase.RUNNING: _ENDS | {Phase.RUNNING, Phase.PAUSED},
    Phase.PAUSED: _ENDS | {Phase.PAUSED, Phase.RUNNING},
    **{phase: frozenset({phase}) for phase in _ENDS},
}
"""The phases that may be reported after each, itself included, within one attempt."""


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
    """Make an object say that its action is in a phase.

    Conditions change as by Kubernetes' ``meta.SetStatusCondition``: keyed by their type,
    each in its place, with a new ``lastTransitionTime`` only where the status turned. The
    history gets an entry unless its last one says the same of the same attempt. An end
    also gets the two labels that the executor's garbage collector looks for.

    A phase that the object is in already keeps its reason and message unless others are
    given. Whether the phase may follow the present one is not checked here, see `FOLLOWERS`.

    Args:
        tree: What a codec's ``decode_tree`` gave of a TaskAction; changed in place.
        phase: The phase; UNSPECIFIED leaves conditions, history, labels and error alone.
        now: When it began, aware.
        reason: Another reason that Flyte reads as the same phase (``Signaled``).
        message: For people; cut at `MAX_MESSAGE`. None: the executor's own for this phase,
            or the error's.
        attempts: The attempt, from 1 on; None leaves it. A higher one than the object's
            begins a history of its own.
        cache_status: A number of ``flyteidl2.core.CatalogCacheStatus``; None leaves it.
        error: Why it failed. A phase that is newly written without one has none.

    Returns:
        Whether anything changed.

    Raises:
        DecodeError: The object has something else in the place of one of these fields.
        ValueError: The reason means another phase, or is no reason; the tree is unchanged.
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
        if error is not None or change.begins:
            stated = msgspec.to_builtins(error) if phase in _FAILURES and error else None
            changed |= _set(status, "errorState", stated)
        if change.begins and phase.is_terminal:
            _set_end_labels(tree, change.conditions)
    if status:
        tree["status"] = status
    return changed


def _check_reason(phase: Phase, kind: str, reason: str) -> None:
    if not _REASON.fullmatch(reason):
        raise ValueError(f"{reason!r} is no reason of a condition: write it in CamelCase")
    meant = phase_of((Condition(kind, "True", reason),))
    expected = Phase.QUEUED if phase is Phase.WAITING_FOR_RESOURCES else phase
    if meant is not expected:
        raise ValueError(f"the reason {reason!r} means {meant.name}, not {phase.name}")


_REASON: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,1022}[A-Za-z0-9_])?")


class _Change:
    """A phase on its way into ``status``."""

    def __init__(
        self, status: dict[str, Any], phase: Phase, form: _Form, now: str, new_attempt: bool
    ) -> None:
        self.conditions = _list(status, "conditions")
        self._status = status
        self._phase = phase
        self._form = form
        self._now = now
        self._is_new_attempt = new_attempt
        self.begins = new_attempt or phase_of(map(_seen, self.conditions)) is not phase
        """Whether the object said something else before."""

    def apply(self, reason: str | None, message: str | None) -> bool:
        """Write conditions and history; say whether that changed anything."""
        form = self._form
        if not self.begins and reason is None and message is None:
            return False
        before = self._find(form.kind)
        if self.begins or before is None:
            text = form.message if message is None else message
            reason = reason or form.reason
        else:
            text = _text(before, "message") if message is None else message
            reason = reason or _text(before, "reason")
        changed = self._write(reason, text)
        if self.begins:
            self._add_to_history(reason, form.history if message is None else message)
        if changed:
            self._status["conditions"] = self.conditions
        return changed or self.begins

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
        """Take out our own condition where it no longer holds, and types that come twice."""
        kept: list[dict[str, Any]] = []
        unwanted: set[str] = set()
        if self.begins or self._phase is not Phase.WAITING_FOR_RESOURCES:
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
            # `phase_of` is to meet ours before the condition that it refines.
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


class _Seen(NamedTuple):
    type: str
    status: str
    reason: str


def _seen(entry: dict[str, Any]) -> _Seen:
    return _Seen(_text(entry, "type"), _text(entry, "status"), _text(entry, "reason"))


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
    """A field that is an object; a new one, not yet in the tree, where it is absent or null."""
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
    """Set a field, or take it out where there is nothing to say, as Go's ``omitempty`` does."""
    if (status.get(field) or None) == (expected or None):
        return False
    if expected:
        status[field] = expected
    else:
        del status[field]
    return True
