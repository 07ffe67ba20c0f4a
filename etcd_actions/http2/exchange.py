"""A call with a stream of messages in either direction."""

from __future__ import annotations

from collections.abc import Callable

import trio

from etcd_actions.http2.errors import CallFailed, Code
from etcd_actions.http2.grpc_messages import MessageReader, check_status, framed
from etcd_actions.http2.link import Link
from etcd_actions.http2.stream import Stream


class Exchange:
    """Made by :meth:`~etcd_actions.http2.channel.Channel.stream`.

    What has arrived and is not received stays bounded: the server is held back by flow control.
    """

    def __init__(self, link: Link, stream: Stream) -> None:
        self._link = link
        self._stream = stream
        self._reader = MessageReader(stream)
        self._failure: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes; what came may still be there to be received."""
        return self._stream.ended or self._failure is not None

    @property
    def is_held_back(self) -> bool:
        """Whether something that was sent still waits, for the server's window or the socket."""
        return self._link.is_held_back(self._stream)

    def when_draining(self, callback: Callable[[], None]) -> None:
        """Call a function when the server asks that its connection comes to its end.

        It is called once, at once where the server has asked, and must not raise. A stream that
        then ends by itself loses nothing; one that does not is cut off some time.
        """
        self._link.when_draining(self._stream, callback)

    async def all_sent(self) -> None:
        """Wait until nothing is held back, or the stream has ended.

        Cancellation changes nothing.
        """
        await self._link.all_sent(self._stream)

    def send(self, message: bytes) -> None:
        """Send a message, or queue it; never waits. After the end it is dropped."""
        self._link.connection.send(self._stream, framed(message))
        self._link.flush()

    def end(self) -> None:
        """Tell the server that no more messages come."""
        self._link.connection.send(self._stream, b"", end=True)
        self._link.flush()

    async def receive(self) -> list[bytes]:
        """Messages that have arrived, at least one; about 1 MiB of them at a time.

        To be called by one task. Cancellation loses nothing.

        Raises:
            trio.EndOfChannel: The server ended the stream with status OK.
            CallFailed: It ended otherwise; all messages before that were received.
            Exception: What :meth:`fail` was given.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while True:
            messages, room = self._take()
            if room and not self._stream.ended:
                self._link.connection.taken(self._stream, room)
                self._link.flush()
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
            await self._arrival()
            has_waited = True

    def fail(self, failure: Exception) -> None:
        """End it for its reader, which gets what has arrived and then ``failure``."""
        self._failure = self._failure or failure
        if self._stream.wake is not None:
            self._stream.wake()

    def close(self) -> None:
        """End it; the server is told. Twice is harmless."""
        self._link.forget(self._stream)

    def _take(self) -> tuple[list[bytes], int]:
        try:
            return self._reader.take()
        except CallFailed as failure:
            # What comes next cannot be told apart.
            self._failure = self._failure or failure
            self._stream.chunks.clear()
            self._stream.size = 0
            self.close()
            return [], 0

    async def _arrival(self) -> None:
        task = trio.lowlevel.current_task()

        def wake() -> None:
            self._stream.wake = None
            trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._stream.wake = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._stream.wake = wake
        await trio.lowlevel.wait_task_rescheduled(abort)
