"""The documents name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A name without a bracket, or with the parameters of a parametrised test.
_NAMED = re.compile(r"`(?:[\w/.]+\.py::)?(test_\w+)(?:\[[^\]]*\])?`")
_DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)


@pytest.mark.parametrize("document", ["guarantees.md", "failure-modes.md", "architecture.md"])
def test_a_document_names_tests_that_exist(document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert set(_NAMED.findall(text)) - set(_DEFINED.findall(tests)) == set()
