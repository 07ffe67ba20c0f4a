"""One plain or encrypted connection to a member, and etcd's HTTP pages over it.

A gRPC channel reports only that it could not connect; this reports why. The pages ``/version`` and
``/metrics`` have facts that etcd's API lacks.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from etcd_actions.etcd.connection_settings import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.tls import ssl_context

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's flag for accepting an expired certificate; Python has no name for it."""

_CHUNK = 1 << 16


class Page(NamedTuple):
    """The response to a GET; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def verifying_context(tls: Tls) -> ssl.SSLContext:
    """A context that verifies the server's certificate and its name, by the settings.

    Raises:
        ConfigError: A file cannot be used.
    """
    context = ssl_context(tls)
    context.check_hostname = not tls.skip_verify
    return context


@asynccontextmanager
async def open_stream(
    endpoint: Endpoint, context: ssl.SSLContext | None, name: str | None = None
) -> AsyncIterator[trio.SocketStream | trio.SSLStream[trio.SocketStream]]:
    """Connect, with TLS if there is a context; leaving closes the connection at once.

    Args:
        endpoint: The address.
        context: The TLS settings; None for no TLS.
        name: The name that the certificate must have; the endpoint's host when None.

    Raises:
        OSError: There is no connection.
        trio.BrokenResourceError: The handshake failed; its cause has the reason.
    """
    tcp = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    try:
        if context is None:
            yield tcp
        else:
            stream = trio.SSLStream(
                tcp, context, server_hostname=name or endpoint.host, https_compatible=True
            )
            await stream.do_handshake()
            yield stream
    finally:
        await trio.aclose_forcefully(tcp)


async def get(
    stream: trio.abc.Stream, endpoint: Endpoint, path: str, *, limit: int = 4 << 20
) -> Page:
    """Read one page; at most ``limit`` bytes of it.

    Raises:
        trio.BrokenResourceError: The connection was lost.
        ValueError: The response is not HTTP.
    """
    # HTTP/1.0 has no chunks, and ends with the connection.
    await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {endpoint}\r\n\r\n".encode())
    received = bytearray()
    while len(received) < limit and (chunk := await stream.receive_some(_CHUNK)):
        received += chunk
    head, end, body = bytes(received).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    words = status.split()
    if not end or len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError("the answer is not HTTP")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Page(int(words[1]), headers, body)
