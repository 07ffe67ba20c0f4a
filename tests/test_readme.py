"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import trio

from etcd_actions import Phase, open_etcd
from etcd_actions.codecs import json
from tests.data.captured import PUTS
from tests.support.etcd_server import EtcdServer

README = Path(__file__).parents[1] / "README.md"


async def test_the_library_program(own_etcd: EtcdServer, tmp_path: Path) -> None:
    """It follows a run to the mark of its root, and ends."""
    program, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    script = tmp_path / "follow.py"
    script.write_text(program)
    ended = next(
        put
        for put in PUTS
        if put.key.endswith(b"rh7k2m9p4qv3-a0")
        and json.decode(put.value).phase is Phase.SUCCEEDED
        and not json.decode(put.value).is_recorded
    )
    async with open_etcd(own_etcd.endpoint) as etcd:
        await etcd.put(ended.key, ended.value)
    run = ["flytesnacks", "development", "rh7k2m9p4qv3"]
    with trio.fail_after(20):
        done = await trio.run_process(
            [sys.executable, script, own_etcd.endpoint, *run],
            capture_stdout=True,
            capture_stderr=True,
        )
    assert b"Traceback" not in done.stderr
    # A subscriber that lags may find both states conflated.
    *before, last = done.stdout.decode().splitlines()
    assert before in ([], ["rh7k2m9p4qv3-a0 SUCCEEDED "])
    assert last == "rh7k2m9p4qv3-a0 SUCCEEDED recorded"
