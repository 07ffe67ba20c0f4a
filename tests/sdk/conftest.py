"""The interpreter with Flyte's SDK, made when the first test wants it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.command import ROOT


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """The python of a virtual environment with the unmodified SDK."""
    return _made()


@pytest.fixture(scope="session")
def oldest_sdk_python() -> Path:
    """The same with the oldest version of the SDK that is supported."""
    return _made("oldest")


@pytest.fixture(scope="session")
def ray_python() -> Path:
    """The python of a virtual environment with Ray and the SDK, which is large: not made here."""
    environment = ROOT / ".venv-sdk-ray"
    if not (environment / "stamp").exists():
        pytest.skip("there is no Ray: make its environment with scripts/_ray-venv (1 GB)")
    return environment / "bin" / "python"


def _made(*version: str) -> Path:
    made = subprocess.run(
        [ROOT / "scripts" / "_sdk-venv", *version], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"the SDK's environment cannot be made: {made.stderr[-500:]}")
    return Path(made.stdout.strip())
