"""What a row must say, worked out from the API server's own answer and nothing of ours."""

from typing import Any

from tests.data.captured import Event

_PROGRESS = {
    "Queued": "QUEUED",
    "Initializing": "INITIALIZING",
    "Executing": "RUNNING",
    "Paused": "PAUSED",
}
_TERMINAL = {"SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"}


def expected(event: Event) -> dict[str, Any]:
    """The fields of the row for a captured change."""
    kind, stored = event.rest["type"], event.rest["object"]
    metadata, spec, status = stored["metadata"], stored["spec"], stored.get("status", {})
    phase = _phase(status)
    if kind == "DELETED" and phase not in _TERMINAL:
        phase = "ABORTED"
    return {
        "type": kind,
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "run": spec["runName"],
        "action": spec["actionName"],
        "parent": spec.get("parentActionName"),
        "project": spec["project"],
        "domain": spec["domain"],
        "uid": metadata["uid"],
        "phase": phase,
        "attempts": max(status.get("attempts", 0), 1),
        "terminal": phase in _TERMINAL,
        "recorded": metadata["labels"].get("flyte.org/terminal-status-recorded") == "true",
    }


def _phase(status: dict[str, Any]) -> str:
    for condition in status.get("conditions", []):
        if condition["status"] == "True":
            if condition["type"] == "Progressing":
                return _PROGRESS[condition["reason"]]
            if condition["type"] == "Succeeded":
                return "SUCCEEDED"
            return "ABORTED" if condition["reason"] == "Aborted" else "FAILED"
    return "QUEUED"
