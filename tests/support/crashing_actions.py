"""A process that is killed in the middle of an abort, or of telling the run service.

``python -m tests.support.crashing_actions ENDPOINT PREFIX abort|tell N``: kills itself with
SIGKILL right after its N-th transaction, or right after the N-th call to its run service.
"""

from __future__ import annotations

import os
import signal
import sys

import trio

from etcd_actions import ActionId, ActionObject, ActionUpdate, Phase, open_actions_client, open_etcd
from etcd_actions.actions.abort import Aborter
from etcd_actions.etcd.api import Txn, TxnResult
from etcd_actions.model import Keyspace
from etcd_actions.run_service import RunService
from etcd_actions.storage.store import Store

ROOT = ActionId("p", "d", "r1", "a0")


class _KilledAfter:
    def __init__(self, times: int) -> None:
        self._left = times

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class _RunService(RunService):
    """Accepts, and is killed with what it was told last."""

    def __init__(self, end: _KilledAfter) -> None:
        self._end = end

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        self._end.count()

    async def update_action_status(self, update: ActionUpdate) -> None:
        self._end.count()


async def main(endpoint: str, prefix: str, what: str, times: int) -> None:
    end = _KilledAfter(times)
    async with open_etcd(endpoint) as etcd:
        if what == "abort":

            async def commit(txn: Txn) -> TxnResult:
                result = await etcd.txn(txn)
                end.count()
                return result

            aborter = Aborter(Store(etcd, commit), Keyspace(prefix.encode()))
            await aborter.abort_action(ROOT, "scripted", "alice")
        else:
            async with open_actions_client(
                etcd, prefix=prefix.encode(), run_service=_RunService(end)
            ) as client:
                await client.start_watching()
                await trio.sleep_forever()


if __name__ == "__main__":
    _, address, below, act, number = sys.argv
    trio.run(main, address, below, act, int(number))
