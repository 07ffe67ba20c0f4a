"""Want of descriptors here says nothing about an attempt: it has not ended, nor failed."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd_actions.executor.attempts.attempt_directory import EXIT, STARTED, AttemptDirectory
from etcd_actions.executor.attempts.outcome import outcome_of
from tests.executor.objects import an_object


@contextmanager
def no_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def place(tmp_path: Path) -> AttemptDirectory:
    place = AttemptDirectory(tmp_path, an_object(), 1)
    place.make()
    (place.path / STARTED).write_text("1")
    (place.path / EXIT).write_text("0")
    return place


def test_an_attempt_that_lives_is_not_taken_to_have_ended(place: AttemptDirectory) -> None:
    lock = place.try_lock()
    assert lock is not None
    try:
        with no_descriptors():
            assert place.is_alive
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)
    assert not place.is_alive


def test_whether_it_began_and_how_it_ended_is_not_guessed(place: AttemptDirectory) -> None:
    with no_descriptors():
        with pytest.raises(OSError, match="Too many open files") as began:
            _ = place.was_started
        with pytest.raises(OSError, match="Too many open files") as ended:
            _ = place.exit_code
        assert place.pid is None
    assert {began.value.errno, ended.value.errno} == {errno.EMFILE}
    assert place.was_started
    assert place.exit_code == 0


@pytest.mark.parametrize("name", ["error.pb", "nothing"])
def test_its_outcome_is_not_decided(place: AttemptDirectory, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with no_descriptors(), pytest.raises(OSError, match="Too many open files") as found:
        outcome_of(place, tmp_path, declares_outputs=False)
    assert found.value.errno == errno.EMFILE
