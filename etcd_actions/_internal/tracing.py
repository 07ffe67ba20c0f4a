"""Spans of OpenTelemetry, where a program uses it.

Nothing is imported for them: they are made once other code has imported
``opentelemetry.trace``, and go to the provider that it has set.
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
    """The span of a call that came from outside, below the caller's own.

    Begin and end are apart: both have to be in the same task.

    Args:
        name: What it is called.
        headers: Of the call; ``traceparent`` and ``tracestate`` count.
        attributes: What it is about.
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
        """End it, with a code of Connect's."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        self._span.set_attribute("rpc.connect_rpc.error_code", code)
        if code not in ("ok", "already_exists"):
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._context.detach(self._token)
        self._span.end()
        self._span = None
