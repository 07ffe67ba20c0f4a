"""The backends of the commands that change actions: etcd, through the client, or the service."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.common.identifier_pb2 import ActionIdentifier

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.service_client import open_service_client
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config import settings
from etcd_actions.errors import ConfigError
from etcd_actions.model import DEFAULT_NAMESPACE, ActionId, ActionObject, ErrorState, canonical_name
from etcd_actions.model import flyte as conversions
from etcd_actions.pipeline.watching_settings import WatchingSettings


class Backend(Protocol):
    """The changes that etcd and the service make; their errors are those of the client."""

    async def enqueue(self, request: pb.EnqueueRequest, /) -> None:
        """Create an action."""

    async def abort(self, request: pb.AbortRequest, /) -> str:
        """End an action and all below it; returns the result as text."""

    async def signal(self, request: pb.SignalRequest, /) -> None:
        """Deliver the value of a condition."""

    async def update(
        self, request: pb.UpdateRequest, /, error: ErrorState | None = None, message: str = ""
    ) -> None:
        """Report the phase of an action.

        Raises:
            ConfigError: The service has no field for an error or a message.
        """


class EtcdBackend:
    """Etcd, without a service in between."""

    def __init__(self, client: ActionsClient) -> None:
        self.client = client

    async def enqueue(self, request: pb.EnqueueRequest, /) -> None:
        """See `Backend`."""
        run_spec = request.run_spec if request.HasField("run_spec") else None
        await self.client.enqueue(request.action, run_spec)

    async def abort(self, request: pb.AbortRequest, /) -> str:
        """See `Backend`."""
        named = request.action_id
        # The leader also ends actions below an aborted one: the result of the call lacks those.
        running = _count_running((await self.client.list_run_actions(named.run)).actions, named)
        done = await self.client.abort_action(named, request.reason, request.aborted_by)
        count = max(len(done.aborted), running)
        if count == 0 and done.ended is not None:
            return f"it had ended already: {done.ended.name}"
        return f"aborted {count} action{'' if count == 1 else 's'}"

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


def _count_running(actions: Sequence[ActionObject], top: ActionIdentifier) -> int:
    """Number of actions that are not terminal, of an action and all below it."""
    below: defaultdict[str, list[ActionObject]] = defaultdict(list)
    for action in actions:
        below[action.spec.parent_action_name].append(action)
    name = canonical_name(top.run.name, top.name)
    waiting = [each for each in actions if each.action_id.name == name]
    running = 0
    while waiting:
        action = waiting.pop()
        running += not action.is_terminal
        waiting += below.pop(action.action_id.name, ())
    return running


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
