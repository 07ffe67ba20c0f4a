"""Loggers that import structlog when the first line is logged.

structlog is a quarter of what a short command would import, and most of those log nothing. What
is imported by such commands has its logger from here.
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

        # Fetched for each line, as structlog's own do: tests and commands change the configuration.
        return getattr(structlog.get_logger(self._name), method)


def get_logger(name: str) -> FilteringBoundLogger:
    """What ``structlog.get_logger`` gives, in the shape of a logger of a module."""
    return cast("FilteringBoundLogger", _Logger(name))
