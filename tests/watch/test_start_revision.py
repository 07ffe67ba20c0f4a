"""A reflector that begins where another one ended, and how far it says that it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import open_etcd
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, Put, RangeResult, Txn, WatchStream
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.etcd.oldest_revision import find_oldest_revision
from etcd_actions.testing import EtcdFactory, EtcdServer, OwnEtcd
from etcd_actions.watch import Change, Reflector, ReflectorSettings
from etcd_actions.watch.delivered import NotingSink
from tests.support.recording import RecordingSink
from tests.support.waiting import eventually

PATIENCE = 60
OUTAGE = ("watch_lost", "watch_restored")


@asynccontextmanager
async def reflecting(
    etcd: Etcd,
    keys: KeyRange | Sequence[KeyRange],
    sink: RecordingSink,
    *,
    start_revision: int = 0,
    known: Mapping[bytes, int] | None = None,
    on_replaced: Callable[[], None] | None = None,
    **settings: object,
) -> AsyncIterator[tuple[Reflector, int]]:
    noting = NotingSink(sink, known)
    reflector = Reflector(
        etcd,
        keys,
        noting,
        start_revision=start_revision,
        known=noting,
        on_replaced=on_replaced,
        settings=ReflectorSettings(**settings),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            revision = await nursery.start(reflector.run)
        yield reflector, revision
        nursery.cancel_scope.cancel("the test is over")


def row(change: Change, prefix: bytes) -> tuple[str, str, bool]:
    """What happened to which key; and whether it was listed."""
    return change.kind.value, change.key.removeprefix(prefix).decode(), change.listed


def rows(changes: Sequence[Change], prefix: bytes) -> list[tuple[str, str, bool]]:
    return [row(change, prefix) for change in changes]


async def put(etcd: Etcd, *keys: bytes) -> int:
    return (await etcd.txn(Txn([], [Put(key, b"") for key in keys]))).revision


async def delete(etcd: Etcd, key: bytes) -> int:
    return (await etcd.delete(KeyRange.of_key(key))).revision


async def absence(etcd: Etcd, prefix: bytes) -> tuple[int, int]:
    """What happens while nobody watches; returns the revisions before and after."""
    a, b, c, d = (prefix + name for name in (b"a", b"b", b"c", b"d"))
    before = await put(etcd, a, b, c)
    await delete(etcd, b)
    await put(etcd, d)
    await delete(etcd, d)
    await put(etcd, a)
    await delete(etcd, c)
    return before, await put(etcd, c)


ABSENCE = {
    "a": [("ADDED", "a", True), ("MODIFIED", "a", False)],
    "b": [("ADDED", "b", True), ("DELETED", "b", False)],
    "c": [("ADDED", "c", True), ("DELETED", "c", False), ("ADDED", "c", False)],
    "d": [("ADDED", "d", False), ("DELETED", "d", False)],
}


def by_key(changes: Sequence[Change], prefix: bytes) -> dict[str, list[tuple[str, str, bool]]]:
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for change in changes:
        each = row(change, prefix)
        found.setdefault(each[1], []).append(each)
    return found


@pytest.mark.parametrize("ranges", [1, 4])
async def test_what_happened_since_is_seen_once(
    shared_etcd: EtcdServer, prefix: bytes, ranges: int, transport: TransportName
) -> None:
    """The list is of then, and every change since is an event: deletes, and puts between."""
    sink = RecordingSink()
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        before, after = await absence(etcd, prefix)
        keys = KeyRange.of_prefix(prefix)
        async with reflecting(etcd, keys, sink, start_revision=before, ranges=ranges) as (
            reflector,
            listed_at,
        ):
            assert listed_at == before
            await eventually(lambda: len(sink.changes) >= 9)
            last = await put(etcd, prefix + b"a")
            await eventually(lambda: sink.changes[-1].mod_revision == last)
            statistics = reflector.statistics()
    assert by_key(sink.changes[:-1], prefix) == ABSENCE
    assert not any(change.synthesised for change in sink.changes)
    assert {c.mod_revision for c in sink.changes if not c.listed} <= {
        *range(before + 1, after + 1),
        last,
    }
    assert (statistics.relists, statistics.reconnects, statistics.keys) == ({}, {}, 2)


async def test_a_long_history_is_read_by_more_ranges(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has caught up: then as many as the settings say, and nothing is lost or doubled."""
    monkeypatch.setattr("etcd_actions.watch.reflector._REVISIONS_AT_A_TIME", 10)
    keys = [prefix + b"%c%02d" % (letter, number) for letter in b"afmt" for number in range(25)]
    before = await put(etcd, *keys)
    puts = [(key, await put(etcd, key)) for key in keys]
    sink = RecordingSink()
    async with reflecting(
        etcd, KeyRange.of_prefix(prefix), sink, start_revision=before, ranges=2
    ) as (reflector, _):
        await eventually(lambda: reflector.statistics().ranges > 2)
        await eventually(lambda: len(sink.changes) == 200)
        for key in keys[::25]:
            puts.append((key, await put(etcd, key)))
        await eventually(lambda: len(sink.changes) == 204)
        await eventually(lambda: reflector.statistics().ranges == 2)
        puts.append((keys[0], await put(etcd, keys[0])))
        await eventually(lambda: len(sink.changes) == 205)
        assert reflector.statistics().reconnects == {}
    delivered = [(change.key, change.mod_revision) for change in sink.changes if not change.listed]
    assert sorted(delivered) == sorted(puts)


async def test_history_that_reaches_back_just_so(own_etcd: OwnEtcd, prefix: bytes) -> None:
    """Compacted at the very position: it can still be read."""
    sink = RecordingSink()
    async with open_etcd(own_etcd.endpoint) as etcd:
        before, _ = await absence(etcd, prefix)
        await etcd.compact(before)
        keys = KeyRange.of_prefix(prefix)
        async with reflecting(etcd, keys, sink, start_revision=before) as (reflector, _):
            await eventually(lambda: len(sink.changes) == 9)
            assert reflector.statistics().relists == {}
    assert by_key(sink.changes, prefix) == ABSENCE


async def test_a_position_that_was_compacted(own_etcd: OwnEtcd, prefix: bytes) -> None:
    """The oldest state that can be read is listed instead, told, and counted."""
    sink = RecordingSink()
    async with open_etcd(own_etcd.endpoint) as etcd:
        before, after = await absence(etcd, prefix)
        oldest = after - 2
        await etcd.compact(oldest)
        keys = KeyRange.of_prefix(prefix)
        assert await find_oldest_revision(etcd, keys) == oldest
        with capture_logs() as logs:
            async with reflecting(etcd, keys, sink, start_revision=before) as (
                reflector,
                listed_at,
            ):
                await eventually(lambda: len(sink.changes) == 4)
                assert reflector.statistics().relists == {"start_compacted": 1}
    assert listed_at == oldest
    # Of b and d nothing can be known; the end of c is seen.
    assert by_key(sink.changes, prefix) == {"a": [("ADDED", "a", True)], "c": ABSENCE["c"]}
    [told] = [line for line in logs if line["event"] == "start_compacted"]
    assert (told["requested"], told["listing_at"], told["log_level"]) == (before, oldest, "warning")


async def test_a_position_that_is_compacted_while_it_is_listed(
    own_etcd: OwnEtcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given out of it stays; what vanished by then gets its end."""
    monkeypatch.setattr("etcd_actions.etcd.paging._FIRST_LIMIT", 2)
    sink = RecordingSink()
    async with open_etcd(own_etcd.endpoint) as etcd:
        before, after = await absence(etcd, prefix)

        class Compacting(Flawed):
            async def before_page(self, page: int) -> None:
                if page == 2:
                    await etcd.compact(after)

        keys = KeyRange.of_prefix(prefix)
        async with reflecting(Compacting(etcd), keys, sink, start_revision=before) as (
            reflector,
            listed_at,
        ):
            assert listed_at == after
            assert reflector.statistics().relists == {"start_compacted": 1}
    assert by_key(sink.changes, prefix) == {
        "a": [("ADDED", "a", True), ("MODIFIED", "a", True)],
        "b": [("ADDED", "b", True), ("DELETED", "b", True)],
        "c": [("ADDED", "c", True)],
    }


async def test_a_position_that_etcd_has_yet_to_reach(etcd: Etcd, prefix: bytes) -> None:
    """It is of another store: this one is listed as it is."""
    newest = await put(etcd, prefix + b"a")
    replaced: list[None] = []
    sink = RecordingSink()
    with capture_logs() as logs:
        async with reflecting(
            etcd,
            KeyRange.of_prefix(prefix),
            sink,
            start_revision=newest + 1000,
            known={prefix + b"b": newest + 900},
            on_replaced=lambda: replaced.append(None),
        ) as (reflector, listed_at):
            assert reflector.statistics().relists == {"start_ahead": 1}
    assert listed_at >= newest
    assert replaced == [None]
    assert rows(sink.changes, prefix) == [("ADDED", "a", True), ("DELETED", "b", True)]
    [told] = [line for line in logs if line["event"] == "start_ahead"]
    assert (told["requested"], told["listing_at"]) == (newest + 1000, listed_at)


async def test_it_is_not_listed_below_what_is_known(etcd: Etcd, prefix: bytes) -> None:
    """What an earlier life has given out must not be followed by older states."""
    before, after = await absence(etcd, prefix)
    known = {prefix + b"a": after - 2, prefix + b"c": after}
    sink = RecordingSink()
    async with reflecting(
        etcd, KeyRange.of_prefix(prefix), sink, start_revision=before, known=known
    ) as (_, listed_at):
        assert listed_at == after
    assert by_key(sink.changes, prefix) == {
        "a": [("MODIFIED", "a", True)],
        "c": [("MODIFIED", "c", True)],
    }


# --- several ranges -------------------------------------------------------------------


class Flawed:
    """Another connection, whose reads of pages can be interfered with."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def before_page(self, page: int) -> None:
        """Called before the first, the second, ... page of a list is read."""
        await trio.lowlevel.checkpoint()

    async def range(self, keys: KeyRange, *, limit: int = 0, **options: Any) -> RangeResult:
        if limit:
            self.pages += 1
            await self.before_page(self.pages)
        return await self._etcd.range(keys, limit=limit, **options)


def two(prefix: bytes) -> list[KeyRange]:
    """Out of order, on purpose: the first one is the one with most keys."""
    return [KeyRange.of_prefix(prefix + b"main/"), KeyRange.of_prefix(prefix + b"also/")]


async def test_several_ranges_side_by_side(
    shared_etcd: EtcdServer, prefix: bytes, transport: TransportName
) -> None:
    """All of them are listed, watched, and counted; what is between them is not seen."""
    sink = RecordingSink()
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        start = await put(etcd, prefix + b"also/a", prefix + b"main/a", prefix + b"between/a")
        async with reflecting(etcd, two(prefix), sink, ranges=4) as (reflector, listed_at):
            assert listed_at >= start
            assert rows(sink.changes, prefix) == [
                ("ADDED", "main/a", True),
                ("ADDED", "also/a", True),
            ]
            await eventually(lambda: reflector.statistics().streaming)
            assert reflector.statistics().ranges == 5
            await put(etcd, prefix + b"between/b")
            last = await put(etcd, prefix + b"also/b", prefix + b"main/b")
            await eventually(lambda: len(sink.changes) == 4)
            assert sorted(rows(sink.changes[2:], prefix)) == [
                ("ADDED", "also/b", False),
                ("ADDED", "main/b", False),
            ]
            assert {change.mod_revision for change in sink.changes[2:]} == {last}
            assert reflector.statistics().keys == 4
            assert reflector.revision <= last


async def test_they_are_listed_at_one_revision(etcd: Etcd, prefix: bytes) -> None:
    """What is written between the first list and the second is a change of neither."""

    class Writing(Flawed):
        async def before_page(self, page: int) -> None:
            if page == 2:
                await put(etcd, prefix + b"also/late", prefix + b"main/late")

    await put(etcd, prefix + b"also/a", prefix + b"main/a")
    sink = RecordingSink()
    async with reflecting(Writing(etcd), two(prefix), sink):
        await eventually(lambda: len(sink.changes) == 4)
    assert sorted(rows(sink.changes, prefix)) == [
        ("ADDED", "also/a", True),
        ("ADDED", "also/late", False),
        ("ADDED", "main/a", True),
        ("ADDED", "main/late", False),
    ]


async def test_a_list_that_breaks_off_goes_on_with_the_next_range(
    etcd: Etcd, prefix: bytes
) -> None:
    """The first one was given out: it is not listed again, and the next one as of then."""

    class Breaking(Flawed):
        async def before_page(self, page: int) -> None:
            if page == 2:
                await put(etcd, prefix + b"also/late")
                raise Unavailable("cut off")

    before = await put(etcd, prefix + b"also/a", prefix + b"main/a")
    sink = RecordingSink()
    with capture_logs() as logs:
        async with reflecting(Breaking(etcd), two(prefix), sink, start_revision=before) as (
            reflector,
            listed_at,
        ):
            await eventually(lambda: len(sink.changes) == 3)
            assert reflector.statistics().reconnects == {"Unavailable": 1}
    assert listed_at == before
    # A process has several watches: the lines say which one it was.
    told = [(line["event"], line["prefix"]) for line in logs if line["event"] in OUTAGE]
    assert told == [(event, (prefix + b"main/").decode()) for event in OUTAGE]
    assert rows(sink.changes, prefix) == [
        ("ADDED", "main/a", True),
        ("ADDED", "also/a", True),
        ("ADDED", "also/late", False),
    ]


async def test_boundaries_move_in_the_first_range_only(etcd: Etcd, prefix: bytes) -> None:
    """Over many short-lived streams nothing of any range is lost, or comes twice."""
    names = [b"main/x%04d" % number for number in range(900)]
    others = [b"also/x%04d" % number for number in range(300)]
    sink = RecordingSink()
    async with reflecting(etcd, two(prefix), sink, stream_life=0.05, ranges=4) as (reflector, _):
        for start in range(30):
            part = names[start * 30 : start * 30 + 30] + others[start * 10 : start * 10 + 10]
            await put(etcd, *(prefix + name for name in part))
        await eventually(lambda: len(sink.changes) >= len(names) + len(others))
        await eventually(lambda: reflector.statistics().ranges == 5)
        sizes = [range_.keys for range_ in reflector._ranges.all]
        assert sizes[-1] == len(others)
        await eventually(
            lambda: max(range_.keys for range_ in reflector._ranges.all[:-1]) < len(names)
        )
    assert sorted(change.key for change in sink.changes) == [
        prefix + name for name in [*others, *names]
    ]


@pytest.mark.faults
async def test_a_wiped_store_is_noticed_in_all_of_them(own_etcd: OwnEtcd, prefix: bytes) -> None:
    """What is gone gets its end, what is new is given out, and watching goes on."""
    sink = RecordingSink()
    replaced: list[int] = []
    async with open_etcd(own_etcd.endpoint, request_timeout=2) as etcd:
        await put(etcd, prefix + b"also/a", prefix + b"main/a")
        async with reflecting(
            etcd, two(prefix), sink, on_replaced=lambda: replaced.append(len(sink.changes))
        ) as (reflector, _):
            await eventually(lambda: reflector.statistics().streaming)
            own_etcd.stop()
            own_etcd.wipe()
            await trio.to_thread.run_sync(own_etcd.start)
            async with open_etcd(own_etcd.endpoint) as direct:
                await put(direct, prefix + b"also/b", prefix + b"main/b")
                await eventually(
                    lambda: (
                        {key for key, each in sink.last().items() if not each.is_delete}
                        == {prefix + b"also/b", prefix + b"main/b"}
                    )
                )
                last = await put(direct, prefix + b"also/c", prefix + b"main/c")
                await eventually(
                    lambda: [change.mod_revision for change in sink.changes].count(last) == 2
                )
    # Before anything of the new store.
    assert replaced == [2]


def test_ranges_must_be_apart(prefix: bytes) -> None:
    etcd, sink = Flawed(None), RecordingSink()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keys: there is nothing to watch"):
        Reflector(etcd, [], sink)
    twice = [KeyRange.of_prefix(prefix + b"a"), KeyRange.of_prefix(prefix)]
    with pytest.raises(ValueError, match="overlap: give each key once"):
        Reflector(etcd, twice, sink)


# --- how far it is --------------------------------------------------------------------


class Withholding:
    """Another connection, whose streams confirm watchers and say nothing else while held."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._open = trio.Event()
        self._open.set()
        self.reads = 0
        self.watchers = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    def hold(self) -> None:
        self._open = trio.Event()

    def let_go(self) -> None:
        self._open.set()

    async def range(self, keys: KeyRange, *, limit: int = 0, **options: Any) -> RangeResult:
        found = await self._etcd.range(keys, limit=limit, **options)
        if limit and options.get("keys_only"):
            self.reads += 1
        return found

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Any]:
        async with self._etcd.watch() as stream:
            yield HeldStream(stream, self)

    async def opened(self) -> None:
        await self._open.wait()


class HeldStream:
    """A stream of :class:`Withholding`."""

    def __init__(self, stream: WatchStream, etcd: Withholding) -> None:
        self._stream = stream
        self._etcd = etcd
        self._late: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def receive(self) -> Any:
        if not self._late:
            responses = await self._stream.receive()
            confirmations = [each for each in responses if each.created]
            self._late = [each for each in responses if not each.created]
            if confirmations:
                self._etcd.watchers += len(confirmations)
                return confirmations
        await self._etcd.opened()
        late, self._late = self._late, []
        return late


@pytest.fixture
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the versions, and for the users, of which progress cannot be trusted."""
    monkeypatch.setattr("etcd_actions.watch.store_identity.has_reliable_progress", lambda _: False)


@pytest.mark.usefixtures("no_progress")
async def test_an_idle_range_moves_on_without_progress(etcd: Etcd, prefix: bytes) -> None:
    """One busy, one idle and one empty range: all are found to be as they are known."""
    await put(etcd, prefix + b"also/a")
    sink = RecordingSink()
    keys = [*two(prefix), KeyRange.of_prefix(prefix + b"none/")]
    async with reflecting(etcd, keys, sink, dead_after=0.2, ranges=1) as (reflector, _):
        for _ in range(3):
            last = await put(etcd, prefix + b"main/a")
            await eventually(lambda last=last: reflector.revision >= last)  # type: ignore[misc]
        assert reflector.statistics().revision == reflector.revision


@pytest.mark.usefixtures("no_progress")
@pytest.mark.parametrize("what", ["put", "delete"])
async def test_it_does_not_move_on_past_what_was_not_given_out(
    etcd: Etcd, prefix: bytes, what: str
) -> None:
    """While a stream lags, reads find the range different, and claim nothing."""
    key = prefix + b"a"
    await put(etcd, key)
    withholding, sink = Withholding(etcd), RecordingSink()
    async with reflecting(
        withholding, KeyRange.of_prefix(prefix), sink, dead_after=0.2, ranges=1
    ) as (reflector, _):
        await eventually(lambda: withholding.watchers > 0)
        withholding.hold()
        change = await (put(etcd, key) if what == "put" else delete(etcd, key))
        await put(etcd, b"/elsewhere")
        seen = withholding.reads
        await eventually(lambda: withholding.reads > seen + 4)
        assert reflector.revision < change
        assert len(sink.changes) == 1
        withholding.let_go()
        await eventually(lambda: reflector.revision > change)
        assert [each.mod_revision for each in sink.changes[1:]] == [change]


@pytest.mark.usefixtures("no_progress")
async def test_what_comes_late_is_given_out_all_the_same(etcd: Etcd, prefix: bytes) -> None:
    """A key made and deleted leaves no trace in reads; its changes are not dropped."""
    key = prefix + b"a"
    withholding, sink = Withholding(etcd), RecordingSink()
    async with reflecting(
        withholding, KeyRange.of_prefix(prefix), sink, dead_after=0.2, ranges=1
    ) as (reflector, _):
        await eventually(lambda: withholding.watchers > 0)
        withholding.hold()
        await put(etcd, key)
        deleted = await delete(etcd, key)
        await eventually(lambda: reflector.revision >= deleted)
        withholding.let_go()
        await eventually(lambda: len(sink.changes) == 2)
    assert rows(sink.changes, prefix) == [("ADDED", "a", False), ("DELETED", "a", False)]


@pytest.mark.usefixtures("no_progress")
async def test_what_etcd_says_of_one_watcher_is_believed(
    etcd_factory: EtcdFactory, prefix: bytes, transport: TransportName
) -> None:
    """Unasked it says so in step with the watcher's changes, in every version."""
    server = etcd_factory(flags=["--experimental-watch-progress-notify-interval=100ms"])
    async with open_etcd(server.endpoint, transport=transport) as etcd:
        sink = RecordingSink()
        # So long that nothing is read.
        async with reflecting(etcd, two(prefix), sink, dead_after=300) as (reflector, _):
            last = await put(etcd, b"/elsewhere")
            await eventually(lambda: reflector.revision >= last)
            last = await put(etcd, prefix + b"main/a")
            await eventually(lambda: reflector.revision >= last)
            assert len(sink.changes) == 1
