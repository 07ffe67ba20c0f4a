"""Streams of status updates for many callers; each answer has the nonce of its update.

The server handles the updates of a stream one after the other, and answers in order. So a stream
costs less than calls, but is no faster than one thread of the server, and a late answer delays all
later ones. Therefore a stream gets only as many updates as it answers in a tenth of a second. If it
is full, broken or without an answer yet, the caller makes a call instead.

A call has a deadline that both sides know; a message in a stream has none. So a message is not sent
after its own deadline, and not queued while the server's window is full. Under a leader's lease the
stream has the end of the lease as its deadline, after which neither side handles a message. After a
renewal of the lease another stream is opened, and the old one ends after its last answer. A stream
also ends so when the server announces the end of its connection.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from etcd_actions import http2
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.call_time import boot_time, lease_left
from etcd_actions._internal.containment import describe, split
from etcd_actions.http2 import Channel, Code, Exchange
from etcd_actions.run_service.status_codes import NO_TIME_LEFT, CallFailed

if TYPE_CHECKING:
    from flyteidl2.workflow.internal_run_service_pb2 import (
        UpdateActionStatusRequest,
        UpdateActionStatusResponse,
        UpdateActionStatusStreamResponse,
    )

METHOD = "UpdateActionStatusStream"
_PATH = f"/flyteidl2.workflow.InternalRunService/{METHOD}"
_REOPENING = Backoff(initial=0.2, cap=10.0)
_MOMENT = 0.1
"""Seconds that an update may wait for the answers before its own."""
_CLOSE = 0.01
"""Seconds by which two deadlines of one lease may differ."""
_WEIGHT = 0.05
"""The weight of the newest answer in the mean time between answers."""

_log = structlog.get_logger(__name__)


class _Waiter:
    """A request in flight, and its answer."""

    __slots__ = ("done", "handed", "message", "response", "sent_at", "until")

    def __init__(self, message: bytes, sent_at: float, until: float) -> None:
        self.message = message
        self.sent_at = sent_at
        self.until = until
        self.handed = False
        self.done = trio.Event()
        self.response: UpdateActionStatusResponse | None = None


class StatusStream:
    """A stream that is open until it breaks; :meth:`close` ends it.

    A cancellation of the nursery does not end its task, so that calls in a shielded scope work.

    Args:
        channel: The connection.
        nursery: Runs its task.
        life: Seconds after which both sides end it; infinite for no limit.
        on_end: Called when it has ended.

    Attributes:
        answered: Whether an answer has arrived.
        retired: Whether it accepts no more updates, and ends after its last answer.
        lapsed: Whether it ended at the end of its life, without updates in flight.
        failure: The code and the reason of its end; None while it is open.
    """

    def __init__(
        self,
        channel: Channel,
        nursery: trio.Nursery,
        *,
        life: float = math.inf,
        on_end: Callable[[StatusStream], None],
    ) -> None:
        from flyteidl2.workflow import internal_run_service_pb2 as pb  # noqa: PLC0415

        self._message = pb.UpdateActionStatusStreamRequest
        self._parse = pb.UpdateActionStatusStreamResponse.FromString
        self._channel = channel
        self._nursery = nursery
        self._on_end = on_end
        self._waiting: dict[int, _Waiter] = {}
        self._queue: deque[int] = deque()
        self._held_back = False
        self._exchange: Exchange | None = None
        self._scope = trio.CancelScope(shield=True)
        self._nonce = 0
        self._last_answer = float("-inf")
        self._pace = 0.0
        self.answered = False
        self.expires = trio.current_time() + life
        self._expires_by_boot_time = boot_time() + life
        self.retired = False
        self._trusted = False
        self.failure: tuple[Code, str] | None = None
        self._not_done = False
        self.lapsed = False
        nursery.start_soon(self._run)

    @property
    def unsupported(self) -> bool:
        """Whether it ended because the server does not know the method."""
        return (
            not self.answered and self.failure is not None and self.failure[0] is Code.UNIMPLEMENTED
        )

    def has_capacity(self) -> bool:
        """Whether it accepts one more update; before the first answer, only one."""
        waiting = len(self._waiting)
        proven = self.answered or self._trusted
        return not waiting or (proven and waiting * self._pace < _MOMENT)

    @property
    def unproven(self) -> bool:
        """Whether its first update waits for an answer."""
        return bool(self._waiting) and not self.answered

    def trust(self, old: StatusStream) -> None:
        """Treat it like an older stream that has answered."""
        self._trusted, self._pace = old.answered or old._trusted, old._pace

    def is_overdue(self, deadline: float) -> bool:
        """Whether an answer is later than ``deadline``; perhaps no caller waits for it any more."""
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and oldest.sent_at + deadline < trio.current_time()

    async def call(
        self, request: UpdateActionStatusRequest, deadline: float
    ) -> UpdateActionStatusResponse:
        """Send a request and wait for its answer; a late answer ends the stream.

        After a cancellation the server may apply it until the deadline.

        Raises:
            CallFailed: The stream ended without the answer, or the request was not sent in time.
        """
        self._nonce += 1
        # Before the waiter is registered, because the encoding may fail.
        message = self._message(request=request, nonce=self._nonce).SerializeToString()
        waiter = _Waiter(message, trio.current_time(), boot_time() + deadline)
        self._waiting[self._nonce] = waiter
        self._queue.append(self._nonce)
        self._send()
        with trio.move_on_after(deadline):
            await waiter.done.wait()
        if waiter.response is not None:
            return waiter.response
        if self.failure is None and waiter.done.is_set():
            raise CallFailed(METHOD, Code.DEADLINE_EXCEEDED, NO_TIME_LEFT, unsent=True)
        self.close(Code.DEADLINE_EXCEEDED, f"no answer in {deadline:g} s")
        assert self.failure is not None
        raise CallFailed(METHOD, *self.failure, unsent=self._not_done or not waiter.handed)

    def retire(self) -> None:
        """Accept no more updates; the stream ends after its last answer."""
        self.retired = True
        self._end_if_answered()

    def close(self, code: Code, details: str, *, not_done: bool = False) -> None:
        """End the stream; callers get an error. Idempotent.

        Args:
            code: The code for the callers.
            details: The reason.
            not_done: Whether the server certainly did nothing.
        """
        if self.failure is not None:
            return
        self.failure = (code, details)
        self._not_done = not_done
        out_of_time = (
            code is Code.DEADLINE_EXCEEDED and trio.current_time() >= self.expires - _CLOSE
        )
        self.lapsed = out_of_time and not self._waiting
        if self._exchange is not None:
            # This drops the messages that are not written yet.
            self._exchange.close()
        self._scope.cancel("the stream is at its end")
        for waiter in self._waiting.values():
            waiter.done.set()
        self._waiting.clear()
        self._queue.clear()
        self._on_end(self)

    async def _run(self) -> None:
        """The task: deliver answers until the stream ends."""
        code, details, not_done = Code.CANCELLED, "closed", False
        try:
            with self._scope:
                await self._hand_over()
        except http2.CallFailed as failure:
            code, details, not_done = failure.code, failure.details, failure.not_done
        except trio.EndOfChannel:
            code, details = Code.UNAVAILABLE, "the server ended the stream"
        except BaseException as error:
            # An answer may have any content, and must not end other calls.
            passing, contained = split(error)
            if contained is not None:
                code, details = Code.INTERNAL, f"an answer cannot be read: {describe(contained)}"
            if passing is not None:
                raise passing from None
        finally:
            self.close(code, details, not_done=not_done)

    async def _hand_over(self) -> None:
        # trio's clock stops while the machine is suspended; the lease does not.
        left = min(self.expires - trio.current_time(), self._expires_by_boot_time - boot_time())
        async with self._channel.stream(_PATH, within=left) as exchange:
            self._exchange = exchange
            exchange.when_draining(self.retire)
            self._send()
            while True:
                for data in await exchange.receive():
                    self.deliver(self._parse(data))

    def _send(self) -> None:
        """Send the queued messages, as far as the server's window allows."""
        exchange = self._exchange
        if exchange is None or self._held_back:
            return
        while self._queue:
            if exchange.is_held_back:
                self._held_back = True
                self._nursery.start_soon(self._send_later, exchange)
                return
            nonce = self._queue.popleft()
            waiter = self._waiting.get(nonce)
            if waiter is None:
                continue
            if boot_time() < waiter.until:
                waiter.handed = True
                exchange.send(waiter.message)
            else:
                # A late message is not sent; the others are.
                del self._waiting[nonce]
                waiter.done.set()
        self._end_if_answered()

    async def _send_later(self, exchange: Exchange) -> None:
        with trio.CancelScope(shield=True):
            await exchange.all_sent()
        self._held_back = False
        if self.failure is None:
            self._send()

    def _end_if_answered(self) -> None:
        if not self.retired or self._waiting or self.failure is not None:
            return
        if self._exchange is None:
            self.close(Code.CANCELLED, "nothing was on it")
        else:
            self._exchange.end()

    def deliver(self, answer: UpdateActionStatusStreamResponse) -> None:
        """Deliver an answer to its caller, if one waits."""
        waiter = self._waiting.pop(answer.nonce, None)
        if waiter is not None:
            self._limit_rate(waiter.sent_at)
        # An answer without a response counts as no answer.
        if waiter is not None and answer.HasField("response"):
            waiter.response = answer.response
            waiter.done.set()
        self._end_if_answered()

    def _limit_rate(self, sent_at: float) -> None:
        """Update the mean time that the server takes for an update after the one before."""
        now = trio.current_time()
        taken = now - max(sent_at, self._last_answer)
        self._pace = taken if not self.answered else self._pace + _WEIGHT * (taken - self._pace)
        self._last_answer = now
        self.answered = True


class StatusStreams:
    """Opens the streams of a client, one after the other.

    After a stream broke, the next one is opened after a back-off, which an answer resets. If the
    server does not know the method, no further stream is opened.

    Args:
        channel: The connection.
        nursery: Runs the tasks of the streams.
        deadline: Seconds after which an answer is late.
    """

    def __init__(self, channel: Channel, nursery: trio.Nursery, *, deadline: float) -> None:
        self._channel = channel
        self._nursery = nursery
        self._deadline = deadline
        self._stream: StatusStream | None = None
        self._closing: set[StatusStream] = set()
        self._supported = True
        self._closed = False
        self._failures = 0
        self._reopen_at = float("-inf")

    def current(self) -> StatusStream | None:
        """A stream that accepts one more update; None if the caller has to make a call."""
        if not self._supported or self._closed:
            return None
        if self._stream is not None and self._stream.is_overdue(self._deadline):
            self._stream.close(Code.DEADLINE_EXCEEDED, f"no answer in {self._deadline:g} s")
        left = lease_left()
        if left <= 0:
            return None
        old = self._stream
        if old is not None and (old.retired or not self._fits(old, left)):
            if old.unproven:
                return None
            self._stream = None
            self._closing.add(old)
            old.retire()
        if self._stream is None:
            if trio.current_time() < self._reopen_at:
                return None
            self._stream = StatusStream(self._channel, self._nursery, life=left, on_end=self._ended)
            if old is not None:
                self._stream.trust(old)
        return self._stream if self._stream.has_capacity() else None

    def _fits(self, stream: StatusStream, left: float) -> bool:
        """Whether a stream lives long enough for one more update, and not longer than the lease."""
        now = trio.current_time()
        return now + min(self._deadline, left) <= stream.expires + _CLOSE and (
            stream.expires <= now + left + _CLOSE
        )

    def close(self) -> None:
        """End all streams, and open no more."""
        self._closed = True
        for stream in [self._stream, *self._closing]:
            if stream is not None:
                stream.close(Code.CANCELLED, "closed")

    def _ended(self, stream: StatusStream) -> None:
        if self._stream is stream:
            self._stream = None
        self._closing.discard(stream)
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
