"""Every test that docs/conformance.md and docs/guarantees.md point to is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("name", ["conformance.md", "guarantees.md"])
def test_each_test_that_is_named_exists(name: str) -> None:
    """By path and name."""
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (DOCS / name).read_text())
    assert named
    missing = []
    for path, function in named:
        file = TESTS / path
        if not file.exists() or (function and function not in functions(file)):
            missing.append(f"{path}::{function}")
    assert missing == []
