"""Attempts that the version before started: its directories have the name of the uid alone."""

from __future__ import annotations

import os
from pathlib import Path

from etcd_actions.executor.attempts.attempt_directory import (
    EXIT,
    STARTED,
    AttemptDirectory,
    directory_names,
    directory_of,
)
from etcd_actions.executor.attempts.outcome import outcome_of
from etcd_actions.model import Incarnation

UID = "0a3c2c62-3d0e-4b6f-a5bb-6f4e3ad2b0aa"
ONE = Incarnation(b"/r/ns/r1-a0", 7, UID)
COPY = Incarnation(b"/r/ns/r2-a0", 9, UID)


def started_before(state_dir: Path, uid: str = UID) -> Path:
    path = state_dir / "attempts" / uid / "1"
    path.mkdir(parents=True)
    (path / STARTED).write_text("1")
    return path


def test_it_is_followed_on_where_it_is(tmp_path: Path) -> None:
    path = started_before(tmp_path)
    for _ in range(2):
        place = directory_of(tmp_path, ONE, 1)
        assert place.path == path
        assert place.is_inferred
        assert place.was_started
    assert directory_of(tmp_path, ONE, 2).path == AttemptDirectory(tmp_path, ONE, 2).path
    assert UID in directory_names(ONE)


def test_one_that_lives_and_has_not_begun_is_followed_on_too(tmp_path: Path) -> None:
    path = started_before(tmp_path)
    (path / STARTED).unlink()
    lock = AttemptDirectory.at(path).try_lock()
    assert lock is not None
    try:
        assert directory_of(tmp_path, ONE, 1).path == path
    finally:
        os.close(lock)


def test_of_two_objects_with_its_uid_one_has_it(tmp_path: Path) -> None:
    path = started_before(tmp_path)
    assert directory_of(tmp_path, ONE, 1).path == path
    assert directory_of(tmp_path, COPY, 1).path == AttemptDirectory(tmp_path, COPY, 1).path
    assert directory_of(tmp_path, ONE, 1).path == path


def test_what_is_started_in_its_own_directory_stays_there(tmp_path: Path) -> None:
    place = AttemptDirectory(tmp_path, ONE, 1)
    place.make()
    (place.path / STARTED).write_text("1")
    started_before(tmp_path)
    assert directory_of(tmp_path, ONE, 1).path == place.path


def test_no_uid_leads_to_a_directory_of_another(tmp_path: Path) -> None:
    started_before(tmp_path, ONE.path_component)
    for uid in ("", ".", "..", f"../attempts/{UID}", f"{UID}/1/.."):
        place = directory_of(tmp_path, Incarnation(ONE.key, 8, uid), 1)
        assert not place.was_started


def test_a_uid_that_is_the_name_of_anothers_directory_leads_nowhere(tmp_path: Path) -> None:
    """Also in the moment in which the other one has the lock and has written nothing down."""
    victim = AttemptDirectory(tmp_path, ONE, 1)
    victim.make()
    hostile = Incarnation(b"/r/ns/x", 8, ONE.path_component)
    lock = victim.try_lock()
    assert lock is not None
    try:
        assert (
            directory_of(tmp_path, hostile, 1).path == AttemptDirectory(tmp_path, hostile, 1).path
        )
        assert victim.note_object()
    finally:
        os.close(lock)
    assert ONE.path_component not in directory_names(hostile)


def test_only_its_own_outputs_say_that_it_succeeded(tmp_path: Path) -> None:
    """Its directory does not say whose it is: an exit code may be that of a copy."""
    path, outputs = started_before(tmp_path), tmp_path / "out"
    (path / EXIT).write_text("0")
    place = directory_of(tmp_path, ONE, 1)
    found = outcome_of(place, outputs, declares_outputs=False)
    assert found.error is not None
    assert (found.error.code, found.recoverable) == ("ProcessEnded", True)
    outputs.mkdir()
    (outputs / "outputs.pb").touch()
    began = (path / STARTED).stat().st_mtime
    # What was there before it began says nothing.
    os.utime(outputs / "outputs.pb", (began - 1, began - 1))
    assert outcome_of(place, outputs, declares_outputs=False).error is not None
    os.utime(outputs / "outputs.pb", (began + 1, began + 1))
    assert outcome_of(place, outputs, declares_outputs=False).error is None
