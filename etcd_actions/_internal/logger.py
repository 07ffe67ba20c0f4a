"""Loggers that import structlog when the first line is logged.

The import of structlog is a quarter of the start of a short command, and most commands log nothing.
So the modules that such commands import get their loggers here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class _Logger:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog  # noqa: PLC0415

        # For each line, as structlog does: tests and commands change the configuration.
        return getattr(structlog.get_logger(self._name), method)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger, as ``structlog.get_logger`` returns it."""
    return cast("FilteringBoundLogger", _Logger(name))
