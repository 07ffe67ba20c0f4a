"""Logs: structlog to stderr, for people on a terminal and as JSON lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "console", "json")


def configure_logs(level: str = "info", form: str = "auto") -> None:
    """Send the logs of this process to stderr.

    Args:
        level: One of :data:`LEVELS`.
        form: One of :data:`FORMATS`; ``auto`` is ``console`` on a terminal, else ``json``.
    """
    terminal = sys.stderr.isatty()
    processors: list[Processor] = [structlog.processors.add_log_level]
    if form == "console" or (form == "auto" and terminal):
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=terminal and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # Looked up at each line: a progress bar replaces sys.stderr while it is drawn.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def _in_order(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Put what every line has before the rest, for those who read JSON with their eyes."""
    return {**{name: fields[name] for name in ("timestamp", "level", "event")}, **fields}
