"""Keeps an executor open: opens it again after errors of etcd, ends the process for wrong settings.

While etcd rejects requests, only the executor waits: it is parked in the containment.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.app.stop import Stop
from etcd_actions.errors import ConfigError, EtcdError, first_error

T = TypeVar("T")

_BACKOFF: Final = Backoff(initial=0.5, cap=30.0)

_log = structlog.get_logger(__name__)


async def keep_executor(
    open_executor: Callable[[], AbstractAsyncContextManager[T]],
    opened: Callable[[T], None],
    *,
    name: str,
    containment: Containment,
    stop: Stop,
) -> None:
    """Run an executor until cancelled.

    Args:
        open_executor: Opens the executor.
        opened: Called with the result each time that the executor was opened.
        name: The identity of the unit ``executor``.
        containment: The boundary.
        stop: Is requested to end the process if the executor raises a ConfigError.
    """

    def report(error: Exception, failures: int, delay: float) -> None:
        containment.park("executor", name, error)
        seldom(_log, "executor_waits")(error, failures, delay)

    async def execute() -> None:
        try:
            async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
                with attempt:
                    async with open_executor() as found:
                        attempt.recovered()
                        containment.forget("executor", name)
                        opened(found)
                        await trio.sleep_forever()
        except* ConfigError as group:
            stop.request(first_error(group))

    await containment.keep("executor", name, execute)
