"""Phases, and how conditions tell them."""

import pytest

from etcd_actions.model import Condition, Phase, phase_of
from tests.support.table import table


def condition(text: str) -> Condition:
    """Make one of ``Type=Status/Reason``."""
    kind, _, rest = text.partition("=")
    status, _, reason = rest.partition("/")
    return Condition(kind, status, reason)


@table(
    ("conditions", "phase"),
    [
        ([], Phase.UNSPECIFIED),
        (["Progressing=True/Queued"], Phase.QUEUED),
        (["Progressing=True/Initializing"], Phase.INITIALIZING),
        (["Progressing=True/Executing"], Phase.RUNNING),
        (["Progressing=True/Paused"], Phase.PAUSED),
        (["Progressing=True/RetryableFailure"], Phase.UNSPECIFIED),
        (["Progressing=False/Executing"], Phase.UNSPECIFIED),
        (["Progressing=Unknown/Executing"], Phase.UNSPECIFIED),
        (["Progressing=False/Completed", "Succeeded=True/Completed"], Phase.SUCCEEDED),
        (["Succeeded=True/Signaled"], Phase.SUCCEEDED),
        (["Failed=True/PermanentFailure"], Phase.FAILED),
        (["Failed=True/InvalidSpec"], Phase.FAILED),
        (["Failed=True/TimedOut"], Phase.TIMED_OUT),
        (["Progressing=False/Aborted", "Failed=True/Aborted"], Phase.ABORTED),
        (["Failed=False/TimedOut", "Succeeded=False/Completed"], Phase.UNSPECIFIED),
        (["Progressing=True/Executing", "Succeeded=True/Completed"], Phase.RUNNING),
        (["Succeeded=True/Completed", "Progressing=True/Executing"], Phase.SUCCEEDED),
        (["Failed=True/TimedOut", "Succeeded=True/Completed"], Phase.TIMED_OUT),
        (["Progressing=True/RetryableFailure", "Failed=True/X"], Phase.FAILED),
        (["Ready=True/Executing", "Progressing=True/Queued"], Phase.QUEUED),
    ],
    ids=lambda value: ",".join(value) or "none" if isinstance(value, list) else value.name,
)
def test_phase_of(conditions: list[str], phase: Phase) -> None:
    """Verify Flyte's reading of the conditions: in their order, the first that says something."""
    assert phase_of(map(condition, conditions)) is phase


def test_numbers_are_flytes() -> None:
    """Verify names and numbers against Flyte's ActionPhase."""
    phase_pb2 = pytest.importorskip("flyteidl2.common.phase_pb2")
    theirs = {
        name.removeprefix("ACTION_PHASE_"): number for name, number in phase_pb2.ActionPhase.items()
    }
    assert {phase.name: phase.value for phase in Phase} == theirs


@table("phase", Phase, ids=lambda phase: phase.name)
def test_terminal(phase: Phase) -> None:
    """Verify which phases are an end, as in Flyte's isTerminalPhase."""
    ends = {"SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "RECOVERED"}
    assert phase.is_terminal == (phase.name in ends)
