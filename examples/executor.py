"""An executor of one's own: runs each task below a prefix as a Python function of this file.

    python executor.py HOST:PORT PREFIX

Several of these processes share the work: a task is run by the process that has its claim. When
a process dies, its claims expire after 15 seconds, and another process runs its tasks again.
Interrupt it to end it.
"""

import sys
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from etcd_actions import (
    ActionsClient,
    ActionStatus,
    ActionUpdate,
    Claims,
    ErrorState,
    EtcdActionsError,
    Phase,
    SnapshotEnd,
    open_actions_client,
    open_etcd,
)
from etcd_actions.errors import FailedPrecondition

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


async def hello() -> None:
    """Print a line."""
    print("hello", flush=True)


async def fail() -> None:
    """Fail."""
    raise ValueError("this task always fails")


# By the short name of the task.
TASKS: dict[str, Callable[[], Awaitable[None]]] = {"hello": hello, "fail": fail}


class Executor:
    """Runs the open actions, four at a time, and those first that it saw first."""

    def __init__(self, client: ActionsClient, claims: Claims) -> None:
        self._client = client
        self._claims = claims
        self._slots = trio.CapacityLimiter(4)
        self._open: dict[bytes, ActionUpdate] = {}

    def note(self, update: ActionUpdate) -> bool:
        """Keep the newest state of each open action; whether the action is a new one."""
        is_new = update.key not in self._open
        if update.phase.is_terminal or update.is_deleted or update.short_name not in TASKS:
            self._open.pop(update.key, None)
            return False
        self._open[update.key] = update
        return is_new

    async def run(self, key: bytes) -> None:
        """Run an action to its end, here or in another process."""
        while (update := self._open.get(key)) is not None:
            try:
                async with self._slots:
                    if await self._try(update):
                        return
            except EtcdActionsError as error:
                print(f"{update.name}: {error}", flush=True)
            # Another process has it, or etcd is away.
            await trio.sleep(5)

    async def _try(self, update: ActionUpdate) -> bool:
        """Run an action if no other process has its claim; whether it was free."""
        claim = await self._claims.claim(update.action_id, update.incarnation)
        if claim is None:
            return False
        update = self._open.get(update.key, update)
        # A process that died left the action RUNNING: this is another attempt.
        number = max(update.attempts, 1) + (update.phase is Phase.RUNNING)
        report = partial(self._client.put_status, update.action_id, number, claim=claim)
        try:
            await report(ActionStatus(Phase.RUNNING))
            try:
                await TASKS[update.short_name]()
            except Exception as error:  # the task's own: any
                state = ErrorState("Failed", "USER", repr(error))
                await report(ActionStatus(Phase.FAILED), error=state)
            else:
                await report(ActionStatus(Phase.SUCCEEDED))
        except FailedPrecondition as error:
            # It has ended, by an abort or in another process, or the claim was lost.
            print(f"{update.name}: {error}", flush=True)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await self._claims.release(claim)
        return True


async def main(endpoint: str, prefix: str) -> None:
    """Run tasks until the process is interrupted."""
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix.encode()) as client,
        client.open_claims() as claims,
        client.subscribe_all() as updates,
        trio.open_nursery() as nursery,
    ):
        executor = Executor(client, claims)
        async for update in updates:
            if isinstance(update, SnapshotEnd):
                print("ready", flush=True)
            elif executor.note(update):
                nursery.start_soon(executor.run, update.key)


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2])
    except* KeyboardInterrupt:
        pass
