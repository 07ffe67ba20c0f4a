"""The SDK and this package in one virtual environment, and why the service has its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.cli.command import ROOT
from tests.sdk.door import Door, open_door
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

PREFIX = "/one-environment/"
# All that the SDK can be beside: `server` is the one extra that it cannot.
EXTRAS = "blobs,cli,executor,flyte"


def pip(python: Path, *arguments: str) -> str:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def shared_python(tmp_path_factory: pytest.TempPathFactory, sdk_python: Path) -> Path:
    """One resolution of both: of the SDK as scripts/_sdk-venv has it, and of this package."""
    assert sdk_python.exists()
    directory = tmp_path_factory.mktemp("shared")
    pins = {}
    for name in ("constraints.txt", "constraints-sdk.txt"):
        for line in (ROOT / name).read_text().splitlines():
            pins[line.partition("==")[0].lower()] = line
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(pins.values()))
    python = directory / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    pip(python, "install", "-qq", "-c", str(constraints), "flyte", f".[{EXTRAS}]")
    return python


@pytest.fixture(scope="module")
def door(
    etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory, shared_python: Path
) -> Iterator[Door]:
    directory = tmp_path_factory.mktemp("door")
    with open_door(directory, etcd_server.endpoint, PREFIX.encode(), shared_python) as door:
        yield door


def test_a_program_runs_and_the_commands_follow_it(door: Door) -> None:
    assert "No broken requirements" in pip(door.python, "check")
    assert door.run("hello.py", project="one")["phase"] == "ActionPhase.SUCCEEDED"
    listed = door.finish(
        str(door.python.with_name("etcd-actions")),
        "list",
        *door.site.common,
    )
    assert listed.returncode == 0, listed.stderr
    actions = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [action["phase"] for action in actions] == ["SUCCEEDED"] * 5


def test_the_service_cannot_be_there_as_long_as_the_bounds_are_apart(sdk_python: Path) -> None:
    """When this fails, docs/front-door.md can promise more."""
    asked = subprocess.run(
        [
            sdk_python,
            "-c",
            "import importlib.metadata as m; print(*m.requires('flyte'), sep='\\n')",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    of_the_sdk = {each.name: each.specifier for each in map(Requirement, asked)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {
        each.name: each.specifier
        for each in map(Requirement, project["optional-dependencies"]["server"])
    }
    lowest = Version(next(iter(ours["connectrpc"])).version)
    assert lowest not in of_the_sdk["connectrpc"]
    assert str(of_the_sdk["flyteidl2"]).removeprefix("==") in ours["flyteidl2"]
