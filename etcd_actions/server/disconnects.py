"""Detects by a callback that a client left; connectrpc has a task for that in each call.

connectrpc opens a nursery around each handler, in which a task waits for the next message of the
connection. That costs more than the rest of a call. This server uses a callback instead
(:func:`etcd_actions.web.on_disconnect`): the library's code for a call is unchanged, and gets
another watch. If a later version of the library watches in another way, its own watch is used.
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
        """Allow a cancellation; the receiver of a stream's messages has its own checkpoints."""
        await trio.lowlevel.checkpoint_if_cancelled()

    def watch_for_disconnect(self, receive: Any, scope: Any, *, cancel: bool = False) -> _Watch:
        """Note that the client left, and end the handler.

        Args:
            receive: The library's view of the request, in which the end is noted.
            scope: Ends the handler, by its deadline.
            cancel: Whether to end it: a stream checks ``receive`` at its next message.
        """
        return _Watch(receive, scope if cancel else None)


class _Watch:
    """The watch of one call, while the context is open."""

    def __init__(self, receive: Any, scope: Any) -> None:
        self._receive = receive
        self._scope = scope

    async def __aenter__(self) -> Callable[[], bool]:
        CONNECTION.get().watch(self._on_disconnect)
        return lambda: bool(self._receive.disconnected)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        CONNECTION.get().watch(None)

    def _on_disconnect(self) -> None:
        # Otherwise the reader of the body detects it.
        if self._receive.body_done.is_set():
            self._receive.disconnected = True
            if self._scope is not None:
                self._scope.reschedule(trio.current_time())
