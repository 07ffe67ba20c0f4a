"""Streams of status updates: many callers, answers told apart by their nonces.

The server handles one update after another and answers in order. So a stream costs less than
a call each, but is no faster than one of the server's threads, and one late answer holds up
all behind it. It is therefore given no more than it answers in a moment, and who finds it
full, broken or not proven yet makes a call of its own instead.

A call has a deadline, which both sides know; a message in a stream has none. So no message is
handed to gRPC once its own deadline has passed, and under a leader's lease the stream as a whole
has the lease's end for its deadline, behind which neither side handles anything that is still on
its way. A lease that is renewed gets another stream, and the one before ends with its answers.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import grpc
import structlog
import trio

from etcd_actions.backoff import Backoff
from etcd_actions.call_time import boot_time, lease_left
from etcd_actions.containment import describe
from etcd_actions.grpc_bridge import Bell
from etcd_actions.run_service.codes import CallFailed, Code

if TYPE_CHECKING:
    from flyteidl2.workflow.internal_run_service_pb2 import (
        UpdateActionStatusRequest,
        UpdateActionStatusResponse,
        UpdateActionStatusStreamResponse,
    )

METHOD = "UpdateActionStatusStream"
_PATH = f"/flyteidl2.workflow.InternalRunService/{METHOD}"
_REOPENING = Backoff(initial=0.2, cap=10.0)
_CLOSE_TIMEOUT = 5.0
_MOMENT = 0.1
"""Seconds that a request may wait for those before it."""
_CLOSE = 0.01
"""Seconds by which deadlines of one lease may differ."""
_WEIGHT = 0.05
"""What the newest answer counts for in the mean time between answers."""

_log = structlog.get_logger(__name__)


class _Waiter:
    """One request on its way, and its answer."""

    __slots__ = ("done", "response", "sent")

    def __init__(self, sent: float) -> None:
        self.sent = sent
        self.done = trio.Event()
        self.response: UpdateActionStatusResponse | None = None


class StatusStream:
    """A stream that is open until it breaks; :meth:`close` ends it.

    Args:
        channel: The connection.
        bell: The way back from gRPC's threads.
        life: Seconds after which both sides give it up; infinite for never.
        on_end: Called when it ended.

    Attributes:
        answered: Whether any answer has come.
        lapsed: Whether it ended because its life was over, with nothing on it.
        failure: How it ended, None while it is open.
        thread_ended: Set when nothing of it is left.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        bell: Bell,
        *,
        life: float = math.inf,
        on_end: Callable[[StatusStream], None],
    ) -> None:
        from flyteidl2.workflow import internal_run_service_pb2 as pb  # noqa: PLC0415

        self._message = pb.UpdateActionStatusStreamRequest
        self._bell = bell
        self._on_end = on_end
        self._waiting: dict[int, _Waiter] = {}
        self._nonce = 0
        self._last_answer = float("-inf")
        self._pace = 0.0
        self.answered = False
        self.expires = trio.current_time() + life
        self.retired = False
        self._trusted = False
        self.failure: tuple[Code, str] | None = None
        self.lapsed = False
        self.thread_ended = trio.Event()
        self._requests: queue.SimpleQueue[tuple[bytes, float] | None] = queue.SimpleQueue()
        self._parse = pb.UpdateActionStatusStreamResponse.FromString
        # Bytes go in and come out: what cannot be encoded or decoded is one action's trouble,
        # and in gRPC's own threads it would be that of all on the stream.
        timeout = None if math.isinf(life) else life
        self._call = channel.stream_stream(_PATH)(self._outgoing(), timeout=timeout)
        try:
            threading.Thread(target=self._read, name="run-service", daemon=True).start()
        except RuntimeError:
            self._call.cancel()
            self._requests.put(None)
            raise

    @property
    def unsupported(self) -> bool:
        """Whether it ended because the server does not know the method."""
        return (
            not self.answered and self.failure is not None and self.failure[0] is Code.UNIMPLEMENTED
        )

    def has_room(self) -> bool:
        """Whether one more may be sent. Before its first answer it is trusted with one only."""
        waiting = len(self._waiting)
        proven = self.answered or self._trusted
        return not waiting or (proven and waiting * self._pace < _MOMENT)

    @property
    def unproven(self) -> bool:
        """Whether its first update waits for an answer."""
        return bool(self._waiting) and not self.answered

    def trust(self, old: StatusStream) -> None:
        """Take it for as good as one that answered."""
        self._trusted, self._pace = old.answered or old._trusted, old._pace

    def is_overdue(self, deadline: float) -> bool:
        """Whether an answer is late, and nobody may be waiting for it any more."""
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and oldest.sent + deadline < trio.current_time()

    async def ask(
        self, request: UpdateActionStatusRequest, deadline: float
    ) -> UpdateActionStatusResponse:
        """Send a request and wait for its answer; one that is late ends the stream.

        Cancelled, the server may have applied it, or may still, until the deadline.

        Raises:
            CallFailed: The stream ended without the answer.
        """
        self._nonce += 1
        # Before anything waits for it: it may be that it cannot be encoded.
        message = self._message(request=request, nonce=self._nonce).SerializeToString()
        waiter = self._waiting[self._nonce] = _Waiter(trio.current_time())
        self._requests.put((message, boot_time() + deadline))
        with trio.move_on_after(deadline):
            await waiter.done.wait()
        if waiter.response is not None:
            return waiter.response
        self.close(Code.DEADLINE_EXCEEDED, f"no answer in {deadline:g} s")
        assert self.failure is not None
        raise CallFailed(METHOD, *self.failure)

    def retire(self) -> None:
        """Send nothing more; it ends when all that was sent is answered."""
        self.retired = True
        if not self._waiting:
            self._requests.put(None)

    def _outgoing(self) -> Iterator[bytes]:
        """What gRPC sends, from a thread of its own; it asks when it can send one more."""
        while (item := self._requests.get()) is not None:
            message, until = item
            # One that is late is not sent: who asked has given up, or is about to.
            if boot_time() < until:
                yield message

    def close(self, code: Code, details: str) -> None:
        """End the stream; who waits is told that it broke. Twice is harmless."""
        if self.failure is not None:
            return
        self.failure = (code, details)
        out_of_time = (
            code is Code.DEADLINE_EXCEEDED and trio.current_time() >= self.expires - _CLOSE
        )
        self.lapsed = out_of_time and not self._waiting
        self._call.cancel()
        # The thread that grpcio reads requests with waits until it is told to end.
        self._requests.put(None)
        for waiter in self._waiting.values():
            waiter.done.set()
        self._waiting.clear()
        self._on_end(self)

    def _read(self) -> None:
        """The thread: hand over answers until the stream ends, however it ends."""
        code, details = Code.UNAVAILABLE, "the server ended the stream"
        try:
            for data in self._call:
                self._bell.call_soon(_deliverer(self, self._parse(data)))
        except grpc.RpcError:
            code, details = _code_of(self._call.code()), self._call.details() or ""
        except BaseException as error:
            # A thread has no one who could catch it, and an answer may be anything.
            code, details = Code.INTERNAL, f"an answer cannot be read: {describe(error)}"
        finally:
            self._bell.call_soon(lambda: self.close(code, details))
            self._bell.call_soon(self.thread_ended.set)

    def deliver(self, answer: UpdateActionStatusStreamResponse) -> None:
        """Hand an answer to who waits for it, if it is one."""
        waiter = self._waiting.pop(answer.nonce, None)
        if waiter is not None:
            self._keep_pace(waiter.sent)
        # An answer without a response accepts nothing: it is as good as none.
        if waiter is not None and answer.HasField("response"):
            waiter.response = answer.response
            waiter.done.set()
        if self.retired and not self._waiting:
            self._requests.put(None)

    def _keep_pace(self, sent: float) -> None:
        """Reckon how long the server takes for one, once it has answered the one before."""
        now = trio.current_time()
        taken = now - max(sent, self._last_answer)
        self._pace = taken if not self.answered else self._pace + _WEIGHT * (taken - self._pace)
        self._last_answer = now
        self.answered = True


def _deliverer(
    stream: StatusStream, answer: UpdateActionStatusStreamResponse
) -> Callable[[], None]:
    def deliver() -> None:
        try:
            stream.deliver(answer)
        except Exception as error:
            stream.close(Code.INTERNAL, f"an answer cannot be read: {describe(error)}")

    return deliver


def _code_of(status: grpc.StatusCode) -> Code:
    return Code.__members__.get(getattr(status, "name", ""), Code.UNKNOWN)


class StatusStreams:
    """The stream of the moment, where one is to be used.

    A stream that broke is opened anew after a back-off, which only an answer makes short
    again; a server that does not know the method is not asked for one any more.

    Args:
        channel: The connection.
        bell: The way back from gRPC's threads.
        deadline: Seconds after which an answer is late.
    """

    def __init__(self, channel: grpc.Channel, bell: Bell, *, deadline: float) -> None:
        self._channel = channel
        self._bell = bell
        self._deadline = deadline
        self._stream: StatusStream | None = None
        self._ending: set[StatusStream] = set()
        self._supported = True
        self._closed = False
        self._failures = 0
        self._reopen_at = float("-inf")

    def current(self) -> StatusStream | None:
        """A stream that takes one more update; None where a call is to be made instead."""
        if not self._supported:
            return None
        if self._stream is not None and self._stream.is_overdue(self._deadline):
            self._stream.close(Code.DEADLINE_EXCEEDED, f"no answer in {self._deadline:g} s")
        left = lease_left()
        if left <= 0:
            return None
        old = self._stream
        if old is not None and not self._fits(old, left):
            if old.unproven:
                return None
            self._stream = None
            self._ending.add(old)
            old.retire()
        if self._stream is None:
            if trio.current_time() < self._reopen_at:
                return None
            try:
                self._stream = StatusStream(
                    self._channel, self._bell, life=left, on_end=self._ended
                )
            except Exception as error:
                # There can be no more threads, say: calls of their own have to do.
                self._failures += 1
                delay = _REOPENING.delay(self._failures)
                self._reopen_at = trio.current_time() + delay
                _log.warning(
                    "run_service_stream_broken",
                    code=Code.UNAVAILABLE.name,
                    details=describe(error),
                    reopened_in=round(delay, 3),
                )
                return None
            if old is not None:
                self._stream.trust(old)
        return self._stream if self._stream.has_room() else None

    def _fits(self, stream: StatusStream, left: float) -> bool:
        """Whether a stream lives long enough for one more update, and no longer than allowed."""
        now = trio.current_time()
        return now + min(self._deadline, left) <= stream.expires + _CLOSE and (
            stream.expires <= now + left + _CLOSE
        )

    async def aclose(self) -> None:
        """End the stream and its thread. Not interrupted by cancellation, but bounded."""
        self._closed = True
        if self._stream is not None:
            self._stream.close(Code.CANCELLED, "closed")
        for stream in list(self._ending):
            stream.close(Code.CANCELLED, "closed")
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True) as scope:
            for stream in list(self._ending):
                await stream.thread_ended.wait()
        if scope.cancelled_caught:
            _log.warning("run_service_thread_did_not_end", seconds=_CLOSE_TIMEOUT)

    def _ended(self, stream: StatusStream) -> None:
        if self._stream is stream:
            self._stream = None
        self._ending = {each for each in self._ending if not each.thread_ended.is_set()}
        self._ending.add(stream)
        if self._closed:
            return
        if stream.unsupported:
            self._supported = False
            _log.info("run_service_has_no_stream")
            return
        if stream.retired or stream.lapsed:
            return
        assert stream.failure is not None
        self._failures = 1 if stream.answered else self._failures + 1
        delay = _REOPENING.delay(self._failures)
        self._reopen_at = trio.current_time() + delay
        code, details = stream.failure
        _log.warning(
            "run_service_stream_broken",
            code=code.name,
            details=details,
            reopened_in=round(delay, 3),
        )
