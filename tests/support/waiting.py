"""Waiting for what rings no bell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


async def eventually(condition: Callable[[], bool], *, within: float = 60) -> None:
    """Return once ``condition`` holds, looking again and again; fail after a minute."""
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - other threads and processes ring no bell
            await trio.sleep(0.005)


async def eventually_holds(question: Callable[[], Awaitable[bool]], *, within: float = 60) -> None:
    """The same of what has to be asked for: etcd, a service, or another thread."""
    with trio.fail_after(within):
        while not await question():  # noqa: ASYNC110 - what is asked rings no bell
            await trio.sleep(0.01)
