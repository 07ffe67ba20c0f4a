"""The file of a trace's error is named over the wire: it may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.phase_pb2 import ACTION_PHASE_FAILED
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument

from etcd_actions.server.trace_errors import read_trace_error
from tests.support.odd_files import KINDS

pytestmark = pytest.mark.memory(jumps=False)


def failed(base: object, name: str = "t1") -> Action:
    action = Action(run_output_base=str(base))
    action.action_id.name = name
    action.trace.phase = ACTION_PHASE_FAILED
    return action


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_not_regular_is_the_error(tmp_path: Path, kind: str) -> None:
    make, what = KINDS[kind]
    (tmp_path / "t1").mkdir()
    make(tmp_path / "t1" / "error.pb")
    with trio.fail_after(10):
        error = await read_trace_error(failed(tmp_path))
    assert error is not None
    assert error.kind == "USER"
    assert f"{tmp_path}/t1/error.pb is {what}" in error.message


async def test_a_file_without_end_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "t1").mkdir()
    with (tmp_path / "t1" / "error.pb").open("wb") as file:
        file.truncate(1 << 40)
    error = await read_trace_error(failed(tmp_path))
    assert error is not None
    assert (error.code, error.kind) == ("ErrorUnreadable", "USER")


async def test_a_long_message_is_shortened(tmp_path: Path) -> None:
    (tmp_path / "t1").mkdir()
    document = ErrorDocument(error=ContainerError(code="E" * 1000, message="x" * 500_000))
    (tmp_path / "t1" / "error.pb").write_bytes(document.SerializeToString())
    error = await read_trace_error(failed(f"file://{tmp_path}"))
    assert error is not None
    assert (len(error.code), len(error.message)) == (256, 65536)


@pytest.mark.parametrize(
    "base", ["/a\0b", "file://[", "file:///a%00b", "\ud800".encode("utf-8", "replace").decode(), ""]
)
async def test_what_is_no_path_has_no_error(base: str) -> None:
    assert await read_trace_error(failed(base)) is None


async def test_a_name_that_is_too_long_has_no_error(tmp_path: Path) -> None:
    assert await read_trace_error(failed(tmp_path, "x" * 5000)) is None
