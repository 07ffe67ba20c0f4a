"""The logs of attempts, for ``flyte get logs`` and ``flyte run --follow``."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import dataclass, replace
from typing import Final, Protocol

import trio
from connectrpc.code import Code
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from flyteidl2.logs.dataplane.payload_pb2 import LogLine, LogLineOriginator
from google.protobuf.timestamp_pb2 import Timestamp

from etcd_actions._internal.untrusted_files import UnusableFile
from etcd_actions.actions.stored_action import StoredAction, describe
from etcd_actions.client import ActionsClient
from etcd_actions.client.arguments import action_id_of
from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.model import ACTION_TYPE_TASK, ActionId, Incarnation
from etcd_actions.runs.run_record import ActionHistory
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.streams import Stream, Streams
from etcd_actions.web import descriptors

LONGEST_LINE: Final = 16 * 1024
"""Bytes; a longer line is sent in parts."""
_MOST_LINES: Final = 500
"""The most lines of a response."""
_MOST_OPEN: Final = 1_000
"""The most logs that are read at once."""
# Seconds between two reads of a file that grows, and of one that is quiet.
_READ_SOON: Final = 0.1
_READ_LATER: Final = 1.0
# Seconds in which a worker copies the beginning of a log.
_COPIED_WITHIN: Final = 5.0
# Seconds between two reads of the action.
_CHECK_EVERY: Final = 2.0
# Flyte's SDK abandons a stream after 30 s of silence.
_SIGN_OF_LIFE: Final = 10.0


class Log(Protocol):
    """A log that may still grow, read from its beginning.

    Attributes:
        has_gap: Whether bytes are missing before those that were read last.
        written: The time of the last write, in seconds since 1970.
    """

    has_gap: bool
    written: float

    async def read(self) -> bytes:
        """Return the next bytes; empty if there are none now."""

    async def has_ended(self) -> bool:
        """Whether the log is known to be complete."""


class LogSource(Protocol):
    """The logs of this machine's attempts."""

    def open(self, incarnation: Incarnation, attempt: int) -> AbstractAsyncContextManager[Log]:
        """Open the log of an attempt; raises FileNotFoundError if there is none."""


class SharedLogSource(Protocol):
    """The logs of workers' attempts, which are next to their outputs."""

    def open(self, outputs: str) -> AbstractAsyncContextManager[Log]:
        """Open the log next to the outputs of a URI; raises FileNotFoundError if there is none."""


HistoryOf = Callable[[ActionId], Awaitable["ActionHistory | None"]]
"""Reads the history of an action whose object was deleted."""


@dataclass(frozen=True, kw_only=True)
class LogSources:
    """The sources of logs, and of the actions that they belong to.

    Attributes:
        client: Reads the actions.
        source: The logs of this machine's executor; None if it has none.
        shared: The logs of workers; None if they cannot be read here.
        history: Reads the history of deleted actions; None if none is stored.
        most_open: The most logs that are open at a time, each of which takes a descriptor; None
            for an eighth of the descriptors that the process may have, at most 1,000.
    """

    client: ActionsClient
    source: LogSource | None = None
    shared: SharedLogSource | None = None
    history: HistoryOf | None = None
    most_open: int | None = None


@dataclass(frozen=True)
class _RequestedAttempt:
    """The attempt whose log is requested, and its state when the action was last read.

    Attributes:
        action_id: The action.
        incarnation: The incarnation of the action.
        attempt: The attempt.
        has_started: Whether the action has reached the attempt.
        has_ended: Whether the attempt or its action has ended.
        attempts: The number of the action's newest attempt.
        is_task: Whether the action is a task.
        outputs: The URI of the attempt's outputs; empty if it is not known.
    """

    action_id: ActionId
    incarnation: Incarnation
    attempt: int
    has_started: bool
    has_ended: bool
    attempts: int
    is_task: bool = True
    outputs: str = ""

    def check(self) -> None:
        """Raise Refusal or InvalidArgument if the attempt cannot have a log."""
        if not self.is_task:
            raise Refusal(
                Code.NOT_FOUND,
                f"{describe(self.action_id)} is not a task: it has no process, and no log",
            )
        if not self.has_ended and self.attempt > self.attempts + 1:
            raise InvalidArgument(
                "attempt", f"{self.attempt}: the action is in attempt {self.attempts}"
            )


class LogService:
    """DataProxyService's TailLogs.

    Args:
        logs: See :class:`LogSources`.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream is sent an empty response.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["DataProxyService"]

    def __init__(self, logs: LogSources, streams: Streams, keepalive: float) -> None:
        self._logs = logs
        self._streams = streams
        self._keepalive = min(keepalive, _SIGN_OF_LIFE)
        self._most_open = logs.most_open or min(_MOST_OPEN, max(1, descriptors.limit() // 8))
        self._open = 0

    async def tail_logs(self, request: pb.TailLogsRequest) -> AsyncGenerator[pb.TailLogsResponse]:
        """The lines of an attempt's log, from the first line to the end of the attempt.

        The stream waits for an attempt that has not started. Attempt 0 is the present one.
        Selectors of pods are ignored.
        """
        action_id = action_id_of(request.action_id)
        with self._streams.open() as stream:
            target = await self._find(action_id, request.attempt)
            target.check()
            began = quiet_since = trio.current_time()
            while not stream.has_ended:
                if target.has_started:
                    try:
                        async with (
                            self._opened(target) as log,
                            aclosing(self._follow(stream, log, target)) as responses,
                        ):
                            async for each in responses:
                                yield each
                    except FileNotFoundError:
                        pass
                    except UnusableFile as error:
                        raise Refusal(Code.FAILED_PRECONDITION, f"the log: {error}") from error
                    else:
                        return
                await self._refuse_if_elsewhere(target, began)
                if trio.current_time() - quiet_since >= self._keepalive:
                    quiet_since = trio.current_time()
                    yield pb.TailLogsResponse()
                await stream.wait(_READ_LATER)
                if not stream.has_ended:
                    target = await self._refreshed(target)

    @asynccontextmanager
    async def _opened(self, target: _RequestedAttempt) -> AsyncIterator[Log]:
        """Open a log, unless too many are open; raises FileNotFoundError if there is none."""
        if self._open >= self._most_open:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"{self._most_open} logs are being read, the most at once: try again later",
            )
        self._open += 1
        try:
            async with AsyncExitStack() as stack:
                yield await self._open_log(stack, target)
        finally:
            self._open -= 1

    async def _open_log(self, stack: AsyncExitStack, target: _RequestedAttempt) -> Log:
        """Open the log here, else the one that a worker shares; FileNotFoundError for none."""
        source, shared = self._logs.source, self._logs.shared
        if source is not None:
            own = source.open(target.incarnation, target.attempt)
            try:
                return await stack.enter_async_context(own)
            except FileNotFoundError:
                if shared is None:
                    raise
        if shared is None or not target.outputs:
            raise FileNotFoundError
        return await stack.enter_async_context(shared.open(target.outputs))

    async def _follow(
        self, stream: Stream, log: Log, target: _RequestedAttempt
    ) -> AsyncGenerator[pb.TailLogsResponse, None]:
        lines = _Lines()
        pause, check_at = _READ_SOON, trio.current_time() + _CHECK_EVERY
        quiet_since = trio.current_time()
        # After the end one more read returns everything written before it.
        is_last_read = target.has_ended
        while not stream.has_ended:
            data = await log.read()
            if log.has_gap:
                yield _response(["(a part of the log is missing here)\n"], log, system=True)
            if data:
                complete = lines.add(data)
                for at in range(0, len(complete), _MOST_LINES):
                    yield _response(complete[at : at + _MOST_LINES], log)
                pause, quiet_since = _READ_SOON, trio.current_time()
                continue
            if is_last_read:
                if rest := lines.rest():
                    yield _response(rest, log)
                return
            now = trio.current_time()
            if await log.has_ended():
                is_last_read = True
                continue
            if now >= check_at:
                check_at = now + _CHECK_EVERY
                target = await self._refreshed(target)
                if target.has_ended:
                    is_last_read = True
                    continue
            if now - quiet_since >= self._keepalive:
                quiet_since = now
                yield pb.TailLogsResponse()
            await stream.wait(pause)
            pause = min(pause * 2, _READ_LATER)

    async def _find(self, action_id: ActionId, attempt: int) -> _RequestedAttempt:
        """Read the action, or its history.

        Raises:
            NotFound: There is neither.
        """
        try:
            action = await self._logs.client.get_task_action(action_id)
        except NotFound:
            history = None if self._logs.history is None else await self._logs.history(action_id)
            if history is None:
                raise
            last = history.attempts[-1].number if history.attempts else 1
            key = self._logs.client.key_of(action_id)
            incarnation = Incarnation(key, history.create_revision, history.uid)
            return _RequestedAttempt(action_id, incarnation, attempt or last, True, True, last)
        return _of_action(action_id, attempt, action)

    async def _refreshed(self, target: _RequestedAttempt) -> _RequestedAttempt:
        """The present state of the same incarnation."""
        try:
            action = await self._logs.client.get_task_action(target.action_id)
        except NotFound:
            action = None
        if action is None or not action.incarnation.may_be(target.incarnation):
            return replace(target, has_ended=True)
        return _of_action(target.action_id, target.attempt, action)

    async def _refuse_if_elsewhere(self, target: _RequestedAttempt, began: float) -> None:
        """Refuse a request for a log that will not be on this machine.

        Args:
            target: The attempt.
            began: When it was requested, on trio's clock.

        Raises:
            Refusal: NOT_FOUND, with the place of the log.
        """
        what = f"attempt {target.attempt} of {describe(target.action_id)}"
        if target.attempt > target.attempts and target.has_ended:
            text = f"there is no {what}: it ended in attempt {target.attempts}"
            raise Refusal(Code.NOT_FOUND, text)
        if not target.has_started:
            return
        here = socket.gethostname()
        where = (
            "it is in the state directory of the executor that ran it, unless that has removed "
            "it, or nothing of it was started: read it from the service there"
        )
        if not target.has_ended:
            owner = await self._logs.client.claimed_by(target.action_id)
            if self._logs.source is not None and owner.rpartition("/")[0] in ("", here):
                # The attempt waits, or is about to start.
                return
            if self._logs.shared is not None and trio.current_time() < began + _COPIED_WITHIN:
                # A worker copies the log as it grows.
                return
            if owner:
                where = f"{owner} runs it: read it from the service there"
        raise Refusal(Code.NOT_FOUND, f"the log of {what} is not on {here}: {where}")


def _of_action(action_id: ActionId, attempt: int, action: StoredAction) -> _RequestedAttempt:
    present = max(action.attempts, 1)
    attempt = attempt or present
    return _RequestedAttempt(
        action_id,
        action.incarnation,
        attempt,
        has_started=attempt <= present,
        has_ended=action.is_terminal or attempt < present,
        attempts=present,
        is_task=action.spec.kind == ACTION_TYPE_TASK,
        outputs=action.outputs_of(attempt),
    )


class _Lines:
    """Splits bytes into lines, and lines above :data:`LONGEST_LINE` into parts."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """The complete lines, and complete parts of a line that is too long."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        found = [part for line in complete for part in _parts(line)]
        while len(self._rest) > LONGEST_LINE:
            end = _boundary(self._rest)
            found.append(_text(self._rest[:end]))
            self._rest = self._rest[end:]
        return found

    def rest(self) -> list[str]:
        """The last line, if it has no end."""
        rest, self._rest = self._rest, b""
        return _parts(rest) if rest else []


def _parts(line: bytes) -> list[str]:
    found = []
    while len(line) > LONGEST_LINE:
        end = _boundary(line)
        found.append(_text(line[:end]))
        line = line[end:]
    return [*found, _text(line)]


def _boundary(line: bytes) -> int:
    """Where a line that is too long is split: not within a character."""
    end = LONGEST_LINE
    while end > LONGEST_LINE - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _text(line: bytes) -> str:
    # The SDK prints a line as it is: each needs its line break.
    return line.decode(errors="replace") + "\n"


def _response(lines: list[str], log: Log, *, system: bool = False) -> pb.TailLogsResponse:
    fraction, seconds = math.modf(log.written)
    # The time of the last write: a line has none of its own.
    written = Timestamp(seconds=int(seconds), nanos=int(fraction * 1e9))
    originator = LogLineOriginator.SYSTEM if system else LogLineOriginator.USER
    found = [LogLine(timestamp=written, message=each, originator=originator) for each in lines]
    return pb.TailLogsResponse(logs=[pb.TailLogsResponse.Logs(lines=found)])
