"""The listeners of a process, from the configuration: the service's settings, monitoring."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from etcd_actions.client import ActionsClient
from etcd_actions.config import Config, Setting, settings
from etcd_actions.config.security import check_pem
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.quorum import QuorumMonitor
from etcd_actions.monitoring import Monitoring, open_monitoring
from etcd_actions.server import ServerSettings
from etcd_actions.server.service_settings import OidcSettings, PageSettings
from etcd_actions.web import Bind, HttpLimits, ServerTls
from etcd_actions.web.descriptors import most_connections

if TYPE_CHECKING:
    from etcd_actions.server.front.project_service import ProjectSettings

_NEEDED = ("connectrpc", "flyteidl2", "h11", "h2", "prometheus_client")
_ROOT = 0
# Seconds: requests are short, and a client retries one that is interrupted.
_MOST_GRACE = 5.0
# The part of the grace for requests; the rest is for the accepted changes.
_PART_OF_GRACE = 0.4

_log = structlog.get_logger(__name__)


def server_settings(config: Config) -> ServerSettings | None:
    """The settings of the service; None if there is none.

    If the setting is the default and the extra is not installed, that is only logged.

    Raises:
        ConfigError: They contradict each other, or a file is unusable.
    """
    bind = config[settings.LISTEN]
    if bind is None or not is_installed(config, settings.LISTEN):
        return None
    http = HttpLimits(
        header_bytes=config[settings.MAX_HEADER_BYTES],
        connections=config[settings.MAX_CONNECTIONS],
        connections_per_address=config[settings.MAX_CONNECTIONS_PER_ADDRESS],
        header_timeout=config[settings.HEADER_TIMEOUT],
        body_timeout=config[settings.REQUEST_TIMEOUT],
    )
    most_connections(http, settings.MAX_CONNECTIONS.flag)
    tls = _tls(config)
    if (tokens := config[settings.TOKEN_FILE]) is not None:
        _check_tokens(tokens)
    check_worker_access(config)
    return ServerSettings(
        bind=bind,
        tls=tls,
        token_file=tokens,
        oidc=_oidc(config),
        projects=config[settings.PROJECTS],
        message_bytes=config[settings.MAX_REQUEST_BYTES],
        max_streams=config[settings.MAX_STREAMS],
        rate=config[settings.RATE_LIMIT],
        request_timeout=config[settings.REQUEST_TIMEOUT],
        keepalive=config[settings.STREAM_KEEPALIVE],
        grace=grace_of_requests(config),
        http=http,
        allowed_hosts=config[settings.ALLOWED_HOSTS],
        users=_users(config, bind),
        page=_page(config),
    )


@asynccontextmanager
async def open_monitoring_port(
    config: Config,
    client: ActionsClient,
    etcd: Etcd,
    quorum: QuorumMonitor,
    lines_dropped: Callable[[], int],
    *,
    allowed_hosts: Collection[str] = (),
) -> AsyncIterator[Monitoring | None]:
    """Serve health and metrics, unless the setting is none or the extra is missing."""
    bind = config[settings.MONITORING_LISTEN]
    if bind is None or not is_installed(config, settings.MONITORING_LISTEN):
        yield None
        return
    async with open_monitoring(
        client,
        etcd,
        bind,
        prefix=config[settings.PREFIX],
        silence_limit=config[settings.READY_WITHIN],
        allowed_hosts=allowed_hosts,
    ) as monitoring:
        monitoring.metrics.lines_dropped = lines_dropped
        monitoring.health.quorum_loss = lambda: quorum.loss
        yield monitoring


def check_worker_access(config: Config) -> None:
    """Refuse settings by which workers cannot use the service instead of etcd.

    Raises:
        ConfigError: They contradict each other.
    """
    if not config[settings.WORKER_ACCESS]:
        return
    flag = settings.WORKER_ACCESS.flag
    if config[settings.TOKEN_FILE] is None:
        raise ConfigError(
            f"{flag} needs {settings.TOKEN_FILE.flag}: a worker's line in it is TOKEN name=NAME "
            "role=worker"
        )
    if config[settings.TRANSPORT] != "grpc":
        raise ConfigError(
            f"{flag} needs {settings.TRANSPORT.flag} grpc: the gateway's answers have no limit"
        )


def grace_of_requests(config: Config) -> float:
    """Seconds that requests in progress get after the end of the service is requested."""
    return min(_MOST_GRACE, config[settings.GRACE] * _PART_OF_GRACE)


def _page(config: Config) -> PageSettings | None:
    if not config[settings.PAGE]:
        return None
    return PageSettings(offers_actions=config[settings.PAGE_ACTIONS])


def project_settings(config: Config) -> ProjectSettings:
    """The projects and domains that clients see; needs the extra."""
    from etcd_actions.server.front.project_service import ProjectSettings  # noqa: PLC0415

    return ProjectSettings(projects=config[settings.PROJECTS], domains=config[settings.DOMAINS])


def admitted_users(config: Config, *tasks: int) -> frozenset[int] | None:
    """The users of this machine that may connect without a token, ``tasks`` too; None for all."""
    users = config[settings.LISTEN_USERS]
    if users == "any":
        return None
    named = frozenset() if users == "own" else users
    return frozenset({os.geteuid(), _ROOT, *named, *tasks})


def _users(config: Config, bind: Bind) -> frozenset[int] | None:
    """The users that may connect: with an executor, a client that enqueues runs commands."""
    credentials = (settings.TOKEN_FILE, settings.OIDC_ISSUER, settings.LISTEN_CLIENT_CA)
    authenticated = any(config[setting] is not None for setting in credentials)
    if config.is_given(settings.LISTEN_USERS):
        if not bind.is_loopback and config[settings.LISTEN_USERS] != "any":
            raise ConfigError(
                f"{settings.LISTEN_USERS.flag}: {settings.LISTEN.flag} {bind} is open to other "
                "machines, whose users are unknown here: listen on 127.0.0.1"
            )
    elif config[settings.EXECUTOR] == "none" or authenticated:
        return None
    return admitted_users(config)


def is_installed(config: Config, setting: Setting[object]) -> bool:
    """Whether the extra is installed; True if the setting is given, which makes it an error."""
    if config.is_given(setting) or all(find_spec(name) is not None for name in _NEEDED):
        return True
    _log.warning("not_serving", what=setting.flag, remedy="pip install etcd-actions[server]")
    return False


def _tls(config: Config) -> ServerTls | None:
    cert, key, client_ca = (
        config[settings.LISTEN_CERT],
        config[settings.LISTEN_KEY],
        config[settings.LISTEN_CLIENT_CA],
    )
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError(
            f"{settings.LISTEN_CERT.flag} and {settings.LISTEN_KEY.flag} belong together, and "
            f"{settings.LISTEN_CLIENT_CA.flag} needs them: give both"
        )
    # OpenSSL never finishes reading some devices.
    for setting in (settings.LISTEN_CERT, settings.LISTEN_KEY, settings.LISTEN_CLIENT_CA):
        if (path := config[setting]) is not None:
            check_pem(path, setting.flag)
    tls = ServerTls(cert=cert, key=key, client_ca=client_ca)
    try:
        tls.context()
    except ConfigError as error:
        raise ConfigError(
            f"{settings.LISTEN_CERT.flag}, {settings.LISTEN_KEY.flag}: {error}"
        ) from None
    return tls


def _oidc(config: Config) -> OidcSettings | None:
    issuer, audience, scopes = (
        config[settings.OIDC_ISSUER],
        config[settings.OIDC_AUDIENCE],
        config[settings.OIDC_SCOPES],
    )
    if issuer is None:
        for setting in settings.SETTINGS:
            if setting.name.startswith("oidc_") and config.is_given(setting):
                raise ConfigError(f"{setting.flag} needs {settings.OIDC_ISSUER.flag}: give both")
        return None
    if not audience:
        raise ConfigError(
            f"{settings.OIDC_ISSUER.flag} needs {settings.OIDC_AUDIENCE.flag}: else a token for "
            "any other service of the issuer would do"
        )
    host = urlsplit(issuer).hostname or ""
    if not issuer.startswith("https://") and not Bind(host, 0).is_loopback:
        raise ConfigError(f"{settings.OIDC_ISSUER.flag} {issuer}: give an https:// URL")
    if find_spec("jwt") is None:
        raise ConfigError(f"{settings.OIDC_ISSUER.flag}: pip install etcd-actions[oidc]")
    return OidcSettings(
        issuer=issuer,
        audience=audience,
        client_id=config[settings.OIDC_CLIENT_ID] or "",
        scopes=scopes or (),
        subject_claim=config[settings.OIDC_SUBJECT_CLAIM],
        projects_claim=config[settings.OIDC_PROJECTS_CLAIM] or "",
    )


def _check_tokens(path: Path) -> None:
    from etcd_actions.server.tokens import Tokens  # noqa: PLC0415 (needs the extra)

    try:
        Tokens(path)
    except ConfigError as error:
        raise ConfigError(f"{settings.TOKEN_FILE.flag}: {error}") from None
