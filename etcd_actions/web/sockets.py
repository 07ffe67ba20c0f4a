"""The socket of one connection, with or without TLS.

Without TLS the caller's task sends bytes at once, without a turn of the event loop; only the bytes
that the socket does not accept are sent later. Reading waits for the socket once in a turn.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from etcd_actions.web.asgi import is_protocol_error

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

MOST_BYTES: Final = 2**16
"""Bytes that are read at once, and that a client must read within the stall timeout."""
# Reads before other tasks run.
_MOST_IN_A_ROW: Final = 4
# Seconds for the client to end TLS.
_LINGER: Final = 1.0


class Wire:
    """The socket of one connection.

    Args:
        stream: Its TLS stream, or trio's stream of the socket.
        sock: The socket, which does not block.
        patience: Seconds for a client to read :data:`MOST_BYTES`.
        stalled: Called if the client needs more time; then the socket is closed.
        failed: Called with the error if sending fails; then the socket is closed.
        closed: Called when this side closes the socket.

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
        """The number of bytes that the socket has not accepted yet."""
        return len(self._unsent)

    async def receive(self) -> bytes:
        """Return at least one byte; an empty result at the end. A cancellation loses nothing.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: This side closed it.
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
        """Send; if it returns False, :meth:`flush` must be called. Dropped after the end."""
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
        """Wait until the socket has accepted all, or is closed.

        A cancellation loses nothing, and truncates no TLS record.
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
        """Send the rest, then the end."""
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
            # The client closed it first.
            self.close()

    async def close_in_order(self) -> None:
        """Send the rest, and close the socket, with TLS's close notify."""
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

    def is_reset(self) -> bool:
        """Whether the client has reset a connection that has ended."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return self.is_closed

    def close(self) -> None:
        """Close the socket at once; tasks that wait for it get an error."""
        if not self.is_closed:
            self.is_closed = True
            self._unsent.clear()
            # A replaced connection's socket may be closed already.
            if self._socket.fileno() >= 0:
                trio.lowlevel.notify_closing(self._socket)
                self._socket.close()
            self._closed()
