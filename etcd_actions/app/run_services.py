"""Opens the run services that the leader reports to, as configured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from etcd_actions._internal.containment import Containment
from etcd_actions.config import Config, settings
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.run_service.fan_out import BothRunServices


@asynccontextmanager
async def open_run_services(
    etcd: Etcd, keys: Keyspace, config: Config, containment: Containment, *, served: bool
) -> AsyncIterator[RunService]:
    """The run services: our own if the service is served, and Flyte's if it is named."""
    endpoint = config[settings.RUN_SERVICE]
    async with AsyncExitStack() as stack:
        own: RunService | None = None
        # Imported here, since both need Flyte's messages.
        if served:
            from etcd_actions.runs.own_run_service import open_own_run_service  # noqa: PLC0415

            own = await stack.enter_async_context(
                open_own_run_service(etcd, keys, containment=containment)
            )
        if endpoint is None:
            yield own or NullRunService()
            return
        from etcd_actions.run_service.grpc_run_service import open_run_service  # noqa: PLC0415

        external = await stack.enter_async_context(open_run_service(endpoint))
        yield external if own is None else BothRunServices(own, external)
