"""The protocol by which commands call gRPC methods: of the service, or in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)

ACTIONS: Final = "flyteidl2.actions.ActionsService"
RUNS: Final = "flyteidl2.workflow.RunService"
DATA: Final = "flyteidl2.dataproxy.DataProxyService"
OPERATIONS: Final = "etcd_actions.operations.Operations"
"""Our own methods, which Flyte's service does not have."""


class Calls(Protocol):
    """Calls methods by the full name of their service and their own name.

    The implementations are :class:`~etcd_actions.cli.service_client.ServiceClient` and
    :class:`~etcd_actions.cli.local_calls.LocalCalls`. The errors are those of
    :mod:`etcd_actions.errors`: of the action, of etcd, or of the service.
    """

    async def unary(
        self, service: str, method: str, request: Message, kind: type[MessageT], /
    ) -> MessageT:
        """Do a unary call; returns its response, of the type ``kind``."""

    def stream(
        self, service: str, method: str, request: Message, kind: type[MessageT], /
    ) -> AbstractAsyncContextManager[AsyncIterator[MessageT]]:
        """Open a server-streaming call; its responses are of the type ``kind``."""
