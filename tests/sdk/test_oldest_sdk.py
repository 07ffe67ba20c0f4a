"""The oldest release of the SDK that is supported, which speaks gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk.door import Door, open_door
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow


@pytest.fixture
def door(etcd_server: EtcdServer, tmp_path: Path, oldest_sdk_python: Path) -> Iterator[Door]:
    with open_door(tmp_path, etcd_server.endpoint, b"/oldest-sdk/", oldest_sdk_python) as door:
        yield door


def test_the_essential_path(door: Door) -> None:
    """Run, wait, outputs, inputs, logs, deploy, abort; and what the command shows of it."""
    printed, told = door.print_and_result("essential.py", project="essential")
    assert "doubling 4 numbers" in printed
    assert told == {
        "outputs": "0, 2, 4, 6",
        "inputs": {"count": 4},
        "actions": 5,
        "deployed": "0, 2",
        "aborted": "aborted",
    }
    for phase in ("succeeded", "aborted"):
        assert "essential." in door.flyte("get", "run", "--in-phase", phase, project="essential")
    # It cannot be forked, which is found out once.
    assert len(door.service.logs("fork_server_not_used")) == 1
    assert door.service.logs("unit_failed") == []
