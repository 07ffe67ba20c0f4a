"""What arrives at once is one batch: of several ranges, and with what cannot be used behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, WatchResponse, WatchStream
from etcd_actions.watch import Change, ChangeKind, Reflector
from etcd_actions.watch.store_identity import StoreIdentity
from tests.support.recording import RecordingSink
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory


class Batching:
    """A connection whose streams hold events back, and then give them in one batch.

    Attributes:
        awaited: How many events to hold back; 0 gives each as it comes.
        behind: What the batch ends with.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.awaited = 0
        self.behind: list[WatchResponse] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Any]:
        async with self._etcd.watch() as stream:
            yield BatchingStream(stream, self)


class BatchingStream:
    """A stream of :class:`Batching`."""

    def __init__(self, stream: WatchStream, etcd: Batching) -> None:
        self._stream = stream
        self._etcd = etcd

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def receive(self) -> Sequence[WatchResponse]:
        batch = [*await self._stream.receive()]
        while sum(len(each.events) for each in batch) < self._etcd.awaited:
            batch += await self._stream.receive()
        if self._etcd.awaited:
            self._etcd.awaited = 0
            # Of the range that the last of them are of.
            last = next(each.watch_id for each in reversed(batch) if each.events)
            behind = [WatchResponse(last, 0, 0, each.events) for each in self._etcd.behind]
            batch += behind
        return batch


def unusable() -> WatchResponse:
    """A response with something that is no event."""
    return WatchResponse(0, 0, 0, cast(Any, (object(),)))


async def test_what_came_before_a_response_that_cannot_be_used_is_given_out(
    etcd: Etcd, prefix: bytes
) -> None:
    """States too that no list shows any more: an ending, of what was deleted behind it."""
    kept, brief = prefix + b"kept", prefix + b"brief"
    await etcd.put(kept, b"running")
    sink, containment, batching = RecordingSink(), Containment(), Batching(etcd)
    reflector = Reflector(
        cast(Etcd, batching), KeyRange.of_prefix(prefix), sink, containment=containment
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(reflector.run)
            await eventually(lambda: reflector.statistics().streaming)
            batching.behind, batching.awaited = [unusable()], 5
            await etcd.put(kept, b"ended")
            await etcd.delete(KeyRange.of_key(kept))
            await etcd.put(brief, b"running")
            await etcd.put(brief, b"ended")
            await etcd.delete(KeyRange.of_key(brief))
            await eventually(lambda: reflector.statistics().relists.get("failed") == 1)
            await eventually(lambda: reflector.statistics().streaming)
            await etcd.put(prefix + b"z", b"last")
            await eventually(lambda: prefix + b"z" in sink.last())
            nursery.cancel_scope.cancel()
    assert containment.failures == {"watch": 1}
    assert _told(sink, kept) == [b"running", b"ended", None]
    assert _told(sink, brief) == [b"running", b"ended", None]


async def test_the_last_key_of_a_range_has_its_end_though_the_sink_failed_at_it(
    etcd: Etcd, prefix: bytes
) -> None:
    class Failing(RecordingSink):
        fails = False

        def dispatch(self, changes: Sequence[Change]) -> None:
            if self.fails:
                self.fails = False
                raise RuntimeError("no room")
            super().dispatch(changes)

    key = prefix + b"only"
    await etcd.put(key, b"running")
    sink, containment = Failing(), Containment()
    reflector = Reflector(etcd, KeyRange.of_prefix(prefix), sink, containment=containment)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(reflector.run)
            await eventually(lambda: reflector.statistics().streaming)
            sink.fails = True
            await etcd.delete(KeyRange.of_key(key))
            await eventually(lambda: reflector.statistics().relists.get("failed") == 1)
            await eventually(lambda: reflector.statistics().streaming)
            await etcd.put(prefix + b"z", b"last")
            await eventually(lambda: prefix + b"z" in sink.last())
            nursery.cancel_scope.cancel()
    assert _told(sink, key) == [b"running", None]


async def test_of_a_batch_of_several_ranges_the_newest_change_is_the_witness(
    etcd: Etcd, prefix: bytes
) -> None:
    """Those of each range are in order, the ranges come in any."""
    older = await etcd.put(prefix + b"a", b"older")
    newer = await etcd.put(prefix + b"b", b"of this store")
    deleted = await etcd.put(prefix + b"c", b"")
    watched = [
        _put(prefix + b"b", newer.revision, b"of the one before"),
        _put(prefix + b"a", older.revision, b"older"),
    ]
    identity = StoreIdentity(etcd, prefix)
    identity.remember(watched)
    await identity.verify(newer.revision)
    assert identity.suspicion == "replaced"
    identity = StoreIdentity(etcd, prefix)
    gone = Change.deletion(prefix + b"c", deleted.revision)
    identity.remember([gone, _put(prefix + b"a", older.revision, b"older")])
    await identity.verify(deleted.revision)
    assert identity.suspicion == "replaced"


def _put(key: bytes, revision: int, value: bytes) -> Change:
    return Change(ChangeKind.ADDED, KeyValue(key, value, revision, revision, 1))


def _told(sink: RecordingSink, key: bytes) -> list[bytes | None]:
    changes = [change for change in sink.changes if change.key == key]
    return [None if change.is_delete else change.value for change in changes]
