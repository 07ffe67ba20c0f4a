"""Forked processes run every test once, and what happens in them is reported as in one process."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

CONFTEST = """
    import pytest
    from tests.support.forks import Forks

    def pytest_addoption(parser):
        parser.addoption("--forks", type=int, default=0)

    def pytest_configure(config):
        config.pluginmanager.register(Forks(config.getoption("forks")))

    @pytest.fixture(scope="module")
    def once(request):
        with open(request.config.rootpath / "made", "a") as file:
            print(request.module.__name__, file=file)

    def pytest_sessionfinish(session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["said"] = session.config.workerinput["workerid"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(node):
        print("\\nended:", node.workeroutput["said"])
"""


def run(pytester: pytest.Pytester, *arguments: str, **files: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**files)
    return pytester.runpytest_subprocess("--forks=2", "-s", *arguments)


def test_every_test_runs_once_and_a_file_in_one_process(pytester: pytest.Pytester) -> None:
    test = """
        import os, pytest
        pids = set()

        @pytest.mark.parametrize("number", range(20))
        def test_one(once, number, tmp_path):
            (tmp_path / "file").touch()
            pids.add(os.getpid())
            assert pids == {os.getpid()}

        def test_skipped(): pytest.skip("no")
    """
    result = run(pytester, test_a=test, test_b=test, test_c=test)
    result.assert_outcomes(passed=60, skipped=3)
    assert sorted((pytester.path / "made").read_text().split()) == ["test_a", "test_b", "test_c"]
    assert sum("ended: fork" in line for line in result.outlines) == 2


def test_a_failure_is_told_and_known_for_the_next_run(pytester: pytest.Pytester) -> None:
    bad = """
        def test_bad():
            print("said", "before")
            assert 1 == 2
        def test_good(): ...
    """
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_bad=bad, test_good="def test_good(): ...")
    result = pytester.runpytest_subprocess("--forks=2", "--junit-xml=found.xml")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*assert 1 == 2*", "*said before*", "FAILED test_bad.py::test_bad*"]
    )
    failed = json.loads((pytester.path / ".pytest_cache/v/cache/lastfailed").read_text())
    assert failed == {"test_bad.py::test_bad": True}
    assert 'tests="3"' in (pytester.path / "found.xml").read_text()


def test_a_process_that_ends_fails_its_tests_and_the_run(pytester: pytest.Pytester) -> None:
    bad = """
        import os
        def test_before(): ...
        def test_ends(): os._exit(7)
        def test_after(): ...
    """
    result = run(pytester, test_bad=bad, test_good="def test_good(): ...")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*fork? ended with exit code 7*"])


def test_what_is_left_at_the_end_fails_the_run(pytester: pytest.Pytester) -> None:
    bad = """
        import socket
        def test_open():
            loop = [socket.socket()]
            loop.append(loop)
    """
    result = run(pytester, "-W", "error", test_bad=bad)
    assert result.ret != 0
    assert any("unclosed" in line for line in [*result.outlines, *result.errlines])


def test_it_stops_at_the_first_failure(pytester: pytest.Pytester) -> None:
    bad = "def test_bad(): assert False"
    files = {f"test_{number}": bad for number in range(20)}
    result = run(pytester, "-x", **files)
    assert 1 <= result.parseoutcomes()["failed"] < 20
