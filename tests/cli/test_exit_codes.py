"""What each exit code promises."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from etcd_actions import errors
from etcd_actions.cli.exit_codes import MEANINGS, ExitCode, report
from etcd_actions.cli.log_output import configure_logs
from etcd_actions.etcd.api import Etcd
from tests.cli.command import ROOT, environment, finish
from tests.support.etcd_server import EtcdServer

ALL = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, errors.EtcdActionsError)
]
UNEXPECTED = {errors.BackgroundFailure, errors.EtcdActionsError, errors.UnexpectedFailure}


def made(kind: type[errors.EtcdActionsError]) -> errors.EtcdActionsError:
    if issubclass(kind, errors.InvalidArgument):
        return kind("field", "x")
    if kind in (errors.RunServiceRejected, errors.RunServiceActionUnknown):
        return kind("x", code=3)
    return kind("x")


@pytest.fixture
def logs_to_stderr() -> Iterator[None]:
    before = structlog.get_config()
    configure_logs()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_foreseen_error_has_a_code_of_its_own_and_another_a_traceback(
    kind: type[errors.EtcdActionsError], capsys: pytest.CaptureFixture[str], logs_to_stderr: None
) -> None:
    """Code 1 says that the log has the traceback, so it has one; no other code comes with one."""
    code = report(made(kind))
    *logged, line = capsys.readouterr().err.splitlines()
    assert line.startswith("etcd-actions: ")
    assert (code is ExitCode.FAILURE) == (kind in UNEXPECTED)
    if code is ExitCode.FAILURE:
        (entry,) = logged
        assert kind.__name__ in json.loads(entry)["exception"]
    else:
        assert logged == []


def test_the_cause_of_an_unexpected_failure_is_in_the_traceback(
    capsys: pytest.CaptureFixture[str], logs_to_stderr: None
) -> None:
    error = errors.UnexpectedFailure("enqueue: ZeroDivisionError")
    error.__cause__ = ZeroDivisionError("the cause")
    assert report(error) is ExitCode.FAILURE
    logged, _ = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: the cause" in json.loads(logged)["exception"]


@pytest.mark.parametrize("raised", ["SystemExit('odd')", "SystemExit()", "GeneratorExit('odd')"])
def test_an_end_that_no_command_asks_for_has_a_traceback(raised: str) -> None:
    program = (
        "import etcd_actions.cli as cli\n"
        f"def main(): raise {raised}\n"
        "cli.main = main\n"
        "cli.process_main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", ["abort", "signal", "status"])
async def test_what_cannot_be_read_cannot_be_changed_and_the_message_says_why(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, command: str
) -> None:
    """As where an API server began to encrypt."""
    await etcd.put(prefix + b"flyte/r1-a0", b"k8s:enc:aescbc:v1:key1:\x8b")
    more = {"abort": [], "signal": ["true"], "status": ["RUNNING"]}[command]
    done = finish(
        command,
        "p/d/r1/a0",
        *more,
        "--endpoints",
        shared_etcd.endpoint,
        "--prefix",
        prefix.decode(),
    )
    assert done.code == 10
    # The list of the run, by which abort counts, logs each unreadable value before.
    message = done.err.splitlines()[-1]
    assert message.startswith("etcd-actions: ")
    assert "encrypted at rest by a Kubernetes API server" in message


def test_the_readme_lists_every_code() -> None:
    text = (ROOT / "README.md").read_text().replace("`", "")
    rows = dict(re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", text, re.MULTILINE))
    told = dict(MEANINGS)
    assert rows.pop("8, 9") == "doctor found warnings, or errors"
    assert {told.pop("8"), told.pop("9")} == {
        "doctor found warnings, and nothing worse",
        "doctor found errors",
    }
    assert rows == told
    assert {str(int(code)) for code in ExitCode} <= {"8", "9", *rows}


def test_the_page_of_commands_says_the_same_of_code_1() -> None:
    text = Path(ROOT / "docs" / "commands.md").read_text()
    assert f"| 1 | {dict(MEANINGS)['1']} |" in text
