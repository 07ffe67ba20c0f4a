"""Waiting for what rings no bell."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def eventually(condition: Callable[[], bool], *, within: float = 60) -> None:
    """Return once ``condition`` holds, looking again and again; fail after a minute."""
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - other threads and processes ring no bell
            await trio.sleep(0.005)
