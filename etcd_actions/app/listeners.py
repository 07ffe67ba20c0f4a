"""The listener of the service, as the settings describe it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from etcd_actions.config import Config, Setting
from etcd_actions.config.security import check_pem
from etcd_actions.config.settings import (
    ALLOWED_HOSTS,
    DOMAINS,
    EXECUTOR,
    GRACE,
    HEADER_TIMEOUT,
    LISTEN,
    LISTEN_CERT,
    LISTEN_CLIENT_CA,
    LISTEN_KEY,
    LISTEN_USERS,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS,
    MAX_HEADER_BYTES,
    MAX_REQUEST_BYTES,
    MAX_STREAMS,
    OIDC_AUDIENCE,
    OIDC_CLIENT_ID,
    OIDC_ISSUER,
    OIDC_PROJECTS_CLAIM,
    OIDC_SCOPES,
    OIDC_SUBJECT_CLAIM,
    PROJECTS,
    RATE_LIMIT,
    REQUEST_TIMEOUT,
    STREAM_KEEPALIVE,
    TOKEN_FILE,
)
from etcd_actions.errors import ConfigError
from etcd_actions.server import ServerSettings
from etcd_actions.server.service_settings import OidcSettings
from etcd_actions.web import Bind, HttpLimits, ServerTls
from etcd_actions.web.descriptors import most_connections

if TYPE_CHECKING:
    from etcd_actions.server.front.project_service import ProjectSettings

_NEEDED = (
    "connectrpc",
    "flyteidl2",
    "grpc_health",
    "grpc_reflection",
    "h11",
    "h2",
    "prometheus_client",
)
_ROOT = 0
# Requests are short; a client retries one that takes longer.
_MOST_GRACE = 5.0
# The rest is for the accepted changes.
_PART_OF_GRACE = 0.4

_log = structlog.get_logger(__name__)


def server_settings(config: Config) -> ServerSettings | None:
    """The settings of the service; None if there is none.

    If the setting is the default and the extra is not installed, that is only logged.

    Raises:
        ConfigError: They contradict each other, or a file is unusable.
    """
    bind = config[LISTEN]
    if bind is None or not is_installed(config, LISTEN):
        return None
    http = HttpLimits(
        header_bytes=config[MAX_HEADER_BYTES],
        connections=config[MAX_CONNECTIONS],
        connections_per_address=config[MAX_CONNECTIONS_PER_ADDRESS],
        header_timeout=config[HEADER_TIMEOUT],
        body_timeout=config[REQUEST_TIMEOUT],
    )
    most_connections(http, MAX_CONNECTIONS.flag)
    tls = _tls(config)
    if (tokens := config[TOKEN_FILE]) is not None:
        _check_tokens(tokens)
    return ServerSettings(
        bind=bind,
        tls=tls,
        token_file=tokens,
        oidc=_oidc(config),
        projects=config[PROJECTS],
        message_bytes=config[MAX_REQUEST_BYTES],
        max_streams=config[MAX_STREAMS],
        rate=config[RATE_LIMIT],
        request_timeout=config[REQUEST_TIMEOUT],
        keepalive=config[STREAM_KEEPALIVE],
        grace=min(_MOST_GRACE, config[GRACE] * _PART_OF_GRACE),
        http=http,
        allowed_hosts=config[ALLOWED_HOSTS],
        users=_users(config, bind),
    )


def project_settings(config: Config) -> ProjectSettings:
    """The projects and domains that clients see; needs the extra."""
    from etcd_actions.server.front.project_service import ProjectSettings  # noqa: PLC0415

    return ProjectSettings(projects=config[PROJECTS], domains=config[DOMAINS])


def admitted_users(config: Config, *tasks: int) -> frozenset[int] | None:
    """The users of this machine that may connect without a token, ``tasks`` too; None for all."""
    users = config[LISTEN_USERS]
    if users == "any":
        return None
    named = frozenset() if users == "own" else users
    return frozenset({os.geteuid(), _ROOT, *named, *tasks})


def _users(config: Config, bind: Bind) -> frozenset[int] | None:
    """The users that may connect: with an executor, a client that enqueues runs commands."""
    credentials = (TOKEN_FILE, OIDC_ISSUER, LISTEN_CLIENT_CA)
    authenticated = any(config[setting] is not None for setting in credentials)
    if config.is_given(LISTEN_USERS):
        if not bind.is_loopback and config[LISTEN_USERS] != "any":
            raise ConfigError(
                f"{LISTEN_USERS.flag}: {LISTEN.flag} {bind} is open to other machines, whose users "
                "are unknown here: listen on 127.0.0.1"
            )
    elif config[EXECUTOR] == "none" or authenticated:
        return None
    return admitted_users(config)


def is_installed(config: Config, setting: Setting[object]) -> bool:
    """Whether the extra is installed; True if the setting is given, which makes it an error."""
    if config.is_given(setting) or all(find_spec(name) is not None for name in _NEEDED):
        return True
    _log.warning("not_serving", what=setting.flag, remedy="pip install etcd-actions[server]")
    return False


def _tls(config: Config) -> ServerTls | None:
    cert, key, client_ca = config[LISTEN_CERT], config[LISTEN_KEY], config[LISTEN_CLIENT_CA]
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError(
            f"{LISTEN_CERT.flag} and {LISTEN_KEY.flag} belong together, and "
            f"{LISTEN_CLIENT_CA.flag} needs them: give both"
        )
    # OpenSSL never finishes reading some devices.
    for setting in (LISTEN_CERT, LISTEN_KEY, LISTEN_CLIENT_CA):
        if (path := config[setting]) is not None:
            check_pem(path, setting.flag)
    tls = ServerTls(cert=cert, key=key, client_ca=client_ca)
    try:
        tls.context()
    except ConfigError as error:
        raise ConfigError(f"{LISTEN_CERT.flag}, {LISTEN_KEY.flag}: {error}") from None
    return tls


def _oidc(config: Config) -> OidcSettings | None:
    issuer, audience, scopes = config[OIDC_ISSUER], config[OIDC_AUDIENCE], config[OIDC_SCOPES]
    if issuer is None:
        needing: tuple[Setting[object], ...] = (
            OIDC_AUDIENCE,
            OIDC_CLIENT_ID,
            OIDC_SCOPES,
            OIDC_SUBJECT_CLAIM,
            OIDC_PROJECTS_CLAIM,
        )
        for setting in needing:
            if config.is_given(setting):
                raise ConfigError(f"{setting.flag} needs {OIDC_ISSUER.flag}: give both")
        return None
    if not audience:
        raise ConfigError(
            f"{OIDC_ISSUER.flag} needs {OIDC_AUDIENCE.flag}: else a token for any other service "
            "of the issuer would do"
        )
    host = urlsplit(issuer).hostname or ""
    if not issuer.startswith("https://") and not Bind(host, 0).is_loopback:
        raise ConfigError(f"{OIDC_ISSUER.flag} {issuer}: give an https:// URL")
    if find_spec("jwt") is None:
        raise ConfigError(f"{OIDC_ISSUER.flag}: pip install etcd-actions[oidc]")
    return OidcSettings(
        issuer=issuer,
        audience=audience,
        client_id=config[OIDC_CLIENT_ID] or "",
        scopes=scopes or (),
        subject_claim=config[OIDC_SUBJECT_CLAIM],
        projects_claim=config[OIDC_PROJECTS_CLAIM] or "",
    )


def _check_tokens(path: Path) -> None:
    from etcd_actions.server.tokens import Tokens  # noqa: PLC0415 (needs the extra)

    try:
        Tokens(path)
    except ConfigError as error:
        raise ConfigError(f"{TOKEN_FILE.flag}: {error}") from None
