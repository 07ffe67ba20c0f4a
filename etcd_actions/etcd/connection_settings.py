"""The settings of a connection to etcd: endpoints, encryption, user, timeouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from etcd_actions._internal.argument_types import check_fields
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.endpoints import Endpoint

TransportName: TypeAlias = Literal["grpc", "gateway"]

DEFAULT_DIAL_TIMEOUT = 2.0
DEFAULT_REQUEST_TIMEOUT = 5.0
DEFAULT_KEEPALIVE_TIME = 10.0
DEFAULT_KEEPALIVE_TIMEOUT = 3.0

LEAST_KEEPALIVE_TIME = 10.0
"""etcd answers pings that come more often than every 5 s, and many others, with GOAWAY."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How connections are encrypted. The files, in PEM, are read at each new connection.

    Attributes:
        ca: The authorities that may sign etcd's certificate; None for those of the system.
        cert: The client's own certificate, for an etcd that requires one.
        key: The key of ``cert``.
        server_name: The name that etcd's certificate must have, if it is not the endpoint's host.
        skip_verify: Whether to encrypt without a check of the certificate. For trials only.

    Raises:
        ConfigError: One of ``cert`` and ``key`` is given without the other.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    skip_verify: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.cert is None) != (self.key is None):
            missing, there = ("key", "cert") if self.key is None else ("cert", "key")
            raise ConfigError(f"tls: {there} is given without {missing}: give both or none")


@dataclass(frozen=True, kw_only=True)
class User:
    """The user of an etcd with authentication.

    Attributes:
        name: The user's name.
        password: The password; it is never in a message.
        password_file: The file with the password, instead. It is read for each request of a token,
            so the password can be changed while the process runs. One newline at its end is
            removed.

    Raises:
        ConfigError: There is no name, or not exactly one of password and file.
    """

    name: str
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name:
            raise ConfigError("user: the name is empty")
        if (self.password is None) == (self.password_file is None):
            raise ConfigError(f"user {self.name}: give either a password or a file that has it")


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """The settings of a connection. Times are in seconds.

    Attributes:
        endpoints: The members; one is used at a time, and the next one after a failure.
        transport: ``grpc``, or ``gateway`` for networks that only HTTP/1.1 passes.
        tls: How to encrypt; None encrypts only connections to ``https://`` endpoints.
        user: The user; None for no authentication.
        dial_timeout: How long connecting may take.
        request_timeout: How long a call may take, with the attempts at other endpoints.
        keepalive_time: The silence after which the connection is probed; at least 10.
        keepalive_timeout: How long the answer to the probe may take.
        token_file: The file with the token, for a service of this package in place of etcd. It is
            read at each new connection.
        largest_answer: The most bytes of an answer over ``grpc``; None for half a gigabyte.
        stream_window: The most bytes of a watch stream that wait for its reader, over ``grpc``;
            None for 16 MiB.
    """

    endpoints: tuple[Endpoint, ...]
    transport: TransportName = "grpc"
    tls: Tls | None = None
    user: User | None = None
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT
    keepalive_time: float = DEFAULT_KEEPALIVE_TIME
    keepalive_timeout: float = DEFAULT_KEEPALIVE_TIMEOUT
    token_file: Path | None = None
    largest_answer: int | None = None
    stream_window: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "keepalive_time", max(self.keepalive_time, LEAST_KEEPALIVE_TIME))
        for name in ("dial_timeout", "request_timeout", "keepalive_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}: {getattr(self, name):g} is not a time: give seconds above 0"
                )
        if self.tls is not None:
            for endpoint in self.endpoints:
                if endpoint.encrypted is False:
                    raise ConfigError(
                        f"endpoint http://{endpoint} is not encrypted, but TLS is set: "
                        "write https:// or omit the scheme"
                    )

    def tls_for(self, endpoint: Endpoint) -> Tls | None:
        """How to encrypt the connection to ``endpoint``; None for no encryption."""
        if self.tls is None and endpoint.encrypted:
            return Tls()
        return self.tls
