"""What the shells are told to complete with."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, open_actions_client
from etcd_actions.cli.command_line import invoke
from etcd_actions.cli.output_options import FORMATS
from etcd_actions.config import SETTINGS
from etcd_actions.config.settings import RUN
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.runs.run_record import RunRecord, encode
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.web import Bind
from tests.cli.command import DEADLINE, environment, finish
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually_holds


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
        ("etcd-actions list -o ", set(FORMATS)),
        ("etcd-actions watch --output ", {"table", "wide", "name", "jsonl"}),
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


def typed(line: str, **variables: str) -> list[str]:
    """The candidates for the last word of a line, by a process as a shell starts it."""
    done = finish(
        _ETCD_ACTIONS_COMPLETE="bash_complete",
        COMP_WORDS=line,
        COMP_CWORD=str(line.count(" ")),
        **variables,
    )
    assert (done.code, done.err) == (0, "")
    return [each.partition(",")[2] for each in done.out.splitlines() if each]


@pytest.fixture(params=["etcd", "service"])
async def flags(
    request: pytest.FixtureRequest, etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> AsyncIterator[str]:
    """Where the runs r-one, r-two and other are, the first with two actions."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        for run in ("r-one", "r-two", "other"):
            root = ActionId("p", "d", run, "a0")
            await client.enqueue(flyte.task(root))
            record = RunRecord(project="p", domain="d", name=run, created=datetime.now(UTC))
            await etcd.put(keys.run_record(root), encode(record))
        await client.enqueue(flyte.task(ActionId("p", "d", "r-one", "child"), "a0"))
        # No name of a run: they are omitted, and harm no other.
        for tail in (b"r-\xff", b"r-x\nplain,r-made-up", b"r-\x1b[2J"):
            await etcd.put(keys.runs + b"flyte/" + tail, b"x")
        if request.param == "etcd":
            yield f"--endpoints {shared_etcd.endpoint} --prefix {prefix.decode()}"
            return
        async with open_run_index(etcd, keys) as index:
            front = FrontDoor(client=client, keepalive=30, index=index)
            settings = ServerSettings(bind=Bind("127.0.0.1", 0))
            async with open_actions_server(client, settings, front=front) as server:
                yield f"--service {server.address}"


@pytest.mark.slow
async def test_names_of_runs_and_actions(flags: str) -> None:
    cases = [
        ("delete {} r-", {"r-one", "r-two"}),
        ("logs {} oth", {"other"}),
        ("describe {} r-one/", {"r-one/a0", "r-one/child"}),
        ("abort {} --reason x r-one/ch", {"r-one/child"}),
        ("delete {} nothing", set()),
        # A run only, and a value that is none of either.
        ("delete {} r-one/", set()),
        ("signal {} r-one/child tr", set()),
    ]
    for line, expected in cases:

        async def is_complete(line: str = line, expected: set[str] = expected) -> bool:
            found = await trio.to_thread.run_sync(
                partial(typed, f"etcd-actions {line.format(flags)}")
            )
            # On a busy machine half a second can be too short: then there are none.
            return set(found) == expected

        await eventually_holds(is_complete, within=30)


@pytest.mark.slow
def test_a_prompt_does_not_wait_and_shows_no_error(tmp_path: Path) -> None:
    """An etcd that does not answer, one that is away, and settings that are unusable."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        assert typed(f"etcd-actions logs --endpoints 127.0.0.1:{silent.getsockname()[1]} r") == []
        # It is not the timeout of a connection, which is seconds.
        assert time.monotonic() - started < DEADLINE / 4
    assert typed("etcd-actions logs --endpoints 127.0.0.1:1 r") == []
    assert typed("etcd-actions logs --service 127.0.0.1:1 r") == []
    assert typed("etcd-actions logs --endpoints a:b:c r") == []
    assert typed("etcd-actions logs r", ETCDCTL_USER="root") == []
    assert typed("etcd-actions logs r", ETCD_ACTIONS_CONFIG=str(tmp_path / "none")) == []


def test_values_of_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each setting that has a set of values, in a command that has it."""
    chosen = [each for each in SETTINGS if "|" in each.kind.metavar]
    assert len(chosen) > 5
    for setting in chosen:
        command = "run" if setting in RUN else "abort"
        found = completed(monkeypatch, capsys, f"etcd-actions {command} {setting.flag} ")
        assert found == setting.kind.metavar.split("|")
        assert setting.flag in completed(
            monkeypatch, capsys, f"etcd-actions {command} {setting.flag[:-1]}"
        )


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
