"""The source distribution: what is in it, and that its tests and documents hold there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_it_has_all_that_its_tests_and_documents_need(tmp_path: Path) -> None:
    builder = tmp_path / "builder"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run("-m", "pip", "install", "-qq", "--target", builder, *constraints, "hatchling", cwd=ROOT)
    run(
        "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT, PYTHONPATH=str(builder)
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(tmp_path.glob("etcd_actions-*/"))
    run(
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        tmp_path,
        cwd=unpacked,
        PYTHONPATH=str(builder),
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        page = {name for name in wheel.namelist() if name.startswith("etcd_actions/page/static/")}
    static = ROOT / "etcd_actions" / "page" / "static"
    assert page == {f"etcd_actions/page/static/{each.name}" for each in static.iterdir()}

    def tests(*arguments: str) -> str:
        command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 't'}")
        return run(*command, *arguments, cwd=unpacked, PYTHONPATH=str(unpacked))

    assert "tests/watch" in tests("--collect-only", "-qq")
    tests("tests/project/test_docs.py", "tests/project/test_public_names.py")
