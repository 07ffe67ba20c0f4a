"""A directory of outputs is one attempt's at a time, and what is in it is that one's outcome."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd_actions.executor.attempts.attempt_directory import EXIT, AttemptDirectory
from etcd_actions.executor.attempts.outcome import outcome_of
from etcd_actions.executor.attempts.output_directories import OUTPUTS, sweep_outputs, take, taken_by
from tests.executor.objects import an_object


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "a0" / "1"
    path.mkdir(parents=True)
    return path


def place_of(tmp_path: Path, name: str) -> AttemptDirectory:
    place = AttemptDirectory(tmp_path / "state", an_object(name), 1)
    place.make()
    return place


@contextmanager
def living(place: AttemptDirectory) -> Iterator[None]:
    lock = place.try_lock()
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)


def test_one_that_lives_keeps_its_outputs(tmp_path: Path, outputs: Path) -> None:
    one, other = place_of(tmp_path, "r1-a0"), place_of(tmp_path, "r2-a0")
    with living(one):
        assert take(one, outputs) is None
        assert take(one, outputs) is None
        holder = take(other, outputs)
        assert holder is not None
        assert holder.path == one.path
        # By another name it is the same directory.
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "out")
        assert take(other, link / "a0" / "." / "1") is not None
        assert take(other, outputs.with_name("2")) is None
    assert taken_by(one, outputs) is None
    assert take(other, outputs) is None
    assert taken_by(other, outputs) is None


def test_what_another_attempt_left_is_no_outcome(tmp_path: Path, outputs: Path) -> None:
    one, other = place_of(tmp_path, "r1-a0"), place_of(tmp_path, "r2-a0")
    with living(one):
        take(one, outputs)
    (one.path / EXIT).write_text("0")
    assert outcome_of(one, outputs, declares_outputs=False).error is None
    with living(other):
        take(other, outputs)
        (outputs / "outputs.pb").touch()
        outcome = outcome_of(one, outputs, declares_outputs=False)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.recoverable) == ("OutputsReplaced", True)
    assert str(other.path) in outcome.error.message
    assert outcome_of(other, outputs, declares_outputs=True).error is None


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff", b'{"attempt":"../../x","outputs":""}']
)
def test_a_note_that_says_nothing_is_nobodys(tmp_path: Path, outputs: Path, text: bytes) -> None:
    one = place_of(tmp_path, "r1-a0")
    take(one, outputs)
    (file,) = (tmp_path / "state" / OUTPUTS).iterdir()
    file.write_bytes(text)
    assert taken_by(one, outputs) is None
    assert take(place_of(tmp_path, "r2-a0"), outputs) is None


def test_notes_go_with_their_attempts(tmp_path: Path, outputs: Path) -> None:
    one, other = place_of(tmp_path, "r1-a0"), place_of(tmp_path, "r2-a0")
    take(one, outputs)
    take(other, outputs.with_name("2"))
    other.path.rmdir()
    state_dir = tmp_path / "state"
    sweep_outputs(state_dir, 0)
    assert len(list((state_dir / OUTPUTS).iterdir())) == 2
    sweep_outputs(state_dir, float("inf"))
    assert taken_by(place_of(tmp_path, "r3-a0"), outputs) is not None
    assert len(list((state_dir / OUTPUTS).iterdir())) == 1


def test_a_state_directory_without_notes_is_swept_too(tmp_path: Path) -> None:
    sweep_outputs(tmp_path / "state", float("inf"))
