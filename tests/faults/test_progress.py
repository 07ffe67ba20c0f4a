"""A progress answer that was on its way while a range was opened again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from etcd_actions.etcd.api import (
    Event,
    KeyRange,
    KeyValue,
    RangeResult,
    Status,
    WatchCreate,
    WatchResponse,
)
from etcd_actions.watch import Reflector, ReflectorSettings
from tests.support.recording import RecordingSink

pytestmark = pytest.mark.faults

PREFIX = b"/p/"
A = KeyValue(PREFIX + b"a", b"1", 5, 5, 1)
B = Event(PREFIX + b"b", b"2", 25, 25, 1)
HEAD, COMPACTED = 30, 20


class Stream:
    """A watch stream that the test speaks on."""

    def __init__(self) -> None:
        self.requests_in, self.requests = trio.open_memory_channel[WatchCreate](100)
        self.questions_in, self.questions = trio.open_memory_channel[None](100)
        self.answers, self._answers = trio.open_memory_channel[WatchResponse](100)

    def create(self, request: WatchCreate, /) -> None:
        self.requests_in.send_nowait(request)

    def cancel(self, watch_id: int, /) -> None:
        """Nothing was asked of the test."""

    def request_progress(self) -> None:
        self.questions_in.send_nowait(None)

    async def receive(self) -> Sequence[WatchResponse]:
        return [await self._answers.receive()]


class ScriptedEtcd:
    """An etcd of a version whose progress can be trusted, with one key at the beginning."""

    def __init__(self) -> None:
        self.streams_in, self.streams = trio.open_memory_channel[Stream](10)
        self.revision = 10

    async def range(self, keys: KeyRange, *, revision: int = 0, **_: object) -> RangeResult:
        await trio.lowlevel.checkpoint()
        found = [A] if A.key in keys else []
        return RangeResult(found, more=False, total=1, revision=self.revision, cluster_id=1)

    async def status(self) -> Status:
        await trio.lowlevel.checkpoint()
        return Status("3.5.21", 0, 1, self.revision, 1, 1)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Stream]:
        stream = Stream()
        self.streams_in.send_nowait(stream)
        yield stream


async def test_progress_from_before_a_range_was_opened_again_does_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A range is listed at the compaction and watched from there; late progress skips nothing.

    The answer says that all up to its revision was sent, of the watchers that etcd had when
    it was asked: the new one was not among them.
    """
    etcd, sink = ScriptedEtcd(), RecordingSink()
    reflector = Reflector(
        etcd,  # type: ignore[arg-type]
        KeyRange.of_prefix(PREFIX),
        sink,
        settings=ReflectorSettings(ranges=1, dead_after=0.3),
    )
    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(reflector.run)
            stream = await etcd.streams.receive()
            first = await stream.requests.receive()
            await stream.questions.receive()
            etcd.revision = HEAD
            for response in (
                WatchResponse(first.watch_id, HEAD, 1, created=True),
                WatchResponse(first.watch_id, 0, 1, canceled=True, compact_revision=COMPACTED),
            ):
                await stream.answers.send(response)
            second = await stream.requests.receive()
            assert second.start_revision == COMPACTED
            for response in (
                WatchResponse(-1, HEAD, 1),
                WatchResponse(second.watch_id, HEAD, 1, created=True),
                WatchResponse(second.watch_id, HEAD, 1, [B]),
            ):
                await stream.answers.send(response)
            await sink.bell.until(lambda: B.key in sink.last())
            assert reflector.statistics().revision == B.mod_revision
            nursery.cancel_scope.cancel("the test is over")
