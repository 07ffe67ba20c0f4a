"""What a task leaves behind may be anything: it becomes the outcome of that attempt, at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument

from etcd_actions.executor.attempts.attempt_directory import (
    EXIT,
    LOCK,
    STARTED,
    AttemptDirectory,
)
from etcd_actions.executor.attempts.outcome import clear, find_outcome, outcome_of
from etcd_actions.executor.supervision.bounded_log import LOG
from tests.executor.objects import an_object
from tests.support.odd_files import KINDS


@pytest.fixture
def place(tmp_path: Path) -> AttemptDirectory:
    place = AttemptDirectory(tmp_path / "state", an_object(), 1)
    place.make()
    return place


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    outputs = tmp_path / "out"
    outputs.mkdir()
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["error.pb", "outputs.pb"])
async def test_what_is_not_regular_is_the_tasks_error(
    place: AttemptDirectory, outputs: Path, name: str, kind: str
) -> None:
    make, what = KINDS[kind]
    make(outputs / name)
    place.reported_exit = 0
    with trio.fail_after(10):
        outcome = await find_outcome(place, outputs, declares_outputs=False)
    assert outcome.error is not None
    assert outcome.error.kind == "USER"
    assert f"{outputs / name} is {what}" in outcome.error.message
    assert not outcome.recoverable


def test_an_error_file_without_end_is_the_tasks_error(
    place: AttemptDirectory, outputs: Path
) -> None:
    with (outputs / "error.pb").open("wb") as file:
        file.truncate(1 << 40)
    outcome = outcome_of(place, outputs, declares_outputs=False)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.kind) == ("ErrorUnreadable", "USER")
    assert "larger than" in outcome.error.message


def test_a_long_error_is_shortened_to_what_etcd_takes(
    place: AttemptDirectory, outputs: Path
) -> None:
    error = ContainerError(code="c" * 5000, message="begin" + "x" * 2_000_000 + "end")
    (outputs / "error.pb").write_bytes(ErrorDocument(error=error).SerializeToString())
    outcome = outcome_of(place, outputs, declares_outputs=False)
    assert outcome.error is not None
    assert len(outcome.error.code) == 256
    assert len(outcome.error.message) < 70_000
    assert outcome.error.message.startswith("begin")
    assert outcome.error.message.endswith("end")


@pytest.mark.parametrize("declares_outputs", [False, True])
def test_exit_code_0_without_declared_outputs_is_a_failure(
    place: AttemptDirectory, outputs: Path, declares_outputs: bool
) -> None:
    place.reported_exit = 0
    outcome = outcome_of(place, outputs, declares_outputs=declares_outputs)
    if declares_outputs:
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.kind) == ("OutputsNotFound", "USER")
        assert str(outputs / "outputs.pb") in outcome.error.message
        (outputs / "outputs.pb").touch()
        outcome = outcome_of(place, outputs, declares_outputs=True)
    assert outcome.error is None


@pytest.mark.parametrize(
    "text", ["", "-99", "-1000000", "9" * 5000, "\0", "1e3", "nan", "ⅷ", "x" * 100_000, "-34"]
)
def test_an_exit_file_may_hold_anything(place: AttemptDirectory, outputs: Path, text: str) -> None:
    (place.path / EXIT).write_text(text)
    outcome = outcome_of(place, outputs, declares_outputs=False)
    assert outcome.error is not None
    assert outcome.error.code == "ProcessEnded"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [EXIT, STARTED, LOG, LOCK, "supervisor", "log.before"])
def test_files_of_an_attempt_may_be_anything(
    place: AttemptDirectory, outputs: Path, name: str, kind: str
) -> None:
    KINDS[kind][0](place.path / name)
    assert not place.is_alive
    assert place.pid is None
    assert place.was_started is (name == STARTED)
    assert place.exit_code is None
    assert place.supervisor() is None
    assert place.last_lines() == ""
    for number in (signal.SIGTERM, signal.SIGKILL):
        place.kill(number)
    assert outcome_of(place, outputs, declares_outputs=False).error is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_directory_of_an_attempt_may_be_anything(tmp_path: Path, kind: str) -> None:
    for uid in ("a", "b"):
        place = AttemptDirectory(tmp_path, an_object(uid=uid), 1)
        path = place.path if uid == "a" else place.path.parent
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind != "directory":
            KINDS[kind][0](path)
        assert not place.is_alive
        assert not place.was_started
        assert (place.pid, place.exit_code, place.last_lines()) == (None, None, "")
        place.kill(signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_earlier_try_left_is_taken_away_whatever_it_is(outputs: Path, kind: str) -> None:
    for name in ("error.pb", "outputs.pb"):
        KINDS[kind][0](outputs / name)
    clear(outputs)
    assert not os.path.lexists(outputs / "error.pb")
    assert not os.path.lexists(outputs / "outputs.pb")
