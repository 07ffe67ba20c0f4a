"""Opens connections to etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import assert_never

import trio

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.auth import read_password
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.etcd.connection_settings import (
    DEFAULT_DIAL_TIMEOUT,
    DEFAULT_KEEPALIVE_TIME,
    DEFAULT_KEEPALIVE_TIMEOUT,
    DEFAULT_REQUEST_TIMEOUT,
    ConnectionSettings,
    Tls,
    TransportName,
    User,
)
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints
from etcd_actions.etcd.tls import check_tls
from etcd_actions.etcd.transport import Connection


@checks_types
def open_etcd(
    endpoints: str | Iterable[str] = "127.0.0.1:2379",
    *,
    transport: TransportName = "grpc",
    tls: Tls | None = None,
    user: User | None = None,
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT,
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT,
    keepalive_time: float = DEFAULT_KEEPALIVE_TIME,
    keepalive_timeout: float = DEFAULT_KEEPALIVE_TIMEOUT,
) -> AbstractAsyncContextManager[Etcd]:
    """Connect to etcd, for ``async with``.

    Nothing is sent before the first call, so an etcd that cannot be reached is not an error here.
    Leaving the context closes the connection: each method then raises
    :class:`trio.ClosedResourceError`.

    Args:
        endpoints: ``host:port``, ``http://host:port`` or ``https://host:port``; several as a
            list or separated by commas. One is used at a time, and the next one after a
            failure.
        transport: ``grpc``, or ``gateway`` for networks that only HTTP/1.1 passes; that needs
            the extra ``gateway``.
        tls: How to encrypt; None encrypts only connections to ``https://`` endpoints.
        user: The user; None for no authentication.
        dial_timeout: Seconds that connecting may take.
        request_timeout: Seconds after which a call raises
            :class:`~etcd_actions.errors.Unavailable`, or for a write
            :class:`~etcd_actions.errors.OutcomeUnknown`.
        keepalive_time: Seconds of silence after which the connection is probed, at least 10.
        keepalive_timeout: Seconds that the answer to the probe may take.

    Raises:
        ConfigError: A setting cannot be used; the message names it.
        WrongType: An argument is of another type.
    """
    return open_connection(
        ConnectionSettings(
            endpoints=parse_endpoints(endpoints),
            transport=transport,
            tls=tls,
            user=user,
            dial_timeout=dial_timeout,
            request_timeout=request_timeout,
            keepalive_time=keepalive_time,
            keepalive_timeout=keepalive_timeout,
        )
    )


@asynccontextmanager
async def open_connection(settings: ConnectionSettings) -> AsyncIterator[EtcdClient]:
    """Connect to etcd by these settings; see :func:`open_etcd`.

    Raises:
        ConfigError: A file of the settings cannot be used; the message names it.
    """
    for tls in {settings.tls_for(endpoint) for endpoint in settings.endpoints}:
        if tls is not None:
            check_tls(tls)
    if settings.user is not None:
        read_password(settings.user)
    async with owned_tasks("the connection to etcd") as nursery:
        client = EtcdClient(settings, _transport(settings, nursery))
        try:
            yield client
        finally:
            client.close()


def _transport(
    settings: ConnectionSettings, nursery: trio.Nursery
) -> Callable[[Endpoint], Connection]:
    """The function that makes connections. A transport is imported only if it is used."""
    match settings.transport:
        case "grpc":
            from etcd_actions.etcd.grpc.transport import grpc_connections  # noqa: PLC0415

            return grpc_connections(settings, nursery)
        case "gateway":
            from etcd_actions.etcd.gateway.transport import gateway_connections  # noqa: PLC0415

            return gateway_connections(settings)
        case _:
            assert_never(settings.transport)
