"""Spans of OpenTelemetry, if the program uses it.

This module does not import OpenTelemetry. Spans are made after other code has imported
``opentelemetry.trace``, by the provider that it has set. An action's object carries the
context of the span that created it, as W3C's ``traceparent``: the spans of other tasks and
processes about the action are below that one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final

TRACEPARENT: Final = "traceparent"
"""The header of W3C's trace context."""

_NAME: Final = "etcd_actions"
_NOTHING: Final = nullcontext()
# Whether the present call is the root of its trace: its caller sent no context.
_is_root: ContextVar[bool] = ContextVar("is_root", default=False)


def span(
    name: str, attributes: Mapping[str, str | int] | None = None
) -> AbstractContextManager[Any]:
    """A span around a block; an exception ends it as a failure."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return _NOTHING
    made: AbstractContextManager[Any] = api.get_tracer(_NAME).start_as_current_span(
        name, attributes=attributes
    )
    return made


def is_traced() -> bool:
    """Whether this program uses OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


def traceparent(inherited: str = "") -> str:
    """The context of the current span as W3C's header; without one, ``inherited``.

    Args:
        inherited: The context of the action above. It comes before that of a call whose caller
            sent none, so that a run stays one trace.
    """
    if not is_traced() or (inherited and _is_root.get()):
        return inherited
    from opentelemetry import trace  # noqa: PLC0415

    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return inherited
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


def below(parent: str) -> AbstractContextManager[None]:
    """Make the spans of a block children of the span of a ``traceparent``, which may be empty."""
    return _below(parent) if parent and is_traced() else _NOTHING


@contextmanager
def _below(parent: str) -> Iterator[None]:
    from opentelemetry import context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    token = context.attach(TraceContextTextMapPropagator().extract({TRACEPARENT: parent}))
    try:
        yield
    finally:
        context.detach(token)


class CallSpan:
    """The span of a call from outside, below the caller's own span.

    Its creation and :meth:`end` have to be in the same task.

    Args:
        name: The name of the span.
        headers: The headers of the call; ``traceparent`` and ``tracestate`` are used.
        attributes: The attributes of the span.
    """

    def __init__(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> None:
        self._span: Any = None
        if not is_traced():
            return
        from opentelemetry import context, propagate, trace  # noqa: PLC0415

        parent = propagate.extract(headers)
        self._context = context
        self._span = trace.get_tracer(_NAME).start_span(
            name, context=parent, kind=trace.SpanKind.SERVER, attributes=attributes
        )
        _is_root.set(not trace.get_current_span(parent).get_span_context().is_valid)
        self._token = context.attach(trace.set_span_in_context(self._span, parent))

    def end(self, code: str) -> None:
        """End the span, with a status code of Connect."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        self._span.set_attribute("rpc.connect_rpc.error_code", code)
        if code not in ("ok", "already_exists"):
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._context.detach(self._token)
        self._span.end()
        self._span = None
