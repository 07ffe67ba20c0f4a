"""The stock SDK recovers a run: what succeeded is taken over, the rest runs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Running
from tests.sdk.service import Site, free_port
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

_PROGRAM = Path(__file__).parent / "front_programs" / "recover.py"


def until_serving(service: Running) -> None:
    until = time.monotonic() + 60
    while not service.logs("serving"):
        assert service.process.poll() is None, service.err
        assert time.monotonic() < until, service.err
        time.sleep(0.05)  # A process rings no bell, and no trio runs here.


class Shell:
    """Where the SDK runs, as a person has it."""

    def __init__(self, python: Path, directory: Path, port: int) -> None:
        self._python = python
        self._directory = directory
        self.endpoint = f"http://127.0.0.1:{port}"
        self.service: Running | None = None

    def run(self, *command: str | Path) -> str:
        """Run a Python program, or a command that is installed beside it."""
        done = subprocess.run(
            [str(each) for each in command],
            env={
                "PATH": f"{self._python.parent}:/usr/bin:/bin",
                "HOME": str(self._directory),
                "COLUMNS": "200",
                "LANG": "C.UTF-8",
            },
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        service = "" if self.service is None else self.service.err[-6000:]
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}\n{service}"
        return done.stdout

    def configuration(self, project: str) -> Path:
        path = self._directory / "config.yaml"
        path.write_text(
            f"admin:\n  endpoint: {self.endpoint}\n  insecure: true\n"
            f"task:\n  project: {project}\n  domain: development\n"
        )
        return path


@pytest.fixture
def shell(etcd_server: EtcdServer, tmp_path: Path, sdk_python: Path) -> Iterator[Shell]:
    site = Site(tmp_path, etcd_server.endpoint, b"/recover/", sdk_python)
    port = free_port()
    with ExitStack() as stack:
        stack.callback(site.end_all)
        service = stack.enter_context(
            site.service(port, "--blob-dir", str(tmp_path / "blobs"), "--executor-slots", "8")
        )
        until_serving(service)
        shell = Shell(sdk_python, tmp_path, port)
        shell.service = service
        yield shell


def test_what_succeeded_is_not_run_again(shell: Shell, sdk_python: Path, tmp_path: Path) -> None:
    """A run fails; recovered it fails again; recovered once more it comes to its result."""
    folder = tmp_path / "folder"
    folder.mkdir()
    told: dict[str, Any] = json.loads(
        shell.run(sdk_python, _PROGRAM, shell.endpoint, "recover", folder).splitlines()[-1]
    )
    assert told["failed"]["phase"] == "failed"
    assert told["failed"]["ran"] == ["stamp below", "stamp first", "traced"]
    assert told["failed"]["phases"] == {
        "main": ["failed"],
        "stamp": ["succeeded", "succeeded"],
        "branch": ["failed"],
        "fragile": ["failed"],
        "other": ["succeeded", "succeeded"],
    }
    assert told["still_failed"]["phase"] == "failed"
    assert told["still_failed"]["source"] == told["name"]
    assert told["still_failed"]["ran"] == []
    recovered = told["recovered"]
    assert recovered["phase"] == "succeeded"
    assert recovered["ran"] == ["fragile"]
    assert recovered["phases"] == {
        "main": ["succeeded"],
        "stamp": ["recovered", "recovered"],
        "branch": ["succeeded"],
        "fragile": ["succeeded"],
        # The condition; a trace that is replayed is not recorded again.
        "other": ["recovered"],
    }
    step, approved, first, below = recovered["outputs"]
    assert approved == "True"
    forced = told["forced"]
    assert forced["ran"] == ["stamp first"]
    assert forced["outputs"] == [step, approved, forced["outputs"][2], below]
    assert forced["outputs"][2] != first
    assert "unknown" in told["unknown"]
    by_command = shell.run(
        sdk_python.with_name("flyte"),
        "--config",
        shell.configuration("recover"),
        "rerun",
        told["name"],
        "--recover",
    )
    assert "Recover" in by_command
