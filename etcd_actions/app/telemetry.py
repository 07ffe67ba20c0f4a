"""OpenTelemetry's traces of a process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog
import trio

from etcd_actions import __version__
from etcd_actions.config.settings import OTLP_ENDPOINT
from etcd_actions.errors import ConfigError
from etcd_actions.web.bind import Bind

_FLUSH_WITHIN = 2.0

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_telemetry(endpoint: str | None) -> AsyncIterator[None]:
    """Send traces to a collector while the context is open, the remaining ones at its end.

    Without an endpoint it does nothing. OpenTelemetry logs that a collector is unavailable.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield
        return
    try:
        import requests  # noqa: PLC0415
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{OTLP_ENDPOINT.flag}: no traces can be sent ({error}): "
            "pip install etcd-actions[telemetry]"
        ) from error
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    resource = Resource.create({"service.name": "etcd-actions", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    session = requests.Session()
    # A proxy of the environment is for other machines.
    session.trust_env = not Bind(urlsplit(endpoint).hostname or "", 0).is_loopback
    exporter = OTLPSpanExporter(
        endpoint=f"{endpoint}/v1/traces", timeout=_FLUSH_WITHIN, session=session
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _log.info("tracing", endpoint=endpoint)
    try:
        yield
    finally:
        # A collector that accepts nothing is left to an abandoned thread.
        with trio.move_on_after(_FLUSH_WITHIN, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)
