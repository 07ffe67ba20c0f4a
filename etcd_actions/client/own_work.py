"""The actions that this process is to run, if it runs actions: all, or those of its shards."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from etcd_actions.client.subscribing import Subscribing
from etcd_actions.follow.subscriptions import AnySubscription
from etcd_actions.pipeline.sharded_processor import AnyProcessor
from etcd_actions.shards import ShardRange


class OwnWork:
    """See the module's text; for an executor.

    Args:
        processor: The client's processor.
        subscribing: Opens the subscriptions.
    """

    def __init__(self, processor: AnyProcessor, subscribing: Subscribing) -> None:
        self._processor = processor
        self._subscribing = subscribing

    def ranges(self) -> frozenset[ShardRange]:
        """The ranges of ``<namespace>/<name>`` that have these actions; they may overlap.

        Without shards it is the one range of everything, and never changes. With shards they are
        those of the shards that this process serves, if each process that shares the work runs
        actions (``WatchingSettings.executes``), and otherwise everything. Two processes may have
        the same range for a moment, so each action needs a claim.
        """
        return self._processor.work

    async def wait_changed(self, seen: frozenset[ShardRange]) -> None:
        """Return once the ranges are others than those that were seen."""
        await self._processor.wait_work_changed(seen)

    def subscribe(self, range_: ShardRange) -> AbstractAsyncContextManager[AnySubscription]:
        """Receive the updates of all actions of a range, after a snapshot.

        It continues when the range is not among :meth:`ranges` any more.

        Raises:
            EtcdError: On entering, when etcd cannot be read, or the range is not among them.
        """
        return self._subscribing.subscribe_range(range_)
