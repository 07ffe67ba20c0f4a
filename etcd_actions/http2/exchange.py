"""A call with a stream of messages in either direction."""

from __future__ import annotations

from collections.abc import Callable

import trio

from etcd_actions._internal.parking import Parking
from etcd_actions.http2.errors import CallFailed, Code
from etcd_actions.http2.grpc_messages import MessageReader, check_status, framed
from etcd_actions.http2.live_connection import LiveConnection
from etcd_actions.http2.stream import Stream


class Exchange:
    """A streaming call; made by :meth:`~etcd_actions.http2.channel.Channel.stream`.

    Messages that are not received stay bounded: flow control holds the server back.
    """

    def __init__(self, live: LiveConnection, stream: Stream) -> None:
        self._live = live
        self._stream = stream
        self._reader = MessageReader(stream)
        self._failure: Exception | None = None
        self._arrival = Parking()
        stream.wake = self._arrival.wake

    @property
    def ended(self) -> bool:
        """Whether nothing more arrives; messages may still be there to be received."""
        return self._stream.ended or self._failure is not None

    @property
    def is_held_back(self) -> bool:
        """Whether sent messages still wait, for the server's window or the socket."""
        return self._live.is_held_back(self._stream)

    def when_draining(self, callback: Callable[[], None]) -> None:
        """Call a function when the server announces the end of the connection (GOAWAY).

        It is called once, at once if the server has announced that, and must not raise. A stream
        that then ends in order loses nothing; the server interrupts other streams some time later.
        """
        self._live.when_draining(self._stream, callback)

    async def all_sent(self) -> None:
        """Wait until nothing is held back, or the stream has ended. For one task.

        A cancellation changes nothing.
        """
        await self._live.all_sent(self._stream)

    def send(self, message: bytes) -> None:
        """Send a message, or queue it; never waits. After the end it is dropped."""
        self._live.connection.sending.send(self._stream, framed(message), end=False)
        self._live.flush()

    def end(self) -> None:
        """End the client's side: no more messages follow."""
        self._live.connection.sending.send(self._stream, b"", end=True)
        self._live.flush()

    async def receive(self) -> list[bytes]:
        """Return messages that have arrived, at least one; about 1 MiB of them at a time.

        For one task. A cancellation loses nothing.

        Raises:
            trio.EndOfChannel: The server ended the stream with status OK.
            CallFailed: It ended otherwise; all messages before that were received.
            Exception: The failure that was given to :meth:`fail`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while True:
            messages, consumed = self._take()
            if consumed and not self._stream.ended:
                self._live.connection.acknowledge(self._stream, consumed)
                self._live.flush()
            if messages:
                if not has_waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return messages
            if self._failure is not None:
                raise self._failure
            if self._stream.ended:
                check_status(self._stream)
                if self._stream.size:
                    raise CallFailed(Code.INTERNAL, "the stream ended inside a message")
                raise trio.EndOfChannel
            await self._arrival.park()
            has_waited = True

    def fail(self, failure: Exception) -> None:
        """End it for its reader, which gets the received messages, then ``failure``."""
        self._failure = self._failure or failure
        self._arrival.wake()

    def close(self) -> None:
        """End the call; the stream is reset unless it has ended. Idempotent."""
        self._live.forget(self._stream)

    def _take(self) -> tuple[list[bytes], int]:
        try:
            return self._reader.take()
        except CallFailed as failure:
            # The limits of the messages after it are unknown.
            self._failure = self._failure or failure
            self._stream.chunks.clear()
            self._stream.size = 0
            self.close()
            return [], 0
