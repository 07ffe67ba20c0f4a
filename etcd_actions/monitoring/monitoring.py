"""Serves ``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from etcd_actions.client import ActionsClient
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd
from etcd_actions.monitoring.health import Health
from etcd_actions.monitoring.readiness import Readiness
from etcd_actions.web import (
    Application,
    Bind,
    HttpLimits,
    Message,
    Receive,
    Send,
    descriptors,
    open_listener,
)

if TYPE_CHECKING:
    from etcd_actions.monitoring.metrics import Metrics

_FLAG = "--monitoring-listen"
_MOST_CONNECTIONS: Final = 64
# Requests take milliseconds, so a probe may replace an older connection. It may use some of the
# file descriptors that the service keeps in reserve.
_LIMITS: Final = HttpLimits(
    streams_per_connection=100,
    replaces_busy=True,
    reserve=0.1,
    header_timeout=5.0,
    body_timeout=5.0,
    stall_timeout=5.0,
    header_bytes=16 * 1024,
)
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_monitoring(
    client: ActionsClient,
    etcd: Etcd,
    bind: Bind,
    *,
    prefix: bytes,
    silence_limit: float,
    allowed_hosts: Collection[str] = (),
    limits: HttpLimits | None = None,
) -> AsyncIterator[Monitoring]:
    """Serve health and metrics of a client for as long as the context lasts.

    Args:
        client: The client that is monitored.
        etcd: Its connection.
        bind: Where to listen; every client that can connect may read.
        prefix: A key below which the client may read.
        silence_limit: Seconds for which etcd may be silent.
        allowed_hosts: See :func:`~etcd_actions.web.open_listener`.
        limits: The limits of this listener, so that probes are answered while the service is
            overloaded; None for 64 connections with short timeouts.

    Raises:
        ConfigError: The address cannot be used, or the extra ``server`` is not installed.
    """
    try:
        from etcd_actions.monitoring.metrics import Metrics  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_FLAG}: nothing can be served ({error}): pip install etcd-actions[server]"
        ) from error
    if limits is None:
        most = min(_MOST_CONNECTIONS, descriptors.ceiling(_LIMITS))
        limits = replace(_LIMITS, connections=most, connections_per_address=most)
    health = Health(client, etcd, prefix, silence_limit=silence_limit)
    metrics = Metrics(client, health)
    async with open_listener(
        _application(health, metrics),
        bind,
        flag=_FLAG,
        limits=limits,
        allowed_hosts=allowed_hosts,
        containment=client.containment,
        grace=1,
    ) as listener:
        metrics.listeners["monitoring"] = listener.statistics
        _log.info("monitoring", listen=str(listener.address))
        yield Monitoring(listener.address, health, metrics)


class Monitoring(NamedTuple):
    """The listener with its parts; made by :func:`open_monitoring`.

    Attributes:
        address: The address of the listener, with the port that the system chose.
        health: The health of the process; set ``draining`` before it ends.
        metrics: The metrics; set ``server``, ``executor`` and further ``listeners`` once they are
            open.
    """

    address: Bind
    health: Health
    metrics: Metrics


def _accepts_json(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"accept" and b"application/json" in value for name, value in headers)


def _application(health: Health, metrics: Metrics) -> Application:
    async def answer(scope: Message, _receive: Receive, send: Send) -> None:
        status, kind, body = 404, "text/plain", b"there are /healthz, /readyz and /metrics\n"
        if scope["method"] not in ("GET", "HEAD"):
            status, body = 405, b"GET only\n"
        elif scope["path"] == "/healthz":
            status, body = 200, b"ok\n"
        elif scope["path"] == "/readyz":
            readiness = Readiness(await health.ready())
            status = 200 if readiness.ready else 503
            if _accepts_json(scope["headers"]):
                kind, body = "application/json", readiness.json()
            else:
                names = [part.partition(b"=")[0] for part in scope["query_string"].split(b"&")]
                is_verbose = b"verbose" in names
                body = readiness.text(verbose=is_verbose)
        elif scope["path"] == "/metrics":
            status, kind, body = 200, _TEXT, await metrics.text()
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        sent = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": sent})

    return answer
