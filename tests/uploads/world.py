"""A deployment with uploads on a real etcd and a real folder, and a clock of the test."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from etcd_actions import ActionId, ActionsClient
from etcd_actions.blobs import BlobStore, Deployment, open_blob_store
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.images import Images
from etcd_actions.runs.run_record import RunRecord, encode
from etcd_actions.uploads import SweepResult, UploadCollector

KEEP = timedelta(days=14)
ROOT = ActionId("p", "d", "r1", "a0")


async def parts(data: bytes) -> AsyncIterator[bytes]:
    yield data


class World:
    """What there is, and a collector of it."""

    def __init__(self, etcd: Etcd, client: ActionsClient, folder: Path, deployment: str) -> None:
        self.etcd, self.client, self.folder = etcd, client, folder
        self.keys, self.store = client.keys, client.store
        self.deployment = deployment
        self.blobs: BlobStore = open_blob_store(folder)
        self.now = datetime.now(UTC)
        self.images = Images(etcd, self.keys, self.clock)

    @classmethod
    async def open(cls, etcd: Etcd, client: ActionsClient, folder: Path) -> World:
        name = await Deployment(client.store, client.keys).name()
        return cls(etcd, client, folder, name)

    def clock(self) -> datetime:
        return self.now

    def collector(
        self,
        *,
        blobs: BlobStore | None = None,
        dry_run: bool = False,
        clock: Callable[[], datetime] | None = None,
    ) -> UploadCollector:
        return UploadCollector(
            self.store,
            self.keys,
            blobs or self.blobs,
            Deployment(self.store, self.keys),
            self.images,
            KEEP,
            dry_run=dry_run,
            clock=clock or self.clock,
        )

    async def upload(self, data: bytes = b"code", name: str = "code.tar.gz") -> str:
        """Upload a file as the SDK does; its key."""
        digest = hashlib.md5(data).hexdigest()
        key = f"uploads/p/d/{self.deployment}/content/{digest}/{name}"
        await self.blobs.put(key, parts(data), most=1 << 20)
        return key

    async def named(self, root: str, name: str, data: bytes = b"x") -> str:
        """Upload a file of a directory; its key."""
        key = f"uploads/p/d/{self.deployment}/named/{root}/{name}"
        await self.blobs.put(key, parts(data), most=1 << 20)
        return key

    async def put(self, key: str, data: bytes) -> str:
        """Put a blob; its URL."""
        await self.blobs.put(key, parts(data), most=1 << 20)
        return self.blobs.native_url(key)

    async def inputs(self, data: bytes) -> str:
        """Upload inputs; their URL."""
        key = f"inputs/p/d/{self.deployment}/{secrets.token_hex(16)}/inputs.pb"
        return await self.put(key, data)

    async def record(self, name: str = "r1", **fields: object) -> None:
        """Write a run's record."""
        made = {"project": "p", "domain": "d", "name": name, "created": self.now} | fields
        key = self.keys.run_record(ActionId("p", "d", name, "a0"))
        await self.etcd.put(key, encode(RunRecord(**made)))  # type: ignore[arg-type]

    async def delete(self, prefix: bytes) -> None:
        """Delete everything below a prefix, but not the deployment's name."""
        for kv in (await self.store.read(KeyRange.of_prefix(prefix)))[0]:
            if kv.key != self.keys.deployment:
                await self.etcd.delete(KeyRange.of_key(kv.key))

    async def forget(self) -> None:
        """Delete all that refers to something."""
        await self.delete(self.keys.prefix)
        await self.delete(self.keys.own)

    async def sweeps(self, collector: UploadCollector | None = None, times: int = 3) -> SweepResult:
        """Sweep several times, two hours apart; all that was done."""
        collector = collector or self.collector()
        for _ in range(times):
            await collector.sweep()
            self.now += timedelta(hours=2)
        return collector.collected

    async def there(self, key: str) -> bool:
        return await self.blobs.stat(key) is not None

    async def stored(self) -> list[str]:
        """All keys, those in the trash among them."""
        kinds = ("uploads", "inputs", "trash", "runs")
        return [info.key for kind in kinds async for info in self.blobs.below(kind)]
