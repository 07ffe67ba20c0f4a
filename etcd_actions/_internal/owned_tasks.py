"""A nursery for the tasks of something that has an end of its own, such as a client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def owned_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks the body ends. What the body raises comes out as it is."""
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised
