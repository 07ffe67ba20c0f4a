"""Connects sockets, and writes and reads them without waiting, with or without TLS."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

READ_SIZE: Final = 256 * 1024
"""The most bytes of one read."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The address of a server, and how connections to it are encrypted.

    Attributes:
        host: Its name or address; for a unix socket the path, with a slash in it.
        port: Its port; ignored for a unix socket.
        tls: Makes the context for a new connection, in a thread; None for plain text. The
            context decides whether a certificate is required, and whether its name counts.
        server_name: The name that the certificate must have, if it is not the host.
    """

    host: str
    port: int = 0
    tls: Callable[[], ssl.SSLContext] | None = None
    server_name: str | None = None

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket."""
        return "/" in self.host

    @property
    def authority(self) -> str:
        """The value of the header ``:authority``."""
        if self.is_unix:
            return "localhost"
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host.encode('idna').decode('ascii')}:{self.port}"

    def __str__(self) -> str:
        if self.is_unix:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wire:
    """A socket without encryption.

    Attributes:
        pending: Whether bytes wait for the socket: only :meth:`push` may be called then.
        drained: Whether the last :meth:`receive` probably returned all bytes that had arrived.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = memoryview(b"")
        self._sent = 0
        self.pending = False
        self.drained = True

    @property
    def written(self) -> int:
        """The number of bytes of :meth:`send` that may have left this machine."""
        return self._sent

    def send(self, data: bytes) -> None:
        """Write as much as the socket has capacity for, and keep the rest.

        Raises:
            OSError: The connection broke.
        """
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        self._sent += sent
        if sent < len(data):
            self._rest = memoryview(data)[sent:]
            self.pending = True

    def push(self) -> None:
        """Write more of the rest.

        Raises:
            OSError: The connection broke.
        """
        try:
            sent = self._sock.send(self._rest)
        except (BlockingIOError, InterruptedError):
            return
        self._sent += sent
        self._rest = self._rest[sent:]
        self.pending = len(self._rest) > 0

    def receive(self) -> bytes | None:
        """Return the received bytes; empty at the end of the stream, None if there are none now.

        Raises:
            OSError: The connection broke.
        """
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            self.drained = True
            return None
        self.drained = len(data) < READ_SIZE
        return data

    @property
    def closing(self) -> bool:
        """Whether the server has closed its side; except on Linux, only if no byte is unread."""
        if hasattr(select, "POLLRDHUP"):
            poll = select.poll()
            poll.register(self._sock, select.POLLRDHUP)
            return bool(poll.poll(0))
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    async def readable(self) -> None:
        """Wait until something has arrived."""
        await trio.lowlevel.wait_readable(self._sock)

    async def writable(self) -> None:
        """Wait until the socket has capacity."""
        await trio.lowlevel.wait_writable(self._sock)

    def close(self) -> None:
        """Close the socket; a task that waits for it gets ``trio.ClosedResourceError``."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class EncryptedWire(Wire):
    """A socket with TLS, by an ``ssl.SSLObject`` between two buffers. It sends no close notify.

    ``written`` counts a byte as soon as anything that was encrypted with it has left.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._encrypted = 0
        self._sent_before = 0
        self._written = 0

    @property
    def written(self) -> int:
        """See the class's text."""
        return self._written

    async def handshake(self) -> None:
        """Negotiate keys, and verify the certificate.

        Raises:
            OSError: The connection broke, or the certificate is not accepted.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError:
                # Send the alert to the server.
                await self._flush()
                raise
            else:
                await self._flush()
                chosen = self._tls.selected_alpn_protocol()
                if chosen not in {"h2", None}:
                    raise OSError(f"the server chose {chosen}, not HTTP/2")
                return
            await self.readable()
            self._feed()

    def send(self, data: bytes) -> None:
        """Encrypt all, and write as much as the socket has capacity for."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._encrypted += len(data)
        self._forward()

    def push(self) -> None:
        """Write more of the encrypted bytes."""
        super().push()
        self._count()
        if not self.pending and self._outgoing.pending:
            self._forward()

    def receive(self) -> bytes | None:
        """Return the received bytes, decrypted."""
        data = self._feed()
        parts: list[bytes] = []
        ended = False
        while not ended:
            try:
                part = self._tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            except ssl.SSLEOFError:
                if parts:
                    break
                raise
            if part:
                parts.append(part)
            ended = not part
        # TLS may have to answer, for example a request for new keys.
        if self._outgoing.pending and not self.pending:
            self._forward()
        if parts:
            self.drained = self.drained and not ended
            return b"".join(parts)
        return b"" if ended or data == b"" else None

    def _feed(self) -> bytes | None:
        """Receive encrypted bytes."""
        data = super().receive()
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        return data

    def _forward(self) -> None:
        super().send(self._outgoing.read())
        self._count()

    def _count(self) -> None:
        if self._sent > self._sent_before:
            self._sent_before = self._sent
            self._written = self._encrypted

    async def _flush(self) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read())
        while self.pending:
            await self.writable()
            super().push()
        self._sent_before = self._sent


async def connect(target: Target) -> Wire:
    """Connect to a server; its caller limits the time.

    Raises:
        OSError: It cannot be reached, or is another server.
    """
    # Before the connection, so that an unreadable file is reported as such.
    context = None
    if target.tls is not None:
        context = await trio.to_thread.run_sync(target.tls, abandon_on_cancel=True)
        context.set_alpn_protocols(["h2"])
    stream: trio.SocketStream
    if target.is_unix:
        stream = await trio.open_unix_socket(target.host)
    else:
        stream = await trio.open_tcp_stream(target.host, target.port)
    # Detached from trio's wrapper, because any task sends and receives.
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    if not target.is_unix:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return Wire(sock)
    try:
        encrypted = EncryptedWire(sock, context, target.server_name or target.host)
        await encrypted.handshake()
    except ConnectionResetError:
        sock.close()
        raise OSError("reset in the TLS handshake; does it use TLS?") from None
    except BaseException:
        sock.close()
        raise
    return encrypted
