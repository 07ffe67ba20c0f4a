"""The logs of attempts, as ``flyte get logs`` and ``flyte run --follow`` ask for them."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio
from connectrpc.code import Code
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from flyteidl2.logs.dataplane.payload_pb2 import LogLine, LogLineOriginator
from google.protobuf.timestamp_pb2 import Timestamp

from etcd_actions._internal.untrusted_files import UnusableFile
from etcd_actions.actions.stored_action import StoredAction, describe
from etcd_actions.client import ActionsClient, action_id_of
from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.model import ACTION_TYPE_TASK, ActionId, Incarnation
from etcd_actions.runs.run_record import ActionHistory
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.streams import Stream, Streams
from etcd_actions.web import descriptors

LONGEST_LINE: Final = 16 * 1024
"""Bytes; a longer line comes in parts."""
_MOST_LINES: Final = 500
_MOST_OPEN: Final = 1_000
# Seconds between two looks at a file to which something is written, and at one that is quiet.
_LOOK_SOON: Final = 0.1
_LOOK_LATER: Final = 1.0
# Seconds between two looks at the action.
_ASK_EVERY: Final = 2.0
# Flyte's SDK gives up a stream from which nothing comes for 30 s.
_SIGN_OF_LIFE: Final = 10.0


class Log(Protocol):
    """A log that is read on and on."""

    is_torn: bool
    written: float

    async def read(self) -> bytes:
        """Some of what comes next; nothing where there is nothing now."""
        ...

    async def has_ended(self) -> bool:
        """Whether nothing is written any more, as far as is known."""
        ...


class LogSource(Protocol):
    """Where the logs of this machine's attempts are."""

    async def is_there(self, incarnation: Incarnation, attempt: int) -> bool:
        """Whether there is a log of an attempt."""
        ...

    def open(self, incarnation: Incarnation, attempt: int) -> AbstractAsyncContextManager[Log]:
        """Read the log of an attempt; FileNotFoundError where there is none."""
        ...


HistoryOf = Callable[[ActionId], Awaitable["ActionHistory | None"]]
"""Reads the history of an action whose object is gone."""


@dataclass(frozen=True, kw_only=True)
class Logs:
    """What logs are read with.

    Attributes:
        client: Knows the actions.
        source: Where the logs are; None where no executor runs here.
        history: Knows the actions that are gone; None where no histories are kept.
        most_open: Logs that are read at once, at most: each takes a descriptor. None for a share
            of those that the process may have.
    """

    client: ActionsClient
    source: LogSource | None = None
    history: HistoryOf | None = None
    most_open: int | None = None


@dataclass(frozen=True)
class _Asked:
    """What is asked for, and how far that is."""

    action_id: ActionId
    incarnation: Incarnation
    attempt: int
    begun: bool
    """Whether the attempt is there to be run."""
    over: bool
    """Whether the attempt is over, or its action."""
    attempts: int
    is_task: bool = True


class LogService:
    """DataProxyService's TailLogs.

    Args:
        logs: See :class:`Logs`.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream is given an empty answer.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["DataProxyService"]

    def __init__(self, logs: Logs, streams: Streams, keepalive: float) -> None:
        self._logs = logs
        self._streams = streams
        self._keepalive = min(keepalive, _SIGN_OF_LIFE)
        self._most_open = logs.most_open or min(_MOST_OPEN, max(1, descriptors.limit() // 8))
        self._open = 0

    async def tail_logs(self, request: pb.TailLogsRequest) -> AsyncGenerator[pb.TailLogsResponse]:
        """The lines of an attempt's log, from the first one on, until the attempt has ended.

        An attempt that has yet to begin is waited for. Attempt 0 is the present one. What
        selects pods says nothing here.
        """
        action_id = action_id_of(request.action_id)
        with self._streams.open() as stream:
            asked = await self._look(action_id, request.attempt, None)
            _check(asked)
            quiet_since = trio.current_time()
            while not stream.is_over:
                source = self._logs.source
                if source is not None and asked.begun:
                    try:
                        async with (
                            self._opened(source, asked) as log,
                            aclosing(self._follow(stream, log, asked)) as answers,
                        ):
                            async for answer in answers:
                                yield answer
                    except FileNotFoundError:
                        pass
                    except UnusableFile as error:
                        raise Refusal(Code.FAILED_PRECONDITION, f"the log: {error}") from error
                    else:
                        return
                await self._check_whether_here(asked)
                if trio.current_time() - quiet_since >= self._keepalive:
                    quiet_since = trio.current_time()
                    yield pb.TailLogsResponse()
                await stream.wait(_LOOK_LATER)
                if not stream.is_over:
                    asked = await self._look(action_id, asked.attempt, asked)

    @asynccontextmanager
    async def _opened(self, source: LogSource, asked: _Asked) -> AsyncIterator[Log]:
        """A log, where not too many are open.

        Raises:
            Refusal: There are too many.
        """
        if self._open >= self._most_open:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"{self._most_open} logs are being read, the most at once: try again later",
            )
        self._open += 1
        try:
            async with source.open(asked.incarnation, asked.attempt) as log:
                yield log
        finally:
            self._open -= 1

    async def _follow(
        self, stream: Stream, log: Log, asked: _Asked
    ) -> AsyncGenerator[pb.TailLogsResponse, None]:
        lines = _Lines()
        pause, ask_at = _LOOK_SOON, trio.current_time() + _ASK_EVERY
        quiet_since = trio.current_time()
        # What was written before it was over is there to be read.
        last_look = asked.over
        while not stream.is_over:
            data = await log.read()
            if log.is_torn:
                yield _answer([_line("(some of the log is left out here)\n", log, system=True)])
            if data:
                for group in _groups(lines.add(data)):
                    yield _answer([_line(text, log) for text in group])
                pause, quiet_since = _LOOK_SOON, trio.current_time()
                continue
            if last_look:
                if rest := lines.rest():
                    yield _answer([_line(text, log) for text in rest])
                return
            now = trio.current_time()
            if await log.has_ended():
                last_look = True
                continue
            if now >= ask_at:
                ask_at = now + _ASK_EVERY
                asked = await self._look(asked.action_id, asked.attempt, asked)
                if asked.over:
                    last_look = True
                    continue
            if now - quiet_since >= self._keepalive:
                quiet_since = now
                yield pb.TailLogsResponse()
            await stream.wait(pause)
            pause = min(pause * 2, _LOOK_LATER)

    async def _look(self, action_id: ActionId, attempt: int, before: _Asked | None) -> _Asked:
        """How far an attempt is: of the same incarnation as before.

        Raises:
            NotFound: There is no such action, and nothing is known of one.
        """
        try:
            action = await self._logs.client.get_task_action(action_id)
        except NotFound:
            if before is not None:
                return _ended(before)
            history = None
            if self._logs.history is not None:
                history = await self._logs.history(action_id)
            if history is None:
                raise
            return self._of_history(action_id, attempt, history)
        if before is not None and not action.incarnation.may_be(before.incarnation):
            return _ended(before)
        return _of_action(action_id, attempt, action)

    def _of_history(self, action_id: ActionId, attempt: int, history: ActionHistory) -> _Asked:
        numbers = [each.number for each in history.attempts] or [1]
        return _Asked(
            action_id,
            Incarnation(self._logs.client.key_of(action_id), history.create_revision, history.uid),
            attempt or numbers[-1],
            True,
            True,
            numbers[-1],
        )

    async def _check_whether_here(self, asked: _Asked) -> None:
        """Refuse what will not be here, and say where it may be.

        Raises:
            Refusal: There is no such log on this machine.
        """
        what = f"attempt {asked.attempt} of {describe(asked.action_id)}"
        if asked.attempt > asked.attempts and asked.over:
            text = f"there is no {what}: it ended in attempt {asked.attempts}"
            raise Refusal(Code.NOT_FOUND, text)
        if not asked.begun:
            return
        here = socket.gethostname()
        owner = ""
        if not asked.over:
            owner = await self._logs.client.claimed_by(asked.action_id)
            machine = owner.rpartition("/")[0]
            if self._logs.source is not None and machine in ("", here):
                # It waits, or is about to begin.
                return
        where = (
            f"{owner} runs it: ask the service there"
            if owner
            else (
                "it is in the state directory of the executor that ran it, unless that has removed "
                "it, or nothing of it was started: ask the service there"
            )
        )
        raise Refusal(Code.NOT_FOUND, f"the log of {what} is not on {here}: {where}")


def _check(asked: _Asked) -> None:
    if not asked.is_task:
        raise Refusal(
            Code.NOT_FOUND, f"{describe(asked.action_id)} is no task: it has no process, and no log"
        )
    if not asked.over and asked.attempt > asked.attempts + 1:
        raise InvalidArgument(
            "attempt", f"{asked.attempt}: the action is in attempt {asked.attempts}"
        )


def _of_action(action_id: ActionId, attempt: int, action: StoredAction) -> _Asked:
    present = max(action.attempts, 1)
    attempt = attempt or present
    return _Asked(
        action_id,
        action.incarnation,
        attempt,
        attempt <= present,
        action.is_terminal or attempt < present,
        present,
        action.spec.kind == ACTION_TYPE_TASK,
    )


def _ended(asked: _Asked) -> _Asked:
    return _Asked(
        asked.action_id, asked.incarnation, asked.attempt, asked.begun, True, asked.attempts
    )


class _Lines:
    """Cuts bytes into lines, whatever they are."""

    def __init__(self) -> None:
        self._held = b""

    def add(self, data: bytes) -> list[str]:
        """The lines that are whole now, and parts of those that are too long."""
        *whole, self._held = (self._held + data).split(b"\n")
        found = []
        for each in whole:
            found += _parts(each)
        while len(self._held) > LONGEST_LINE:
            end = _boundary(self._held)
            found.append(_text(self._held[:end]))
            self._held = self._held[end:]
        return found

    def rest(self) -> list[str]:
        """What is left, where no more will come."""
        held, self._held = self._held, b""
        return _parts(held) if held else []


def _parts(line: bytes) -> list[str]:
    found = []
    while len(line) > LONGEST_LINE:
        end = _boundary(line)
        found.append(_text(line[:end]))
        line = line[end:]
    return [*found, _text(line)]


def _boundary(line: bytes) -> int:
    """Where a line that is too long is cut: not within a character."""
    end = LONGEST_LINE
    while end > LONGEST_LINE - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _text(line: bytes) -> str:
    # The SDK prints lines as they come: each has its end.
    return line.decode(errors="replace") + "\n"


def _groups(lines: list[str]) -> list[list[str]]:
    return [lines[at : at + _MOST_LINES] for at in range(0, len(lines), _MOST_LINES)]


def _line(text: str, log: Log, *, system: bool = False) -> LogLine:
    fraction, seconds = math.modf(log.written)
    return LogLine(
        # Not later than this: a line does not say when it was written.
        timestamp=Timestamp(seconds=int(seconds), nanos=int(fraction * 1e9)),
        message=text,
        originator=LogLineOriginator.SYSTEM if system else LogLineOriginator.USER,
    )


def _answer(lines: list[LogLine]) -> pb.TailLogsResponse:
    return pb.TailLogsResponse(logs=[pb.TailLogsResponse.Logs(lines=lines)])
