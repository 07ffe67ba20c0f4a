"""A real program of Flyte's SDK, on nothing but an etcd: what ``scripts/demo`` shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.cli.command import ROOT, Finished, finish, running
from tests.sdk.service import Site, free_port
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.slow

PROGRAM = f"{ROOT / 'scripts' / 'demo_program.py'}:main"


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    yield site
    site.end_all()


async def command(site: Site, *arguments: str) -> Finished:
    return await trio.to_thread.run_sync(lambda: finish(*arguments, *site.common))


@pytest.mark.parametrize("through_the_service", [False, True])
async def test_a_program_comes_to_its_result(site: Site, through_the_service: bool) -> None:
    """Fan-out, nested children, a retry, a failure that is caught, a trace, a condition."""
    port = free_port()
    service = ("--service", f"127.0.0.1:{port}") if through_the_service else ()
    with site.service(port) as running_service:
        await running_service.logged("serving")
        with running(
            site.directory,
            "submit",
            PROGRAM,
            "--input",
            "count=3",
            "--run",
            "rdemo",
            "--output-base",
            site.directory / "runs",
            *service,
            *site.common,
            *site.python,
        ) as submission:
            condition = await _paused(site)
            action = f"flytesnacks/development/rdemo/{condition}"
            signalled = await command(site, "signal", action, "true", *service)
            assert signalled.code == 0, signalled.err
            assert await submission.wait() == 0, submission.err
            rows = submission.rows()
    assert rows[-1] == {"result": "squares 14, half 7, retries 1, caught ValueError, approved True"}
    phases: dict[str, list[str]] = {}
    for row in rows[:-1]:
        phases.setdefault(row["action"], []).append(f"{row['phase']} {row['attempt']}")
    assert phases["a0"] == ["RUNNING 1", "SUCCEEDED 1"]
    assert ["RUNNING 1", "QUEUED 2", "RUNNING 2", "SUCCEEDED 2"] in phases.values()
    assert ["RUNNING 1", "FAILED 1"] in phases.values()
    # The root, the sum and its three squares, flaky, broken, the trace, the condition.
    assert len(phases) == 9


async def _paused(site: Site) -> str:
    found: list[str] = []

    async def is_listed() -> bool:
        return await trio.to_thread.run_sync(look)

    def look() -> bool:
        listed = finish(
            "list", "--run", "rdemo", "--phase", "PAUSED", "--output", "jsonl", *site.common
        )
        found.extend(json.loads(line)["action"] for line in listed.out.splitlines())
        return bool(found)

    await eventually_holds(is_listed)
    return found[0]
