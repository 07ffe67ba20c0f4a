"""What the shells are told to complete with."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_actions.cli.command_line import invoke
from tests.cli.command import DEADLINE, environment


def completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> list[str]:
    """The candidates for the last word of a line, as bash asks for them."""
    words = line.split(" ")
    monkeypatch.setattr(sys, "argv", ["etcd-actions"])
    monkeypatch.setenv("_ETCD_ACTIONS_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    with pytest.raises(SystemExit) as ended:
        invoke()
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return [candidate.partition(",")[2] for candidate in printed.out.splitlines()]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("etcd-actions re", {"record", "release-finalizers", "replay", "report"}),
        ("etcd-actions list --ph", {"--phase"}),
        ("etcd-actions list --phase rec", {"recovered"}),
        ("etcd-actions list --phase RUNNING --phase QU", {"queued"}),
        ("etcd-actions list -o ", {"table", "jsonl", "json"}),
        ("etcd-actions watch --output ", {"table", "jsonl"}),
        ("etcd-actions completion ", {"bash", "zsh", "fish"}),
        ("etcd-actions record --un", {"--until-synced"}),
    ],
)
def test_candidates(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    wanted: set[str],
) -> None:
    found = {word.lower() for word in completed(monkeypatch, capsys, line)}
    assert found == wanted


def test_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("record", "replay"):
        # Left to the shell, which knows them.
        assert completed(monkeypatch, capsys, f"etcd-actions {command} ./x") == ["./x"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["etcd-actions", "completion", shell])
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    assert invoke() == 0
    script = capsys.readouterr().out
    assert f"_ETCD_ACTIONS_COMPLETE={shell}_complete" in script
    binary = shutil.which(shell)
    if binary is not None:
        checked = subprocess.run(
            [binary, "-n"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "etcd-actions"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m etcd_actions "$@"\n')
    command.chmod(0o755)
    script = """
        source <(etcd-actions completion bash)
        complete -p etcd-actions
        COMP_WORDS=(etcd-actions list --phase SU) COMP_CWORD=3
        _etcd_actions_completion etcd-actions
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env=environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"),
    )
    registered, reply = done.stdout.splitlines()
    assert registered.endswith(" etcd-actions")
    assert reply.upper() == "SUCCEEDED"
    assert done.stderr == ""
