"""A watch stream over the JSON gateway: requests in a body, one line for each message.

The gateway reads the requests of a watch from the body of one POST, and answers only when the body
has ended. So no request can be added later. Two watchers in one body are not possible either: at
the first answer Go's HTTP server drops the unread part of the body, and the second watcher may
never be created. So each watcher has a POST of its own, a *leg* of the stream, with a thread that
reads it. All threads append to one bounded buffer. While it is full they wait until trio has
emptied it, and TCP stops etcd.

HTTP/1.1 has no pings, and etcd sends nothing for ten minutes if nothing changes. A leg that is
silent for some seconds ends the stream, and its reader opens another one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import msgspec
import trio
import urllib3

from etcd_actions._internal.containment import describe
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.parking import Parking
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import WatchCreate, WatchResponse
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.gateway import errors, wire
from etcd_actions.etcd.gateway.errors import CallInfo
from etcd_actions.etcd.gateway.http import FAILURES, Body, Exchange, HttpSession
from etcd_actions.etcd.gateway.wire import Refusal

_BUFFERED_EVENTS = 4096
_BUFFERED_BYTES = 16 * 1024 * 1024
_CLOSE_TIMEOUT = 5.0

_LONGEST_SILENCE = 15.0
"""Seconds; the keep-alive times of the settings can make it shorter."""

_SYNC_TIME = 0.25
"""Seconds between a watcher's request and the one for progress.

etcd does not answer a request for progress while a watcher of the stream lags; it serves the
watchers that lag ten times a second.
"""

_READ_SIZE = 256 * 1024
_LONGEST_LINE = 256 * 1024 * 1024
_ERROR_BODY = 64 * 1024

_log = get_logger(__name__)


class _Leg:
    """One POST with its watcher.

    Attributes:
        exchange: The exchange of the POST; cutting it ends the thread.
        live: The ids of the watchers that have not ended.
        created: The ids of those that etcd has confirmed.
        revision: The newest revision in its messages.
        cluster_id: The id of the cluster.
        ended: Set when its thread has ended.
    """

    def __init__(self, live: set[int], silence: float) -> None:
        self.exchange = Exchange(silence)
        self.live = live
        self.created: set[int] = set()
        self.revision = 0
        self.cluster_id = 0
        self.ended = trio.Event()


class GatewayWatchStream:
    """Implements :class:`~etcd_actions.etcd.transport.TransportStream`."""

    def __init__(
        self,
        session: HttpSession,
        settings: ConnectionSettings,
        headers: Mapping[str, str],
        what: str,
        on_unavailable: Callable[[], None],
    ) -> None:
        self._session = session
        self._headers = headers
        self._info = CallInfo(what)
        self._on_unavailable = on_unavailable
        self._silence = min(settings.keepalive_time + settings.keepalive_timeout, _LONGEST_SILENCE)
        self._first_answer = min(settings.request_timeout, self._silence)
        self._token = trio.lowlevel.current_trio_token()
        self._pending: dict[int, WatchCreate] = {}
        self._wants_progress = False
        self._legs: set[_Leg] = set()
        # Guards the attributes below, and the sets of the legs.
        self._changed = threading.Condition()
        self._buffer: deque[WatchResponse] = deque()
        self._buffered_events = 0
        self._buffered_bytes = 0
        self._over = False
        self._failure: EtcdError | None = None
        self._parking = Parking()

    def create(self, request: WatchCreate) -> None:
        """Request a watcher."""
        self._pending[request.watch_id] = request
        self._token.run_sync_soon(self._open_legs, idempotent=True)

    def cancel(self, watch_id: int) -> None:
        """End a watcher; the last one of a leg ends the leg."""
        leg = next((leg for leg in self._legs if watch_id in leg.live), None)
        with self._changed:
            if leg is not None:
                leg.live.discard(watch_id)
            elif self._pending.pop(watch_id, None) is None:
                return
            answer = WatchResponse(
                watch_id,
                leg.revision if leg is not None else 0,
                leg.cluster_id if leg is not None else 0,
                canceled=True,
            )
            if not self._over:
                self._buffer.append(answer)
        self._parking.wake()
        if leg is not None and not leg.live:
            leg.exchange.cut()

    def request_progress(self) -> None:
        """Request a progress notification with the next leg that is opened."""
        self._wants_progress = True

    async def receive(self) -> Sequence[WatchResponse]:
        """All messages that have arrived, at least one; see the protocol."""
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while True:
            with self._changed:
                messages = list(self._buffer)
                over = self._over
                if messages:
                    self._buffer.clear()
                    self._buffered_events = self._buffered_bytes = 0
                    self._changed.notify_all()
            if messages:
                if not has_waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return messages
            if over:
                break
            has_waited = True
            await self._parking.park()
        await trio.lowlevel.checkpoint()
        if self._failure is None:
            raise trio.EndOfChannel
        if isinstance(self._failure, Unavailable):
            self._on_unavailable()
        raise self._failure

    def fail(self, failure: EtcdError) -> None:
        """End the stream for its reader, from trio's side."""
        self._end(failure)
        self._parking.wake()

    async def aclose(self) -> None:
        """End the stream and its threads, in at most five seconds, also when cancelled."""
        self._pending.clear()
        self._end(None)
        for leg in self._legs:
            leg.exchange.cut()
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True) as scope:
            for leg in tuple(self._legs):
                await leg.ended.wait()
        if scope.cancelled_caught:
            _log.warning("watch_stream_thread_did_not_end", seconds=_CLOSE_TIMEOUT)

    def _open_legs(self) -> None:
        """Open a leg for each request that was queued in this turn."""
        while self._pending and not self._over:
            self._open_leg(self._pending.pop(next(iter(self._pending))))
        self._wants_progress = False

    def _open_leg(self, request: WatchCreate) -> None:
        leg = _Leg({request.watch_id}, self._first_answer)
        self._legs.add(leg)
        create = wire.watch_create(request)
        body: bytes | Body = create
        if self._wants_progress:
            body = Body(create, wire.PROGRESS_REQUEST, _SYNC_TIME, leg.exchange)
        thread = threading.Thread(
            target=self._read, args=(leg, body), name="etcd-watch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            # trio calls this method: an exception would end the event loop.
            self._legs.discard(leg)
            self.fail(Unavailable(f"{self._info.what}: no thread can be started: {error}"))

    def _ring_soon(self) -> None:
        # After the end of the event loop there is no reader.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._parking.wake, idempotent=True)

    def _end(self, failure: EtcdError | None) -> None:
        """Accept no more messages. The first failure is the one that is reported."""
        with self._changed:
            if not self._over:
                self._over = True
                self._failure = failure
            self._changed.notify_all()

    def _read(self, leg: _Leg, body: bytes | Body) -> None:
        """The thread of a leg: fill the buffer until the leg ends."""
        failure: EtcdError | None = Unavailable(f"{self._info.what}: its thread failed")
        try:
            failure = self._follow(leg, body)
        except BaseException as error:
            # No caller catches an exception of a thread, and the answer may have any content.
            failure = Unavailable(f"{self._info.what}: {describe(error)}")
        finally:
            leg.exchange.finish()
            # The end of a leg without watchers needs no report.
            if leg.live:
                self._end(failure)
            self._ring_soon()
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._forget, leg)

    def _forget(self, leg: _Leg) -> None:
        self._legs.discard(leg)
        leg.ended.set()

    def _follow(self, leg: _Leg, body: bytes | Body) -> EtcdError | None:
        """Read a leg to its end; returns why it ended, None for silence."""
        info = self._info
        answered = False
        try:
            response = self._session.post(leg.exchange, "/watch", body, headers=self._headers)
            with response:
                if response.status_code != 200:
                    text = response.raw.read(_ERROR_BODY, decode_content=True)
                    refusal = wire.decode_refusal(text)
                    if refusal is None:
                        return errors.from_status(response.status_code, text, info).error
                    return errors.from_refusal(refusal, info).error
                leg.exchange.bound_silence(self._silence)
                answered = True
                for line in _lines(response.raw):
                    message = wire.watch_response(line)
                    if isinstance(message, Refusal):
                        return errors.from_refusal(message, info).error
                    if not self._take(leg, message, len(line)):
                        return None
        except FAILURES as error:
            if answered and errors.is_silence(error):
                return None
            return errors.from_exception(error, info, sent=leg.exchange.sent).error
        except Exception as error:
            return errors.from_unreadable(info, describe(error)).error
        return Unavailable(f"{info.what}: etcd ended the stream")

    def _take(self, leg: _Leg, message: WatchResponse, size: int) -> bool:
        """Put a message into the buffer when it has space; returns False if the leg has ended."""
        with self._changed:
            while self._is_full() and not self._over and leg.live:
                self._changed.wait()
            if self._over:
                return False
            leg.revision = message.revision or leg.revision
            leg.cluster_id = message.cluster_id
            for each in self._meant_for(leg, message):
                self._buffer.append(each)
            self._buffered_events += len(message.events)
            self._buffered_bytes += size
            has_ended = not leg.live
        self._ring_soon()
        return not has_ended

    def _meant_for(self, leg: _Leg, message: WatchResponse) -> Sequence[WatchResponse]:
        """The messages of the stream that a message of one of its legs stands for."""
        watch_id = message.watch_id
        if watch_id in leg.live:
            if message.created:
                leg.created.add(watch_id)
            if message.canceled:
                leg.live.discard(watch_id)
            return (message,)
        if watch_id >= 0:
            # This client has cancelled the watcher.
            return ()
        if message.created or message.canceled:
            return (message,)
        # The progress of the leg's watchers, which are not all watchers of the stream.
        return [
            WatchResponse(each, message.revision, message.cluster_id)
            for each in sorted(leg.live & leg.created)
        ]

    def _is_full(self) -> bool:
        return self._buffered_events > _BUFFERED_EVENTS or self._buffered_bytes > _BUFFERED_BYTES


def _lines(raw: urllib3.HTTPResponse) -> Iterator[bytes]:
    """The complete lines of an answer; the rest after the last line is dropped."""
    pieces: list[bytes] = []
    size = 0
    while data := raw.read1(_READ_SIZE, decode_content=True):
        first, *others = data.split(b"\n")
        pieces.append(first)
        size += len(first)
        if others:
            yield b"".join(pieces)
            last = others.pop()
            yield from others
            pieces, size = [last], len(last)
        elif size > _LONGEST_LINE:
            raise msgspec.DecodeError("a line without end")
