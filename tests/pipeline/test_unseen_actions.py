"""An action that a snapshot showed, created and deleted while the watch was interrupted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import trio

from etcd_actions import ActionId, ActionsClient, WatchingSettings, open_actions_client, open_etcd
from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, WatchStream
from etcd_actions.follow.subscriptions import SnapshotEnd
from etcd_actions.model import ActionUpdate, Keyspace
from etcd_actions.testing import OwnEtcd
from etcd_actions.watch import ReflectorSettings
from tests.support import flyte
from tests.support.waiting import eventually

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
SETTINGS = WatchingSettings(
    reflector=ReflectorSettings(backoff=Backoff(initial=0.01, cap=0.05)), collect_orphans=False
)


class Interrupted:
    """A connection whose watch can be interrupted; all else works."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.interrupted = trio.Event()
        self.is_interrupted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    def interrupt(self) -> None:
        self.is_interrupted = True
        self.interrupted.set()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[WatchStream]:
        if self.is_interrupted:
            raise Unavailable("the watch is interrupted")
        async with self._etcd.watch() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._fail_when_interrupted)
            yield stream
            nursery.cancel_scope.cancel("the stream is closed")

    async def _fail_when_interrupted(self) -> None:
        await self.interrupted.wait()
        raise Unavailable("the watch is interrupted")


def has_lost_its_watch(client: ActionsClient) -> bool:
    reflector = client.statistics().reflector
    return reflector is not None and bool(reflector.reconnects) and not reflector.streaming


async def test_a_subscriber_receives_its_deletion(own_etcd: OwnEtcd, prefix: bytes) -> None:
    key = Keyspace(prefix).task_action(CHILD)
    async with open_etcd(own_etcd.endpoint) as etcd:
        watched = Interrupted(etcd)
        async with (
            open_actions_client(etcd, prefix=prefix) as writer,
            open_actions_client(cast(Etcd, watched), prefix=prefix, settings=SETTINGS) as client,
        ):
            await writer.enqueue(flyte.task(ROOT))
            await client.start_watching()
            await eventually(lambda: client.statistics().reflector.streaming)  # type: ignore[union-attr]
            watched.interrupt()
            await eventually(partial(has_lost_its_watch, client))
            await writer.enqueue(flyte.task(CHILD, "a0"))
            async with client.subscribe(ROOT, snapshot=True) as subscription:
                shown = [await subscription.receive() for _ in range(3)]
                assert [each.key for each in shown if isinstance(each, ActionUpdate)][1:] == [key]
                assert isinstance(shown[-1], SnapshotEnd)
                await etcd.delete(KeyRange.of_key(key))
                last = await etcd.put(b"/other", b"")
                await etcd.compact(last.revision)
                watched.is_interrupted = False
                watched.interrupted = trio.Event()
                with trio.fail_after(20):
                    while True:
                        update = await subscription.receive()
                        if isinstance(update, ActionUpdate) and update.key == key:
                            break
                assert update.is_deleted
                assert update.revision > shown[-1].revision
