"""Serves Flyte's ActionsService while a context is open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.histogram import Distribution
from etcd_actions.client import ActionsClient
from etcd_actions.errors import ConfigError
from etcd_actions.page import StaticFiles
from etcd_actions.server.service_settings import OidcSettings, ServerSettings
from etcd_actions.web import Bind, Listener, ListenerStatistics, open_listener

if TYPE_CHECKING:
    from connectrpc.method import MethodInfo

    from etcd_actions.server.application import Calls, Route
    from etcd_actions.server.front import FrontDoor
    from etcd_actions.server.methods import Methods
    from etcd_actions.server.oidc import OidcIssuer
    from etcd_actions.server.streams import Streams
    from etcd_actions.server.workers.etcd_methods import WorkerEtcd

    AnyMethod: TypeAlias = MethodInfo[Any, Any]
else:
    # Extras, loaded on demand; typing.get_type_hints finds the names.
    AnyMethod = Calls = FrontDoor = Methods = OidcIssuer = Route = Streams = WorkerEtcd = Any

_FLAG = "--listen"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerStatistics:
    """The statistics of a server.

    Attributes:
        calls: Number of calls that ended, by method and code; ``ok`` for no error.
        times: The distribution of their times by method; a stream counts while it is open.
        open_streams: Number of open streams.
        updates: Number of updates that were sent.
        conflated: Number of states that a newer one replaced before they were sent, of streams
            that are closed.
    """

    calls: dict[tuple[str, str], int]
    times: dict[str, Distribution]
    open_streams: int
    updates: int
    conflated: int


@checks_types
@asynccontextmanager
async def open_actions_server(
    client: ActionsClient,
    settings: ServerSettings,
    *,
    is_serving: Callable[[], bool] = lambda: True,
    front: FrontDoor | None = None,
    workers: WorkerEtcd | None = None,
    announce: bool = True,
) -> AsyncIterator[ActionsServer]:
    """Serve a client's methods over Connect, gRPC and gRPC-Web.

    When the context is left, also by an exception or a cancellation, the streams end first, without
    an error, and calls have ``settings.grace`` to finish; the remaining ones end with UNAVAILABLE,
    which clients retry. If the client watches, all streams share its watch.

    Args:
        client: Answers the calls; the caller closes it after this context.
        settings: See :class:`ServerSettings`.
        is_serving: Whether the health service reports the service as usable.
        front: Serves the SDK's other entry points; None serves actions only.
        workers: The part of etcd for workers with a token; None refuses them.
        announce: Whether to log the address.

    Raises:
        ConfigError: The address, a file or the installation is unusable.
    """
    try:
        from etcd_actions.server.application import Application, Calls  # noqa: PLC0415
        from etcd_actions.server.auth_metadata import AuthMetadataService  # noqa: PLC0415
        from etcd_actions.server.authentication import Authentication  # noqa: PLC0415
        from etcd_actions.server.data_locations import DataLocations  # noqa: PLC0415
        from etcd_actions.server.grpc_health import Health  # noqa: PLC0415
        from etcd_actions.server.methods import Methods  # noqa: PLC0415
        from etcd_actions.server.operations import (  # noqa: PLC0415
            OperatedDeadLetters,
            StatusOperations,
        )
        from etcd_actions.server.project_access import ProjectAccess  # noqa: PLC0415
        from etcd_actions.server.rate_limit import RateLimit  # noqa: PLC0415
        from etcd_actions.server.reflection import Reflection  # noqa: PLC0415
        from etcd_actions.server.service import ActionsService  # noqa: PLC0415
        from etcd_actions.server.streams import Streams  # noqa: PLC0415
        from etcd_actions.server.tokens import Tokens  # noqa: PLC0415
        from etcd_actions.server.trace_errors import read_trace_error  # noqa: PLC0415
        from etcd_actions.server.workers.access import WorkerAccess  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_FLAG}: nothing can be served ({error}): pip install etcd-actions[server]"
        ) from error
    tokens = None if settings.token_file is None else Tokens(settings.token_file)
    issuer = None if settings.oidc is None else _issuer(settings.oidc)
    authentication = Authentication(tokens, issuer)
    calls = Calls(authentication, RateLimit(settings.rate), client.containment)
    streams = Streams(settings.max_streams)
    access = ProjectAccess(settings.projects, DataLocations(None if front is None else front.blobs))
    methods = Methods(settings.request_timeout, client.containment, access)
    methods.add(ActionsService(client, streams, settings.keepalive, read_trace_error))
    methods.add(StatusOperations(client))
    methods.add(OperatedDeadLetters(client))
    methods.add(Health(lambda: methods.services, is_serving, streams))
    Reflection(lambda: methods.services).add_to(methods)
    methods.add(AuthMetadataService(issuer))
    if front is not None:
        front.add_to(methods, streams)
    page: list[Route] = []
    if settings.page is not None and front is not None:
        config = {
            "actions": settings.page.offers_actions,
            "token": settings.demands_token,
            "keepalive": settings.keepalive,
        }
        page = [*front.page_streams(calls, streams), StaticFiles(config)]
    application = Application(
        methods,
        calls,
        (
            WorkerAccess(workers, calls, streams, client.containment),
            *page,
            *(() if front is None else front.routes()),
        ),
        message_bytes=settings.message_bytes,
    )
    async with open_listener(
        application,
        settings.bind,
        flag=_FLAG,
        tls=settings.tls,
        limits=settings.http,
        allowed_hosts=settings.allowed_hosts,
        users=settings.users,
        containment=client.containment,
        grace=settings.grace,
        on_leave=streams.drain,
        on_late=methods.interrupt,
    ) as listener:
        if announce:
            _log_address(settings, listener)
        yield ActionsServer(listener, calls, streams, methods)


class ActionsServer:
    """A running server; created by :func:`open_actions_server`."""

    def __init__(
        self, listener: Listener, calls: Calls, streams: Streams, methods: Methods
    ) -> None:
        self._listener = listener
        self._calls = calls
        self._streams = streams
        self._methods = methods

    @property
    def address(self) -> Bind:
        """The address that it listens on, with the port that the system chose."""
        return self._listener.address

    @property
    def methods(self) -> Mapping[str, AnyMethod]:
        """The methods by path, without those that are refused as unimplemented."""
        return self._methods.answered

    def statistics(self) -> ServerStatistics:
        """See :class:`ServerStatistics`."""
        return ServerStatistics(
            calls=dict(self._calls.ended),
            times={method: times.read() for method, times in self._calls.times.items()},
            open_streams=len(self._streams),
            updates=self._streams.sent,
            conflated=self._streams.conflated,
        )

    def connections(self) -> ListenerStatistics:
        """See :class:`~etcd_actions.web.ListenerStatistics`."""
        return self._listener.statistics()

    def reload(self) -> None:
        """Read the files of TLS again, for new connections. Tokens do not need that.

        Raises:
            ConfigError: They are unusable; the files that were read before stay in use.
        """
        self._listener.reload()

    def drain(self) -> None:
        """End the streams, and open no more; calls are still answered."""
        self._streams.drain()


def _issuer(settings: OidcSettings) -> OidcIssuer:
    try:
        from etcd_actions.server.oidc import OidcIssuer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--oidc-issuer: no token can be verified ({error}): pip install etcd-actions[oidc]"
        ) from error
    return OidcIssuer(settings)


def _page_of(settings: ServerSettings, listener: Listener) -> dict[str, str]:
    """The URL of the page, if it is served."""
    if settings.page is None:
        return {}
    return {"page": f"http{'s' if settings.tls else ''}://{listener.address}/"}


def _log_address(settings: ServerSettings, listener: Listener) -> None:
    authenticated = settings.is_authenticated
    _log.info(
        "serving",
        listen=str(listener.address),
        tls=settings.tls is not None,
        authentication=authenticated,
        **_page_of(settings, listener),
    )
    if settings.demands_token and settings.tls is None and not settings.bind.is_loopback:
        _log.warning(
            "tokens_in_clear",
            listen=str(listener.address),
            remedy="--listen-cert and --listen-key, or a proxy before it that ends TLS: the SDK "
            "sends tokens over https only",
        )
    if not authenticated and settings.users is None and not settings.bind.is_loopback:
        _log.warning(
            "anybody_may_enqueue",
            listen=str(listener.address),
            remedy="--token-file, or --listen-client-ca",
        )
