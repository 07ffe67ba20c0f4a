"""``etcd-actions submit``: creates a run of a program, follows it, prints the result."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from etcd_actions._internal.quoting import quoted
from etcd_actions.app.executor import sdk_python
from etcd_actions.app.stop import Stop
from etcd_actions.cli.commands.attach import continues_message, follow_run
from etcd_actions.cli.commands.submit_endpoint import open_run_endpoint
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.changes import Change, print_change
from etcd_actions.cli.formats.run_progress import ActionState, ProgressPrinter
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
from etcd_actions.cli.names import Name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import (
    AlreadyExists,
    ConfigError,
    EtcdActionsError,
    InputError,
    ServiceRefused,
    ServiceUnavailable,
)
from etcd_actions.executor.attempts.attempt_command import WORKDIR
from etcd_actions.model import SUCCESSES

# By the kinds of submit_main.py.
_ERRORS: dict[str, type[EtcdActionsError]] = {
    "usage": ConfigError,
    "input": InputError,
    "taken": AlreadyExists,
    "away": ServiceUnavailable,
}
_OF_SERVICE = (ServiceRefused, ServiceUnavailable)
_PROGRAM = Path(__file__).with_name("submit_main.py")
_VERSION = "local"
# Seconds for the SDK to end after a signal.
_END_SDK = 2.0


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The flags of the command; see its help."""

    target: str
    inputs: tuple[str, ...]
    project: str
    domain: str
    org: str
    run: str | None
    root_dir: str | None
    output_base: str | None
    detach: bool


async def submit_program(common: CommonOptions, submission: Submission, output: str | None) -> int:
    """Create the run, follow it, and return the exit code."""
    prints_change = output in ("name", "json")
    if prints_change and not submission.detach:
        raise ConfigError(f"--output {output}: it is for --detach; give table or jsonl")
    form = chosen_format(output, elsewhere="jsonl")
    common.config.check_one_namespace()
    python = sdk_python(common.config)
    run = Name(
        submission.project,
        submission.domain,
        submission.run or f"r{secrets.token_hex(8)}",
        org=submission.org,
    )
    request = _request(submission, run.run)
    name = run.path
    async with open_stop() as stop:
        converted: list[bool] = []
        created = False
        # Until the run is created a signal leaves nothing; after that the run continues.
        with stop.interrupts() as let_finish:
            async with open_run_endpoint(common, submission.output_base) as endpoint:
                sdk = _Sdk(python, request | {"connection": endpoint.connection})
                await sdk.call("run", when_converted=lambda: converted.append(True))
                created = True
                let_finish()
                if submission.detach:
                    change = Change(name=name, result="created")
                    print_change(output if prints_change else None, change, f"run {name}")
                    return ExitCode.OK
                print_message(f"run {name}")
                return await _follow(endpoint.reader, run, form, stop, sdk)
        if not converted:
            print_message("stopped: nothing was enqueued")
        elif not created:
            print_message(
                f"stopped: run {name} may have been enqueued: see etcd-actions tree {name}"
            )
    return ExitCode.OK


async def _follow(reader: Reader, run: Name, form: str, stop: Stop, sdk: _Sdk) -> int:
    """Print the states of a run until it has ended, then its result; returns the exit code."""
    with standard_output() as write:
        printer = ProgressPrinter(write, form)
        ended: list[ActionState] = []
        with stop.interrupts():
            ended.append(await follow_run(reader, run, printer))
        if not ended:
            print_message(continues_message(run))
            return ExitCode.OK
        if ended[0].phase not in SUCCESSES:
            reason = ended[0].error or "no reason given"
            print_message(f"run {run.path} ended as {ended[0].phase.name}: {reason}")
            return ExitCode.RUN_FAILED
        with stop.interrupts():
            printer.result((await sdk.call("result"))["result"])
    return ExitCode.OK


def _request(submission: Submission, run: str) -> dict[str, Any]:
    file, colon, task = submission.target.rpartition(":")
    try:
        path = Path(file).absolute()
    except OSError as error:
        raise InputError(
            f"{file}: cannot be found from this directory: {error.strerror}: give absolute paths"
        ) from None
    if not colon or not task.isidentifier():
        raise ConfigError(f"{quoted(submission.target)} is not a task: give FILE.py:TASK")
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
    """End the SDK and the processes that it started, with SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await trio.sleep(_END_SDK)


class _Sdk:
    """The SDK, in a process of its own for each call.

    Args:
        python: The interpreter that has it.
        request: The part that all requests have.
    """

    def __init__(self, python: Path, request: dict[str, Any]) -> None:
        self._python = python
        self._request = request

    async def call(self, what: str, *, when_converted: Callable[[], None] | None = None) -> Any:
        """Run or read the result; the output of the program goes to standard error.

        Raises:
            EtcdActionsError: It failed; the class depends on the cause.
        """
        file = self._request["file"]
        data = b""
        async with trio.open_nursery() as nursery:
            run: Callable[..., Awaitable[trio.Process]] = partial(
                nursery.start,
                partial(
                    trio.run_process,
                    [str(self._python), str(_PROGRAM)],
                    stdin=json.dumps(self._request | {"do": what}).encode(),
                    stdout=subprocess.PIPE,
                    stderr=sys.stderr.fileno(),
                    # A Ctrl-C at the terminal is for this process, which ends it.
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
            raise InputError(
                f"{file}: the SDK ended with {process.returncode}; see its output above"
            )
        try:
            response: dict[str, Any] = json.loads(lines[-1])
        except (ValueError, RecursionError):
            raise InputError(
                f"{file}: the SDK's response cannot be decoded: is the result nested deeply, "
                "or does the program write to inherited descriptors?"
            ) from None
        if "error" in response:
            kind = _ERRORS.get(response.get("kind", ""), ServiceRefused)
            where = self._request["connection"]["endpoint"] if kind in _OF_SERVICE else file
            raise kind(f"{where}: {response['error']}")
        return response
