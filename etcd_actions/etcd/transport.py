"""What a transport is: connections to single members, with nothing clever about them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import WatchStream
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.rpc import Request, Result, Rpc


class TransportStream(WatchStream, Protocol):
    """A watch stream that can be ended from outside."""

    def fail(self, failure: EtcdError, /) -> None:
        """End the stream: its reader gets what has arrived, then ``failure``."""


class Connection(Protocol):
    """A connection to one member. It is made without sending anything."""

    @property
    def endpoint(self) -> Endpoint:
        """The member's address."""
        ...

    @property
    def broken(self) -> bool:
        """Whether a call or a stream has found that the member cannot be reached.

        A write that timed out does not count: a slow disk delays writes, which says
        nothing about the connection. A read that timed out does.
        """
        ...

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        """Do one call, in at most ``within`` seconds.

        On cancellation the call is given up; a write may have been applied.

        Args:
            rpc: The method.
            request: Its request.
            token: Proves who the client is; empty without a user.
            within: Seconds.

        Raises:
            Unavailable: The member was not reached, or did not answer in time.
            OutcomeUnknown: The same of a write that may have been sent.
            EtcdError: etcd refuses; see :mod:`etcd_actions.errors`.
        """
        ...

    def watch(self, *, token: str) -> AbstractAsyncContextManager[TransportStream]:
        """Open a watch stream; leaving the context closes it, in bounded time."""
        ...

    def close(self) -> None:
        """Free the connection, which has no users."""
