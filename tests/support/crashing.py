"""A processor in a process of its own that kills itself at a chosen point.

``python -m tests.support.crashing ENDPOINT PREFIX WHEN`` with WHEN one of ``before`` (the run
service gets the first ending, and has not accepted it), ``between`` (it has accepted, the
mark is not written), ``before_mark`` and ``after_mark`` (the transaction of the first mark, with
what a run service of our own stores, is not sent, or was done) and ``never`` (ends by itself once
all is marked; ``own_never`` does with that run service). How to connect to
ENDPOINT, encrypted or as whom, is told by the command's variables.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import cast

import trio

from etcd_actions import ActionUpdate
from etcd_actions.config import SETTINGS, Config, Environment, resolve
from etcd_actions.etcd import open_connection
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn, TxnResult
from etcd_actions.model import ANNOTATION_RECORDED, Keyspace
from etcd_actions.run_service import RunService
from etcd_actions.runs.own_run_service import open_own_run_service
from tests.support.recording import RecordingRunService, until_stored
from tests.support.scene import all_marked, processing


class CrashingRunService(RecordingRunService):
    """Kills the process with the first ending."""

    def __init__(self, etcd: Etcd, when: str) -> None:
        super().__init__(etcd)
        self._when = when

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Accept it, or die before or after."""
        crash = update.phase.is_terminal and self._when != "never"
        if crash and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await super().update_action_status(update)
        if crash:
            os.kill(os.getpid(), signal.SIGKILL)


class CrashingEtcd:
    """Kills the process before or after the first transaction that writes a mark."""

    def __init__(self, etcd: Etcd, when: str) -> None:
        self._etcd = etcd
        self._when = when

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn) -> TxnResult:
        """Do it, or die before or after."""
        crash = _has_mark(txn)
        if crash and self._when == "before_mark":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await self._etcd.txn(txn)
        if crash and self._when == "after_mark":
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def _has_mark(txn: Txn) -> bool:
    for each in txn.success:
        if isinstance(each, Txn) and _has_mark(each):
            return True
        if isinstance(each, Put) and ANNOTATION_RECORDED.encode() in each.value:
            return True
    return False


async def main(endpoint: str, prefix: bytes, when: str) -> None:
    """Work until everything that is over is marked."""
    variables = Environment({**os.environ, "ETCDCTL_ENDPOINTS": endpoint})
    connection = Config(resolve(SETTINGS, [variables]), None).connection(endpoint)
    with trio.fail_after(60):
        async with (
            open_connection(connection) as etcd,
            open_connection(connection) as direct,
            open_own_run_service(direct, Keyspace(prefix)) as own,
        ):
            used: Etcd = etcd
            service: RunService = CrashingRunService(direct, when)
            if when in ("before_mark", "after_mark", "own_never"):
                used, service = cast(Etcd, CrashingEtcd(etcd, when)), own
            async with processing(used, prefix, service):
                await until_stored(direct, KeyRange.of_prefix(prefix), all_marked)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2].encode(), sys.argv[3])
