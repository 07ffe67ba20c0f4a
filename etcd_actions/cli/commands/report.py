"""``etcd-actions report``: the page of a run as one file that opens without a server."""

from __future__ import annotations

import base64
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from flyteidl2.workflow import run_definition_pb2 as runs_pb
from flyteidl2.workflow.run_service_pb2 import WatchActionsResponse
from google.protobuf.json_format import MessageToDict, SerializeToJsonError

from etcd_actions import __version__
from etcd_actions._internal.quoting import quoted
from etcd_actions._internal.untrusted_files import replace_file
from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.standard_output import check_output_open, standard_output
from etcd_actions.cli.names import Name, find_run
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import ACTIONS_AT_ONCE, Reader, action_identifier
from etcd_actions.errors import ConfigError, InputError, NotFound
from etcd_actions.model import FAILURES, Phase
from etcd_actions.page.report import report_document
from etcd_actions.page.static_files import static_files

MOST_DETAILED: Final = 2_000
"""Actions whose details a report has."""

# Reads of details at a time.
_AT_ONCE: Final = 8


class Snapshot(msgspec.Struct, rename="camel"):
    """The data of a report, as the page reads them instead of calling the service.

    Attributes:
        run: The run.
        at: The time at which it was read, in milliseconds since 1970.
        version: Our version.
        detailed: The number of actions with details.
        responses: The responses by method and action; those of streams as lists. Messages that the
            page reads in binary are in base64.
    """

    run: dict[str, str]
    at: int
    version: str
    detailed: int
    responses: dict[str, Any]


async def write_report(common: CommonOptions, run: str, file: str | None) -> int:
    """Write the report of a run into a file, or to standard output.

    Raises:
        ConfigError: Standard output is a terminal.
        InputError: The file cannot be written.
        NotFound: There is no such run.
    """
    if file is None:
        check_output_open()
        if sys.stdout.isatty():
            raise ConfigError("the report is an HTML document: name a file with -o FILE")
    async with open_reader(common) as reader:
        name = await find_run(reader.names, run)
        snapshot, count = await read_snapshot(reader, name)
    write = partial(_document, snapshot, f"{name.run} · etcd-actions")
    document = await trio.to_thread.run_sync(write)
    if file is None:
        with standard_output() as write_out:
            write_out(document)
    else:
        try:
            await trio.to_thread.run_sync(replace_file, Path(file), document)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{quoted(file)} cannot be written: {reason}") from None
    if (omitted := count - snapshot.detailed) > 0:
        print_message(f"{omitted} of {count} actions are shown without their details")
    return ExitCode.OK


def _document(snapshot: Snapshot, title: str) -> bytes:
    return report_document(static_files(), msgspec.to_builtins(snapshot), title).encode()


async def read_snapshot(
    reader: Reader, run: Name, most: int = MOST_DETAILED
) -> tuple[Snapshot, int]:
    """The data with the details of at most ``most`` actions, and the number of all actions."""
    actions: list[runs_pb.Action] = []
    async for page in reader.actions(run):
        actions += page
    responses: dict[str, Any] = {
        "WatchActions:": _messages(actions),
        "GetRunDetails:": {"details": as_json(await reader.run(run))},
    }
    waiting = sorted(actions, key=_interest)[:most]
    waiting.reverse()

    async def read_details() -> None:
        while waiting:
            name = waiting.pop().id.name
            try:
                details = await reader.action(run._replace(action=name))
            except NotFound:
                # It was deleted after the list was read.
                continue
            responses[f"WatchActionDetails:{name}"] = [{"details": as_json(details)}]

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(read_details)
    named = action_identifier(run).run
    place = {"project": named.project, "domain": named.domain, "name": named.name}
    detailed = len(responses) - 2
    responses = dict(sorted(responses.items()))
    return Snapshot(place, round(time.time() * 1000), __version__, detailed, responses), len(
        actions
    )


def as_json(details: runs_pb.RunDetails | runs_pb.ActionDetails) -> dict[str, Any]:
    """Details as JSON; without the task if that has a number such as NaN, which JSON lacks."""
    try:
        return MessageToDict(details)
    except SerializeToJsonError:
        rest = type(details)()
        rest.CopyFrom(details)
        action = rest.action if isinstance(rest, runs_pb.RunDetails) else rest
        action.ClearField("task")
        return MessageToDict(rest)


def _interest(action: runs_pb.Action) -> tuple[bool, bool, bool]:
    """The sort key by which actions are chosen whose details are read."""
    phase = action.status.phase
    return bool(action.metadata.parent), phase not in FAILURES, phase != Phase.RUNNING


def _messages(actions: list[runs_pb.Action]) -> list[str]:
    """The actions as the stream of a run sends them; the last message is not full."""
    messages = []
    for start in range(0, len(actions) + 1, ACTIONS_AT_ONCE):
        message = WatchActionsResponse()
        for action in actions[start : start + ACTIONS_AT_ONCE]:
            message.enriched_actions.add().action.CopyFrom(action)
        messages.append(base64.b64encode(message.SerializeToString()).decode())
    return messages
