"""Reads the first line of a stream of lines that a service sends over HTTP/1.1."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import trio

from etcd_actions.errors import ServiceUnavailable
from etcd_actions.etcd.connection_settings import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.tls import client_context, explained

# Seconds for the first line of a response.
_WITHIN: Final = 10.0
# Bytes of a response up to that line.
_MOST_BYTES: Final = 4 * 1024 * 1024


async def first_line(
    service: Endpoint, ca: Path | None, path: str, token: str
) -> tuple[int, bytes]:
    """Send a GET request; returns the status and the first line of the body that is not empty.

    Args:
        service: The address.
        ca: The authorities that may sign its certificate; switches TLS on.
        path: The path of the request.
        token: The token; empty for none.

    Raises:
        ServiceUnavailable: There is no connection, or no such line within ten seconds.
    """
    try:
        with trio.fail_after(_WITHIN):
            return await _read(service, ca, path, token)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as error:
        why = explained(str(error)) or type(error).__name__
        raise ServiceUnavailable(f"the service: {why}") from None


async def _read(service: Endpoint, ca: Path | None, path: str, token: str) -> tuple[int, bytes]:
    stream: trio.abc.Stream = await trio.open_tcp_stream(service.host, service.port)
    if service.encrypted or ca is not None:
        context = await trio.to_thread.run_sync(partial(client_context, Tls(ca=ca)))
        context.set_alpn_protocols(["http/1.1"])
        stream = trio.SSLStream(
            stream, context, server_hostname=service.host, https_compatible=True
        )
    async with stream:
        request = f"GET {path} HTTP/1.1\r\nHost: {service}\r\nConnection: close\r\n"
        if token:
            request += f"Authorization: Bearer {token}\r\n"
        await stream.send_all(f"{request}\r\n".encode())
        data = b""
        while len(data) < _MOST_BYTES:
            part = await stream.receive_some()
            data += part
            head, end, body = data.partition(b"\r\n\r\n")
            if not end:
                if not part:
                    break
                continue
            status = int(head.split(maxsplit=2)[1])
            is_chunked = b"transfer-encoding: chunked" in head.lower()
            lines = (_unchunked(body) if is_chunked else body).split(b"\n")
            complete = lines[:-1] if part else lines
            for line in complete:
                if line.strip():
                    return status, line
            if not part:
                return status, b""
    raise ValueError("it ended before a response")


def _unchunked(body: bytes) -> bytes:
    """The content of the chunks that have arrived; raises ValueError for anything else."""
    content = b""
    while body:
        size, end, rest = body.partition(b"\r\n")
        if not end:
            break
        length = int(size.split(b";")[0], 16)
        content += rest[:length]
        if len(rest) < length + 2 or length == 0:
            break
        body = rest[length + 2 :]
    return content
