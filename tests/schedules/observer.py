"""Watches all of etcd from its first revision on, by a way of its own, and misses nothing."""

from __future__ import annotations

import time

import trio

from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import Etcd, WatchCreate
from etcd_actions.model import Keyspace
from tests.schedules.facts import Fact, fact_of, is_object
from tests.schedules.letters import LetterFact, letter_of
from tests.support.oracle import Entry, entries_of, watch_all

_PAUSE = 0.05


class Observer:
    """The history of a store, as far as it was received.

    Attributes:
        revision: Everything up to it is known. A compaction up to it takes nothing away.
        facts: What happened to the objects, in order.
        letters: What happened to the dead letters, in order.
        problems: What etcd itself did wrong, which would make everything else worthless.
    """

    def __init__(self, etcd: Etcd, keys: Keyspace) -> None:
        self._etcd = etcd
        self._keys = keys
        self._newest: dict[bytes, Entry] = {}
        self.revision = 0
        self.facts: list[Fact] = []
        self.letters: list[LetterFact] = []
        self.problems: list[str] = []

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            try:
                await self._watch()
            except EtcdError:
                await trio.sleep(_PAUSE)

    async def caught_up(self) -> int:
        """Return once all is known that etcd holds now, with its revision."""
        while True:
            try:
                found = await self._etcd.range(watch_all(1).keys, limit=1, keys_only=True)
            except EtcdError:
                await trio.sleep(_PAUSE)
                continue
            while self.revision < found.revision:  # noqa: ASYNC110 (the watch rings no bell)
                await trio.sleep(0.01)
            return found.revision

    def present(self, prefix: bytes) -> list[Entry]:
        """The keys with a prefix that exist, as far as is known."""
        return [
            entry
            for key, entry in self._newest.items()
            if key.startswith(prefix) and not entry.is_delete
        ]

    def _create(self) -> WatchCreate:
        return watch_all(self.revision + 1)

    async def _watch(self) -> None:
        pending: list[Entry] = []
        async with self._etcd.watch() as stream:
            stream.create(self._create())
            while True:
                # One that has gone silent without an error is asked.
                with trio.move_on_after(1.0) as silence:
                    responses = await stream.receive()
                if silence.cancelled_caught:
                    await self._etcd.range(watch_all(1).keys, limit=1, keys_only=True)
                    continue
                for response in responses:
                    if response.compact_revision:
                        self.problems.append(f"the observer was overtaken: {response}")
                        return
                    if response.canceled:
                        return
                    pending += entries_of(response, b"\0")
                    if not response.fragment:
                        self._take(pending)
                        pending = []

    def _take(self, entries: list[Entry]) -> None:
        now = time.monotonic()
        newest = self.revision
        for entry in entries:
            # Some versions of etcd send events twice.
            before = self._newest.get(entry.key)
            twice = before is not None and entry.mod_revision <= before.mod_revision
            if twice or entry.mod_revision <= self.revision:
                continue
            newest = max(newest, entry.mod_revision)
            self._newest[entry.key] = entry
            if is_object(self._keys, entry.key):
                self.facts.append(fact_of(entry, now))
            elif entry.key.startswith(self._keys.dead_letters):
                self.letters.append(letter_of(self._keys, entry))
        self.revision = newest
