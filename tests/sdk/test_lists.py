"""The SDK's own lists of runs and tasks, and those of its command, unmodified."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.registry.registry import open_registry
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.runs.run_record import encode
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.storage.store import Store
from etcd_actions.web import Bind
from tests.sdk.service import PROGRAMS
from tests.support.runs import key_of, record, status

pytestmark = pytest.mark.slow

# The SDK's command, which ends without Python's own exit: see the end of programs/lists.py.
FLYTE = """
import os, sys
from flyte.cli.main import main
sys.argv[0] = "flyte"
try:
    code = main()
except SystemExit as end:
    code = end.code
sys.stdout.flush()
sys.stderr.flush()
os._exit(code if isinstance(code, int) else int(code is not None))
"""
RUNS = 130
PHASES = (4, 5, 6, 10)


@pytest.fixture
async def address(etcd: Etcd, prefix: bytes) -> AsyncIterator[str]:
    """Where a server is that lists runs which were written by hand."""
    keys = Keyspace(prefix)
    for at in range(RUNS):
        run = record(
            f"r{at:03}",
            at=at,
            task=f"env.t{at % 3}",
            version=f"v{at % 2}",
            status=status(PHASES[at % 4], ended=at),
            creator="me" if at == 7 else "",
            labels={"team": "ml"} if at % 10 == 0 else None,
        )
        await etcd.put(key_of(keys, run), encode(run))
    async with (
        open_actions_client(etcd, prefix=prefix) as client,
        open_run_index(etcd, keys) as index,
        open_registry(etcd, Store(etcd), keys) as registry,
        open_actions_server(
            client,
            ServerSettings(bind=Bind("127.0.0.1", 0)),
            front=FrontDoor(client=client, keepalive=5, index=index, registry=registry),
        ) as server,
    ):
        yield f"http://{server.address}"


async def say(*command: str | Path, cwd: Path) -> str:
    """What a program or a command of the SDK prints."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "1000", "HOME": str(cwd)}
    # An abort says where.
    environment["PYTHONFAULTHANDLER"] = "1"
    finished = await trio.run_process(
        [str(part) for part in command],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment,
        cwd=cwd,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout.decode()


async def test_a_program_lists_and_deploys(address: str, sdk_python: Path, tmp_path: Path) -> None:
    # The SDK takes the programs of its working directory.
    program = shutil.copy(PROGRAMS / "lists.py", tmp_path)
    said = await say(sdk_python, program, address, cwd=tmp_path)
    # Before it there are lines for people.
    assert json.loads(said.splitlines()[-1]) == {
        "all": RUNS,
        "newest": ["r129", "r128"],
        "oldest": ["r000", "r001"],
        "recovered": ["r003", "r007"],
        "two phases": ["r001", "r002", "r005"],
        "task": ["r004", "r010"],
        "label": ["r000", "r010"],
        "key": ["r000", "r010"],
        "created": ["r010", "r011"],
        "updated": [f"r{at}" for at in range(125, RUNS)],
        "mine": ["r007"],
        "tasks": {
            "all": [["env.first", "v2"], ["env.main", "v2"]],
            "by name": ["env.main"],
            "entrypoints": ["env.first"],
            "latest": "v2",
        },
    }


async def test_the_command_lists(address: str, sdk_python: Path, tmp_path: Path) -> None:
    async def get(*asked: str) -> Any:
        command = ("--endpoint", address, "--insecure", "--output-format", "json", "get")
        scope = ("--project", "p", "--domain", "d")
        flyte = (sdk_python, "-c", FLYTE)
        said = await say(*flyte, *command, asked[0], *scope, *asked[1:], cwd=tmp_path)
        # It prints Python's form of it, in bold.
        return ast.literal_eval(re.sub(r"\x1b\[[\d;]*m", "", said).strip())

    runs = await get("run", "--in-phase", "failed", "--limit", "2")
    assert [row["action"]["id"]["run"]["name"] for row in runs] == ["r002", "r006"]
    runs = await get("run", "--with-label", "team=ml", "--limit", "1")
    assert [row["labels"] for row in runs] == [{"team": "ml"}]
    assert await get("task") == []
