"""Connected sockets that are written and read without waiting, plain or with TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

READ_SIZE: Final = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a server listens, and how it is spoken to.

    Attributes:
        host: Its name or address; for a unix socket the path, with a slash in it.
        port: Its port; of no meaning for a unix socket.
        tls: Makes the context for a new connection, in a thread; None for plain text. It
            demands a certificate or not; whether the name in it counts is its own matter.
        server_name: The name that the certificate must hold, where it is not the host.
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
        """What requests call it."""
        if self.is_unix:
            return "localhost"
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host.encode('idna').decode('ascii')}:{self.port}"

    def __str__(self) -> str:
        if self.is_unix:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wire(Protocol):
    """A connected socket."""

    @property
    def written(self) -> int:
        """How many of the bytes that were given to :meth:`send` may have left this machine."""
        ...

    @property
    def pending(self) -> bool:
        """Whether some wait for room: nothing may be sent before :meth:`push` wrote them."""
        ...

    def send(self, data: bytes) -> None:
        """Write as much as there is room for, and keep the rest.

        Raises:
            OSError: The connection is broken.
        """

    def push(self) -> None:
        """Write more of what is kept.

        Raises:
            OSError: The connection is broken.
        """

    def receive(self) -> bytes | None:
        """What has arrived, at most so much that it is worth a turn of the loop.

        Empty at the end of the stream; None where nothing is there.

        Raises:
            OSError: The connection is broken.
        """
        ...

    @property
    def drained(self) -> bool:
        """Whether the last :meth:`receive` has left nothing behind, as far as it can tell."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing more arrives, as the socket knows at once. It takes nothing."""
        ...

    async def readable(self) -> None:
        """Wait until something has arrived."""

    async def writable(self) -> None:
        """Wait for room."""

    def close(self) -> None:
        """Close the socket; who waits for it gets ``trio.ClosedResourceError``."""


class PlainWire:
    """A socket as it is."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = memoryview(b"")
        self.written = 0
        self.pending = False
        self.drained = True

    def send(self, data: bytes) -> None:
        """Write as much as there is room for, and keep the rest."""
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        self.written += sent
        if sent < len(data):
            self._rest = memoryview(data)[sent:]
            self.pending = True

    def push(self) -> None:
        """Write more of what is kept."""
        try:
            sent = self._sock.send(self._rest)
        except (BlockingIOError, InterruptedError):
            return
        self.written += sent
        self._rest = self._rest[sent:]
        self.pending = len(self._rest) > 0

    def receive(self) -> bytes | None:
        """What has arrived."""
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            self.drained = True
            return None
        self.drained = len(data) < READ_SIZE
        return data

    @property
    def ended(self) -> bool:
        """Whether nothing more arrives."""
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
        """Wait for room."""
        await trio.lowlevel.wait_writable(self._sock)

    def close(self) -> None:
        """Close the socket."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class EncryptedWire:
    """TLS over a :class:`PlainWire`, by an ``ssl.SSLObject`` between two buffers.

    ``written`` counts a byte as soon as anything that was encrypted with it has left.
    """

    def __init__(self, plain: PlainWire, context: ssl.SSLContext, server_name: str) -> None:
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._encrypted = 0
        self._written_before = 0
        self.written = 0
        self.drained = True

    @property
    def pending(self) -> bool:
        """Whether something waits for room."""
        return self._plain.pending

    async def handshake(self) -> None:
        """Agree on keys; see to the certificate.

        Raises:
            OSError: The connection is broken, or the certificate is not accepted.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError:
                # The server is told why.
                await self._flush()
                raise
            else:
                await self._flush()
                chosen = self._tls.selected_alpn_protocol()
                if chosen not in {"h2", None}:
                    raise OSError(f"the server chose to speak {chosen}, not HTTP/2")
                return
            await self._plain.readable()
            data = self._plain.receive()
            if data:
                self._incoming.write(data)
            elif data is not None:
                self._incoming.write_eof()

    def send(self, data: bytes) -> None:
        """Encrypt all, and write as much as there is room for."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._encrypted += len(data)
        self._forward()

    def push(self) -> None:
        """Write more of what is encrypted."""
        self._plain.push()
        self._count()
        if not self._plain.pending and self._outgoing.pending:
            self._forward()

    def receive(self) -> bytes | None:
        """What has arrived, decrypted."""
        data = self._plain.receive()
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        parts: list[bytes] = []
        ended = False
        while True:
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
            if not part:
                ended = True
                break
            parts.append(part)
        # Reading may have made an answer, such as new keys.
        if self._outgoing.pending and not self._plain.pending:
            self._forward()
        self.drained = self._plain.drained
        if parts:
            self.drained = self.drained and not ended
            return b"".join(parts)
        return b"" if ended or data == b"" else None

    @property
    def ended(self) -> bool:
        """Whether nothing more arrives."""
        return self._plain.ended

    async def readable(self) -> None:
        """Wait until something has arrived."""
        await self._plain.readable()

    async def writable(self) -> None:
        """Wait for room."""
        await self._plain.writable()

    def close(self) -> None:
        """Close the socket, without a farewell: nobody waits for one."""
        self._plain.close()

    def _forward(self) -> None:
        self._plain.send(self._outgoing.read())
        self._count()

    def _count(self) -> None:
        if self._plain.written > self._written_before:
            self._written_before = self._plain.written
            self.written = self._encrypted

    async def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.send(self._outgoing.read())
        while self._plain.pending:
            await self._plain.writable()
            self._plain.push()
        self._written_before = self._plain.written


async def connect(target: Target) -> Wire:
    """Connect to a server; bounded by its caller.

    Raises:
        OSError: It cannot be reached, or is not the one that it should be.
    """
    # Files that cannot be read are the first to be told of.
    context = None
    if target.tls is not None:
        context = await trio.to_thread.run_sync(target.tls, abandon_on_cancel=True)
        context.set_alpn_protocols(["h2"])
    stream: trio.SocketStream
    if target.is_unix:
        stream = await trio.open_unix_socket(target.host)
    else:
        stream = await trio.open_tcp_stream(target.host, target.port)
    # Sent to and received from without trio's wrapper, from any task.
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    if not target.is_unix:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = PlainWire(sock)
    if context is None:
        return wire
    try:
        encrypted = EncryptedWire(wire, context, target.server_name or target.host)
        await encrypted.handshake()
    except ConnectionResetError:
        wire.close()
        raise OSError("reset in the TLS handshake; does it use TLS?") from None
    except BaseException:
        wire.close()
        raise
    return encrypted
