"""One watch stream, with a watcher for each range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate, WatchResponse, WatchStream
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.watch.change import Change
from etcd_actions.watch.delivery import Delivery
from etcd_actions.watch.listings import Listings
from etcd_actions.watch.watch_settings import ReflectorSettings
from etcd_actions.watch.watched_range import WatchedRange, WatchedRanges


class RangeStream:
    """Receives the changes of all ranges from one stream, and delivers them.

    Args:
        etcd: The connection.
        stream: The stream; no other task receives from it.
        ranges: The ranges to watch.
        delivery: Receives the changes.
        listings: Lists a range whose history was compacted.
        settings: How the prefix is watched.
        trusts_progress: Whether etcd's progress notifications are reliable.
    """

    def __init__(
        self,
        etcd: Etcd,
        stream: WatchStream,
        ranges: WatchedRanges,
        delivery: Delivery,
        listings: Listings,
        settings: ReflectorSettings,
        *,
        trusts_progress: bool,
    ) -> None:
        self._etcd = etcd
        self._stream = stream
        self._ranges = ranges
        self._delivery = delivery
        self._listings = listings
        self._settings = settings
        self._by_watch_id: dict[int, WatchedRange] = {}
        self._last_watch_id = 0
        self.trusts_progress = trusts_progress

    def open_all(self) -> None:
        """Request a watcher for each range."""
        for range_ in self._ranges.all:
            range_.resume.stream_lost()
            self.open(range_)
        # A transport that cannot request progress on an open stream does so with these requests.
        self.request_progress()

    def open(self, range_: WatchedRange) -> None:
        """Request a watcher for a range, with an id that no other watcher of the stream has had."""
        self._last_watch_id += 1
        self._by_watch_id[self._last_watch_id] = range_
        range_.confirmed_at = math.inf
        resume, prev_kv = range_.resume, self._settings.prev_kv
        self._stream.create(
            WatchCreate(
                self._last_watch_id,
                resume.keys,
                resume.start_revision,
                prev_kv=prev_kv,
                progress_notify=True,
            )
        )

    def watched(self) -> tuple[WatchedRange, ...]:
        """The ranges that have a watcher."""
        return tuple(self._by_watch_id.values())

    def request_progress(self) -> None:
        """Request a progress notification, if these are reliable."""
        if self.trusts_progress:
            self._stream.request_progress()

    async def receive(self, nursery: trio.Nursery, *, catch_up_to: int = 0) -> None:
        """Receive and deliver, until the stream ends or has caught up.

        Args:
            nursery: Runs the lists of ranges whose history was compacted.
            catch_up_to: Return once each range of one batch is done up to this revision; 0 to
                receive until the stream ends.

        Raises:
            EtcdError: The stream broke, or etcd cancelled a watcher for another reason than a
                compaction.
        """
        delivery, waiters = self._delivery, self._ranges.waiters
        while True:
            await delivery.wait_stream_capacity()
            try:
                responses = await self._stream.receive()
            except trio.EndOfChannel:
                return
            delivery.turn = 0
            ranges = await self._deliver(responses, nursery)
            if waiters:
                waiters.unpark_all()
            delivery.last_received = trio.current_time()
            if catch_up_to and ranges and catch_up_to <= min(each.resume.done for each in ranges):
                return

    async def _deliver(
        self, responses: Sequence[WatchResponse], nursery: trio.Nursery
    ) -> list[WatchedRange]:
        """Deliver the changes of responses as one batch; returns the ranges that had some.

        The changes before an unusable response are delivered, too: they count as received, so no
        stream sends them again.
        """
        changes: list[Change] = []
        ranges: list[WatchedRange] = []
        try:
            for response in responses:
                if response.canceled and ranges:
                    # The range is listed again, after its changes.
                    before, changes = changes, []
                    await self._deliver_batch(before, ranges)
                    ranges = []
                if (range_ := self._accept(response, nursery)) is not None:
                    ranges.append(range_)
                    if range_.delivering_revision is None:
                        # Until all are delivered, and after a failure until the next list.
                        range_.delivering_revision = range_.delivered_revision
                    changes += range_.take(response)
        except BaseException:
            await self._deliver_batch(changes, ())
            raise
        await self._deliver_batch(changes, ranges)
        return ranges

    async def _deliver_batch(self, changes: list[Change], ranges: Sequence[WatchedRange]) -> None:
        await self._delivery.deliver(changes)
        for range_ in ranges:
            range_.delivering_revision = None

    def _accept(self, response: WatchResponse, nursery: trio.Nursery) -> WatchedRange | None:
        """Process a response; returns the range that it has events of, if it has any."""
        range_ = self._by_watch_id.get(response.watch_id)
        if response.canceled:
            if response.watch_id >= 0 and range_ is None:
                return None
            if not response.compact_revision or range_ is None:
                reason = response.cancel_reason or "etcd cancelled the watch"
                raise (error_kind(reason) or Unavailable)(f"watch: {reason}")
            del self._by_watch_id[response.watch_id]
            # etcd 3.5.30 answers no progress request while a dead watcher is registered.
            self._stream.cancel(response.watch_id)
            # A progress notification that was requested before the range is watched again does
            # not cover it: none is trusted until the next stream.
            self.trusts_progress = False
            nursery.start_soon(self._recover, range_, response.compact_revision)
        elif response.events:
            return range_
        elif response.created:
            if range_ is not None:
                range_.confirmed_at = trio.current_time()
        elif range_ is not None:
            # Every version of etcd sends it after the watcher's events.
            range_.resume.progress(response.revision)
        elif self.trusts_progress:
            for each in self._by_watch_id.values():
                each.resume.progress(response.revision)
        return None

    async def _recover(self, range_: WatchedRange, compacted: int) -> None:
        await self._listings.list_compacted(range_, compacted)
        self.open(range_)

    async def probe(self) -> None:
        """Request progress, and raise Unavailable once the cluster is silent for ``dead_after``."""
        dead_after, delivery = self._settings.dead_after, self._delivery
        first_key = KeyRange.of_key(self._ranges.first_key)
        while True:
            await trio.sleep(self._settings.probe_interval)
            self.request_progress()
            silence = trio.current_time() - delivery.last_received
            if silence < dead_after / 2:
                continue
            # `dead_after - silence` is negative if this process itself was stopped for a while.
            with trio.move_on_after(
                max(dead_after - silence, self._settings.probe_interval)
            ) as scope:
                await self._etcd.range(first_key, keys_only=True)
            if scope.cancelled_caught:
                raise Unavailable(f"watch: nothing received for {dead_after:g} s")
            delivery.last_received = trio.current_time()
