"""A real program of Flyte's SDK, on nothing but an etcd: what ``scripts/demo`` shows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

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
    assert rows[-1] == {
        "result": "squares 14, cubes 9, half 7, retries 1, caught ValueError, approved True"
    }
    phases: dict[str, list[str]] = {}
    for row in rows[:-1]:
        phases.setdefault(row["action"], []).append(f"{row['phase']} {row['attempt']}")
    for seen in phases.values():
        # A new action is QUEUED; its next state may come first.
        if seen[0] == "QUEUED 1":
            del seen[0]
    assert phases["a0"] == ["RUNNING 1", "SUCCEEDED 1"]
    assert ["RUNNING 1", "QUEUED 2", "RUNNING 2", "SUCCEEDED 2"] in phases.values()
    assert ["RUNNING 1", "FAILED 1"] in phases.values()
    # The root, the sum and its three squares, a map of three, the one with the long name, flaky,
    # broken, the trace, the condition.
    assert len(phases) == 13


@pytest.mark.parametrize("form", ["name", "json"])
async def test_a_detached_submission_prints_its_run(site: Site, form: str) -> None:
    """And nothing else on standard output, for the next command of a script."""
    base = ("--output-base", str(site.directory / "runs"))
    done = await command(
        site, "submit", PROGRAM, "--run", "r9", "--detach", "-o", form, *base, *site.python
    )
    assert done.code == 0, done.err
    name = "flytesnacks/development/r9"
    if form == "name":
        assert done.out == f"{name}\n"
    else:
        assert json.loads(done.out) == {"name": name, "result": "created"}
    deleted = await command(site, "delete", name, "--dry-run", "--force", "-o", "name")
    assert deleted.out == f"{name}\n", deleted.err


async def test_the_demo_beside_a_running_service(site: Site, tmp_path: Path) -> None:
    """All ports are free ones, its output has no noise, and it stays until Ctrl-C on request."""
    home = tmp_path / "home"
    home.mkdir()
    with running(site.directory, "run", HOME=str(home)) as other:
        await other.logged("serving")
        out, err = tmp_path / "demo.out", tmp_path / "demo.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            demo = subprocess.Popen(
                [ROOT / "scripts" / "demo", "--stay", "count=3"],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                # It ignores the settings of a service that its user has.
                env=os.environ
                | {
                    "HOME": str(home),
                    "TMPDIR": str(tmp_path),
                    "ETCD_ACTIONS_LISTEN": "127.0.0.1:1",
                },
                start_new_session=True,
            )
        try:
            await eventually_holds(partial(_says, err, "until Ctrl-C", demo), within=120)
            lines = err.read_text().splitlines()
            assert [line for line in lines if not line.startswith("demo: ")] == []
            (page,) = re.findall(r"http://127\.0\.0\.1:[0-9]+/", lines[1])
            assert lines[-1].endswith(f"{page} until Ctrl-C")
            served = await trio.to_thread.run_sync(lambda: urlopen(page).read())
            assert b"<html" in served
            shown = out.read_text()
            assert 'result: "squares 14, cubes 9, half 7' in shown
            assert "FAILED" in shown
            assert "summarise_the_measurements" in shown
        finally:
            with suppress(ProcessLookupError):
                os.killpg(demo.pid, signal.SIGINT)
            code = await trio.to_thread.run_sync(demo.wait)
        assert code == 0
        # Nothing is left of it: the page, and its files.
        with pytest.raises(URLError):
            await trio.to_thread.run_sync(lambda: urlopen(page).read())
        assert list(tmp_path.glob("etcd-actions-demo.*")) == []
        assert other.process.poll() is None


async def _says(file: Path, text: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, file.read_text()
    return text in file.read_text()


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
