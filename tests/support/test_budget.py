"""A run tells what it cost, and which unmarked tests took long."""

from __future__ import annotations

import re

import pytest

CONFTEST = """
    from tests.support.budget import Budget

    def pytest_configure(config):
        config.addinivalue_line("markers", "slow: x")
        config.pluginmanager.register(Budget(test_seconds=0.05))
"""

TESTS = """
    import time
    import pytest

    def test_fast(): ...

    def test_long(): time.sleep(0.06)

    @pytest.mark.slow
    def test_marked(): time.sleep(0.06)
"""


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_long_tests_without_a_mark_are_named(pytester: pytest.Pytester, workers: str) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-n", workers)
    result.assert_outcomes(passed=3)
    named = [line for line in result.outlines if "without a mark" in line]
    assert [re.findall(r"::(\w+)", line) for line in named] == [["test_long"]]
    (told,) = [line for line in result.outlines if line.startswith("processor time ")]
    assert re.match(r"processor time \d+ s in \d+ s; the everyday suite may take \d+ s", told)
