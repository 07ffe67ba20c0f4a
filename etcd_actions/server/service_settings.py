"""What the service takes from its clients, and how it proves who is who."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from etcd_actions.web import Bind, HttpLimits, ServerTls


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    """The OpenID Connect issuer whose tokens are accepted.

    Attributes:
        issuer: Its URL, below which its discovery document is.
        audience: What a token must be for.
        client_id: By which clients without a secret (PKCE) ask it.
        scopes: What clients ask it for.
        subject_claim: The claim that says who has a token.
        projects_claim: The claim that lists the projects that it may use; empty: it may use all.
        redirect_uri: Where the browser goes when a client without a secret has logged in; it is
            the client's own.
    """

    issuer: str
    audience: str
    client_id: str = ""
    scopes: tuple[str, ...] = ()
    subject_claim: str = "sub"
    projects_claim: str = ""
    redirect_uri: str = "http://localhost:53593/callback"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How the service is served. Times are in seconds.

    Attributes:
        bind: Where it listens. Whoever can connect may enqueue, unless tokens are demanded.
        tls: How it encrypts; None for not at all.
        token_file: The tokens one of which a client must show, one a line; None asks for
            none. The file is read again when it changes. See
            :class:`~etcd_actions.server.tokens.Tokens`.
        oidc: The issuer whose tokens a client may show, too; None for none.
        projects: The projects that requests may name; None for all.
        message_bytes: The size of a request, at most; etcd takes 1.5 MiB by default.
        max_streams: Open WatchForUpdates streams of all clients, at most.
        rate: Requests a second of one client, at most; bursts may be twice as large. A client
            is whoever has one token, else one address. 0 for no limit.
        request_timeout: How long a request may take that is no stream.
        keepalive: After so long without an update a stream is given a sentinel once more, so
            that both sides notice a dead connection.
        grace: How long requests may go on when the service ends.
        http: Limits of the connections.
        allowed_hosts: Names that a request's Host and Origin may have besides localhost and
            the loopback addresses, where the service listens on one of these: a proxy's, for
            instance.
        users: The user ids of this machine that may connect, and nobody else; None for
            everybody. Only Linux tells them.
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

    @property
    def demands_token(self) -> bool:
        """Whether a client must show a token."""
        return self.token_file is not None or self.oidc is not None

    @property
    def is_authenticated(self) -> bool:
        """Whether a client must prove who it is, by a token or a certificate."""
        return self.demands_token or (self.tls is not None and self.tls.client_ca is not None)
