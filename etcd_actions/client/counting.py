"""Counts the actions of a run by the watch of this process, for the page's list of runs."""

from __future__ import annotations

import trio

from etcd_actions.follow.run_counts import ActionCounts, RunCount
from etcd_actions.follow.subscriptions import RunActions
from etcd_actions.model import Keyspace, RunId
from etcd_actions.pipeline.processor import Processor
from etcd_actions.pipeline.sharded_processor import AnyProcessor


class RunCounter:
    """Counts one run; :meth:`~etcd_actions.client.ActionsClient.count_actions` makes it.

    With shards a run may move to another processor of this process, or to another process.

    Args:
        processor: The client's own.
        keys: The keyspace of the run.
        run: The run.
    """

    def __init__(self, processor: AnyProcessor, keys: Keyspace, run: RunId) -> None:
        self._processor = processor
        self._subject = RunActions(run)
        prefixes = keys.of(run).run_prefixes(run.run)[:2]
        self._heads = tuple(prefix.rpartition(b"/")[0] for prefix in prefixes)
        self._watched_by: Processor | None = None
        self._count: RunCount | None = None

    async def read(self) -> ActionCounts | None:
        """The present counts; None if this process does not watch the run.

        It does not read etcd. The first call for a large run takes long; other tasks run then, too.
        """
        while True:
            watched_by = self._processor.serving(self._subject)
            if watched_by is not self._watched_by:
                self.close()
                if watched_by is not None:
                    self._count = watched_by.index.count(self._subject.run.run, self._heads)
                    self._watched_by = watched_by
            if self._watched_by is None or self._count is None:
                return None
            if (counts := self._count.counts) is not None:
                return counts
            self._count.read_more(self._watched_by.index)
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop counting; without a count it does nothing."""
        if self._watched_by is not None and self._count is not None:
            self._watched_by.index.stop_counting(self._count)
        self._watched_by = self._count = None
