"""Tasks that are shell commands, and an executor that runs them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import ActionId, ActionsClient, Phase, StoredAction
from etcd_actions.executor import Executor, ExecutorSettings, open_executor
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from tests.support import flyte
from tests.support.waiting import eventually_holds

ROOT = ActionId("p", "d", "r1", "a0", "o")


def named(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name, "o")


class Machine:
    """Where tasks run in a test.

    The scripts get ``$OUT``, the directory of the attempt's outputs, and ``$RUNS``, a
    directory in which each start leaves a file.
    """

    def __init__(self, directory: Path) -> None:
        self.base = directory / "base"
        self.runs = directory / "runs"
        self.state_dir = directory / "state"
        self.base.mkdir()
        self.runs.mkdir()

    def end_all(self) -> None:
        """End what lives on without its executor."""
        for directory in self.state_dir.glob("attempts/*/*"):
            AttemptDirectory.at(directory).kill(signal.SIGKILL)

    def task(
        self,
        action_id: ActionId,
        script: str,
        parent: str = "",
        *,
        change: Callable[[Action], None] = lambda action: None,
    ) -> Action:
        """An action that runs a script."""
        action = flyte.task(action_id, parent)
        action.run_output_base = str(self.base)
        template = action.task.spec.task_template
        template.container.args[:] = [
            "/bin/sh",
            "-c",
            'OUT=$1; mkdir -p "$OUT"; touch "$RUNS/$ACTION_NAME.$FLYTE_ATTEMPT_NUMBER.$$"\n'
            + script,
            "sh",
            "{{.outputPrefix}}",
        ]
        template.container.env.add(key="RUNS", value=str(self.runs))
        change(action)
        return action

    def starts(self, name: str) -> list[str]:
        """What the starts of an action left, in order of attempts."""
        return sorted(path.name for path in self.runs.glob(f"{name}.*"))

    def settings(
        self,
        *,
        slots: int = 4,
        memory: int | None = None,
        claim_ttl: int = 5,
        kill_grace: float = 5.0,
    ) -> ExecutorSettings:
        return ExecutorSettings(
            python=Path(sys.executable),
            service="127.0.0.1:1",
            state_dir=self.state_dir,
            slots=slots,
            memory=memory,
            claim_ttl=claim_ttl,
            kill_grace=kill_grace,
        )

    @asynccontextmanager
    async def executor(
        self, client: ActionsClient, settings: ExecutorSettings | None = None
    ) -> AsyncIterator[Executor]:
        async with open_executor(client, settings or self.settings()) as executor:
            yield executor


async def until(
    client: ActionsClient, action_id: ActionId, phase: Phase | None = None
) -> StoredAction:
    """An action once it is in a phase; by default once it is over."""
    found = None

    async def is_in_phase() -> bool:
        nonlocal found
        found = await client.get_task_action(action_id)
        return found.phase is phase or (phase is None and found.is_terminal)

    await eventually_holds(is_in_phase)
    assert found is not None
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
