"""The fixtures as other projects use them: in a pytest run of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from etcd_actions import open_etcd
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import KeyRange
from etcd_actions.testing import EtcdServer
from etcd_actions.testing.plugin import VARIABLE

CONFTEST = """
    from etcd_actions.testing import EtcdServer  # before the plugin is loaded

    pytest_plugins = ["etcd_actions.testing"]
"""

STRICT = ["-W", "error", "-p", "no:cacheprovider", "--strict-markers"]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose tests load the plugin."""
    monkeypatch.delenv(VARIABLE, raising=False)
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.mark.slow
async def test_an_etcd_that_runs_is_used_and_left_clean(
    project: pytest.Pytester, shared_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefixes differ, and what was written under them is deleted; the rest stays."""
    project.makepyfile("""
        import pytest
        from etcd_actions import open_etcd
        from etcd_actions.testing import EtcdServer

        seen = set()

        @pytest.mark.trio
        @pytest.mark.parametrize("time", range(2))
        async def test_own_keys(etcd: EtcdServer, etcd_prefix: bytes, time: int) -> None:
            assert etcd_prefix not in seen
            seen.add(etcd_prefix)
            async with open_etcd(etcd.endpoint) as connection:
                await connection.put(etcd_prefix + b"k", b"")
                assert (await connection.status()).version == str(etcd.version)
            print("PREFIX", etcd_prefix.decode())

        def test_the_same(etcd: EtcdServer, etcd_server: EtcdServer) -> None:
            assert etcd is etcd_server
            assert etcd.where == etcd.endpoint
    """)
    result = project.runpytest_subprocess("-s", "--etcd", shared_etcd.endpoint, *STRICT)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([f"etcd {shared_etcd.version}: {shared_etcd.endpoint}"])
    prefixes = re.findall(r"PREFIX (\S+)", result.stdout.str())
    assert len(set(prefixes)) == 2
    async with open_etcd(shared_etcd.endpoint) as etcd:
        for prefix in prefixes:
            assert (await etcd.range(KeyRange.of_prefix(prefix.encode()))).total == 0
    monkeypatch.setenv(VARIABLE, shared_etcd.endpoint)
    project.runpytest_subprocess(*STRICT).assert_outcomes(passed=3)


@pytest.mark.slow
def test_each_process_of_xdist_has_its_own(project: pytest.Pytester) -> None:
    """And the closing lines tell which etcd it was."""
    project.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_shared(etcd, etcd_prefix, number, record_property, worker_id):
            record_property("seen", f"{worker_id} {etcd.endpoint}")
    """)
    result = project.runpytest_subprocess("--etcd=embedded", "-n", "2", "--junit-xml=x", *STRICT)
    result.assert_outcomes(passed=6)
    seen = set(re.findall(r'value="(gw\d) (\S+)"', (project.path / "x").read_text()))
    assert len({worker for worker, _ in seen}) == len({endpoint for _, endpoint in seen}) == 2
    result.stdout.fnmatch_lines(["etcd 3.*: binary *"])


def test_one_is_started_and_ended(project: pytest.Pytester) -> None:
    """The shared one, and those of the tests' own, also when a test fails."""
    project.makepyfile("""
        def test_shared(etcd):
            assert etcd.where.startswith("binary ")
            print("AT", etcd.endpoint)

        def test_own(etcd, etcd_factory):
            first, second = etcd_factory(), etcd_factory(flags=["--max-txn-ops=7"])
            assert len({first.endpoint, second.endpoint, etcd.endpoint}) == 3
            for each in (first, second):
                print("AT", each.endpoint)
            first.suspend()
            assert False

        def test_later(etcd_factory):
            own = etcd_factory(start=False)
            own.start()
            own.stop()
    """)
    result = project.runpytest_inprocess("-s", "--etcd=embedded", *STRICT)
    result.assert_outcomes(passed=2, failed=1)
    endpoints = re.findall(r"AT (\S+)", result.stdout.str())
    assert len(endpoints) == 3
    for endpoint in endpoints:
        with pytest.raises(Unavailable):
            EtcdServer.at(endpoint)


@pytest.mark.slow
def test_the_example_of_the_documentation(pytester: pytest.Pytester) -> None:
    """As it stands there."""
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    conftest, *tests = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    pytester.makeconftest(conftest)
    pytester.makepyfile(**{f"test_{number}": test for number, test in enumerate(tests)})
    pytester.runpytest_inprocess("--etcd=embedded", *STRICT).assert_outcomes(passed=4)


@pytest.mark.slow
def test_without_an_engine_container_tests_are_skipped(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the reason is told; nothing else is affected."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{project.path}/none.sock")
    project.makepyfile("""
        def test_shared(etcd): ...
        def test_own(etcd_factory): etcd_factory()
        def test_other(): ...
    """)
    result = project.runpytest_subprocess("--etcd=container", "-rs", *STRICT)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*no container engine answers*"])


@pytest.mark.slow
def test_what_cannot_be_had_fails_with_one_line(project: pytest.Pytester) -> None:
    """No traceback through the plugin."""
    project.makepyfile("def test_shared(etcd): ...")
    result = project.runpytest_subprocess("--etcd=./absent", *STRICT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*absent does not report its version*"])
    result.stdout.no_fnmatch_line("*plugin.py*")


def test_a_wrong_value_is_a_usage_error(project: pytest.Pytester) -> None:
    """Before any test runs."""
    result = project.runpytest_inprocess("--etcd=contaner")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--etcd=contaner: give container, binary, *"])


@pytest.mark.slow
def test_the_plugin_can_be_named_on_the_command_line(pytester: pytest.Pytester) -> None:
    """And is not there unless it is named: no other suite has its option."""
    assert (
        "--etcd=WHERE"
        in pytester.runpytest_subprocess(
            "-p", "etcd_actions.testing", "--help", *STRICT
        ).stdout.str()
    )
    assert "--etcd=WHERE" not in pytester.runpytest_subprocess("--help").stdout.str()
    assert os.environ.get("PYTEST_PLUGINS", "") == ""
