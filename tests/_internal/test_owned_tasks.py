"""A public context raises what its body raised, and one documented error for its tasks."""

# ruff: noqa: PT012 - what must raise is a context with its body

from __future__ import annotations

import pytest
import structlog
import trio
import trio.testing

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import BackgroundFailure, NotFound


async def fail(error: BaseException) -> None:
    raise error


async def fail_when_cancelled(error: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise error


class NoException(BaseException):
    """What is not for ``except Exception``."""


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no such action"),
        ExceptionGroup("the caller's own", [ValueError(), KeyError()]),
        KeyboardInterrupt(),
        SystemExit(3),
        NoException(),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_error_of_the_body_comes_out_as_the_same_object(error: BaseException) -> None:
    cause = error.__cause__ = LookupError("why")
    context = error.__context__ = LookupError("where")
    with pytest.raises(type(error)) as raised:
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (cause, context)


@pytest.mark.parametrize(
    "error", [LookupError("crash"), NoException("crash")], ids=lambda error: type(error).__name__
)
async def test_a_failed_task_cancels_the_body_and_has_one_form(error: BaseException) -> None:
    with pytest.raises(BackgroundFailure) as raised:
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert raised.value.__cause__ is error
    assert str(raised.value) == (
        f"a background task of a test failed: {type(error).__name__}: crash"
    )


async def test_a_failed_task_is_reported_by_each_context_only_once() -> None:
    crash = LookupError()
    with pytest.raises(BackgroundFailure, match="the inner") as raised:
        async with owned_tasks("the outer"), owned_tasks("the inner") as nursery:
            nursery.start_soon(fail, crash)
            await trio.sleep_forever()
    assert raised.value.__cause__ is crash
    with pytest.raises(BackgroundFailure, match="the outer") as raised:
        async with owned_tasks("the outer") as nursery, owned_tasks("the inner"):
            nursery.start_soon(fail, crash)
            await trio.sleep_forever()
    assert raised.value.__cause__ is crash


async def test_several_failed_tasks_are_the_cause_as_a_group() -> None:
    with pytest.raises(BackgroundFailure) as raised:
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(fail_when_cancelled, KeyError())
            nursery.start_soon(fail_when_cancelled, ValueError())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    cause = raised.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert {type(each) for each in cause.exceptions} == {KeyError, ValueError}


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_of_a_task_comes_before_other_errors(
    interrupt: type[BaseException],
) -> None:
    with pytest.raises(interrupt):
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(fail_when_cancelled, interrupt())
            nursery.start_soon(fail_when_cancelled, ValueError())
            await trio.testing.wait_all_tasks_blocked()
            raise NotFound("no such action")


async def test_when_both_fail_the_body_has_its_error_and_the_task_its_log_line() -> None:
    with (
        structlog.testing.capture_logs() as lines,
        pytest.raises(NotFound) as raised,
    ):
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(fail_when_cancelled, LookupError("crash"))
            await trio.testing.wait_all_tasks_blocked()
            raise NotFound("no such action")
    assert raised.value.__notes__ == ["A background task of a test failed, too: LookupError: crash"]
    [line] = lines
    assert (line["event"], line["owner"]) == ("background_task_failed", "a test")
    assert isinstance(line["exc_info"], LookupError)


async def test_an_error_in_the_clean_up_of_a_crash_comes_out_with_a_note() -> None:
    with pytest.raises(NotFound) as raised:
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(fail, LookupError("crash"))
            try:
                await trio.sleep_forever()
            finally:
                raise NotFound("found in the clean-up")
    assert "LookupError: crash" in raised.value.__notes__[0]


async def test_a_cancellation_from_outside_passes() -> None:
    with trio.CancelScope() as scope:
        async with owned_tasks("the outer") as nursery, owned_tasks("the inner"):
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_cancellation_of_the_nursery_ends_at_it() -> None:
    async with owned_tasks("a test") as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()


async def test_cancelled_siblings_in_a_group_of_the_body_are_dropped() -> None:
    """The caller's own nursery in the body has an error, and a cancelled task."""
    with trio.CancelScope() as scope:
        with pytest.raises(ExceptionGroup) as raised:
            async with owned_tasks("a test"), trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(fail_when_cancelled, ValueError())
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert [type(each) for each in raised.value.exceptions] == [ValueError]


async def test_an_error_of_a_task_beats_a_cancellation() -> None:
    with trio.CancelScope() as scope, pytest.raises(BackgroundFailure):
        async with owned_tasks("a test") as nursery:
            nursery.start_soon(fail_when_cancelled, ValueError())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()


async def test_without_errors_the_tasks_end_by_themselves() -> None:
    ended = False

    async def end() -> None:
        nonlocal ended
        await trio.testing.wait_all_tasks_blocked()
        ended = True

    async with owned_tasks("a test") as nursery:
        nursery.start_soon(end)
    assert ended
