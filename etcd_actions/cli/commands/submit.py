"""``etcd-actions submit``: puts a program's root in, follows the run, prints the result."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import errors
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.quoting import printable, quoted
from etcd_actions.app.executor import sdk_python
from etcd_actions.app.stop import Stop
from etcd_actions.cli.backends import Directly
from etcd_actions.cli.commands.submit_door import open_door
from etcd_actions.cli.exit_codes import ExitCode, say
from etcd_actions.cli.formats.standard_output import Write, chosen_format, standard_output
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.service_client import ServiceClient
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import (
    AlreadyExists,
    ConfigError,
    EtcdActionsError,
    InputError,
    ServiceRefused,
    ServiceUnavailable,
)
from etcd_actions.executor.attempt_command import WORKDIR
from etcd_actions.model import ROOT_ACTION, ActionId, ActionUpdate, Phase
from etcd_actions.server.update_messages import execution_error

# By what the SDK's side calls them.
_REFUSALS: dict[str, type[EtcdActionsError]] = {
    "usage": ConfigError,
    "input": InputError,
    "taken": AlreadyExists,
    "away": ServiceUnavailable,
}
_OF_SERVICE = (ServiceRefused, ServiceUnavailable)
_PROGRAM = Path(__file__).with_name("submit_main.py")
_VERSION = "local"
_BACKOFF = Backoff(initial=0.1, cap=2.0)
# Seconds for the SDK to end when it is asked to.
_END_SDK = 2.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What the command was asked for; see its help."""

    target: str
    inputs: tuple[str, ...]
    project: str
    domain: str
    org: str
    run: str | None
    root_dir: str | None
    output_base: str | None
    detach: bool


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """A state of an action, as it is shown."""

    seconds: float
    action: str
    phase: str
    name: str = ""
    attempt: int = 0
    error: str = ""


async def submit_program(common: CommonOptions, submission: Submission, output: str | None) -> int:
    """Do it; gives the exit code."""
    form = chosen_format(output, elsewhere="jsonl")
    common.config.check_one_namespace()
    python = sdk_python(common.config)
    run = submission.run or f"r{secrets.token_hex(8)}"
    root = ActionId(submission.project, submission.domain, run, ROOT_ACTION, submission.org)
    question = _question(submission, run)
    name = f"{root.project}/{root.domain}/{root.run}"
    async with open_stop() as stop:
        began: list[bool] = []
        created = False
        # Until it is created a signal leaves nothing behind; after that the run goes on.
        with stop.interrupts() as let_finish:
            async with open_door(common, submission.output_base) as door:
                sdk = _Sdk(python, question | {"connection": door.connection})
                await sdk.ask("run", when_converted=lambda: began.append(True))
                created = True
                let_finish()
                say(f"run {name}")
                if submission.detach:
                    return ExitCode.OK
                return await _follow(door.asked, root, form, stop, sdk)
        if not began:
            say("stopped: nothing was enqueued")
        elif not created:
            say(f"stopped: run {name} may have been enqueued: etcd-actions tree {name} tells")
    return ExitCode.OK


async def _follow(asked: object, root: ActionId, form: str, stop: Stop, sdk: _Sdk) -> int:
    """Show a run until it is over, and its result; gives the exit code."""
    name = f"{root.project}/{root.domain}/{root.run}"
    with standard_output() as write:
        show = _Show(write, form)
        ended = await _until_ended(asked, root, show, stop)
        if ended is None:
            say(f"it goes on: etcd-actions tree {name} shows it, abort {name}/a0 ends it")
            return ExitCode.OK
        if ended.phase is not Phase.SUCCEEDED:
            say(f"run {name} ended as {ended.phase.name}: {ended.error or 'no reason given'}")
            return ExitCode.RUN_FAILED
        with stop.interrupts():
            show.result((await sdk.ask("result"))["result"])
    return ExitCode.OK


@dataclass(frozen=True)
class _Ended:
    """How the root ended."""

    phase: Phase
    attempts: int
    error: str


@dataclass(frozen=True)
class _State:
    """What either kind of update says."""

    action_id: ActionId
    phase: Phase
    attempts: int
    error: str
    short_name: str = ""


class _Show:
    """Prints each state once."""

    def __init__(self, write: Write, form: str) -> None:
        self._write = write
        self._form = form
        self._began = time.monotonic()
        self._seen: dict[str, tuple[Phase, int]] = {}

    def state(self, state: _State) -> None:
        name = state.action_id.name
        if state.phase is Phase.UNSPECIFIED or self._seen.get(name) == (
            state.phase,
            state.attempts,
        ):
            return
        self._seen[name] = (state.phase, state.attempts)
        seen = Seen(
            seconds=round(time.monotonic() - self._began, 3),
            action=name,
            phase=state.phase.name,
            name=state.short_name,
            attempt=state.attempts,
            error=state.error,
        )
        if self._form == "jsonl":
            self._write(_line(seen))
            return
        error = f"  {seen.error.splitlines()[0]}" if seen.error else ""
        attempt = f" (attempt {seen.attempt})" if seen.attempt > 1 else ""
        line = f"{seen.seconds:8.3f}  {name:<26}{seen.name:<16} {seen.phase}{attempt}{error}"
        self._write(f"{printable(line)}\n".encode())

    def result(self, value: Any) -> None:
        if self._form == "jsonl":
            self._write(_line({"result": value}))
        else:
            self._write(f"result: {json.dumps(value, indent=2)}\n".encode())


def _line(row: object) -> bytes:
    """A row as JSON; text that is no Unicode, as a task may give back, has escapes then."""
    try:
        return msgspec.json.encode(row) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(row)).encode() + b"\n"


async def _until_ended(asked: object, root: ActionId, show: _Show, stop: Stop) -> _Ended | None:
    """Show the run until its root is over; None when that is not waited for any more."""
    ended: list[_Ended] = []
    with stop.interrupts():
        async with trio.open_nursery() as nursery:

            def note(state: _State) -> None:
                show.state(state)
                if state.action_id.name == ROOT_ACTION and state.phase.is_terminal:
                    ended.append(_Ended(state.phase, state.attempts, state.error))
                    nursery.cancel_scope.cancel("the run is over")

            if isinstance(asked, Directly):
                await _follow_in_etcd(asked, root, note)
            else:
                assert isinstance(asked, ServiceClient)
                await _Tree(asked, nursery, note).follow(root)
    return ended[0] if ended else None


async def _follow_in_etcd(asked: Directly, root: ActionId, note: Callable[[_State], None]) -> None:
    async with asked.client.subscribe_run(root) as updates:
        async for update in updates:
            if isinstance(update, ActionUpdate):
                error = execution_error(update)
                note(
                    _State(
                        update.action_id,
                        update.phase,
                        max(update.attempts, 1),
                        f"{error.code}: {error.message}" if error else "",
                        update.short_name,
                    )
                )


class _Tree:
    """Follows a run by the service, which tells of an action and its children only."""

    def __init__(
        self, service: ServiceClient, nursery: trio.Nursery, note: Callable[[_State], None]
    ) -> None:
        self._service = service
        self._nursery = nursery
        self._note = note
        self._followed: set[str] = set()

    async def follow(self, action_id: ActionId) -> None:
        """Follow an action, and what is below it; a stream that ends is opened again."""
        self._followed.add(action_id.name)
        request = pb.WatchForUpdatesRequest()
        request.parent_action_id.name = action_id.name
        request.parent_action_id.run.org = action_id.org
        request.parent_action_id.run.project = action_id.project
        request.parent_action_id.run.domain = action_id.domain
        request.parent_action_id.run.name = action_id.run
        failures = 0
        while True:
            try:
                async with self._service.watch(request) as messages:
                    async for message in messages:
                        failures = 0
                        if message.HasField("action_update"):
                            self._take(message.action_update, action_id)
            except* errors.ServiceUnavailable as group:
                failures += 1
                if failures == 1:
                    away = group.exceptions[0]
                    _log.warning("service_away", action=action_id.name, error=str(away))
            await trio.sleep(_BACKOFF.delay(max(failures, 1)))

    def _take(self, update: Any, parent: ActionId) -> None:
        state = _State(
            ActionId(parent.project, parent.domain, parent.run, update.action_id.name, parent.org),
            _phase(update.phase),
            _attempt(update.output_uri),
            f"{update.error.code}: {update.error.message}" if update.HasField("error") else "",
        )
        self._note(state)
        if state.action_id.name not in self._followed and not state.phase.is_terminal:
            self._followed.add(state.action_id.name)
            self._nursery.start_soon(self.follow, state.action_id)


def _attempt(output_uri: str) -> int:
    """The attempt, which the directory of the outputs is named after."""
    last = output_uri.rpartition("/")[2]
    return int(last) if re.fullmatch("[0-9]{1,9}", last) else 1


def _phase(number: int) -> Phase:
    """The phase that a service tells; one of a later version is none that is shown."""
    try:
        return Phase(number)
    except ValueError:
        return Phase.UNSPECIFIED


def _question(submission: Submission, run: str) -> dict[str, Any]:
    """What the SDK is asked for."""
    file, colon, task = submission.target.rpartition(":")
    try:
        path = Path(file).absolute()
    except OSError as error:
        raise InputError(
            f"{file}: cannot be found from this directory: {error.strerror}: give whole paths"
        ) from None
    if not colon or not task.isidentifier():
        raise ConfigError(f"{quoted(submission.target)} is no task: give FILE.py:TASK")
    # Path.is_file raises for a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"{quoted(file)}: there is no such file")
    root_dir = Path(submission.root_dir).absolute() if submission.root_dir else path.parent
    if not path.is_relative_to(root_dir):
        raise ConfigError(f"--root-dir {root_dir}: {path} is not below it")
    inputs = {}
    for text in submission.inputs:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--input {quoted(text)}: give NAME=VALUE")
        inputs[name] = value
    base = submission.output_base
    return {
        "file": str(path),
        "root_dir": str(root_dir),
        "task": task,
        "inputs": inputs,
        "version": _VERSION,
        "org": submission.org,
        "project": submission.project,
        "domain": submission.domain,
        "run": run,
        "output_base": None if base is None else str(Path(base).absolute()),
        "environment": {WORKDIR: str(root_dir)},
    }


async def _end_sdk(process: trio.Process) -> None:
    """End the SDK and what it has started; a program that does not listen is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await trio.sleep(_END_SDK)


class _Sdk:
    """The SDK, in a process of its own for each question.

    Args:
        python: The interpreter that has it.
        question: What is the same in all questions.
    """

    def __init__(self, python: Path, question: dict[str, Any]) -> None:
        self._python = python
        self._question = question

    async def ask(self, what: str, *, when_converted: Callable[[], None] | None = None) -> Any:
        """Let it answer; what the program prints goes to standard error.

        Raises:
            EtcdActionsError: It was not done; the kind says whose fault that is.
        """
        file = self._question["file"]
        data = b""
        async with trio.open_nursery() as nursery:
            run: Callable[..., Awaitable[trio.Process]] = partial(
                nursery.start,
                partial(
                    trio.run_process,
                    [str(self._python), str(_PROGRAM)],
                    stdin=json.dumps(self._question | {"do": what}).encode(),
                    stdout=subprocess.PIPE,
                    stderr=sys.stderr.fileno(),
                    # A Ctrl-C at the terminal is for us, who end it.
                    start_new_session=True,
                    deliver_cancel=_end_sdk,
                    check=False,
                ),
            )
            process = await run()
            assert process.stdout is not None
            async for part in process.stdout:
                if when_converted is not None and not data:
                    when_converted()
                data += part
        lines = data.splitlines()
        if process.returncode or not lines:
            raise InputError(f"{file}: the SDK ended with {process.returncode}; see above for why")
        try:
            answer: dict[str, Any] = json.loads(lines[-1])
        except (ValueError, RecursionError):
            raise InputError(
                f"{file}: the SDK's answer cannot be read: is the result nested deeply, "
                "or does the program write to the descriptors that it was given?"
            ) from None
        if "error" in answer:
            kind = _REFUSALS.get(answer.get("kind", ""), ServiceRefused)
            where = self._question["connection"]["endpoint"] if kind in _OF_SERVICE else file
            raise kind(f"{where}: {answer['error']}")
        return answer
