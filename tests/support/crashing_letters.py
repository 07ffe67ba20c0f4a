"""A processor in a process of its own that is killed around a refusal.

``python -m tests.support.crashing_letters ENDPOINT PREFIX WHEN`` with WHEN one of the points in
:data:`POINTS`, or ``never``: then it ends by itself once all is marked. The record of every
action is refused, its status is accepted. What the run service accepted is in etcd, below
``/accepted``.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from etcd_actions import ActionObject, ActionUpdate
from etcd_actions.errors import RunServiceRejected
from etcd_actions.etcd import open_etcd
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn, TxnResult
from etcd_actions.model import Keyspace
from tests.support.recording import RecordingRunService, until_stored
from tests.support.scene import PROCESSOR, all_marked, processing

POINTS = (
    "before the refusal",
    "after the refusal",
    "before the letter",
    "after the letter",
    "before the status",
    "after the status",
    "before the mark",
    "after the mark",
)


def at(point: str, when: str) -> None:
    """Die here, if this is the point."""
    if point == when:
        os.kill(os.getpid(), signal.SIGKILL)


class RefusingRecords(RecordingRunService):
    """Refuses records, accepts statuses."""

    def __init__(self, etcd: Etcd, when: str) -> None:
        super().__init__(etcd)
        self._when = when

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        at("before the refusal", self._when)
        await trio.lowlevel.checkpoint()
        if self._when == "after the refusal":
            # What raises it is back in the outbox only behind this.
            trio.lowlevel.spawn_system_task(partial(_die_soon))
        raise RunServiceRejected("no spec", code=3)

    async def update_action_status(self, update: ActionUpdate) -> None:
        if update.phase.is_terminal:
            at("before the status", self._when)
        await super().update_action_status(update)
        if update.phase.is_terminal:
            at("after the status", self._when)


async def _die_soon() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """An etcd that dies around a write of a letter, or of a mark."""

    def __init__(self, etcd: Etcd, keys: Keyspace, when: str) -> None:
        self._etcd = etcd
        self._keys = keys
        self._when = when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn) -> TxnResult:
        puts = list(_puts(txn))
        letter = any(put.startswith(self._keys.dead_letters) for put in puts)
        mark = any(put.startswith(self._keys.prefix) for put in puts)
        if letter:
            at("before the letter", self._when)
        if mark:
            at("before the mark", self._when)
        result = await self._etcd.txn(txn)
        if letter:
            at("after the letter", self._when)
        if mark:
            at("after the mark", self._when)
        return result


def _puts(txn: Txn) -> list[bytes]:
    found: list[bytes] = []
    for each in txn.success:
        if isinstance(each, Txn):
            found += _puts(each)
        elif isinstance(each, Put):
            found.append(each.key)
    return found


async def main(endpoint: str, prefix: bytes, when: str) -> None:
    """Work until everything that is over is marked."""
    settings = replace(PROCESSOR, elect=True, election_ttl=2)
    with trio.fail_after(60):
        async with open_etcd(endpoint) as etcd, open_etcd(endpoint) as direct:
            watched: Any = Watched(etcd, Keyspace(prefix), when)
            async with processing(
                watched, prefix, RefusingRecords(direct, when), settings=settings
            ):
                await until_stored(direct, KeyRange.of_prefix(prefix), all_marked)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2].encode(), sys.argv[3])
