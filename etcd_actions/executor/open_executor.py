"""Opens an executor, and runs its loops."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.clock import Clock
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.client import ActionsClient
from etcd_actions.executor.executor import Executor
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.executor.guarding import Guard, open_guard
from etcd_actions.executor.images.image_environments import ImageEnvironments
from etcd_actions.executor.images.image_packages import ImagePackages
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.launchers.fork_server import open_fork_server
from etcd_actions.executor.launchers.launcher import Launcher
from etcd_actions.executor.launchers.local import LocalLauncher
from etcd_actions.executor.launchers.ray_launcher import RayLauncher
from etcd_actions.executor.provisions import Images, Provisions
from etcd_actions.executor.secret_values import Secrets
from etcd_actions.executor.state_dir import keep_clean, prepare_state_dir

# The number of objects that are read at once.
_VISITORS: Final = 16
# Seconds for the end of a worker's attempts at its own end.
_ENDED_WITHIN: Final = 10.0


@checks_types
@asynccontextmanager
async def open_executor(
    client: ActionsClient, settings: ExecutorSettings, *, launcher: Launcher | None = None
) -> AsyncIterator[Executor]:
    """Run actions while the context is open.

    Processes of actions live on afterwards: the next executor on this state directory finds them.

    Args:
        client: Follows actions and writes their phases; the caller closes it after this context.
            Its ``containment`` has the boundaries.
        settings: See :class:`ExecutorSettings`.
        launcher: Starts the commands of attempts; None for that of the settings.

    Raises:
        ConfigError: The state directory cannot be used.
        EtcdError: etcd cannot be read or written.
    """
    await trio.to_thread.run_sync(prepare_state_dir, settings.state_dir)
    containment = client.containment
    async with AsyncExitStack() as stack:
        guard = None
        if settings.offer is not None:
            guard = await stack.enter_async_context(open_guard(settings.state_dir))
        if launcher is None:
            launcher = await stack.enter_async_context(_open_launcher(settings, containment))
        nursery = await stack.enter_async_context(owned_tasks("the executor"))
        attempts = Attempts(launcher, settings.log_bytes, containment)
        executor = await stack.enter_async_context(
            open_executor_with(client, settings, attempts, Clock(), guard)
        )
        clean = partial(
            keep_clean,
            settings.state_dir,
            settings.keep,
            executor.open_actions,
            containment,
            settings.cache_keep,
        )
        nursery.start_soon(containment.keep, "state_directory", str(settings.state_dir), clean)
        yield executor
        nursery.cancel_scope.cancel("the context of the executor has ended")


@asynccontextmanager
async def _open_launcher(
    settings: ExecutorSettings, containment: Containment
) -> AsyncIterator[Launcher]:
    """The launcher of the settings; its attempts live on afterwards."""
    async with AsyncExitStack() as stack:
        plain_server = fork_server = None
        if settings.runs_here:
            plain_server = await stack.enter_async_context(
                open_fork_server(Path(sys.executable), settings.state_dir, containment, plain=True)
            )
            if settings.fork_server:
                fork_server = await stack.enter_async_context(
                    open_fork_server(settings.python, settings.state_dir, containment)
                )
        nursery = await stack.enter_async_context(owned_tasks("the launcher"))
        grace, most = settings.kill_grace, settings.log_bytes
        if settings.ray is not None:
            yield RayLauncher(settings.ray, nursery, grace, most, containment)
        else:
            yield LocalLauncher(nursery, grace, most, fork_server, plain_server, containment)
        nursery.cancel_scope.cancel("the context of the launcher has ended")


@asynccontextmanager
async def open_executor_with(
    client: ActionsClient,
    settings: ExecutorSettings,
    attempts: Attempts,
    clock: Clock,
    guard: Guard | None = None,
) -> AsyncIterator[Executor]:
    """Run actions as :func:`open_executor` does, with other ``attempts`` and another clock.

    An executor with an offer ends its attempts at the end, before its claims are released, unless
    they outlive it.

    Raises:
        EtcdError: etcd cannot be read or written.
    """
    async with (
        client.open_claims(ttl=settings.claim_ttl) as claims,
        owned_tasks("the executor") as nursery,
    ):
        keep = client.containment.keep
        images: Images | None = None
        if settings.ray is not None and settings.ray.images != "off":
            images = ImagePackages(client.images.get, settings.ray.images)
        elif settings.ray is None and settings.images is not None:
            images = environments = ImageEnvironments(
                settings.images, client.images.get, nursery, client.containment
            )
            nursery.start_soon(keep, "executor", "images", environments.keep_clean)
        provisions = Provisions(images, Secrets(settings.secrets))
        executor = Executor(client, claims, attempts, settings, nursery, clock, provisions)
        executor.handover.guard = guard
        nursery.start_soon(keep, "executor", "ranges", executor.own.follow)
        nursery.start_soon(keep, "executor", "schedule", executor.schedule)
        nursery.start_soon(keep, "executor", "claims", executor.follow_claims)
        ends_attempts = settings.offer is not None and not attempts.outlive_worker
        if ends_attempts:
            nursery.start_soon(keep, "executor", "clock", executor.handover.watch_clock)
        for number in range(_VISITORS):
            nursery.start_soon(keep, "executor", f"visitor {number}", executor.visits.work)
        try:
            yield executor
        finally:
            if ends_attempts:
                # Another worker starts the next attempts once the claims are released.
                with trio.move_on_after(_ENDED_WITHIN, shield=True):
                    await executor.handover.give_up()
        nursery.cancel_scope.cancel("the context of the executor has ended")
