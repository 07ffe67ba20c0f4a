"""``etcd-actions logs``: the output of an attempt's process."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import trio
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.calls import DATA
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.message_rows import phase_of
from etcd_actions.cli.formats.standard_output import Write, standard_output, until_stopped
from etcd_actions.cli.names import Name, find_action, parse_name, with_nearest
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader, action_identifier
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import EtcdActionsError, NotFound

_QUIET: Final = 1.0
"""Seconds without a line after which all present lines of a running attempt have arrived."""
_AHEAD: Final = 16
"""The most responses that are received and not written yet."""


async def show_log(
    common: CommonOptions, text: str, *, follow: bool, attempt: int | None, tail: int | None
) -> int:
    """Write the log of an attempt, and with ``follow`` each new line.

    Args:
        common: The settings.
        text: The name of an action; the name of a run means its root.
        follow: Continue, also with the next attempts, until the action ends or a signal comes.
        attempt: The attempt; None for the present one.
        tail: The number of last lines that are written first; None for all.
    """
    parse_name(text)
    with standard_output() as write:
        async with (
            open_stop() as stop,
            open_reader(common, files=True) as reader,
            until_stopped(stop),
        ):
            name = await find_action(reader.names, text)
            async with with_nearest(reader.names, text):
                await _show(reader, name, write, follow=follow, attempt=attempt, tail=tail)
    return ExitCode.OK


async def _show(
    reader: Reader,
    name: Name,
    write: Write,
    *,
    follow: bool,
    attempt: int | None,
    tail: int | None,
) -> None:
    status = (await reader.action(name)).status
    number = attempt or max(status.attempts, 1)
    has_ended = phase_of(status.phase).is_terminal or number < status.attempts
    if not await _show_attempt(reader, name, number, write, follow or has_ended, tail):
        print_message(f"{name.path} has no log yet: it is {phase_of(status.phase).name}")
    while follow and attempt is None:
        status = (await reader.action(name)).status
        if phase_of(status.phase).is_terminal and number >= status.attempts:
            return
        number += 1
        try:
            # It waits for the attempt to start.
            await _show_attempt(reader, name, number, write, True, None)
        except NotFound:
            return  # The action ended instead.


async def _show_attempt(
    reader: Reader, name: Name, attempt: int, write: Write, to_the_end: bool, tail: int | None
) -> bool:
    """Write the log of one attempt; returns whether it has lines.

    Args:
        reader: Opens the stream of lines.
        name: The action.
        attempt: The attempt.
        write: Writes to standard output.
        to_the_end: Whether to write until the attempt has ended, or only the present lines.
        tail: The number of present lines that are written, the last ones; None for all.
    """
    last: deque[str] = deque(maxlen=tail)
    is_behind = True
    has_lines = False
    failures: list[EtcdActionsError] = []
    send, receive = trio.open_memory_channel[list[str]](_AHEAD)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_receive, reader, name, attempt, send, failures)
        while True:
            limit = _QUIET if is_behind and (tail is not None or not to_the_end) else math.inf
            lines: list[str] | None = None
            with trio.move_on_after(limit):
                try:
                    lines = await receive.receive()
                except trio.EndOfChannel:
                    break
            if lines is None:
                # All lines so far have arrived.
                is_behind = False
                _write(write, last)
                last.clear()
                if not to_the_end:
                    nursery.cancel_scope.cancel("the log is written")
                    break
                continue
            has_lines = has_lines or bool(lines)
            if is_behind and tail is not None:
                last.extend(lines)
            else:
                _write(write, lines)
        _write(write, last)
    if failures:
        raise failures[0]
    return has_lines


async def _receive(
    reader: Reader,
    name: Name,
    attempt: int,
    send: trio.MemorySendChannel[list[str]],
    failures: list[EtcdActionsError],
) -> None:
    """Receive lines in a task of its own, since the stream ends if a receipt is cancelled."""
    request = pb.TailLogsRequest(action_id=action_identifier(name), attempt=attempt)
    kind = pb.TailLogsResponse
    with send:
        try:
            async with reader.calls.stream(DATA, "TailLogs", request, kind) as responses:
                async for response in responses:
                    lines = [line.message for log in response.logs for line in log.lines]
                    if lines:
                        await send.send(lines)
        except EtcdActionsError as error:
            failures.append(error)


def _write(write: Write, lines: Iterable[str]) -> None:
    if data := "".join(lines).encode(errors="replace"):
        write(data)
