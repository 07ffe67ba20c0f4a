"""Opens what the commands use: etcd through the client, or the service, by the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions.actions.abort import AbortResult
from etcd_actions.cli.etcd_names import EtcdNameLookup
from etcd_actions.cli.names import NameLookup
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.service_address import address_of_service
from etcd_actions.cli.service_client import ServiceClient, open_service_client
from etcd_actions.cli.service_dead_letters import ServiceDeadLetters
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config import settings
from etcd_actions.etcd import Etcd
from etcd_actions.model import DEFAULT_NAMESPACE, ErrorState
from etcd_actions.pipeline.watching_settings import WatchingSettings

if TYPE_CHECKING:
    from etcd_actions.cli.reader import Reader


DeadLetters: TypeAlias = ActionsClient | ServiceDeadLetters
"""Lists, retries and deletes dead letters, in etcd or through the service."""


class Backend(Protocol):
    """The operations that change an action, on etcd or by the service.

    They raise the errors of :class:`~etcd_actions.ActionsClient`'s methods, and by the service also
    ServiceError. After a cancellation, or without an answer, the change may have been made.
    """

    @property
    def names(self) -> NameLookup:
        """The names of runs and actions."""

    async def enqueue(self, request: pb.EnqueueRequest, /) -> bool | None:
        """Create an action; returns whether this call did, None if the service does not report it.

        False means that an earlier, equal request created it.
        """

    async def abort(self, request: pb.AbortRequest, /) -> AbortResult | None:
        """End an action and all below it; returns None if the service reports no result."""

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
    """Implements :class:`Backend` on etcd, by a client in this process."""

    def __init__(self, client: ActionsClient, names: NameLookup) -> None:
        self.client = client
        self.names = names

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
    """Open a client of the etcd that the settings name; it does not watch."""
    async with open_etcd_backend(common) as backend:
        yield backend.client


@asynccontextmanager
async def open_etcd_backend(common: CommonOptions) -> AsyncIterator[EtcdBackend]:
    """Open the backend on the etcd that the settings name."""
    async with common.open_etcd() as etcd, _open_client(common, etcd) as client:
        yield EtcdBackend(client, _names(common, etcd))


def open_backend(common: CommonOptions) -> AbstractAsyncContextManager[Backend]:
    """Open the backend: the service if the settings name one, else etcd."""
    if common.config[settings.SERVICE] is None:
        return open_etcd_backend(common)
    return open_service(common)


@asynccontextmanager
async def open_reader(common: CommonOptions, *, files: bool = False) -> AsyncIterator[Reader]:
    """Open a reader of the service if the settings name one, else of etcd.

    Args:
        common: The settings.
        files: Whether the reader's ``calls`` are to have the methods for files of runs, too. On
            etcd these use the blob store and the executor's directory of the settings.
    """
    from etcd_actions.cli.reader import Reader  # noqa: PLC0415 (slow to import)

    if common.config[settings.SERVICE] is not None:
        async with open_service(common) as service:
            yield Reader(service, service.names)
        return
    async with open_etcd_reader(common, files=files) as (_, reader):
        yield reader


@asynccontextmanager
async def open_etcd_reader(
    common: CommonOptions, *, files: bool = False
) -> AsyncIterator[tuple[ActionsClient, Reader]]:
    """Open a client of the etcd that the settings name, and a reader; see :func:`open_reader`."""
    from etcd_actions.cli.local_calls import open_local_calls  # noqa: PLC0415 (slow to import)
    from etcd_actions.cli.reader import Reader  # noqa: PLC0415 (slow to import)

    async with (
        common.open_etcd() as etcd,
        _open_client(common, etcd) as client,
        AsyncExitStack() as stack,
    ):
        front = None
        if files:
            from etcd_actions.app.front_door import local_front_door  # noqa: PLC0415

            front = await local_front_door(common.config, client, etcd)
        calls = await stack.enter_async_context(open_local_calls(etcd, client, front))
        yield client, Reader(calls, _names(common, etcd))


@asynccontextmanager
async def open_dead_letters(common: CommonOptions) -> AsyncIterator[DeadLetters]:
    """Open the dead letters of the service if the settings name one, else those in etcd."""
    if common.config[settings.SERVICE] is None:
        async with open_client(common) as client:
            yield client
        return
    async with open_service(common) as service:
        yield ServiceDeadLetters(service)


@asynccontextmanager
async def open_service(common: CommonOptions) -> AsyncIterator[ServiceClient]:
    """Open a client of the service that the settings name."""
    config = common.config
    async with open_service_client(
        await address_of_service(config),
        cacert=config[settings.SERVICE_CACERT],
        token_file=config[settings.SERVICE_TOKEN_FILE],
    ) as client:
        yield client


def _open_client(common: CommonOptions, etcd: Etcd) -> AbstractAsyncContextManager[ActionsClient]:
    return open_actions_client(
        etcd,
        prefix=common.prefix,
        namespace=common.namespace or DEFAULT_NAMESPACE,
        namespace_template=common.config.namespace_template,
        codec=common.config[settings.CODEC],
        settings=WatchingSettings(finalizer=common.config[settings.FINALIZER]),
    )


def _names(common: CommonOptions, etcd: Etcd) -> EtcdNameLookup:
    """The lookup of names in the namespaces that the client uses."""
    only = common.namespace
    if only is None and common.config.namespace_template is None:
        only = DEFAULT_NAMESPACE
    return EtcdNameLookup(etcd, common.prefix, only)
