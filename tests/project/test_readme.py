"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import trio

from etcd_actions.testing import OwnEtcd
from tests.cli.command import running

README = Path(__file__).parents[2] / "README.md"


async def run_program(endpoint: str, folder: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (program,) = (each for each in programs if "trio.run(main" in each)
    script = folder / "program.py"
    script.write_text(program)
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, script, endpoint], capture_stdout=True, capture_stderr=True
        )
    assert b"Traceback" not in done.stderr
    lines = [line.rstrip() for line in done.stdout.decode().splitlines()]
    run, phase = lines[0].rsplit("-", 1)
    assert phase == "a0 UNSPECIFIED"
    assert lines[1].startswith("snapshot at revision ")
    # A subscriber that lags may find states conflated, but for the last.
    assert {line for line in lines if line.endswith("recorded")} == {
        f"{run}-{name} SUCCEEDED recorded" for name in ("a0", "c1", "c2")
    }
    assert lines[-1].startswith("refused: ")


@pytest.mark.slow
async def test_the_library_program(own_etcd: OwnEtcd, tmp_path: Path) -> None:
    """It enqueues, reports, sees all three actions marked, and can be run again."""
    for _ in range(2):
        await run_program(own_etcd.endpoint, tmp_path)


@pytest.mark.slow
async def test_the_library_program_next_to_an_executor(own_etcd: OwnEtcd, tmp_path: Path) -> None:
    """An executor on the same etcd takes none of its actions."""
    executor = ("--executor", "local", "--python", sys.executable)
    state = ("--executor-state-dir", tmp_path / "state", "--blob-dir", tmp_path / "blobs")
    where = ("--endpoints", own_etcd.endpoint, "--log-format", "json")
    with running(tmp_path, "run", *where, *executor, *state) as service:
        await service.logged("serving")
        await run_program(own_etcd.endpoint, tmp_path)
