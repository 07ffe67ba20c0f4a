"""requirements.lock against constraints.txt, which is what is tested."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def pins(text: str) -> dict[str, str]:
    lines = (line.removesuffix("\\") for line in text.splitlines())
    found = (Requirement(line) for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(each.name): str(each.specifier) for each in found}


def test_it_has_the_versions_that_are_tested_with_their_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    locked = pins(text)
    tested = pins((ROOT / "constraints.txt").read_text())
    assert {"trio", "flyteidl2", "connectrpc"} <= {*locked}
    assert {name: tested.get(name) for name in locked} == locked, "run scripts/lock"
    # Each release is a block: its name goes to the margin, its hashes do not.
    blocks = [line for line in text.replace("\n    ", " ").splitlines() if not line.startswith("#")]
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert len(blocks) == len(locked)
    assert "://" not in text
