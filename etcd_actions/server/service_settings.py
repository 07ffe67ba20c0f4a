"""The settings of the service: its limits, and how it identifies clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from etcd_actions._internal.argument_types import check_fields
from etcd_actions.web import Bind, HttpLimits, ServerTls


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    """The OpenID Connect issuer whose tokens are accepted.

    Attributes:
        issuer: Its URL, below which its discovery document is.
        audience: The audience of accepted tokens.
        client_id: The client id of clients without a secret (PKCE).
        scopes: The scopes that clients request.
        subject_claim: The claim with the name of the client.
        projects_claim: The claim with the projects that a token may use; empty: it may use all.
        redirect_uri: The client's own URI to which the browser returns after a login without a
            secret.
    """

    issuer: str
    audience: str
    client_id: str = ""
    scopes: tuple[str, ...] = ()
    subject_claim: str = "sub"
    projects_claim: str = ""
    redirect_uri: str = "http://localhost:53593/callback"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """The page that the service serves.

    Attributes:
        offers_actions: Whether it has buttons that abort and signal. Clients may do both with or
            without it.
    """

    offers_actions: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of the service. Times are in seconds.

    Attributes:
        bind: The address to listen on. Any client that can connect may enqueue, unless tokens
            are required.
        tls: The certificate and key; None for plain text.
        token_file: The accepted tokens, one a line; None requires none. The file is read again
            when it changes. See :class:`~etcd_actions.server.tokens.Tokens`.
        oidc: The issuer whose tokens are accepted in addition; None for none.
        projects: The projects that requests may name; None for all.
        message_bytes: The size of a request, at most; etcd accepts 1.5 MiB by default.
        max_streams: Open streams of methods, of all clients, and as many of the page's own, at
            most.
        rate: Requests a second of one client, at most; bursts may be twice as large. A client
            has one token or, without tokens, one address. 0 for no limit.
        request_timeout: The time limit of a unary call.
        keepalive: The time without an update after which a stream is sent another sentinel, so
            that both sides detect a dead connection.
        grace: The time limit of requests after the end of the service is requested.
        http: Limits of the connections.
        allowed_hosts: Names that a request's Host and Origin may have in addition to localhost
            and the loopback addresses, if the service listens on one of these: for instance the
            name of a proxy.
        users: The user ids of this machine that may connect; None for all clients. Only Linux
            reports them.
        page: The page; None for none.
    """

    bind: Bind
    tls: ServerTls | None = None
    token_file: Path | None = None
    oidc: OidcSettings | None = None
    projects: tuple[str, ...] | None = None
    message_bytes: int = 4 * 1024 * 1024
    max_streams: int = 10_000
    rate: float = 1000.0
    request_timeout: float = 30.0
    keepalive: float = 30.0
    grace: float = 5.0
    http: HttpLimits = field(default_factory=HttpLimits)
    allowed_hosts: frozenset[str] = frozenset()
    users: frozenset[int] | None = None
    page: PageSettings | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def demands_token(self) -> bool:
        """Whether a client needs a token."""
        return self.token_file is not None or self.oidc is not None

    @property
    def is_authenticated(self) -> bool:
        """Whether a client must prove its identity, by a token or a certificate."""
        return self.demands_token or (self.tls is not None and self.tls.client_ca is not None)
