"""OpenTelemetry's traces and logs of a process, sent to a collector."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog
import trio

from etcd_actions import __version__
from etcd_actions._internal.log_copies import copying
from etcd_actions.config.settings import OTLP_ENDPOINT
from etcd_actions.errors import ConfigError
from etcd_actions.web.bind import Bind

if TYPE_CHECKING:
    from opentelemetry._logs import Logger

# Seconds for one export, and for the last ones at the end.
_FLUSH_WITHIN = 2.0
_ANSWERED_WITHIN: Final = 10.0
"""Seconds after which an export that has not returned is logged."""
_LIBRARY: Final = "opentelemetry"
_OWN_FIELDS: Final = ("event", "level", "timestamp")

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_telemetry(endpoint: str | None) -> AsyncIterator[None]:
    """Send traces and logs to a collector while the context is open, the rest at its end.

    Without an endpoint it does nothing. Each outage of the collector is logged once when it begins,
    and once when it has ended.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield
        return
    try:
        import requests  # noqa: PLC0415
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{OTLP_ENDPOINT.flag}: no traces can be sent ({error}): "
            "pip install etcd-actions[telemetry]"
        ) from error
    resource = Resource.create({"service.name": "etcd-actions", "service.version": __version__})
    outage = Outage(endpoint)
    library = logging.getLogger(_LIBRARY)
    library.setLevel(logging.WARNING)
    library.addHandler(outage)
    library.propagate = False
    sessions = [requests.Session(), requests.Session()]
    for session in sessions:
        # A proxy of the environment is for other machines.
        session.trust_env = not Bind(urlsplit(endpoint).hostname or "", 0).is_loopback
    spans = OTLPSpanExporter(
        endpoint=f"{endpoint}/v1/traces", timeout=_FLUSH_WITHIN, session=sessions[0]
    )
    lines = OTLPLogExporter(
        endpoint=f"{endpoint}/v1/logs", timeout=_FLUSH_WITHIN, session=sessions[1]
    )
    # At the end of the interpreter a shutdown would wait for the collector once more.
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(_watched(spans, outage)))
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    loggers.add_log_record_processor(BatchLogRecordProcessor(_watched(lines, outage)))
    trace.set_tracer_provider(tracers)
    _log.info("tracing", endpoint=endpoint)
    try:
        with copying(_Copies(loggers.get_logger("etcd_actions"))):
            yield
    finally:
        # A collector that accepts nothing is left to abandoned threads.
        with trio.move_on_after(_FLUSH_WITHIN, shield=True):
            async with trio.open_nursery() as nursery:
                for shutdown in (tracers.shutdown, loggers.shutdown):
                    nursery.start_soon(_in_thread, shutdown)
        library.removeHandler(outage)


async def _in_thread(shutdown: Any) -> None:
    await trio.to_thread.run_sync(shutdown, abandon_on_cancel=True)


class Outage(logging.Handler):
    """Whether the collector is unavailable to an exporter, and the reason from the library's log.

    Its methods are called in the exporters' threads.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._guard = threading.Lock()
        self._export = threading.local()
        self._failed: set[object] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first text of an export: later ones only repeat that the export failed."""
        self._export.reason = getattr(self._export, "reason", "") or record.getMessage()

    def begin(self) -> None:
        """Note that an export starts in this thread."""
        self._export.reason = ""

    def note(self, exporter: object, *, succeeded: bool, reason: str = "") -> None:
        """Note the result of an export; without a reason the text of this thread's export is it."""
        with self._guard:
            before = bool(self._failed)
            if succeeded:
                self._failed.discard(exporter)
            else:
                self._failed.add(exporter)
            after = bool(self._failed)
        if after and not before:
            error = reason or getattr(self._export, "reason", "")
            _log.warning("collector_unavailable", endpoint=self._endpoint, error=error)
        elif before and not after:
            _log.info("collector_available", endpoint=self._endpoint)


class Watched:
    """An exporter of spans or of log records whose failures are noted.

    An export that does not return counts as failed, too: the library limits the time between two
    bytes of a response, and not the time of all of it.

    Args:
        exporter: The exporter.
        outage: Notes the failures.
        within: Seconds after which an export that has not returned counts as failed.
    """

    def __init__(self, exporter: Any, outage: Outage, within: float = _ANSWERED_WITHIN) -> None:
        self._exporter = exporter
        self._outage = outage
        self._within = within

    def export(self, batch: Sequence[Any]) -> Any:
        """Send a batch."""
        late = threading.Timer(self._within, self._note_late)
        late.daemon = True
        late.start()
        self._outage.begin()
        try:
            result = self._exporter.export(batch)
        finally:
            late.cancel()
        self._outage.note(self, succeeded=result.name == "SUCCESS")
        return result

    def _note_late(self) -> None:
        reason = f"no complete response within {self._within:g} s"
        self._outage.note(self, succeeded=False, reason=reason)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)


def _watched(exporter: Any, outage: Outage) -> Any:
    return Watched(exporter, outage)


class _Copies:
    """Sends log lines to the collector, with the trace that they belong to."""

    def __init__(self, logger: Logger) -> None:
        from opentelemetry._logs import SeverityNumber  # noqa: PLC0415

        self._logger = logger
        self._severities = {
            "debug": SeverityNumber.DEBUG,
            "info": SeverityNumber.INFO,
            "warning": SeverityNumber.WARN,
            "error": SeverityNumber.ERROR,
            "critical": SeverityNumber.FATAL,
        }

    def __call__(self, fields: dict[str, Any]) -> None:
        level = str(fields.get("level"))
        attributes = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in fields.items()
            if name not in _OWN_FIELDS and value is not None
        }
        self._logger.emit(
            severity_text=level,
            severity_number=self._severities.get(level),
            body=str(fields.get("event")),
            attributes=attributes,
        )
