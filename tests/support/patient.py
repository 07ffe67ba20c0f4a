"""Calls of the tests' own, which must not fail because a member or a leader goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import trio

from etcd_actions.errors import Compacted, Unavailable
from etcd_actions.etcd.api import Etcd

_TRIES = 300
_PAUSE = 0.05

P = ParamSpec("P")
T = TypeVar("T")


async def patiently(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call until etcd answers, so and so often; then the last error is raised.

    A call whose outcome is not known is made again: it may be done twice.
    """
    for _ in range(_TRIES - 1):
        try:
            return await call(*args, **kwargs)
        except Unavailable:
            await trio.sleep(_PAUSE)
    return await call(*args, **kwargs)


async def compact(etcd: Etcd, revision: int) -> None:
    """Drop history below ``revision``; it may be gone already, by a try without an answer."""
    tried = 0

    async def attempt() -> None:
        nonlocal tried
        tried += 1
        try:
            await etcd.compact(revision, physical=True)
        except Compacted:
            if tried == 1:
                raise

    await patiently(attempt)
