"""The table of the conformance suite leaves nothing out; CI counts what ran on a container."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from etcd_actions.errors import ConfigError
from etcd_actions.testing.etcd_process import best_binary
from tests.support.conformance import BINARIES, etcds_at_hand

ROOT = Path(__file__).parents[2]

CONFTEST = """
    import pytest
    from tests.support.conformance import ConformanceEtcd, ConformanceTable

    pytest_plugins = ["etcd_actions.testing"]

    def pytest_configure(config):
        config.addinivalue_line("markers", "conformance: x")
        config.pluginmanager.register(ConformanceTable())

    def pytest_generate_tests(metafunc):
        if "conformance_etcd" in metafunc.fixturenames:
            etcds = [ConformanceEtcd(each, f"where/{each}") for each in ("3.4.23", "3.5.1")]
            metafunc.parametrize("conformance_etcd", etcds, ids=["3.4.23", "3.5.1"])

    @pytest.fixture(params=["grpc", "gateway"])
    def transport(request):
        return request.param

    @pytest.fixture
    def killable(conformance_etcd):
        if conformance_etcd.label == "3.5.1":
            pytest.skip("3.5.1 is not killed")
"""

TESTS = """
    import pytest

    pytestmark = pytest.mark.conformance

    def test_all(transport, conformance_etcd): ...

    @pytest.mark.parametrize("what", ["a-b", "c"])
    def test_more(transport, conformance_etcd, what):
        assert (transport, what) != ("gateway", "c")

    def test_killing(transport, conformance_etcd, killable): ...

    @pytest.fixture
    def broken(): raise ValueError

    def test_broken(transport, conformance_etcd, broken): ...

    @pytest.mark.xfail(reason="nobody knows how")
    def test_hopeless(transport, conformance_etcd): assert False

    @pytest.mark.parametrize("transport", ["grpc"], indirect=True)
    def test_one_transport(transport, conformance_etcd): ...

    def test_left_out(transport, conformance_etcd): ...
"""


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_every_case_is_in_the_table(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """Passed, failed, skipped with the reason, deselected, or no case of the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-k", "not left_out", "-n", workers
    )
    printed = [" ".join(line.split()) for line in result.outlines]
    table = printed[printed.index("transport grpc grpc gateway gateway") :]
    assert table[: table.index("-: deselected") + 2] == [
        "transport grpc grpc gateway gateway",
        "etcd 3.4.23 3.5.1 3.4.23 3.5.1",
        "test_all ok ok ok ok",
        "test_more[a-b] ok ok ok ok",
        "test_more[c] ok ok FAIL FAIL",
        "test_killing ok skip1 ok skip1",
        "test_broken ERROR ERROR ERROR ERROR",
        "test_hopeless skip2 skip2 skip2 skip2",
        "test_one_transport ok ok . .",
        "test_left_out - - - -",
        "",
        "3.4.23: where/3.4.23, not started",
        "3.5.1: where/3.5.1, not started",
        "skip1: 3.5.1 is not killed",
        "skip2: expected to fail: nobody knows how",
        ".: not a case of this test",
        "-: deselected",
        "8 tests x 4 columns: 14 ok, 2 FAIL, 6 skip, 4 ERROR, 4 -, 2 no case",
    ]


@pytest.mark.slow
def test_a_run_that_ended_early_has_no_holes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not reached is marked."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-x", "-k", "all or broken")
    assert [" ".join(line.split()) for line in result.outlines if line.startswith("test_b")] == [
        "test_broken ERROR ? ? ?"
    ]
    result.stdout.fnmatch_lines([r"[?]: not run: the session ended"])


def test_more_binaries_come_from_the_environment(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version once; a path without an etcd is refused."""
    monkeypatch.setattr(pytestconfig.option, "etcd", "")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "etcd"
    program.write_text("#!/bin/sh\necho etcd Version: 3.9.9\n")
    program.chmod(0o755)
    known = best_binary().path
    monkeypatch.setenv(BINARIES, f"{folder}:{known}")
    labels = [etcd.label for etcd in etcds_at_hand(pytestconfig)]
    assert "3.9.9" in labels
    assert str(best_binary().version) in labels
    assert len(set(labels)) == len(labels)
    assert labels[-1] == "container"
    monkeypatch.setenv(BINARIES, str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=rf"{BINARIES}: there is no etcd at .*absent"):
        etcds_at_hand(pytestconfig)


def case(area: str, name: str, where: str, outcome: str = "") -> str:
    return (
        f'<testcase classname="tests.{area}" name="{name}"><properties>'
        f'<property name="etcd" value="{where}"/></properties>{outcome}</testcase>'
    )


CONTAINER = "container x"
SKIPPED = '<skipped message="no engine"/>'


@pytest.mark.parametrize(
    ("cases", "problem"),
    [
        ([], ""),
        ([case("faults.test_a", "test_x", "binary x")], ""),
        ([case("store", "test_y", CONTAINER, SKIPPED)], "store.test_y was skipped: no engine"),
    ],
)
def test_a_container_run_must_have_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: list[str], problem: str
) -> None:
    """One pass on a container for each area, and no skip."""
    good = [case("faults.test_a", "test_b", CONTAINER), case("store", "test_c", CONTAINER)]
    code, said = judge(tmp_path, capsys, [*good, *cases])
    assert code == (1 if problem else 0)
    assert problem in said


@pytest.mark.parametrize("outcome", [SKIPPED, "<failure/>", "<error/>"])
def test_an_area_without_a_pass_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], outcome: str
) -> None:
    """Whatever else passed, and wherever."""
    cases = [
        case("faults.test_a", "test_b", CONTAINER),
        case("store", "test_c", CONTAINER, outcome),
        case("store", "test_d", "binary x"),
    ]
    code, said = judge(tmp_path, capsys, cases)
    assert code == 1
    assert "cas: no test of tests.store passed on a container" in said


def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: list[str]) -> tuple[int, str]:
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    areas = ["f=tests.faults", "cas=tests.store"]
    script = runpy.run_path(str(ROOT / ".ci/require-container"))
    code = script["main"](str(report), areas)
    out, err = capsys.readouterr()
    return code, out + err
