"""The oldest messages of Flyte that pyproject.toml accepts; the everyday suite has the newest."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# What a version before the bound fails: the lists, the streams and the cache.
TESTS = (
    "tests/model",
    "tests/run_service",
    "tests/server/front/test_runs_reading.py",
    "tests/server/front/test_runs_streams.py",
    "tests/executor/test_caching.py",
)


def test_all_modules_and_what_reads_the_newest_fields(tmp_path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    bounds = {
        str(requirement.specifier)
        for extra in extras.values()
        for requirement in map(Requirement, extra)
        if requirement.name == "flyteidl2"
    }
    assert len(bounds) == 1
    oldest = bounds.pop().removeprefix(">=")
    target = tmp_path / "oldest"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, f"flyteidl2=={oldest}"], check=True)
    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    where = run("-c", "import flyteidl2; print(flyteidl2.__file__)")
    assert where.startswith(str(target))
    assert " modules imported" in run("-W", "error", ".ci/import-all")
    everyday = ("-m", "not faults and not slow", f"--basetemp={tmp_path / 'tests'}")
    passed = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *everyday, *TESTS)
    assert " passed" in passed
