"""The limits of a listener for its clients."""

from __future__ import annotations

from dataclasses import dataclass

from etcd_actions._internal.argument_types import check_fields


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """The limits of a listener for its clients. Times are in seconds.

    Attributes:
        header_bytes: The most bytes of a request's headers.
        streams_per_connection: The most requests at a time on one HTTP/2 connection.
        connections: The most open connections; None for half of the descriptors that the process
            may open, at most 10,000. If all are in use, a new connection replaces one without a
            request, of the address with most connections; if each has a request, the new one is
            closed.
        connections_per_address: The most open connections of one address; None for half of all. The
            addresses of one IPv6 network of 64 bits count as one.
        replaces_busy: Whether a new connection may also replace the oldest one with a request:
            for listeners whose requests are short.
        reserve: The share of the process' descriptors that connections may not use.
        header_timeout: The time for a client's first request, and for the headers of each request.
        idle_timeout: The time after which a connection without a request is closed.
        body_timeout: The time for a request's body. A long body has this time for each
            ``long_body_bytes``; see :func:`~etcd_actions.web.take_long_body`.
        long_body_bytes: See ``body_timeout``.
        stall_timeout: The time after which a client that reads nothing is disconnected.
        handshake_timeout: The time for the TLS handshake.
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
