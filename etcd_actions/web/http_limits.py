"""The limits of a listener for its clients."""

from __future__ import annotations

from dataclasses import dataclass

from etcd_actions._internal.argument_types import check_fields


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """The limits of a listener for its clients. Times are in seconds.

    Attributes:
        header_bytes: The headers of a request, at most.
        streams_per_connection: Requests at once on one HTTP/2 connection, at most.
        connections: Open connections, at most; None for half of the descriptors that the
            process may open, and 10,000 at most. When all are in use, a new connection
            replaces one without a request, of the address with most connections; if each has a
            request, the new one is closed.
        connections_per_address: Open connections of one address, at most; None for half. The
            addresses of one IPv6 network of 64 bits count as one.
        replaces_busy: Whether a new connection may also replace the oldest one with a request:
            for listeners whose requests are short.
        reserve: The share of the process' descriptors that connections may not use.
        header_timeout: A client's first request, and the headers of each started request, may
            take so long.
        idle_timeout: A connection without a request is closed after so long.
        body_timeout: A request's body may take so long to arrive. A long body may take so long for
            each ``long_body_bytes``; see :func:`~etcd_actions.web.take_long_body`.
        long_body_bytes: See ``body_timeout``.
        stall_timeout: A client that reads nothing for so long is disconnected.
        handshake_timeout: The TLS handshake may take so long.
    """

    header_bytes: int = 64 * 1024
    streams_per_connection: int = 10_000
    connections: int | None = None
    connections_per_address: int | None = None
    replaces_busy: bool = False
    reserve: float = 0.25
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    body_timeout: float = 30.0
    long_body_bytes: int = 256 * 1024
    stall_timeout: float = 30.0
    handshake_timeout: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self)
