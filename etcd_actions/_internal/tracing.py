"""Spans of OpenTelemetry, if the program uses it.

This module does not import OpenTelemetry. Spans are made after other code has imported
``opentelemetry.trace``, by the provider that it has set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

_NAME: Final = "etcd_actions"
_NOTHING: Final = nullcontext()


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
