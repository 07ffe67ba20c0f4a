"""What CI says of tests that failed first and passed when run once more."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("tests", "code", "said"),
    [
        ([], 0, "none"),
        (["a.py::b"], 0, "1 failed"),
        (["a.py::b", "a.py::c", "a.py::b"], 1, "a.py::c"),
    ],
)
def test_flaky_tests_are_listed_and_bounded(
    tmp_path: Path, tests: list[str], code: int, said: str
) -> None:
    record, budget = tmp_path / "record", tmp_path / "budget"
    record.write_text("".join(f"{test}\n" for test in tests))
    budget.write_text("# why\n1\n")
    done = subprocess.run(
        [ROOT / ".ci" / "flaky", record, budget], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert said in done.stdout
