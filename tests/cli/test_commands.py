"""Bad input: one line that names it, and the exit code."""

import importlib.metadata
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import etcd_actions
from etcd_actions import errors
from etcd_actions.cli import main
from etcd_actions.cli.command_line import commands, invoke
from etcd_actions.cli.exit_codes import ExitCode, report
from tests.cli.command import finish
from tests.data.captured import HERE
from tests.support.etcd_server import EtcdServer, free_port
from tests.support.everyday import first_everyday

HISTORY = HERE / "taskaction_history.jsonl"


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """The command inside this process, for what ends before it connects."""
    monkeypatch.setattr(sys, "argv", ["etcd-actions", *arguments])
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    monkeypatch.setattr("etcd_actions.cli.options.configure_logs", lambda *_: None)
    code = invoke()
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_version() -> None:
    done = finish("--version")
    assert (done.code, done.out, done.err) == (0, f"etcd-actions {etcd_actions.__version__}\n", "")


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Each command and subcommand that can be run, with its path."""

    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                yield from below(f"{path} {name}", each)
        else:
            yield path, command

    for name in commands.locations:
        yield from below(f"etcd-actions {name}", commands.load(name))


def test_each_command_has_an_example_that_it_accepts() -> None:
    for path, command in every_command():
        context = click.Context(command, info_name=path)
        shown = command.get_help(context)
        example = re.search(r"\n  Example:\n((?: {4}.*\n)+)", shown)
        assert example is not None, path
        line = example[1].strip()
        assert f"{path} " in line, line
        words = shlex.split(line.rpartition(f"{path} ")[2].rstrip(")"))
        # A usage error is raised for an unknown flag and for a missing argument.
        command.make_context(path, words)


@pytest.mark.slow
def test_versions(shared_etcd: EtcdServer) -> None:
    done = finish("version", "-o", "json", "--endpoints", shared_etcd.endpoint)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["etcd_actions"] == etcd_actions.__version__
    assert found["sdk_messages"] == importlib.metadata.version("flyteidl2")
    assert found["etcd"] == str(shared_etcd.version)
    text = finish("version", "--endpoints", f"127.0.0.1:{free_port()}").out
    assert f"etcd-actions  {etcd_actions.__version__}\n" in text
    assert "\netcd          unknown: " in text


@pytest.mark.parametrize(
    ("arguments", "named", "near"),
    [
        (["status", "r1", "RUNING"], "'PHASE'", ": did you mean RUNNING? See"),
        (["list", "--phase", "falied"], "'--phase'", ": did you mean FAILED? See"),
        (["list", "-o", "nmae"], "'-o' / '--output'", ": did you mean name? See"),
        (["list", "-o", "qqqqq"], "'-o' / '--output'", "'jsonl'. See"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
    near: str,
) -> None:
    code, _, err = run_here(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith(
        f"etcd-actions: Invalid value for {named}: '{arguments[-1]}' is not one of"
    )
    assert near in err


def test_help_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names in ([], ["list"], ["dead-letters", "retry"]):
        assert run_here(monkeypatch, capsys, "help", *names) == run_here(
            monkeypatch, capsys, *names, "--help"
        )
    code, _, err = run_here(monkeypatch, capsys, "help", "list", "more")
    assert (code, err) == (
        2,
        "etcd-actions: etcd-actions list has no commands. See etcd-actions list --help\n",
    )


@pytest.mark.parametrize(
    "command", [[], ["run"], ["watch"], ["list"], ["get"], ["tree"], ["record"], ["replay"]]
)
def test_help_tells_the_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, out, _ = run_here(monkeypatch, capsys, *command, "--help")
    assert code == 0
    for each in ExitCode:
        assert f"\n    {each} " in out


def test_no_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_here(monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: etcd-actions ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--bogus"], "--bogus"),
        (["fly"], "fly"),
        (["replay"], "FILE"),
        (["replay", "x", "--rate", "0"], "--rate"),
        (["run", "--grace", "soon"], "--grace"),
        (["run", "--embedded-port", "65536"], "--embedded-port"),
        (["watch", "--output", "xml"], "--output"),
        # It has no end, so it is no one document.
        (["watch", "--output", "json"], "--output"),
        (["list", "--phase", "DONE"], "--phase"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--run", "a//b"], "--run 'a//b' is not an action: give RUN"),
        (["get"], "ACTION"),
        (["get", "a//c"], "'a//c'"),
        (["tree"], "RUN"),
        (["tree", "a//b"], "'a//b'"),
        (["record"], "FILE"),
        (["completion", "tcsh"], "tcsh"),
        (["watch", "--log-level", "loud"], "--log-level"),
        (["watch", "--prefix", "/"], "--prefix"),
        (["watch", "--prefix", ""], "--prefix"),
        (["watch", "--namespace", "a/b"], "--namespace"),
        (["watch", "--endpoints", ""], "--endpoints"),
        (["watch", "--endpoints", "a:b:c"], "--endpoints"),
        (["run", "--endpoints", "a:1", "--data-dir", "d"], "--data-dir"),
    ],
)
def test_bad_flag(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.delenv("ETCDCTL_ENDPOINTS", raising=False)
    code, out, err = run_here(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("etcd-actions: ")
    assert named in err


def test_bad_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "ftp://a:1")
    code, _, err = run_here(monkeypatch, capsys, "run")
    assert code == 2
    assert err.startswith("etcd-actions: ETCDCTL_ENDPOINTS: ")


@pytest.mark.parametrize("module", ["click", "msgpack", "rich"])
def test_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "etcd_actions.cli.find_spec", lambda name: None if name == module else find_spec(name)
    )
    assert main() == 2
    err = capsys.readouterr().err
    assert module in err
    assert "pip install 'etcd-actions[cli]'" in err


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.Unavailable("x"), 3),
        (errors.OutcomeUnknown("x"), 3),
        (errors.PermissionDenied("x"), 4),
        (errors.Unauthenticated("x"), 4),
        (errors.NoSpace("x"), 4),
        (errors.DataDirectoryInUse("x"), 5),
        (errors.EmbeddedEtcdError("x"), 5),
        (errors.InputError("x"), 6),
        (errors.EtcdActionsError("x"), 1),
        (ExceptionGroup("", [ExceptionGroup("", [errors.PermissionDenied("x")])]), 4),
        (_caused(errors.BackgroundFailure("crash"), errors.PermissionDenied("x")), 4),
    ],
)
def test_exit_code_of_an_error(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    assert capsys.readouterr().err.startswith("etcd-actions: x")


def test_a_bug_among_known_errors_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("", [errors.Unavailable("x"), ZeroDivisionError("bug")])
    assert report(group) == ExitCode.FAILURE
    assert "ZeroDivisionError: bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", first_everyday([["replay", HISTORY], ["list"], ["get", "a"], ["tree", "a"]])
)
def test_an_etcd_is_needed(command: list[str | Path]) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    done = finish(*command, ETCDCTL_ENDPOINTS=endpoint)
    assert done.code == 3
    assert endpoint in done.complaint
    assert done.out == ""


def test_replay_of_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = finish("replay", missing)
    assert done.code == 6
    assert str(missing) in done.complaint


def test_replay_stops_at_a_malformed_line(shared_etcd: EtcdServer, prefix: bytes) -> None:
    lines = HISTORY.read_text().splitlines()[:3]
    done = finish(
        "replay",
        "-",
        "--prefix",
        prefix.decode(),
        stdin="\n".join([*lines[:2], '{"type":"PUT","key":"/a/b/c","value":3}', lines[2]]),
        ETCDCTL_ENDPOINTS=shared_etcd.endpoint,
    )
    assert done.code == 6
    assert "<stdin>:3: " in done.complaint
    assert "`$.value`" in done.complaint
    assert done.out.startswith("replayed 2 events (2 puts, 0 deletes) ")


def test_an_extra_that_is_missing_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'flyteidl2'", name="flyteidl2.actions")
    assert report(error) == 2
    assert capfd.readouterr().err == (
        "etcd-actions: No module named 'flyteidl2': pip install 'etcd-actions[flyte]'\n"
    )
