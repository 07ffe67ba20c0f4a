"""The front door in a process of its own that is killed in the middle of a request.

``python -m tests.support.crashing_front ENDPOINT PREFIX FOLDER WHEN`` with WHEN one of the points
below, or ``never``. It prints the address that it serves on, behind :data:`ADDRESS`, and
serves until it is killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any, Final

import trio

from etcd_actions import open_actions_client
from etcd_actions.blobs import BlobInfo, open_blob_store
from etcd_actions.etcd import open_etcd
from etcd_actions.etcd.api import Etcd, Put, Txn, TxnResult
from etcd_actions.model import Keyspace
from etcd_actions.registry.registry import open_registry
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.storage.store import Store
from etcd_actions.web import Bind

CREATION: Final = (
    "before the inputs",
    "after the inputs",
    "before the run",
    "after the run",
)
ADDRESS: Final = "address"
"""What the line begins with that says where it serves; the log has others."""
DEPLOYMENT: Final = ("before the task", "after the task")


def at(point: str, when: str) -> None:
    """Die here, if this is the point."""
    if point == when:
        os.kill(os.getpid(), signal.SIGKILL)


class Blobs:
    """A store that dies around the inputs of a run."""

    def __init__(self, store: Any, when: str) -> None:
        self._store = store
        self._when = when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, key: str, parts: AsyncIterable[bytes], **bounds: Any) -> BlobInfo:
        at("before the inputs", self._when)
        kept: BlobInfo = await self._store.put(key, parts, **bounds)
        at("after the inputs", self._when)
        return kept


class Watched:
    """An etcd that dies around a transaction that creates a run, or writes a task."""

    def __init__(self, etcd: Etcd, keys: Keyspace, when: str) -> None:
        self._etcd = etcd
        self._names = {"run": keys.prefix, "task": keys.tasks}
        self._when = when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn) -> TxnResult:
        written = [name for name, prefix in self._names.items() if _writes(txn, prefix)]
        for name in written:
            at(f"before the {name}", self._when)
        result = await self._etcd.txn(txn)
        for name in written:
            at(f"after the {name}", self._when)
        return result


def _writes(txn: Txn, prefix: bytes) -> bool:
    return any(
        _writes(each, prefix)
        if isinstance(each, Txn)
        else isinstance(each, Put) and each.key.startswith(prefix)
        for each in txn.success
    )


async def main(endpoint: str, prefix: bytes, folder: Path, when: str) -> None:
    """Serve until this is killed."""
    keys = Keyspace(prefix)
    async with open_etcd(endpoint) as etcd:
        watched: Any = Watched(etcd, keys, when)
        blobs: Any = Blobs(open_blob_store(folder), when)
        async with (
            open_actions_client(watched, prefix=prefix) as client,
            open_run_index(etcd, keys) as index,
            open_registry(watched, Store(watched), keys) as registry,
        ):
            front = FrontDoor(
                client=client, keepalive=30.0, blobs=blobs, index=index, registry=registry
            )
            settings = ServerSettings(bind=Bind("127.0.0.1", 0))
            async with open_actions_server(client, settings, front=front) as server:
                print(ADDRESS, server.address, flush=True)
                await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2].encode(), Path(sys.argv[3]), sys.argv[4])
