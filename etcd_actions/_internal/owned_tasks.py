"""The nursery of a public context manager, whose body's errors are not in exception groups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from etcd_actions._internal.containment import describe
from etcd_actions._internal.logger import get_logger
from etcd_actions.errors import BackgroundFailure

_log = get_logger(__name__)


@asynccontextmanager
async def owned_tasks(owner: str) -> AsyncIterator[trio.Nursery]:
    """Open a nursery for the tasks of ``owner``, without exception groups of its own.

    An exception of the body is raised as the same object, after the tasks were cancelled and have
    ended. If the body ends without an exception, the context waits for the tasks; the caller may
    cancel the nursery. A failed task cancels the body.

    If both the body and a task fail, the body's exception is raised; the failure of the task is
    logged, and noted on that exception. KeyboardInterrupt and SystemExit of a task have precedence,
    and are raised unchanged.

    Args:
        owner: The owner of the tasks, for messages.

    Raises:
        BackgroundFailure: A task failed. Its cause is the error, or a group of several.
    """
    raised: BaseException | None = None
    failed: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                cancelled, raised = _split_cancelled(error)
                if cancelled is not None:
                    # The nursery absorbs its own cancellation, and passes on an outer one.
                    raise cancelled from None
                nursery.cancel_scope.cancel(f"the body of {owner} failed")
    except BaseException as error:
        failed = _split_cancelled(error)[1]
        if failed is None and raised is None:
            raise
    if failed is not None:
        _raise_interrupt(failed)
        cause = _single(failed)
        if raised is None:
            raise BackgroundFailure(
                f"a background task of {owner} failed: {describe(cause)}"
            ) from cause
        _log.error("background_task_failed", owner=owner, exc_info=cause)
        raised.add_note(f"A background task of {owner} failed, too: {describe(cause)}")
    if raised is not None:
        raise raised


def _split_cancelled(
    error: BaseException,
) -> tuple[BaseException | None, BaseException | None]:
    """The cancellations in an error, and the rest; an error without any is returned itself."""
    if isinstance(error, trio.Cancelled):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        cancelled, rest = error.split(trio.Cancelled)
        return cancelled, error if cancelled is None else rest
    return None, error


def _raise_interrupt(error: BaseException) -> None:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            _raise_interrupt(each)
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def _single(error: BaseException) -> BaseException:
    """The only error in a group, or the group of several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
