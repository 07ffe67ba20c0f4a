"""Passwords stay out of the process list, of tracebacks, and of what is started from here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from etcd_actions.cli import main
from etcd_actions.cli.command_line import invoke
from etcd_actions.cli.secret_arguments import visible_arguments
from tests.cli.command import DEADLINE, environment, until
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.table import table

PASSWORD = "hunter2"
HIDDEN = "(hidden)"

MODULE = [sys.executable, "-W", "error", "-m", "etcd_actions"]
SCRIPT = [str(Path(sys.executable).with_name("etcd-actions"))]


@table(
    ("arguments", "visible"),
    [
        (["--password", "x"], ["--password", HIDDEN]),
        (["--password=x"], [f"--password={HIDDEN}"]),
        (["--password=x=y"], [f"--password={HIDDEN}"]),
        (["--user", "a:x"], ["--user", f"a:{HIDDEN}"]),
        (["--user=a:x:y"], [f"--user=a:{HIDDEN}"]),
        # What could be one is hidden, whoever's value it is.
        (["--prefix", "--password", "x"], ["--prefix", "--password", HIDDEN]),
        (["--password", "--password", "x"], ["--password", HIDDEN, HIDDEN]),
        (["--password", "--user=a:x"], ["--password", HIDDEN]),
        (["--user", "--password=x"], ["--user", f"--password={HIDDEN}"]),
        (["--", "--password", "x"], ["--", "--password", HIDDEN]),
        # Nothing to hide.
        (["--user", "a"], ["--user", "a"]),
        (["--user=a:"], ["--user=a:"]),
        (["--password="], ["--password="]),
        (["--password", ""], ["--password", ""]),
        (["--password"], ["--password"]),
        (["--password-file", "x"], ["--password-file", "x"]),
        (["--passwordx", "x", "a:x"], ["--passwordx", "x", "a:x"]),
    ],
)
def test_visible_arguments(arguments: list[str], visible: list[str]) -> None:
    assert visible_arguments(["watch", *arguments, "end"][:-1]) == ["watch", *visible]


@pytest.mark.parametrize(
    ("command", "arguments", "visible"),
    first_everyday(
        [
            (
                SCRIPT,
                ["--user", "a", "--password", "hunter2"],
                ["--user", "a", "--password", HIDDEN],
            ),
            (MODULE, ["--user=a:hunter2"], [f"--user=a:{HIDDEN}"]),
        ]
    ),
    ids=["script", "module"],
)
async def test_password_leaves_the_process_list(
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
    command: list[str],
    arguments: list[str],
    visible: list[str],
) -> None:
    """The same process, which does what its true arguments say."""
    common = ["watch", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [*command, *common, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(),
        )
    try:
        await until(lambda: b"SYNCED" in (tmp_path / "out").read_bytes() or process.poll())
        assert process.poll() is None, (tmp_path / "err").read_text()
        shown = psutil.Process(process.pid).cmdline()
        assert shown[-len(common + visible) :] == common + visible
        # What the interpreter was started with is there again.
        assert shown[1 : -len(common + visible)] == (command[1:] if command is MODULE else SCRIPT)
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0
    assert PASSWORD not in (tmp_path / "err").read_text()


def test_true_arguments_are_used() -> None:
    """As they were given, whatever they look like, and only once."""
    script = (
        "import os, sys; from etcd_actions.cli.secret_arguments import hide_secret_arguments as h; "
        "before = sys.argv[1:]; h(); "
        "print([before, sys.argv[1:], [v for v in os.environ.values() if 'x y' in v]])"
    )
    given = ["watch", "--password", "x y'\udcff", "", "--namespace", HIDDEN]
    done = subprocess.run(
        [sys.executable, "-c", script, *given],
        capture_output=True,
        env=environment(),
        timeout=DEADLINE,
        check=True,
    )
    visible = ["watch", "--password", HIDDEN, "", "--namespace", HIDDEN]
    assert done.stdout.decode() == f"{[visible, given, []]}\n"
    assert not done.stderr


def test_arguments_that_are_not_the_processes_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that calls the entry point with its own arguments goes on as it is."""

    def execve(*_: object) -> None:
        raise AssertionError("executed anew")

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["program", "config", "show", "--password", PASSWORD])
    monkeypatch.setattr("etcd_actions.cli.find_spec", lambda _: None)
    assert main() == 2
    assert sys.argv[-1] == PASSWORD


@pytest.mark.parametrize("form", first_everyday(["json", "console"]))
@pytest.mark.parametrize(
    "user", first_everyday([["--user", f"a:{PASSWORD}"], ["--user=a", f"--password={PASSWORD}"]])
)
def test_traceback_has_no_password(form: str, user: list[str]) -> None:
    script = (
        "import sys, etcd_actions.etcd as etcd; from etcd_actions.cli import main\n"
        "def fail(settings): raise RuntimeError(f'bug with {settings}')\n"
        "etcd.open_connection = fail\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "watch", "--log-format", form, *user],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: bug with ConnectionSettings(" in done.stderr
    assert "User(name='a'" in done.stderr
    assert PASSWORD not in done.stderr + done.stdout


def test_children_inherit_no_password(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    monkeypatch.setattr("etcd_actions.cli.options.configure_logs", lambda *_: None)
    monkeypatch.setenv("ETCDCTL_USER", f"a:{PASSWORD}")
    monkeypatch.setenv("ETCDCTL_PASSWORD", PASSWORD)
    monkeypatch.setattr(sys, "argv", ["etcd-actions", "config", "show", "--output", "jsonl"])
    assert invoke() == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert "ETCDCTL_PASSWORD" in [row["source"] for row in rows]
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(dict(os.environ))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert PASSWORD not in child.stdout


def ask(monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: str) -> int:
    asked = []

    def getpass(prompt: str, stream: object) -> str:
        asked.append((prompt, stream))
        return answer

    monkeypatch.setattr("getpass.getpass", getpass)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    monkeypatch.setattr("etcd_actions.cli.options.configure_logs", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["etcd-actions", "watch", "--user", "a"])
    monkeypatch.setattr("trio.run", lambda _function, common, *_: len(common.config.user.password))
    code = invoke()
    assert asked == ([("Password of etcd user a: ", sys.stderr)] if terminal else [])
    return code


def test_password_is_asked_for_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, True, PASSWORD) == len(PASSWORD)


def test_nobody_is_asked_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch, False, PASSWORD) == 2
    assert "--password-file or ETCDCTL_PASSWORD" in capsys.readouterr().err


def test_empty_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(monkeypatch, True, "") == 2
    assert "the password is empty" in capsys.readouterr().err
