"""The recorder on a real etcd: the mark, and what its write does besides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import trio

from etcd_actions import Phase, open_etcd
from etcd_actions.codecs import Codec, json
from etcd_actions.errors import LeaseNotFound, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, Txn, TxnResult
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.model import FINALIZER_PLUGIN, FINALIZER_RECORD
from etcd_actions.record.recorder import MarkResult, Recorder
from etcd_actions.storage.store import Store
from etcd_actions.testing import EtcdFactory
from tests.codecs.labels import add_label
from tests.codecs.strategies import CODECS
from tests.support.endings import ENDING, MARK, ended, get, marked, put, write_for_ever
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.memory

each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


# --- one write ----------------------------------------------------------------------------


@each_codec
@pytest.mark.parametrize("others", [(), (FINALIZER_PLUGIN,)], ids=["alone", "with another"])
async def test_the_mark_is_label_and_finalizer_in_one_write(
    etcd: Etcd, prefix: bytes, codec: Codec, others: tuple[str, ...]
) -> None:
    """Nothing else changes, whatever the form."""
    seen = await put(etcd, prefix + b"k", ended(*others, FINALIZER_RECORD, codec=codec))
    recorder = Recorder(Store(etcd))
    assert await recorder.mark(seen, ENDING) is MarkResult.MARKED
    now = await get(etcd, seen.key)
    assert now is not None
    assert now.version == seen.version + 1
    assert now.value == marked(ended(*others, codec=codec), seen.create_revision)
    assert recorder.statistics() == {"marked": 1}


@each_codec
async def test_the_last_finalizer_of_a_deleted_object(
    etcd: Etcd, prefix: bytes, codec: Codec
) -> None:
    """As in an API server its removal writes nothing but the deletion."""
    value = ended(FINALIZER_RECORD, deleting=True, codec=codec)
    seen = await put(etcd, prefix + b"k", value)
    assert await Recorder(Store(etcd)).mark(seen, ENDING) is MarkResult.DELETED
    assert await get(etcd, seen.key) is None
    assert (await etcd.range(KeyRange.of_key(seen.key))).revision >= seen.mod_revision + 1


async def test_another_finalizer_holds_a_deleted_object(etcd: Etcd, prefix: bytes) -> None:
    """Its owner has work to do, and lets it go himself."""
    value = ended(FINALIZER_RECORD, FINALIZER_PLUGIN, deleting=True)
    seen = await put(etcd, prefix + b"k", value)
    assert await Recorder(Store(etcd)).mark(seen, ENDING) is MarkResult.MARKED
    now = await get(etcd, seen.key)
    assert now is not None
    assert json.decode(now.value).metadata.finalizers == (FINALIZER_PLUGIN,)


async def test_many_recorders_write_once(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """Four processes' worth, over the same objects: one write lands on each."""
    async with AsyncExitStack() as stack:
        recorders = []
        for _ in range(4):
            own = await stack.enter_async_context(open_etcd(shared_etcd.endpoint))
            commit = await stack.enter_async_context(open_group_commit(own))
            recorders.append(Recorder(Store(own, commit.txn)))
        held = [
            await put(etcd, prefix + b"k%d" % number, ended(FINALIZER_RECORD))
            for number in range(40)
        ]
        gone = [
            await put(etcd, prefix + b"d%d" % number, ended(FINALIZER_RECORD, deleting=True))
            for number in range(40)
        ]
        async with trio.open_nursery() as nursery:
            for seen in (*held, *gone):
                for recorder in recorders:
                    nursery.start_soon(recorder.mark, seen, ENDING)
        counts: dict[str, int] = {}
        for recorder in recorders:
            for result, count in recorder.statistics().items():
                counts[result] = counts.get(result, 0) + count
        assert counts == {"marked": 40, "already": 120, "deleted": 40, "gone": 120}
        left = await etcd.range(KeyRange.of_prefix(prefix))
        assert [kv.version for kv in left.kvs] == [2] * 40


# --- conflicts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meanwhile", "result"),
    [
        (add_label(json, ended(FINALIZER_RECORD), "team", "blue"), MarkResult.MARKED),
        (ended(FINALIZER_RECORD, deleting=True), MarkResult.DELETED),
        (ended(FINALIZER_RECORD, phase=Phase.RUNNING), MarkResult.SUPERSEDED),
        (b"garbage", MarkResult.SUPERSEDED),
        (json.release(ended(FINALIZER_RECORD), *MARK).value, MarkResult.ALREADY),
        (None, MarkResult.GONE),
    ],
    ids=["edited", "deletion asked for", "another state", "undecodable", "marked", "deleted"],
)
async def test_whoever_was_faster_keeps_the_change(
    etcd: Etcd, prefix: bytes, meanwhile: bytes | None, result: MarkResult
) -> None:
    """The same ending is marked at the newer revision, through the group commit again."""
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD))
    if meanwhile is None:
        await etcd.delete(KeyRange.of_key(seen.key))
    else:
        await put(etcd, seen.key, meanwhile)
    async with open_group_commit(etcd) as commit:
        recorder = Recorder(Store(etcd, commit.txn))
        assert await recorder.mark(seen, ENDING) is result
        tries = 2 if result in (MarkResult.MARKED, MarkResult.DELETED) else 1
        assert commit.statistics().members == tries
    now = await get(etcd, seen.key)
    if result is MarkResult.MARKED:
        assert meanwhile is not None
        assert now is not None
        assert now.value == marked(meanwhile, seen.create_revision)
    elif result is MarkResult.DELETED:
        assert now is None
    else:
        assert (now and now.value) == meanwhile


# --- lost answers -------------------------------------------------------------------------


def losing(etcd: Etcd, *, applied: bool) -> Callable[[Txn], Awaitable[TxnResult]]:
    async def commit(txn: Txn) -> TxnResult:
        if applied:
            await etcd.txn(txn)
        raise OutcomeUnknown("the answer was lost")

    return commit


@pytest.mark.parametrize(
    ("deleting", "result"), [(False, MarkResult.ALREADY), (True, MarkResult.GONE)]
)
async def test_a_lost_answer_to_a_write_that_was_done(
    etcd: Etcd, prefix: bytes, deleting: bool, result: MarkResult
) -> None:
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD, deleting=deleting))
    recorder = Recorder(Store(etcd, losing(etcd, applied=True)))
    assert await recorder.mark(seen, ENDING) is result


@pytest.mark.parametrize("deleting", [False, True])
async def test_a_lost_answer_to_a_write_that_was_not_done(
    etcd: Etcd, prefix: bytes, deleting: bool
) -> None:
    """It may still land, so it is the caller's to try the same again."""
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD, deleting=deleting))
    with pytest.raises(OutcomeUnknown):
        await Recorder(Store(etcd, losing(etcd, applied=False))).mark(seen, ENDING)
    assert await get(etcd, seen.key) == seen
    again = await Recorder(Store(etcd)).mark(seen, ENDING)
    assert again is (MarkResult.DELETED if deleting else MarkResult.MARKED)


async def test_a_full_etcd(etcd_factory: EtcdFactory) -> None:
    """Marks are refused, so that the outbox parks them; deletions go on."""
    full = etcd_factory(flags=["--quota-backend-bytes=1000000"])
    async with open_etcd(full.endpoint) as etcd, open_group_commit(etcd) as commit:
        held = [await put(etcd, b"/h%d" % n, ended(FINALIZER_RECORD)) for n in range(3)]
        gone = [
            await put(etcd, b"/g%d" % n, ended(FINALIZER_RECORD, deleting=True)) for n in range(3)
        ]
        with pytest.raises(NoSpace):
            await write_for_ever(etcd, b"/filler", b"x" * 300_000)
        recorder = Recorder(Store(etcd, commit.txn))
        refused = []

        async def mark(seen: KeyValue) -> None:
            try:
                await recorder.mark(seen, ENDING)
            except NoSpace:
                refused.append(seen.key)

        async with trio.open_nursery() as nursery:
            for seen in (*held, *gone):
                nursery.start_soon(mark, seen)
        if (3, 5) <= full.version < (3, 5, 2) and len(refused) == 6:
            # These refuse any transaction once the store itself, without the value that was
            # too much for it, has come to its limit.
            return
        assert sorted(refused) == [seen.key for seen in held]
        assert recorder.statistics() == {"deleted": 3}


# --- leases -------------------------------------------------------------------------------


class FixedLeases:
    """Gives out one lease after the other, the next when one is lost."""

    def __init__(self, *leases: int) -> None:
        self.leases = [*leases]
        self.asked = 0

    async def lease(self) -> int:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if not self.leases:
            raise Unavailable("no more leases")
        return self.leases[0]

    def lost(self, lease: int) -> None:
        self.leases.remove(lease)


async def test_the_lease_comes_with_the_mark(etcd: Etcd, prefix: bytes) -> None:
    lease = await etcd.lease_grant(60)
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD))
    recorder = Recorder(Store(etcd), FixedLeases(lease.id))
    assert await recorder.mark(seen, ENDING) is MarkResult.MARKED
    now = await get(etcd, seen.key)
    assert now is not None
    assert (now.lease, now.version) == (lease.id, 2)
    await etcd.lease_revoke(lease.id)
    assert await get(etcd, seen.key) is None


async def test_a_lease_of_others_stays(etcd: Etcd, prefix: bytes) -> None:
    theirs = await etcd.lease_grant(60)
    leases = FixedLeases(4711)
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD), lease=theirs.id)
    assert await Recorder(Store(etcd), leases).mark(seen, ENDING) is MarkResult.MARKED
    now = await get(etcd, seen.key)
    assert now is not None
    assert now.lease == theirs.id
    assert leases.asked == 0
    await etcd.lease_revoke(theirs.id)


async def test_no_lease_takes_away_what_another_holds(etcd: Etcd, prefix: bytes) -> None:
    """A lease expires whatever the finalizers say; it comes when they are gone."""
    lease = await etcd.lease_grant(60)
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD, FINALIZER_PLUGIN))
    recorder = Recorder(Store(etcd), FixedLeases(lease.id))
    assert await recorder.mark(seen, ENDING) is MarkResult.MARKED
    held = await get(etcd, seen.key)
    assert held is not None
    assert held.lease == 0
    await recorder.release(held)
    assert await get(etcd, seen.key) == held
    released = await put(
        etcd, seen.key, json.release(held.value, *MARK[:2], FINALIZER_PLUGIN).value
    )
    await recorder.release(released)
    now = await get(etcd, seen.key)
    assert now is not None
    assert (now.value, now.lease) == (released.value, lease.id)
    await etcd.lease_revoke(lease.id)


async def test_a_deletion_needs_no_lease(etcd: Etcd, prefix: bytes) -> None:
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD, deleting=True))
    assert await Recorder(Store(etcd), FixedLeases()).mark(seen, ENDING) is MarkResult.DELETED


async def test_a_lease_that_is_gone_is_replaced(etcd: Etcd, prefix: bytes) -> None:
    lease = await etcd.lease_grant(60)
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD))
    recorder = Recorder(Store(etcd), FixedLeases(4711, lease.id))
    assert await recorder.mark(seen, ENDING) is MarkResult.MARKED
    now = await get(etcd, seen.key)
    assert now is not None
    assert now.lease == lease.id
    await etcd.lease_revoke(lease.id)


async def test_without_a_lease_nothing_is_marked(etcd: Etcd, prefix: bytes) -> None:
    """It is tried again, by who asked."""
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD))
    with pytest.raises(Unavailable):
        await Recorder(Store(etcd), FixedLeases()).mark(seen, ENDING)
    assert await get(etcd, seen.key) == seen


async def test_a_lease_that_ends_under_the_mark(etcd: Etcd, prefix: bytes) -> None:
    """It takes the object with it; until then the mark is refused."""
    lease = await etcd.lease_grant(60)
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD), lease=lease.id)

    async def gone(txn: Txn) -> TxnResult:
        raise LeaseNotFound("requested lease not found")

    with pytest.raises(LeaseNotFound):
        await Recorder(Store(etcd, gone)).mark(seen, ENDING)
    await etcd.lease_revoke(lease.id)
    assert await Recorder(Store(etcd)).mark(seen, ENDING) is MarkResult.GONE


# --- what is recorded already -------------------------------------------------------------


async def test_what_another_service_marked_is_let_go(etcd: Etcd, prefix: bytes) -> None:
    """Flyte's own knows nothing of our finalizer."""
    seen = await put(etcd, prefix + b"k", add_label(json, ended(FINALIZER_RECORD), *MARK[:2]))
    recorder = Recorder(Store(etcd))
    await recorder.release(seen)
    now = await get(etcd, seen.key)
    assert now is not None
    assert now.value == add_label(json, ended(), *MARK[:2])
    await recorder.release(now)
    assert await get(etcd, seen.key) == now
    deleted = await put(
        etcd, seen.key, add_label(json, ended(FINALIZER_RECORD, deleting=True), *MARK[:2])
    )
    await recorder.release(deleted)
    assert await get(etcd, seen.key) is None


async def test_a_lease_that_was_detached_comes_back(etcd: Etcd, prefix: bytes) -> None:
    """An API server writes without it. The bytes stay."""
    lease = await etcd.lease_grant(60)
    recorder = Recorder(Store(etcd), FixedLeases(lease.id))
    seen = await put(etcd, prefix + b"k", add_label(json, ended(), *MARK[:2]))
    assert recorder.needs_lease(seen.lease)
    await recorder.release(seen)
    now = await get(etcd, seen.key)
    assert now is not None
    assert (now.value, now.lease, now.version) == (seen.value, lease.id, 2)
    assert not recorder.needs_lease(now.lease)
    await recorder.release(now)
    assert await get(etcd, seen.key) == now
    assert not Recorder(Store(etcd)).needs_lease(0)
    await etcd.lease_revoke(lease.id)


@pytest.mark.parametrize(
    "value",
    [
        add_label(json, ended(FINALIZER_RECORD, phase=Phase.RUNNING), *MARK[:2]),
        ended(FINALIZER_RECORD),
    ],
    ids=["goes on", "not recorded"],
)
async def test_only_what_is_over_and_recorded_is_let_go(
    etcd: Etcd, prefix: bytes, value: bytes
) -> None:
    seen = await put(etcd, prefix + b"k", value)
    await Recorder(Store(etcd), FixedLeases()).release(seen)
    assert await get(etcd, seen.key) == seen


async def test_what_changed_meanwhile_is_left_alone(etcd: Etcd, prefix: bytes) -> None:
    """Its newer state comes by the watch."""
    recorded = add_label(json, ended(FINALIZER_RECORD), *MARK[:2])
    seen = await put(etcd, prefix + b"k", recorded)
    newer = await put(etcd, seen.key, add_label(json, recorded, "team", "blue"))
    await Recorder(Store(etcd)).release(seen)
    assert await get(etcd, seen.key) == newer


async def test_an_object_that_was_made_again_is_not_marked_for_the_one_before(
    etcd: Etcd, prefix: bytes
) -> None:
    """Written back by a restore, say, with its uid and its ending."""
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD))
    await etcd.delete(KeyRange.of_key(seen.key))
    again = await put(etcd, seen.key, ended(FINALIZER_RECORD))
    assert await Recorder(Store(etcd)).mark(seen, ENDING) is MarkResult.SUPERSEDED
    assert await get(etcd, seen.key) == again
