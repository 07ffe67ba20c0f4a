"""Template variables, places and outcomes, without an etcd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError

from etcd_actions._internal.untrusted_files import local_path
from etcd_actions.executor.attempts.attempt_command import substitute
from etcd_actions.executor.attempts.attempt_directory import (
    EXIT,
    LOCK,
    STARTED,
    AttemptDirectory,
)
from etcd_actions.executor.attempts.outcome import clear, outcome_of
from tests.executor.objects import an_object
from tests.support.table import table


@table(
    ("argument", "expected"),
    [
        ("{{.input}}", "in"),
        ("{{ .Input }}", "in"),
        ("{{$input}}", "in"),
        ("{{.INPUT}}/{{.outputPrefix}}", "in/out"),
        ("{{.unknown}}", "{{.unknown}}"),
        ("{{.inputs.x}}", "{{.inputs.x}}"),
        ("{input}", "{input}"),
        ("{{input}}", "{{input}}"),
        ("", ""),
    ],
)
def test_variables(argument: str, expected: str) -> None:
    assert substitute([argument], {"input": "in", "outputPrefix": "out"}) == [expected]


def test_a_value_is_not_looked_into() -> None:
    assert substitute(["{{.a}}"], {"a": "{{.b}}", "b": "x"}) == ["{{.b}}"]


@table(
    ("uri", "path"),
    [
        ("/a/b", "/a/b"),
        ("file:///a/b%20c", "/a/b c"),
        ("file://localhost/a", "/a"),
        ("file://elsewhere/a", None),
        ("s3://a/b", None),
        ("a/b", None),
        ("", None),
    ],
)
def test_what_is_on_this_machine(uri: str, path: str | None) -> None:
    assert local_path(uri) == (None if path is None else Path(path))


@pytest.fixture
def place(tmp_path: Path) -> AttemptDirectory:
    place = AttemptDirectory(tmp_path, an_object(), 1)
    place.make()
    return place


def test_a_place_is_alive_while_somebody_has_its_lock(place: AttemptDirectory) -> None:
    assert not place.is_alive
    lock = place.try_lock()
    assert lock is not None
    assert place.is_alive
    assert place.try_lock() is None
    # A process that inherits the lock keeps it when its parent closes it.
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    os.close(lock)
    try:
        assert place.is_alive
    finally:
        child.kill()
        child.wait()
    assert not place.is_alive


def test_what_is_kept_is_for_its_user_only(place: AttemptDirectory) -> None:
    lock = place.try_lock()
    assert lock is not None
    os.close(lock)
    for path in (place.path / LOCK, place.path):
        assert path.stat().st_mode & 0o077 == 0


def write_error(outputs: Path, *, recoverable: bool, origin: int = ExecutionError.USER) -> None:
    kind = ContainerError.RECOVERABLE if recoverable else ContainerError.NON_RECOVERABLE
    document = ErrorDocument(error=ContainerError(code="E", message="no", kind=kind, origin=origin))
    (outputs / "error.pb").write_bytes(document.SerializeToString())


@pytest.mark.parametrize("recoverable", [False, True])
@pytest.mark.parametrize("code", [None, 0, 1])
def test_the_error_file_goes_before_all(
    place: AttemptDirectory, tmp_path: Path, recoverable: bool, code: int | None
) -> None:
    write_error(tmp_path, recoverable=recoverable)
    (tmp_path / "outputs.pb").touch()
    if code is not None:
        (place.path / EXIT).write_text(str(code))
    outcome = outcome_of(place, tmp_path, declares_outputs=False)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.kind, outcome.error.message) == ("E", "USER", "no")
    assert outcome.recoverable == recoverable


@pytest.mark.parametrize("code", [None, 0, 134, -6])
def test_outputs_are_a_success_whatever_the_exit_code(
    place: AttemptDirectory, tmp_path: Path, code: int | None
) -> None:
    (tmp_path / "outputs.pb").touch()
    if code is not None:
        (place.path / EXIT).write_text(str(code))
    assert outcome_of(place, tmp_path, declares_outputs=False).error is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("3", "the process exited with 3"),
        ("-9", "the process was ended by SIGKILL"),
        (None, "the process ended unseen"),
        ("rubbish", "the process ended unseen"),
    ],
)
def test_nothing_left_is_a_failure_that_may_be_tried_again(
    place: AttemptDirectory, tmp_path: Path, code: str | None, message: str
) -> None:
    if code is not None:
        (place.path / EXIT).write_text(code)
    outcome = outcome_of(place, tmp_path, declares_outputs=False)
    assert outcome.error is not None
    assert outcome.error.message.startswith(message)
    assert (outcome.error.kind, outcome.recoverable) == ("SYSTEM", True)


def test_an_error_file_that_is_none_is_told(place: AttemptDirectory, tmp_path: Path) -> None:
    (tmp_path / "error.pb").write_bytes(b"\xff\xff")
    outcome = outcome_of(place, tmp_path, declares_outputs=False)
    assert outcome.error is not None
    assert outcome.error.code == "ErrorUnreadable"


def test_what_an_earlier_try_left_is_taken_away(place: AttemptDirectory, tmp_path: Path) -> None:
    write_error(tmp_path, recoverable=True)
    (tmp_path / "outputs.pb").touch()
    clear(tmp_path)
    clear(tmp_path / "not-there")
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".pb"]
    assert not (place.path / STARTED).exists()
