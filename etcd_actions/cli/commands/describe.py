"""``etcd-actions describe``: an action with its attempts, their events and errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from flyteidl2.common.list_pb2 import Filter, ListRequest
from flyteidl2.workflow import run_definition_pb2 as pb
from google.protobuf.json_format import MessageToDict

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.descriptions import AttemptDescription, Description, Event
from etcd_actions.cli.formats.message_rows import (
    action_row,
    error_of,
    phase_of,
    time_text,
)
from etcd_actions.cli.formats.standard_output import chosen_format, print_rows
from etcd_actions.cli.names import Name, find_action, parse_name, with_nearest
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.model import FAILURES, ROOT_ACTION

_MOST_FAILURES = 20


async def describe_actions(common: CommonOptions, texts: Sequence[str], output: str | None) -> int:
    """Print runs or actions in full."""
    form = chosen_format(output, elsewhere="table")
    for text in texts:
        parse_name(text)
    found: list[Description] = []
    async with open_reader(common) as reader:
        for text in texts:
            name = await find_action(reader.names, text)
            async with with_nearest(reader.names, text):
                found.append(await _described(reader, name))
    print_rows(form, found, found[0] if len(found) == 1 else found, lambda _: _text(found))
    return ExitCode.OK


async def _described(reader: Reader, name: Name) -> Description:
    labels: dict[str, str] = {}
    failed: list[str] = []
    if name.action == ROOT_ACTION:
        run = await reader.run(name)
        details, labels = run.action, dict(run.run_spec.labels.values)
        failed = await _failures(reader, name)
    else:
        details = await reader.action(name)
    uris = await reader.data_uris(name)
    error = error_of(details)
    message = pb.Action(id=details.id, metadata=details.metadata, status=details.status)
    rest = MessageToDict(details, preserving_proto_field_name=True)
    for part in ("id", "status", "attempts", "error_info", "abort_info"):
        rest.pop(part, None)
    return Description(
        action=action_row(message, error),
        events=list(_events(details)),
        attempts=[_attempt(name, each) for each in details.attempts],
        error="" if error is None else f"{error.code}: {error.message}".strip(": "),
        inputs_uri=uris.inputs_uri,
        outputs_uri=uris.outputs_uri,
        labels=labels,
        failed=failed,
        details=rest,
    )


async def _failures(reader: Reader, run: Name) -> list[str]:
    """The failed actions of a run below its root."""
    request = ListRequest(limit=_MOST_FAILURES)
    values = [phase.name for phase in FAILURES]
    request.filters.add(function=Filter.VALUE_IN, field="phase", values=values)
    request.filters.add(function=Filter.NOT_EQUAL, field="name", values=[ROOT_ACTION])
    page = await reader.page_of_actions(run, request)
    failed = [f"{each.id.name} ({phase_of(each.status.phase).name})" for each in page.actions]
    return [*failed, "and more: see etcd-actions tree"] if page.token else failed


def _events(details: pb.ActionDetails) -> Iterator[Event]:
    """The phases of all attempts, in the order of time."""
    events = [
        Event(
            time_text(each.start_time),
            attempt.attempt,
            phase_of(each.phase).name,
            time_text(each.end_time) if each.HasField("end_time") else "",
        )
        for attempt in details.attempts
        for each in attempt.phase_transitions
    ]
    yield from sorted(events, key=lambda event: (event.attempt, datetime.fromisoformat(event.time)))


def _attempt(name: Name, attempt: pb.ActionAttempt) -> AttemptDescription:
    logs = []
    if attempt.logs_available:
        logs.append(f"etcd-actions logs {name.path} --attempt {attempt.attempt}")
    logs += [each.uri for each in attempt.log_info if each.uri]
    error = attempt.error_info
    return AttemptDescription(
        attempt=attempt.attempt,
        phase=phase_of(attempt.phase).name,
        started_at=time_text(attempt.start_time),
        ended_at=time_text(attempt.end_time) if attempt.HasField("end_time") else "",
        error=f"{error.code}: {error.message}".strip(": ")
        if attempt.HasField("error_info")
        else "",
        log=logs,
    )


def _text(found: Sequence[Description]) -> bytes:
    from etcd_actions.cli.formats.description_text import description_text  # noqa: PLC0415 (rich is slow)

    now = datetime.now(UTC)
    return b"\n".join(description_text(each, sys.stdout, now) for each in found)
