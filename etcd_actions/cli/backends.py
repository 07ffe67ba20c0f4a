"""The backends of the commands that change actions: etcd, through the client, or the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.common.identifier_pb2 import ActionIdentifier

from etcd_actions._internal.quoting import quoted
from etcd_actions.actions.abort import AbortResult
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.service_client import open_service_client
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config import settings
from etcd_actions.errors import ConfigError
from etcd_actions.model import DEFAULT_NAMESPACE, ActionId, ErrorState
from etcd_actions.model import flyte as conversions
from etcd_actions.pipeline.watching_settings import WatchingSettings


class Backend(Protocol):
    """The changes that etcd and the service make; their errors are those of the client."""

    async def enqueue(self, request: pb.EnqueueRequest, /) -> bool | None:
        """Create an action; returns whether it did not exist, None if that is unknown."""

    async def abort(self, request: pb.AbortRequest, /) -> AbortResult | None:
        """End an action and all below it; returns the result, None if it is unknown."""

    async def signal(self, request: pb.SignalRequest, /) -> None:
        """Deliver the value of a condition."""

    async def update(
        self, request: pb.UpdateRequest, /, error: ErrorState | None = None, message: str = ""
    ) -> None:
        """Report the phase of an action.

        Raises:
            ConfigError: The service has no method for an error or a message.
        """


class EtcdBackend:
    """Etcd, without a service in between."""

    def __init__(self, client: ActionsClient) -> None:
        self.client = client

    async def enqueue(self, request: pb.EnqueueRequest, /) -> bool | None:
        """See `Backend`."""
        run_spec = request.run_spec if request.HasField("run_spec") else None
        return (await self.client.enqueue(request.action, run_spec)).created

    async def abort(self, request: pb.AbortRequest, /) -> AbortResult | None:
        """See `Backend`."""
        return await self.client.abort_action(request.action_id, request.reason, request.aborted_by)

    async def signal(self, request: pb.SignalRequest, /) -> None:
        """See `Backend`."""
        await self.client.signal(request.action_id, request.value, request.signalled_by)

    async def update(
        self, request: pb.UpdateRequest, /, error: ErrorState | None = None, message: str = ""
    ) -> None:
        """See `Backend`."""
        await self.client.put_status(
            request.action_id, request.attempt, request.status, error=error, message=message
        )


@asynccontextmanager
async def open_client(common: CommonOptions) -> AsyncIterator[ActionsClient]:
    """The client of the etcd of the settings; it does not watch."""
    async with (
        common.open_etcd() as etcd,
        open_actions_client(
            etcd,
            prefix=common.prefix,
            namespace=common.namespace or DEFAULT_NAMESPACE,
            namespace_template=common.config.namespace_template,
            codec=common.config[settings.CODEC],
            settings=WatchingSettings(finalizer=common.config[settings.FINALIZER]),
        ) as client,
    ):
        yield client


@asynccontextmanager
async def open_backend(common: CommonOptions) -> AsyncIterator[Backend]:
    """The service if the settings name one, else etcd."""
    config = common.config
    service = config[settings.SERVICE]
    if service is None:
        async with open_client(common) as client:
            yield EtcdBackend(client)
        return
    async with open_service_client(
        service,
        cacert=config[settings.SERVICE_CACERT],
        token_file=config[settings.SERVICE_TOKEN_FILE],
    ) as backend:
        yield backend


def parse_action(text: str) -> ActionId:
    """Parse ``<project>/<domain>/<run>/<action>``, with or without ``<org>/`` before it.

    Raises:
        ConfigError: It is something else.
    """
    parts = text.split("/")
    if not all(parts) or len(parts) not in (4, 5):
        raise ConfigError(
            f"{quoted(text)} is no action: give <project>/<domain>/<run>/<action>, with the "
            "organisation before that if there is one"
        )
    *org, project, domain, run, name = parts
    return ActionId(project, domain, run, name, "".join(org))


def identifier(text: str) -> ActionIdentifier:
    """The same as Flyte's message."""
    return conversions.action_identifier(parse_action(text))
