"""The protocol of a transport: connections to single members, without retries."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import WatchStream
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.rpc import Request, Result, Rpc


class TransportStream(WatchStream, Protocol):
    """A watch stream that another task can end."""

    def fail(self, failure: EtcdError, /) -> None:
        """End the stream: its reader gets the messages that have arrived, then ``failure``."""


class Connection(Protocol):
    """A connection to one member. Nothing is sent before the first call."""

    @property
    def endpoint(self) -> Endpoint:
        """The member's address."""

    @property
    def broken(self) -> bool:
        """Whether a call or a stream has failed because the member cannot be reached.

        A read that timed out counts. A write that timed out does not, because a slow disk delays
        writes.
        """

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        """Do one call. After a cancellation a write may have been applied.

        Args:
            rpc: The method.
            request: Its request.
            token: The user's token; empty without a user.
            within: The most seconds that it may take.

        Raises:
            Unavailable: The member was not reached, or did not answer in time.
            OutcomeUnknown: The same, for a write that may have been sent.
            EtcdError: etcd refuses; see :mod:`etcd_actions.errors`.
        """

    def watch(self, *, token: str) -> AbstractAsyncContextManager[TransportStream]:
        """Open a watch stream; leaving the context closes it, in bounded time."""

    def close(self) -> None:
        """Close the connection, which no call uses."""


class MemberConnection:
    """The base of the connections of all transports.

    Attributes:
        endpoint: The member's address.
        broken: See :class:`Connection`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.broken = False

    def note_broken(self) -> None:
        """Note that the member cannot be reached."""
        self.broken = True
