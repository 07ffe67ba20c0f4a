"""The reflector on a real etcd, in fair weather; tests/faults has the foul."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn
from etcd_actions.watch import Change, ChangeKind, Reflector, ReflectorSettings
from etcd_actions.watch.delivered import NotingSink
from tests.support.waiting import eventually, stand_still


class Recording:
    """A sink that keeps everything, and has room unless told otherwise."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.full = False
        self.waited = 0

    def dispatch(self, changes: Sequence[Change]) -> None:
        self.changes += changes

    async def wait_list_capacity(self) -> None:
        await self.wait_stream_capacity()

    async def wait_stream_capacity(self) -> None:
        self.waited += 1
        await eventually(lambda: not self.full)

    def rows(self, prefix: bytes) -> list[tuple[str, str, int]]:
        return [
            (c.kind.value, c.key.removeprefix(prefix).decode(), c.version) for c in self.changes
        ]


@asynccontextmanager
async def reflecting(
    etcd: Etcd, prefix: bytes, *, known: Mapping[bytes, int] | None = None, **settings: object
) -> AsyncIterator[tuple[Reflector, Recording, int]]:
    sink = Recording()
    noting = NotingSink(sink, known)
    reflector = Reflector(
        etcd,
        KeyRange.of_prefix(prefix),
        noting,
        known=noting,
        settings=ReflectorSettings(**settings),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            revision = await nursery.start(reflector.run)
        yield reflector, sink, revision
        nursery.cancel_scope.cancel()


async def test_list_then_watch(etcd: Etcd, prefix: bytes) -> None:
    """What is there is ADDED from the list; then every change, and nothing of other prefixes."""
    await etcd.put(prefix + b"a", b"1")
    last = await etcd.put(prefix + b"a", b"2")
    async with reflecting(etcd, prefix) as (reflector, sink, revision):
        assert revision >= last.revision
        assert sink.rows(prefix) == [("ADDED", "a", 2)]
        assert sink.changes[0].listed
        await eventually(lambda: reflector.statistics().streaming)
        await etcd.put(prefix + b"a", b"3")
        await etcd.put(prefix[:-1] + b"x", b"elsewhere")
        await etcd.put(prefix + b"b", b"1")
        await etcd.delete(KeyRange.of_key(prefix + b"a"))
        end = await etcd.put(prefix + b"a", b"new")
        await eventually(lambda: len(sink.changes) == 5)
        assert sorted(sink.rows(prefix)[1:]) == [
            ("ADDED", "a", 1),
            ("ADDED", "b", 1),
            ("DELETED", "a", 0),
            ("MODIFIED", "a", 3),
        ]
        of_a = [change for change in sink.changes if change.key == prefix + b"a"]
        assert [change.value for change in of_a] == [b"2", b"3", b"", b"new"]
        assert [c.mod_revision for c in of_a] == sorted(c.mod_revision for c in of_a)
        assert of_a[-1].mod_revision == end.revision
        statistics = reflector.statistics()
        assert (statistics.keys, statistics.events, statistics.synced) == (2, 5, True)
        assert (statistics.reconnects, statistics.relists) == ({}, {})


async def test_a_change_between_list_and_watch_is_seen(etcd: Etcd, prefix: bytes) -> None:
    """The watch begins at the list's revision, not at the time it is opened."""
    keys = [prefix + b"%02d" % number for number in range(40)]
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            for key in keys:
                await etcd.put(key, b"")

        nursery.start_soon(write)
        async with reflecting(etcd, prefix) as (_, sink, _):
            await eventually(lambda: len(sink.changes) == len(keys))
    assert sorted(change.key for change in sink.changes) == keys


async def test_a_transaction_over_several_ranges(etcd: Etcd, prefix: bytes) -> None:
    """All its changes come, all with its revision."""
    async with reflecting(etcd, prefix, ranges=4) as (reflector, sink, _):
        assert reflector.statistics().ranges == 4 or reflector.statistics().ranges == 1
        puts = [Put(prefix + b"flyte/r%c" % letter, b"") for letter in b"09agmrz"]
        done = await etcd.txn(Txn([], puts))
        await eventually(lambda: len(sink.changes) == len(puts))
        assert {change.mod_revision for change in sink.changes} == {done.revision}
        assert {change.key for change in sink.changes} == {put.key for put in puts}


async def test_previous_values_where_asked_for(etcd: Etcd, prefix: bytes) -> None:
    """Then a delete tells what was there."""
    await etcd.put(prefix + b"a", b"before")
    async with reflecting(etcd, prefix, prev_kv=True) as (_, sink, _):
        await etcd.delete(KeyRange.of_key(prefix + b"a"))
        await eventually(lambda: len(sink.changes) == 2)
        assert sink.changes[1].prev_value == b"before"


async def test_keys_of_an_earlier_life_get_their_delete(etcd: Etcd, prefix: bytes) -> None:
    """Those that are still there are given out as new."""
    first = await etcd.put(prefix + b"a", b"")
    earlier = {prefix + b"a": first.revision, prefix + b"b": first.revision}
    async with reflecting(etcd, prefix, known=earlier) as (
        _,
        sink,
        revision,
    ):
        assert sink.rows(prefix) == [("MODIFIED", "a", 1), ("DELETED", "b", 0)]
        assert sink.changes[1].synthesised
        assert sink.changes[1].mod_revision == revision


async def test_a_list_waits_for_room(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page: memory is bounded by the sink's room."""
    monkeypatch.setattr("etcd_actions.etcd.paging._FIRST_LIMIT", 2)
    monkeypatch.setattr("etcd_actions.etcd.paging._MOST_LIMIT", 2)
    monkeypatch.setattr("etcd_actions.etcd.paging._LEAST_LIMIT", 1)
    for number in range(10):
        await etcd.put(prefix + b"%d" % number, b"")
    sink = Recording()
    sink.full = True
    reflector = Reflector(etcd, KeyRange.of_prefix(prefix), sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reflector.run)
        await eventually(lambda: sink.waited == 1)
        assert sink.changes == []
        assert not reflector.statistics().synced
        sink.full = False
        await eventually(lambda: len(sink.changes) == 10)
        assert sink.waited >= 5
        nursery.cancel_scope.cancel()


async def test_streams_are_renewed_and_boundaries_follow_the_keys(
    etcd: Etcd, prefix: bytes
) -> None:
    """Many short-lived streams while keys come: nothing lost, nothing doubled."""
    names = [b"flyte/x%04d" % number for number in range(1200)]
    async with reflecting(etcd, prefix, stream_life=0.05, ranges=4) as (reflector, sink, _):
        for start in range(0, len(names), 60):
            puts = [Put(prefix + name, b"") for name in names[start : start + 60]]
            await etcd.txn(Txn([], puts))
            await trio.sleep(0.02)  # The pace of the load: streams are renewed meanwhile.
        await eventually(lambda: len(sink.changes) >= len(names))
        await eventually(lambda: reflector.statistics().ranges == 4)
        # On a starved machine the streams after the last key are still to come.
        await eventually(lambda: max(range_.keys for range_ in reflector._ranges.all) < len(names))
    assert sorted(change.key for change in sink.changes) == [prefix + name for name in names]
    assert {change.kind for change in sink.changes} == {ChangeKind.ADDED}


async def test_the_position_of_an_idle_range_moves_where_etcd_can_tell(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By progress, on versions where that is reliable: so a compaction costs no list."""
    monkeypatch.setattr("etcd_actions.watch.store_identity.has_reliable_progress", lambda _: True)
    async with reflecting(etcd, prefix, dead_after=6) as (reflector, _, _):
        last = await etcd.put(b"/elsewhere", b"")
        await eventually(lambda: reflector.statistics().revision >= last.revision)
        assert reflector.statistics().reconnects == {}


@pytest.mark.memory
async def test_being_stopped_for_longer_than_dead_after_is_no_crash(
    etcd: Etcd, prefix: bytes
) -> None:
    """A suspended process, or a starved machine: the silence is older than it may get."""
    async with reflecting(etcd, prefix, dead_after=0.3) as (reflector, sink, _):
        await eventually(lambda: reflector.statistics().streaming)
        for _ in range(2):
            stand_still(0.5)
            await trio.sleep(0.15)  # Half of what is accepted, in which nothing comes.
        await etcd.put(prefix + b"a", b"")
        await eventually(lambda: len(sink.changes) == 1)


async def test_boundaries_need_not_be_text(etcd: Etcd, prefix: bytes) -> None:
    """Keys are bytes, so the ends of ranges are; a recovery must live with that."""
    puts = [Put(prefix + b"\xff%03d" % number, b"") for number in range(300)]
    for start in range(0, len(puts), 100):
        await etcd.txn(Txn([], puts[start : start + 100]))
    async with reflecting(etcd, prefix, ranges=4) as (reflector, sink, revision):
        await eventually(lambda: reflector.statistics().streaming)
        range_ = reflector._ranges.all[-1]
        with pytest.raises(UnicodeDecodeError):
            range_.resume.keys.start.decode()
        await reflector._listings.list_compacted(range_, revision)
        assert len(sink.changes) == 300
