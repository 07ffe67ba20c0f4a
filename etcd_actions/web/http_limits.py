"""What a listener takes from its clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a listener takes from its clients. Times are in seconds.

    Attributes:
        header_bytes: The headers of a request, at most.
        streams_per_connection: Requests at once on one HTTP/2 connection, at most.
        connections: Open connections, at most; None for half of the descriptors that the
            process may open, and 10,000 at most. When all are in use, a new connection
            replaces one without a request, of the address that has most of them; where each
            has one, the new one is closed.
        connections_per_address: Of these, how many one address may have; None for half. The
            addresses of one IPv6 network of 64 bits count as one.
        replaces_busy: Whether a new connection may also replace the oldest one that has a
            request: for listeners whose requests are short.
        reserve: The share of the process' descriptors that connections leave alone.
        header_timeout: How long a client may take for its first request, and for the headers
            of each request once they have begun.
        idle_timeout: After so long without a request a connection is closed.
        body_timeout: How long a request's body may take to arrive. One that the application
            takes as a long one may take so long for each ``long_body_bytes``.
        long_body_bytes: See ``body_timeout``.
        stall_timeout: A client that takes nothing for so long is cut off.
        handshake_timeout: How long the TLS handshake may take.
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
