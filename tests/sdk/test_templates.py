"""What the executor makes of the templates that the SDK really sends."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from flyteidl2.core.tasks_pb2 import TaskTemplate

from etcd_actions.errors import InvalidArgument
from etcd_actions.executor.attempts.attempt_command import check_runs_here
from etcd_actions.executor.attempts.attempt_limits import Limits, retry_delay
from tests.sdk.service import PROGRAMS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def templates(sdk_python: Path) -> dict[str, TaskTemplate]:
    finished = subprocess.run(
        [sdk_python, PROGRAMS / "templates.py"], capture_output=True, check=True, timeout=120
    )
    told = json.loads(finished.stdout.splitlines()[-1])
    return {name: TaskTemplate.FromString(base64.b64decode(each)) for name, each in told.items()}


@pytest.mark.parametrize("name", ["plain", "limited"])
def test_a_python_task_runs_here(templates: dict[str, TaskTemplate], name: str) -> None:
    check_runs_here(templates[name])


@pytest.mark.parametrize("name", ["container", "disguised"])
def test_a_container_task_does_not(templates: dict[str, TaskTemplate], name: str) -> None:
    """Also one whose command looks like the SDK's own."""
    with pytest.raises(InvalidArgument, match="containers do not run here"):
        check_runs_here(templates[name])


def test_back_off_and_time_outs_are_what_the_program_says(
    templates: dict[str, TaskTemplate],
) -> None:
    template = templates["limited"]
    assert [retry_delay(template, attempt) for attempt in range(1, 7)] == [0, 10, 20, 40, 60, 60]
    limits = Limits.of(template, 1, created=0, queued=0)
    assert (limits.run, limits.queued, limits.deadline, limits.attempts) == (1.5, 20, 3600, 6)
    assert retry_delay(templates["plain"], 2) == 0
