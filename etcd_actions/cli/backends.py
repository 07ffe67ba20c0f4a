"""Who does what a command asks for: etcd, through the client, or the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.common.identifier_pb2 import ActionIdentifier

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.service_client import open_service_client
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config.settings import (
    CODEC,
    FINALIZER,
    SERVICE,
    SERVICE_CACERT,
    SERVICE_TOKEN_FILE,
)
from etcd_actions.errors import ConfigError
from etcd_actions.model import DEFAULT_NAMESPACE, ActionId
from etcd_actions.model import flyte as conversions
from etcd_actions.pipeline.watching_settings import WatchingSettings


class Asked(Protocol):
    """What can be asked of either."""

    async def enqueue(self, request: pb.EnqueueRequest, /) -> None:
        """Create an action."""

    async def abort(self, request: pb.AbortRequest, /) -> None:
        """End an action and all below it."""

    async def signal(self, request: pb.SignalRequest, /) -> None:
        """Give a condition its value."""

    async def update(self, request: pb.UpdateRequest, /) -> None:
        """Report how far an action is."""


class Directly:
    """Etcd, without a service in between."""

    def __init__(self, client: ActionsClient) -> None:
        self.client = client

    async def enqueue(self, request: pb.EnqueueRequest, /) -> None:
        """Create an action."""
        run_spec = request.run_spec if request.HasField("run_spec") else None
        await self.client.enqueue(request.action, run_spec)

    async def abort(self, request: pb.AbortRequest, /) -> None:
        """End an action and all below it."""
        await self.client.abort_action(request.action_id, request.reason, request.aborted_by)

    async def signal(self, request: pb.SignalRequest, /) -> None:
        """Give a condition its value."""
        await self.client.signal(request.action_id, request.value, request.signalled_by)

    async def update(self, request: pb.UpdateRequest, /) -> None:
        """Report how far an action is."""
        await self.client.put_status(request.action_id, request.attempt, request.status)


@asynccontextmanager
async def open_client(common: CommonOptions) -> AsyncIterator[ActionsClient]:
    """The client that a command uses; it watches only what it is asked for."""
    async with (
        common.open_etcd() as etcd,
        open_actions_client(
            etcd,
            prefix=common.prefix,
            namespace=common.namespace or DEFAULT_NAMESPACE,
            namespace_template=common.config.namespace_template,
            codec=common.config[CODEC],
            settings=WatchingSettings(finalizer=common.config[FINALIZER]),
        ) as client,
    ):
        yield client


@asynccontextmanager
async def open_asked(common: CommonOptions) -> AsyncIterator[Asked]:
    """Whoever the settings say: the service where one is named, else etcd."""
    config = common.config
    service = config[SERVICE]
    if service is None:
        async with open_client(common) as client:
            yield Directly(client)
        return
    async with open_service_client(
        service, cacert=config[SERVICE_CACERT], token_file=config[SERVICE_TOKEN_FILE]
    ) as asked:
        yield asked


def action_named(text: str) -> ActionId:
    """Read ``<project>/<domain>/<run>/<action>``, or that with ``<org>/`` before it.

    Raises:
        ConfigError: It is something else.
    """
    parts = text.split("/")
    if not all(parts) or len(parts) not in (4, 5):
        raise ConfigError(
            f"{quoted(text)} is no action: give <project>/<domain>/<run>/<action>, with the "
            "organisation before that where it counts"
        )
    *org, project, domain, run, name = parts
    return ActionId(project, domain, run, name, "".join(org))


def identifier(text: str) -> ActionIdentifier:
    """The same as Flyte's message."""
    return conversions.action_identifier(action_named(text))
