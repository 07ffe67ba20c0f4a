"""An executor without processes: what starts them is told what they do, and clocks can be set."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import ActionId, ActionsClient
from etcd_actions._internal.clock import Clock
from etcd_actions.executor import Executor, ExecutorSettings
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import EXIT, STARTED, AttemptDirectory
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.open_executor import open_executor_with
from tests.support import flyte


class FakeAttempts(Attempts):
    """Starts nothing: an attempt runs until the test ends it.

    Attributes:
        begun: The names (``<run>-<action>``) of the actions whose attempts were started, in order.
        ended: Those whose end was asked for.
        on_begin: Called with the action's name first; it may raise.
        on_wait: Called when the end of an attempt is waited for.
    """

    def __init__(self) -> None:
        self.outlive_worker = False
        self.started = 0
        self.adopted = 0
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.on_begin: Callable[[str], None] = lambda name: None
        self.on_wait: Callable[[str], None] = lambda name: None
        self._names: dict[Path, str] = {}
        self._over: dict[Path, trio.Event] = {}
        self._outputs: dict[str, Path] = {}
        self._places: dict[str, AttemptDirectory] = {}

    async def find(self, place: AttemptDirectory) -> None:
        await trio.lowlevel.checkpoint()

    async def begin(self, place: AttemptDirectory, command: Command) -> None:
        name = f"{command.environment['RUN_NAME']}-{command.environment['ACTION_NAME']}"
        self._names[place.path] = name
        self.on_begin(name)
        self._places[name] = place
        if isinstance(command.outputs, Path):
            self._outputs[name] = command.outputs
        if place.was_started:
            self.adopted += 1
            return
        place.make()
        (place.path / STARTED).write_text(str(os.getpid()))
        self._over[place.path] = trio.Event()
        self.started += 1
        self.begun.append(name)

    async def wait_ended(self, place: AttemptDirectory, launched: trio.Event | None = None) -> None:
        self.on_wait(self._names[place.path])
        if launched is not None:
            launched.set()
        if (event := self._over.get(place.path)) is not None:
            await event.wait()

    async def end(self, place: AttemptDirectory) -> None:
        self.ended.append(self._names[place.path])
        self._over[place.path].set()
        await trio.lowlevel.checkpoint()

    def is_over(self, name: str) -> bool:
        """Whether the present attempt of an action has ended."""
        return self._over[self._places[name].path].is_set()

    def finish(self, name: str, code: int = 0, *, outputs: bytes = b"") -> None:
        """The present attempt of an action ends, with outputs where its code is 0."""
        place = self._places[name]
        (place.path / EXIT).write_text(str(code))
        if code == 0:
            self._outputs[name].mkdir(parents=True, exist_ok=True)
            (self._outputs[name] / "outputs.pb").write_bytes(outputs)
        self._over[place.path].set()

    def end_now(self, name: str) -> None:
        """The present attempt of an action ends, with the files that its outputs have."""
        place = self._places[name]
        (place.path / EXIT).write_text("0")
        self._over[place.path].set()

    def fail(self, name: str, message: str = "no", *, recoverable: bool = True) -> None:
        """The present attempt of an action fails."""
        kind = ContainerError.RECOVERABLE if recoverable else ContainerError.NON_RECOVERABLE
        error = ContainerError(
            code="ValueError", message=message, kind=kind, origin=ExecutionError.USER
        )
        self._outputs[name].mkdir(parents=True, exist_ok=True)
        document = ErrorDocument(error=error).SerializeToString()
        (self._outputs[name] / "error.pb").write_bytes(document)
        self._over[self._places[name].path].set()


class SetClock(Clock):
    """A clock that the test sets.

    Attributes:
        stepped: How far the wall clock was set, in seconds.
        passed: How much time has passed on both clocks that trio knows nothing of.
    """

    look_every = 0.02

    def __init__(self) -> None:
        self.stepped = 0.0
        self.passed = 0.0

    def wall(self) -> float:
        return time.time() + self.stepped + self.passed

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


class Bench:
    """Where actions run in a test without processes."""

    def __init__(self, client: ActionsClient, directory: Path) -> None:
        self.client = client
        self.base = directory / "base"
        self.state_dir = directory / "state"
        self.attempts = FakeAttempts()
        self.clock = SetClock()

    async def enqueue(
        self,
        action_id: ActionId,
        parent: str = "",
        *,
        change: Callable[[Action], None] = lambda action: None,
        run_spec: RunSpec | None = None,
    ) -> None:
        action = flyte.task(action_id, parent)
        action.run_output_base = str(self.base / action_id.run)
        change(action)
        await self.client.enqueue(action, run_spec)

    @asynccontextmanager
    async def executor(
        self, *, slots: int = 4, cache_keep: float = 3600.0, state_dir: Path | None = None
    ) -> AsyncIterator[Executor]:
        settings = ExecutorSettings(
            python=Path(sys.executable),
            service="127.0.0.1:1",
            state_dir=state_dir or self.state_dir,
            slots=slots,
            cache_keep=cache_keep,
            claim_ttl=5,
        )
        settings.state_dir.mkdir(exist_ok=True)
        async with open_executor_with(self.client, settings, self.attempts, self.clock) as executor:
            yield executor

    def parked(self) -> list[tuple[str, str]]:
        """What is parked, by kind and identity."""
        return [(each.kind, each.identity) for each in self.client.containment.parked]
