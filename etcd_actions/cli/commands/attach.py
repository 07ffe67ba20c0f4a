"""``etcd-actions attach``: follows a run as ``submit`` does, to its end."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import trio
from flyteidl2.workflow import run_definition_pb2 as runs_pb

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.following import follow
from etcd_actions.cli.formats.message_rows import error_of, phase_of
from etcd_actions.cli.formats.run_progress import ActionState, ProgressPrinter
from etcd_actions.cli.formats.standard_output import (
    chosen_format,
    standard_output,
    until_stopped,
)
from etcd_actions.cli.names import Name, find_run, parse_name, with_nearest
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import ACTIONS_AT_ONCE, Reader
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import EtcdActionsError
from etcd_actions.model import ROOT_ACTION, SUCCESSES


async def attach_to_run(common: CommonOptions, text: str, output: str | None) -> int:
    """Print the states of a run until it has ended; returns the exit code of its outcome."""
    form = chosen_format(output, elsewhere="jsonl")
    parse_name(text)
    async with open_stop() as stop, open_reader(common) as reader:
        name = await find_run(reader.names, text)
        ended: list[ActionState] = []
        with standard_output() as write:
            printer = ProgressPrinter(write, form)
            async with until_stopped(stop), with_nearest(reader.names, text):
                ended.append(await follow_run(reader, name, printer))
        if not ended:
            print_message(continues_message(name))
            return ExitCode.OK
    root = ended[0]
    reason = f": {root.error}" if root.error else ""
    print_message(f"run {name.path} ended as {root.phase.name}{reason}")
    return ExitCode.OK if root.phase in SUCCESSES else ExitCode.RUN_FAILED


def continues_message(run: Name) -> str:
    """The message about a run that is not followed any more."""
    return f"the run continues: etcd-actions attach {run.path} follows it, abort {run.path} ends it"


async def follow_run(reader: Reader, run: Name, printer: ProgressPrinter) -> ActionState:
    """Print each state of a run's actions; returns the terminal state of its root.

    Raises:
        NotFound: There is no such run.
    """
    # Errors are not part of the stream: they are read in a task, so that the stream is not delayed.
    send, receive = trio.open_memory_channel[list[ActionState]](math.inf)
    ended: list[ActionState] = []

    is_complete = has_ended = False

    def open_stream() -> AbstractAsyncContextManager[AsyncIterator[list[runs_pb.EnrichedAction]]]:
        nonlocal is_complete
        is_complete = False
        return reader.watch_actions(run)

    def on_item(actions: Sequence[runs_pb.EnrichedAction]) -> bool:
        nonlocal is_complete, has_ended
        states = [_state(each.action) for each in actions]
        send.send_nowait(states)
        has_ended |= any(each.action == ROOT_ACTION and each.phase.is_terminal for each in states)
        # The root comes first: of a run that has ended the other actions follow.
        is_complete |= len(actions) < ACTIONS_AT_ONCE
        return has_ended and is_complete

    async with trio.open_nursery() as nursery:

        async def print_states() -> None:
            async for states in receive:
                for state in states:
                    if printer.is_new(state):
                        complete = await _with_error(reader, run, state)
                        printer.state(complete)
                        if complete.action == ROOT_ACTION and complete.phase.is_terminal:
                            ended.append(complete)

        nursery.start_soon(print_states)
        async with send:
            await follow(run.path, open_stream, on_item)
    return ended[-1]


async def _with_error(reader: Reader, run: Name, state: ActionState) -> ActionState:
    """The state with its error, which lists of actions do not have."""
    if not state.phase.is_terminal or state.phase in SUCCESSES:
        return state
    try:
        error = error_of(await reader.action(run._replace(action=state.action)))
    except EtcdActionsError:
        return state
    return state if error is None else state._replace(error=f"{error.code}: {error.message}")


def _state(action: runs_pb.Action) -> ActionState:
    status, metadata = action.status, action.metadata
    short = metadata.task.short_name or metadata.condition.name or metadata.trace.name
    return ActionState(action.id.name, phase_of(status.phase), max(status.attempts, 1), "", short)
