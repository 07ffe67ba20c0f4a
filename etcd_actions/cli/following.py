"""Follows a stream that ends and is opened again, until the command has its result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import ServiceUnavailable, Unavailable

_BACKOFF = Backoff(initial=0.1, cap=5.0)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


async def follow(
    what: str,
    open_stream: Callable[[], AbstractAsyncContextManager[AsyncIterator[T]]],
    on_item: Callable[[T], bool],
) -> None:
    """Call a function with each item of a stream, until it returns True.

    A stream begins with the present state, so nothing is missed between two of them. While etcd or
    the service is unavailable, a stream is opened again with a back-off, after one warning.

    Args:
        what: The name of the followed object, for the warning.
        open_stream: Opens a stream.
        on_item: Called with each item; returns whether it was the last one that is needed.

    Raises:
        EtcdActionsError: The stream ended with an error that a retry does not change.
    """
    failures = 0
    while True:
        try:
            async with open_stream() as items:
                async for item in items:
                    failures = 0
                    if on_item(item):
                        return
        except* (ServiceUnavailable, Unavailable) as group:
            failures += 1
            if failures == 1:
                _log.warning("stream_broke_retrying", of=what, error=_reason(group))
        await trio.sleep(_BACKOFF.delay(max(failures, 1)))


def _reason(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
