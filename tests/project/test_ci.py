"""What CI says of tests that failed first and passed when run once more."""

from __future__ import annotations

import runpy
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tests: list[str], code: int, said: str
) -> None:
    record, budget = tmp_path / "record", tmp_path / "budget"
    record.write_text("".join(f"{test}\n" for test in tests))
    budget.write_text("# why\n1\n")
    flaky = runpy.run_path(str(ROOT / ".ci" / "flaky"))
    assert flaky["main"](str(record), str(budget)) == code
    assert said in capsys.readouterr().out
