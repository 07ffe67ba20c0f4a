"""Waiting for what rings no bell."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio.testing

T = TypeVar("T")


async def eventually(
    condition: Callable[[], bool], *, within: float = 60, every: float = 0.005
) -> None:
    """Return once ``condition`` holds, looking again and again; fail after a minute."""
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - other threads and processes ring no bell
            await trio.sleep(every)


async def eventually_holds(
    question: Callable[[], Awaitable[bool]], *, within: float = 60, every: float = 0.01
) -> None:
    """The same of what has to be asked for: etcd, a service, or another thread."""
    with trio.fail_after(within):
        while not await question():  # noqa: ASYNC110 - what is asked rings no bell
            await trio.sleep(every)


async def until_done(
    call: Callable[[], Awaitable[T]], *, despite: type[Exception], within: float = 120
) -> T:
    """What ``call`` returns once it no longer raises ``despite``."""
    with trio.fail_after(within):
        while True:
            try:
                return await call()
            except despite:
                await trio.sleep(0.02)


def stand_still(seconds: float) -> None:
    """Let time pass while no task runs, as when the process is stopped."""
    clock = trio.lowlevel.current_clock()
    if isinstance(clock, trio.testing.MockClock):
        clock.jump(seconds)
    else:
        time.sleep(seconds)
