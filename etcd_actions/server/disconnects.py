"""Notices that a client is gone by a callback, where connectrpc has a task for each call.

connectrpc opens a nursery beside each handler, in which a task waits for the next message of the
connection. That costs more than all else that it does. This server calls back instead
(:func:`etcd_actions.web.asgi.on_lost`); the library's code for a call stays as it is, and
is given another watch for it. Where a later version of the library calls that in another way,
its own watch is used, and works.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import trio

from etcd_actions.server.streams import CONNECTION


def without_a_task(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method of the library, with another watch in its event loop."""
    return tuple(
        _Loop(each) if hasattr(each, "watch_for_disconnect") else each for each in arguments
    )


class _Loop:
    """The library's event loop, except for the watch."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def checkpoint(self) -> None:
        """Let a cancellation in; what receives the messages of a stream waits by itself."""
        await trio.lowlevel.checkpoint_if_cancelled()

    def watch_for_disconnect(self, receive: Any, scope: Any, *, cancel: bool = False) -> _Watch:
        """Note that the client is gone, and end what waits for nobody.

        Args:
            receive: The library's view of the request; it learns of it.
            scope: What ends the handler, by its deadline.
            cancel: Whether to end it: a stream looks at its next message.
        """
        return _Watch(receive, scope if cancel else None)


class _Watch:
    """The watch over one call, for as long as the context lasts."""

    def __init__(self, receive: Any, scope: Any) -> None:
        self._receive = receive
        self._scope = scope

    async def __aenter__(self) -> Callable[[], bool]:
        CONNECTION.get().watch(self._lost)
        return lambda: bool(self._receive.disconnected)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        CONNECTION.get().watch(None)

    def _lost(self) -> None:
        # Who reads the body notices it there.
        if self._receive.body_done.is_set():
            self._receive.disconnected = True
            if self._scope is not None:
                self._scope.reschedule(trio.current_time())
