"""The programs of examples/ run, each as its docstring says, on a real etcd."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdServer
from tests.cli.command import environment, finish
from tests.executor.attempts import lives
from tests.support.flyte import task
from tests.support.waiting import eventually, eventually_holds

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


class Program:
    """An example that runs, and the lines that it prints."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._text = ""

    async def line(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        while "\n" not in self._text:
            data = await self._process.stdout.receive_some()
            assert data, f"it ended: {self._text!r}"
            self._text += data.decode()
        line, _, self._text = self._text.partition("\n")
        return line

    async def rest(self) -> list[str]:
        """What it prints until it ends by itself, which is no failure."""
        assert self._process.stdout is not None
        async for data in self._process.stdout:
            self._text += data.decode()
        assert await self._process.wait() == 0
        return self._text.splitlines()

    async def interrupt(self) -> None:
        """End it as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        assert await self._process.wait() == 0


@contextlib.asynccontextmanager
async def running(name: str, *arguments: str | Path) -> AsyncIterator[Program]:
    """Start an example; it is killed if it is left running."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, env=environment()
        )
        try:
            yield Program(process)
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            await trio.aclose_forcefully(process.stdout)  # type: ignore[arg-type]


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


def action(name: str) -> ActionId:
    return ActionId("p", "d", "run", name)


async def end(client: ActionsClient, name: str) -> None:
    await client.put_status(action(name), 1, ActionStatus(Phase.SUCCEEDED))


async def test_subscribe(client: ActionsClient, shared_etcd: EtcdServer, prefix: bytes) -> None:
    """It shows what is there, then each change, and ends with the root."""
    await client.enqueue(task(action("a0")))
    await client.enqueue(task(action("c1"), "a0"))
    async with running("subscribe.py", shared_etcd.endpoint, "p/d/run", prefix.decode()) as program:
        assert [(await program.line()).split()[0] for _ in range(2)] == ["a0", "c1"]
        assert (await program.line()).startswith("-- these were the states at revision ")
        await end(client, "c1")
        assert (await program.line()).split() == ["c1", "SUCCEEDED"]
        await end(client, "a0")
        assert [line.split() for line in await program.rest()] == [["a0", "SUCCEEDED"]]


async def test_run_service(
    client: ActionsClient, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """Rows follow the actions, and what has ended is marked."""
    database = tmp_path / "runs.sqlite"
    async with running(
        "run_service.py", shared_etcd.endpoint, database, prefix.decode()
    ) as program:
        assert await program.line() == "watching"
        await client.enqueue(task(action("a0")))
        await client.put_status(action("a0"), 2, ActionStatus(Phase.SUCCEEDED))

        async def is_recorded() -> bool:
            return (await client.get_task_action(action("a0"))).is_recorded

        await eventually_holds(is_recorded)
        with contextlib.closing(sqlite3.connect(database)) as rows:
            found = rows.execute("SELECT run, action, phase, attempts FROM actions").fetchall()
        assert found == [("run", "a0", "SUCCEEDED", 2)]
        await program.interrupt()


@pytest.mark.parametrize(("value", "verdict"), [("true", "approved"), ("false", "rejected")])
async def test_approval(shared_etcd: EtcdServer, value: str, verdict: str) -> None:
    """The command that it prints ends its wait. It runs on one etcd as often as one likes."""
    async with running("approval.py", shared_etcd.endpoint) as program:
        name, *arguments = shlex.split((await program.line()).replace(" true ", f" {value} "))
        assert name == "etcd-actions"
        done = await trio.to_thread.run_sync(lambda: finish(*arguments))
        assert done.code == 0, done.err
        first, second = await program.rest()
        assert first == verdict
        assert second.startswith("an action that has ended keeps its phase: ")


async def test_executor(client: ActionsClient, shared_etcd: EtcdServer, prefix: bytes) -> None:
    """Two processes run each task once; what fails says why; the tasks of others stay."""
    names = [f"t{number}" for number in range(6)]
    async with (
        running("executor.py", shared_etcd.endpoint, prefix.decode()) as one,
        running("executor.py", shared_etcd.endpoint, prefix.decode()) as other,
    ):
        assert [await one.line(), await other.line()] == ["ready", "ready"]
        await client.enqueue(task(action("a0"), name="not-ours"))
        for name in names:
            await client.enqueue(task(action(name), "a0", name="hello"))
        await client.enqueue(task(action("bad"), "a0", name="fail"))

        async def phases() -> dict[str, Phase]:
            listing = await client.list_run_actions(action("a0").run_id)
            return {each.action_id.name: each.phase for each in listing.actions}

        async def have_ended() -> bool:
            found = await phases()
            return all(found[name].is_terminal for name in [*names, "bad"])

        await eventually_holds(have_ended)
        assert await phases() == {
            "a0": Phase.UNSPECIFIED,
            "bad": Phase.FAILED,
            **dict.fromkeys(names, Phase.SUCCEEDED),
        }
        bad = await client.get_task_action(action("bad"))
        assert bad.status.error_state is not None
        assert bad.status.error_state.message == "ValueError('this task always fails')"
        await one.interrupt()
        await other.interrupt()
        printed = [line for each in (one, other) for line in await each.rest()]
        assert printed.count("hello") == len(names)
        # A claim that was free because the action had just ended: nothing was run.
        others = [line for line in printed if line != "hello"]
        assert all(re.match(r"run-\w+: .* cannot follow$", line) for line in others)


async def test_launcher(
    client: ActionsClient, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """Its jobs outlive it: the next start follows them, and starts none again."""

    def script(name: str, lines: str, parent: str = "a0") -> Action:
        made = task(action(name), parent)
        made.run_output_base = str(tmp_path / "out")
        words = ["sh", "-c", f'echo started >> "$0"; {lines}', str(tmp_path / name)]
        made.task.spec.task_template.container.args[:] = words
        return made

    with_directory = (shared_etcd.endpoint, prefix.decode(), tmp_path)
    async with running("launcher.py", *with_directory) as one:
        assert await one.line() == "ready"
        await client.enqueue(script("a0", "sleep 1000", parent=""))
        await client.enqueue(script("good", f"while ! [ -e {tmp_path}/go ]; do sleep 0.05; done"))
        await client.enqueue(script("bad", "echo no such number; exit 3"))
        names = ("a0", "good", "bad")
        await eventually(lambda: all((tmp_path / each).exists() for each in names))
        await one.interrupt()
    (tmp_path / "go").touch()
    async with running("launcher.py", *with_directory) as two:

        async def phase(name: str) -> Phase:
            return (await client.get_task_action(action(name))).phase

        async def have_ended() -> bool:
            return (await phase("good")).is_terminal and (await phase("bad")).is_terminal

        await eventually_holds(have_ended)
        assert await phase("good") is Phase.SUCCEEDED
        bad = await client.get_task_action(action("bad"))
        assert bad.status.error_state is not None
        assert "exited with 3; its log ends with:\nno such number" in bad.status.error_state.message
        await client.abort_action(action("a0"), "enough")
        [job] = (tmp_path / "jobs").glob("run-a0-*/1")
        await eventually(lambda: not lives(int((job / "pid").read_text())))
        assert {(tmp_path / each).read_text() for each in names} == {"started\n"}
        await two.interrupt()


def test_the_test_of_a_history(shared_etcd: EtcdServer) -> None:
    where = f"--etcd={shared_etcd.endpoint}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", where, "test_history.py"],
        cwd=EXAMPLES,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_each_example_has_a_test_and_a_line_in_the_list() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")} - {"conftest.py"}
    assert set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text())) == programs
    text = Path(__file__).read_text()
    assert {name for name in programs if f'"{name}"' in text} == programs
