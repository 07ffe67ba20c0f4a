"""The bytes of one connection, encrypted or not.

What is sent without encryption goes to the system at once, from the caller's task and without
a turn of the event loop; only what the system does not take is kept and sent later. Reading
waits for the socket once a turn.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from etcd_actions.web.asgi import is_protocol_error

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

MOST_BYTES: Final = 2**16
"""What is read at once, and what a client must take within the time for that."""
# How often that is done before others have their turn.
_MOST_IN_A_ROW: Final = 4
# How long the other side may take to end the encryption.
_LINGER: Final = 1.0


class Wire:
    """The bytes of one connection.

    Args:
        stream: What encrypts them, or trio's own stream where nothing does.
        sock: The socket itself, which does not block.
        patience: Seconds that a client may take for :data:`MOST_BYTES`.
        stalled: Called when it took longer; the socket is closed after that.
        failed: Called with the error when sending fails; likewise.
        closed: Called when the socket is closed from here, for whatever reason.

    Attributes:
        is_closed: Whether the socket is closed.
        is_ended: Whether nothing is sent any more.
    """

    def __init__(
        self,
        stream: Stream,
        sock: socket.socket,
        patience: float,
        stalled: Callable[[], None],
        failed: Callable[[Exception], None],
        closed: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._socket = sock
        self._patience = patience
        self._stalled = stalled
        self._failed = failed
        self._closed = closed
        self._encrypted = stream if isinstance(stream, trio.SSLStream) else None
        self._unsent = bytearray()
        self._sending = trio.Lock()
        self._is_full = False
        self._in_a_row = 0
        self.is_closed = False
        self.is_ended = False

    @property
    def unsent(self) -> int:
        """The number of bytes that the system has not taken yet."""
        return len(self._unsent)

    async def receive(self) -> bytes:
        """What has come, at least one byte; nothing at the end. Nothing is lost by cancellation.

        Raises:
            trio.BrokenResourceError: The connection is broken.
            trio.ClosedResourceError: It was closed here.
        """
        if self._encrypted is not None:
            return bytes(await self._encrypted.receive_some(MOST_BYTES))
        while True:
            if self.is_closed:
                raise trio.ClosedResourceError("the connection is closed")
            if not self._is_full:
                await trio.lowlevel.wait_readable(self._socket)
                self._in_a_row = 0
            elif self._in_a_row >= _MOST_IN_A_ROW:
                await trio.lowlevel.checkpoint()
                self._in_a_row = 0
            self._in_a_row += 1
            if (data := self._receive_now()) is not None:
                return data

    def _receive_now(self) -> bytes | None:
        self._is_full = False
        try:
            data = self._socket.recv(MOST_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            if self.is_closed:
                raise trio.ClosedResourceError("the connection is closed") from None
            raise trio.BrokenResourceError(str(error)) from error
        self._is_full = len(data) == MOST_BYTES
        return data

    def write(self, data: bytes) -> bool:
        """Send; returns whether the system has all of it. Else :meth:`flush` has to be called.

        What is written after the end is dropped.
        """
        if self.is_ended or self.is_closed:
            return True
        if self._encrypted is None and not self._unsent:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail(error)
                return True
            if sent == len(data):
                return True
            data = data[sent:]
        self._unsent += data
        return False

    async def flush(self) -> None:
        """Wait until the system has all that was written, or the connection is closed.

        A cancellation loses nothing, and leaves no half of an encrypted record behind.
        """
        async with self._sending:
            while self._unsent and not self.is_closed:
                with trio.CancelScope(
                    shield=True, deadline=trio.current_time() + self._patience
                ) as scope:
                    try:
                        await self._send_some()
                    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                        self._fail(error)
                if scope.cancelled_caught and not self.is_closed:
                    self._stalled()
                    self.close()
                await trio.lowlevel.checkpoint_if_cancelled()

    async def _send_some(self) -> None:
        data = bytes(self._unsent[:MOST_BYTES])
        if self._encrypted is not None:
            await self._encrypted.send_all(data)
            del self._unsent[: len(data)]
            return
        at = 0
        try:
            while at < len(data) and not self.is_closed:
                await trio.lowlevel.wait_writable(self._socket)
                try:
                    at += self._socket.send(data[at:])
                except (BlockingIOError, InterruptedError):
                    continue
        finally:
            del self._unsent[:at]

    def _fail(self, error: Exception) -> None:
        if not (self.is_closed or self.is_ended):
            self._failed(error)
        self.close()

    async def end(self) -> None:
        """Send what was written and no more, and tell the other side."""
        await self.flush()
        if self.is_ended or self.is_closed:
            return
        self.is_ended = True
        if self._encrypted is not None:
            await self.close_in_order()
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The other side was faster.
            self.close()

    async def close_in_order(self) -> None:
        """Send what was written, and close it, with the words that encryption has for that."""
        if not self.is_ended:
            await self.flush()
        self.is_ended = True
        if self._encrypted is not None and not self.is_closed:
            with trio.move_on_after(_LINGER):
                try:
                    async with self._sending:
                        await self._encrypted.aclose()
                except BaseException as error:
                    if not is_protocol_error(error):
                        raise
        self.close()

    def takes_nothing(self) -> bool:
        """Whether the other side has reset the connection, which has ended already."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return self.is_closed

    def close(self) -> None:
        """Close the socket at once. Those that wait for it see that it is closed."""
        if not self.is_closed:
            self.is_closed = True
            self._unsent.clear()
            # A socket that another one replaced may be closed already.
            if self._socket.fileno() >= 0:
                trio.lowlevel.notify_closing(self._socket)
                self._socket.close()
            self._closed()
