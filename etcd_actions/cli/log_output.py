"""Logs to standard error: readable text on a terminal, and JSON lines elsewhere.

A line is a unit of work: a failure while it is formatted or written loses only that line. A line
that cannot be written is dropped and counted, see :mod:`etcd_actions.cli.stderr`. A value that
cannot be formatted is replaced by a note. The length of a line is limited.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any, Final

from etcd_actions._internal.log_copies import copy_line
from etcd_actions.cli.stderr import TolerantStderr

if TYPE_CHECKING:
    from types import ModuleType

    from structlog.typing import EventDict, Processor, WrappedLogger

    from etcd_actions._internal.containment import Containment

# The most characters of a value, which keeps its beginning, and of a traceback, which keeps its
# end.
_MOST_OF_VALUE: Final = 4_000
_MOST_OF_TRACEBACK: Final = 20_000
_MOST_FIELDS: Final = 50
_MOST_ITEMS: Final = 50
_DEEPEST: Final = 4
_LARGEST_INTEGER: Final = 1 << 128


_containments: Final[list[Containment]] = []


def configure_logs(level: str = "info", form: str = "auto") -> None:
    """Send the logs of this process to standard error.

    Structlog is configured when it is imported, which a command that logs nothing does not do.
    ``form`` is ``console``, ``json``, or ``auto``: ``console`` on a terminal, else ``json``.
    """
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, _AtImport)]
    if "structlog" in sys.modules:
        _configure(level, form)
    else:
        sys.meta_path.insert(0, _AtImport(lambda: _configure(level, form)))


class _AtImport:
    """An import hook that configures structlog as soon as it is imported."""

    def __init__(self, configure: Callable[[], None]) -> None:
        self._configure = configure

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of structlog, with a loader that also configures it; see importlib."""
        if name != "structlog":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._configure()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _configure(level: str, form: str) -> None:
    import structlog  # noqa: PLC0415 (slow to import)

    terminal = sys.stderr is not None and sys.stderr.isatty()
    processors: list[Processor] = [structlog.processors.add_log_level]
    if form == "console" or (form == "auto" and terminal):
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _bounded,
            _copied,
            structlog.dev.ConsoleRenderer(
                colors=terminal and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _bounded,
            _copied,
            _in_order,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[_LineFormatter(processors)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # sys.stderr is read at each line: a progress bar replaces it while it is drawn.
        logger_factory=lambda *_: _StderrLogger(),
    )


def count_failed_lines(containment: Containment) -> None:
    """Count lines that cannot be formatted as failed units ``log_line`` of a containment."""
    _containments[:] = [containment]


def _count_failure() -> None:
    # Counted only: logging it could fail again.
    for containment in _containments:
        containment.count("log_line")


def lines_dropped() -> int:
    """Number of writes to standard error that were dropped since the start."""
    stderr = sys.__stderr__
    return stderr.dropped if isinstance(stderr, TolerantStderr) else 0


class _StderrLogger:
    """Structlog's logger: writes lines to standard error, or drops them."""

    def msg(self, message: str) -> None:
        # One write, so that a line is not truncated.
        try:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            # A closed or full standard error, in a process that is not ours.
            _count_failure()

    log = debug = info = warning = error = critical = exception = msg


class _LineFormatter:
    """Structlog's only processor: formats a line, or a reduced one if that fails.

    Args:
        processors: The real processors, of which the last one returns the text.
    """

    def __init__(self, processors: list[Processor]) -> None:
        self._processors = processors

    def __call__(self, logger: WrappedLogger, method: str, fields: EventDict) -> str:
        event = fields.get("event")
        try:
            made: Any = fields
            for processor in self._processors:
                made = processor(logger, method, made)
            return str(made)
        except Exception as error:
            _count_failure()
            reduced = {"event": _shown(event), "line_failed": type(error).__name__}
            for processor in self._processors:
                reduced = processor(logger, method, reduced)  # type: ignore[assignment]
            return str(reduced)


def _bounded(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Truncate long values, and convert values without a text form."""
    bounded: EventDict = {}
    for name, value in fields.items():
        if len(bounded) == _MOST_FIELDS:
            bounded["fields_omitted"] = len(fields) - _MOST_FIELDS
            break
        if name == "exc_info":
            bounded[name] = value
        elif name == "exception":
            bounded[name] = _tail(str(value))
        else:
            bounded[str(name)[:100]] = _shown(value)
    return bounded


def _copied(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Send a copy of the line to the receivers, such as that of OpenTelemetry."""
    try:
        copy_line({name: value for name, value in fields.items() if name != "exc_info"})
    except Exception:
        # The line itself is written all the same.
        _count_failure()
    return fields


def _shown(value: object, depth: int = 0) -> Any:
    """A value of bounded length that every renderer can show."""
    try:
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < _LARGEST_INTEGER else f"{value.bit_length()} bits"
        if isinstance(value, str):
            return _head(str(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _head(bytes(value[:_MOST_OF_VALUE]).decode(errors="backslashreplace"))
        if depth < _DEEPEST:
            if isinstance(value, Mapping):
                items = list(value.items())[:_MOST_ITEMS]
                return {str(_shown(key, depth + 1)): _shown(each, depth + 1) for key, each in items}
            if isinstance(value, (list, tuple, set, frozenset)):
                return [_shown(each, depth + 1) for each in list(value)[:_MOST_ITEMS]]
        return _head(repr(value))
    except Exception as error:
        _count_failure()
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _head(text: str) -> str:
    omitted = len(text) - _MOST_OF_VALUE
    return text if omitted <= 0 else f"{text[:_MOST_OF_VALUE]}… ({omitted} more)"


def _tail(text: str) -> str:
    omitted = len(text) - _MOST_OF_TRACEBACK
    return text if omitted <= 0 else f"({omitted} more) …{text[-_MOST_OF_TRACEBACK:]}"


def _in_order(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Put the fields that every line has first."""
    return {**{name: fields[name] for name in ("timestamp", "level", "event")}, **fields}
