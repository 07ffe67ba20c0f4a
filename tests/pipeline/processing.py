"""What the tests of the processor share."""

from __future__ import annotations

from dataclasses import replace

import trio
import trio.testing

from etcd_actions import (
    ActionId,
    ActionObject,
    ActionUpdate,
    Phase,
    WatchingSettings,
)
from etcd_actions._internal.backoff import Backoff
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.run_service import RunService
from tests.data.captured import PUTS

# The captured actions are stored one by one, without their parents.
ALONE = WatchingSettings(elect=False, collect_orphans=False)


FAST = replace(ALONE, queue=WorkQueueSettings(backoff=Backoff(initial=0.01, cap=0.05)))


ROOT = ActionId("flytesnacks", "development", "rh7k2m9p4qv3", "a0")


def captured(name: str, phase: Phase, *, recorded: bool = False) -> bytes:
    """The captured value of an action in a phase, as the API server wrote it."""
    for put in PUTS:
        action = json.decode(put.value)
        if (action.metadata.name, action.phase, action.is_recorded) == (name, phase, recorded):
            return put.value
    raise LookupError(name)


RUNNING = captured("rh7k2m9p4qv3-a1", Phase.RUNNING)


SUCCEEDED = captured("rh7k2m9p4qv3-a1", Phase.SUCCEEDED)


async def value_of(etcd: Etcd, key: bytes) -> ActionObject:
    return json.decode((await etcd.range(KeyRange.of_key(key))).kvs[0].value)


class RecordingRunService(RunService):
    """Accepts, refuses or hangs as told; keeps what it accepted."""

    def __init__(self) -> None:
        self.refusals = 0
        self.hang: trio.Event | None = None
        self.records: list[ActionUpdate] = []
        self.statuses: list[ActionUpdate] = []
        self.attempts = 0

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        await self._answer()
        self.records.append(update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        await self._answer()
        self.statuses.append(update)

    async def _answer(self) -> None:
        self.attempts += 1
        if self.hang is not None:
            await self.hang.wait()
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("refused")
