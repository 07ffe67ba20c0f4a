"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import trio

from tests.support.etcd_server import EtcdServer

README = Path(__file__).parents[2] / "README.md"


async def test_the_library_program(own_etcd: EtcdServer, tmp_path: Path) -> None:
    """It enqueues, reports, and sees all three actions marked."""
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (program,) = (each for each in programs if "trio.run(main" in each)
    script = tmp_path / "program.py"
    script.write_text(program)
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, script, own_etcd.endpoint], capture_stdout=True, capture_stderr=True
        )
    assert b"Traceback" not in done.stderr
    lines = [line.rstrip() for line in done.stdout.decode().splitlines()]
    assert lines[0] == "r1-a0 UNSPECIFIED"
    assert lines[1].startswith("snapshot at revision ")
    # A subscriber that lags may find states conflated, but for the last.
    assert {line for line in lines if line.endswith("recorded")} == {
        f"r1-{name} SUCCEEDED recorded" for name in ("a0", "c1", "c2")
    }
