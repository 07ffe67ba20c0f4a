"""Nothing of a test runs on after it, also where it fails halfway."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_actions.executor.places import AttemptPlace


@pytest.fixture(autouse=True)
def ends_with_its_test(tmp_path: Path) -> Iterator[None]:
    """End the attempts in the test's own state directory."""
    yield
    for directory in tmp_path.glob("state/attempts/*/*"):
        place = AttemptPlace.at(directory)
        place.kill(signal.SIGKILL)
        if place.is_alive:
            place.kill_left_behind()
