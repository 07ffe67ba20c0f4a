"""The transaction of the mark that also stores what a run service of our own keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trio

from etcd_actions import ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions.actions.status import ActionStatus
from etcd_actions.codecs import json
from etcd_actions.errors import (
    NoSpace,
    OutcomeUnknown,
    RequestTooLarge,
    RunServiceRejected,
    RunServiceUnavailable,
    Unavailable,
)
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Etcd,
    KeyRange,
    KeyValue,
    Put,
    Txn,
    TxnResult,
)
from etcd_actions.model import FINALIZER_RECORD, ActionId, Keyspace
from etcd_actions.record.recorder import MarkResult, Recorder
from etcd_actions.run_service import RunService
from etcd_actions.run_service.fan_out import BothRunServices
from etcd_actions.run_service.protocol import MarkCompanions
from etcd_actions.runs.own_run_service import open_own_run_service
from etcd_actions.runs.run_record import FORM, RunRecord, decode_history, decode_record, encode
from etcd_actions.storage.store import Fence, FencedStore, KeyChange, Store
from etcd_actions.testing import EtcdFactory
from tests.codecs.labels import add_label
from tests.record.test_outbox import Scripted
from tests.support import flyte
from tests.support.endings import ENDING, ended, get, put, write_for_ever
from tests.support.scene import PROCESSOR
from tests.support.waiting import eventually, eventually_holds

ROOT = ActionId("p", "d", "r1", "a0")
NOW = datetime(2026, 11, 28, tzinfo=UTC)
CHILD = ActionId("p", "d", "r1", "c1")

Commit = Callable[[Txn], Awaitable[TxnResult]]


class Journal:
    """Two keys that a run service stores: each gets a line a terminal state."""

    def __init__(self, store: Store, prefix: bytes) -> None:
        self.keys = (prefix + b"record", prefix + b"history")
        self.apart = 0
        self._store = store

    def companions(self) -> MarkCompanions:
        return MarkCompanions([KeyChange(key, _with_line) for key in self.keys], self._write)

    async def _write(self) -> None:
        self.apart += 1
        for key in self.keys:
            change = KeyChange(key, _with_line)
            while not await self._store.change([change]):
                pass


def _with_line(seen: KeyValue | None) -> bytes | None:
    value = b"" if seen is None else seen.value
    return None if value.endswith(b"ended\n") else value + b"ended\n"


class Counting:
    """A way to commit that counts, and does something before or after chosen transactions."""

    def __init__(self, etcd: Etcd) -> None:
        self.count = 0
        self.before: Callable[[int], Awaitable[None]] | None = None
        self.after: Callable[[int], Awaitable[None]] | None = None
        self._etcd = etcd

    async def txn(self, txn: Txn) -> TxnResult:
        self.count += 1
        if self.before is not None:
            await self.before(self.count)
        result = await self._etcd.txn(txn)
        if self.after is not None:
            await self.after(self.count)
        return result


async def is_stored(etcd: Etcd, seen: KeyValue, journal: Journal) -> tuple[bool, bool]:
    """Whether the mark is there, and whether both keys of the journal are."""
    now = await get(etcd, seen.key)
    kvs = [await get(etcd, key) for key in journal.keys]
    lines = [b"" if kv is None else kv.value for kv in kvs]
    assert lines[0].count(b"ended\n") == lines[1].count(b"ended\n") <= 1
    is_marked = now is None or json.decode(now.value).is_recorded
    return is_marked, lines[0].endswith(b"ended\n")


@pytest.fixture
async def seen(etcd: Etcd, prefix: bytes) -> KeyValue:
    return await put(etcd, prefix + b"k", ended(FINALIZER_RECORD))


@pytest.fixture
def journal(etcd: Etcd, prefix: bytes) -> Journal:
    return Journal(Store(etcd), prefix)


# --- one transaction ------------------------------------------------------------------------------


@pytest.mark.parametrize("deleting", [False, True])
async def test_the_mark_and_its_companions_are_one_transaction(
    etcd: Etcd, prefix: bytes, journal: Journal, deleting: bool
) -> None:
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD, deleting=deleting))
    commit = Counting(etcd)
    result = await Recorder(Store(etcd, commit.txn)).mark(seen, ENDING, journal.companions())
    assert result is (MarkResult.DELETED if deleting else MarkResult.MARKED)
    assert (commit.count, journal.apart) == (1, 0)
    revisions = {kv.mod_revision for key in journal.keys if (kv := await get(etcd, key))}
    assert revisions == {seen.mod_revision + 1}
    now = await get(etcd, seen.key)
    assert (now is None) if deleting else (now is not None and {now.mod_revision} == revisions)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_key_that_differs_from_the_guess_is_read_by_the_transaction(
    etcd: Etcd, seen: KeyValue, journal: Journal, is_there: bool
) -> None:
    """The second transaction is the last; no read is made apart."""
    companions = journal.companions()
    if is_there:
        await etcd.put(journal.keys[0], b"started\n")
    else:
        companions.changes[0].seen = KeyValue(journal.keys[0], b"started\n", 1, 1, 1)
    commit = Counting(etcd)
    result = await Recorder(Store(etcd, commit.txn)).mark(seen, ENDING, companions)
    assert (result, commit.count, journal.apart) == (MarkResult.MARKED, 2, 0)
    assert await is_stored(etcd, seen, journal) == (True, True)
    record = await get(etcd, journal.keys[0])
    assert record is not None
    assert record.value == (b"started\nended\n" if is_there else b"ended\n")


async def test_what_is_stored_already_is_compared_and_not_written(
    etcd: Etcd, seen: KeyValue, journal: Journal
) -> None:
    for key in journal.keys:
        await etcd.put(key, b"ended\n")
    result = await Recorder(Store(etcd)).mark(seen, ENDING, journal.companions())
    assert result is MarkResult.MARKED
    assert [kv.version for key in journal.keys if (kv := await get(etcd, key))] == [1, 1]


# --- contention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3, 50])
async def test_under_contention_it_is_stored_once(
    etcd: Etcd, seen: KeyValue, journal: Journal, times: int
) -> None:
    """Up to twice the transaction is repeated; then it is stored apart, and marked after that."""
    commit = Counting(etcd)

    async def write(number: int) -> None:
        if number <= times:
            await etcd.put(journal.keys[0], b"%d\n" % number)

    commit.before = write
    result = await Recorder(Store(etcd, commit.txn)).mark(seen, ENDING, journal.companions())
    assert result is MarkResult.MARKED
    # The rival writes over it when it is stored apart: it would have to be there before.
    assert journal.apart == (0 if times < 3 else 1)
    assert commit.count == (times + 1 if times < 3 else 4)
    history = await get(etcd, journal.keys[1])
    assert history is not None
    assert history.value == b"ended\n"


async def test_a_concurrent_change_of_the_object_stays(
    etcd: Etcd, seen: KeyValue, journal: Journal
) -> None:
    """It is marked at its newer revision, with the companions."""
    commit = Counting(etcd)

    async def edit(number: int) -> None:
        if number == 1:
            await etcd.put(seen.key, add_label(json, seen.value, "team", "blue"))

    commit.before = edit
    result = await Recorder(Store(etcd, commit.txn)).mark(seen, ENDING, journal.companions())
    assert (result, commit.count, journal.apart) == (MarkResult.MARKED, 2, 0)
    now = await get(etcd, seen.key)
    assert now is not None
    assert json.decode(now.value).metadata.labels["team"] == "blue"


@pytest.mark.parametrize(
    ("meanwhile", "result"),
    [
        (ended(FINALIZER_RECORD, phase=Phase.RUNNING), MarkResult.SUPERSEDED),
        (None, MarkResult.GONE),
    ],
)
async def test_what_was_accepted_is_stored_though_nothing_is_to_be_marked(
    etcd: Etcd, seen: KeyValue, journal: Journal, meanwhile: bytes | None, result: MarkResult
) -> None:
    """The object has another state, or was deleted: nothing else has that one."""
    if meanwhile is None:
        await etcd.delete(KeyRange.of_key(seen.key))
    else:
        await etcd.put(seen.key, meanwhile)
    assert await Recorder(Store(etcd)).mark(seen, ENDING, journal.companions()) is result
    assert journal.apart == 1
    assert (await is_stored(etcd, seen, journal))[1]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("deleting", [True, False])
async def test_a_lost_answer_leaves_both_or_neither(
    etcd: Etcd, prefix: bytes, journal: Journal, applied: bool, deleting: bool
) -> None:
    seen = await put(etcd, prefix + b"k", ended(FINALIZER_RECORD, deleting=deleting))
    commit = Counting(etcd)

    async def lose(number: int) -> None:
        raise OutcomeUnknown("the answer was lost")

    if applied:
        commit.after = lose
    else:
        commit.before = lose
    recorder = Recorder(Store(etcd, commit.txn))
    if applied:
        result = await recorder.mark(seen, ENDING, journal.companions())
        assert result is (MarkResult.GONE if deleting else MarkResult.ALREADY)
    else:
        with pytest.raises(OutcomeUnknown):
            await recorder.mark(seen, ENDING, journal.companions())
    assert await is_stored(etcd, seen, journal) == (applied, applied)


async def test_a_cancellation_leaves_both_or_neither(
    etcd: Etcd, seen: KeyValue, journal: Journal
) -> None:
    """The transaction may have been applied; the same call then finds that."""
    for at in ("before", "after"):
        commit = Counting(etcd)
        with trio.CancelScope() as scope:

            async def cancel(number: int, scope: trio.CancelScope = scope) -> None:
                scope.cancel()
                await trio.lowlevel.checkpoint()

            setattr(commit, at, cancel)
            await Recorder(Store(etcd, commit.txn)).mark(seen, ENDING, journal.companions())
        assert scope.cancelled_caught
        assert await is_stored(etcd, seen, journal) == (at == "after", at == "after")
    assert await Recorder(Store(etcd)).mark(seen, ENDING, journal.companions()) is (
        MarkResult.ALREADY
    )


async def test_a_full_etcd_stores_neither(etcd_factory: EtcdFactory) -> None:
    full = etcd_factory(flags=["--quota-backend-bytes=1000000"])
    async with open_etcd(full.endpoint) as etcd:
        journal = Journal(Store(etcd), b"/j/")
        seen = await put(etcd, b"/k", ended(FINALIZER_RECORD))
        with pytest.raises(NoSpace):
            await write_for_ever(etcd, b"/filler", b"x" * 300_000)
        with pytest.raises(NoSpace):
            await Recorder(Store(etcd)).mark(seen, ENDING, journal.companions())
        assert await is_stored(etcd, seen, journal) == (False, False)
        assert journal.apart == 0


async def test_a_transaction_that_is_too_large_is_split(
    etcd: Etcd, seen: KeyValue, journal: Journal
) -> None:
    """The object is marked, since it fits alone."""
    commit = Counting(etcd)

    async def refuse(number: int) -> None:
        if number == 1:
            raise RequestTooLarge("etcdserver: request is too large")

    commit.before = refuse
    result = await Recorder(Store(etcd, commit.txn)).mark(seen, ENDING, journal.companions())
    assert (result, journal.apart) == (MarkResult.MARKED, 1)
    assert await is_stored(etcd, seen, journal) == (True, True)


async def test_a_former_leader_stores_neither(etcd: Etcd, seen: KeyValue, journal: Journal) -> None:
    """The fence does not hold, also where a companion differs from the guess."""
    fence = Fence()
    fence.compare = Compare(b"/no/leader", CompareTarget.VERSION, CompareResult.EQUAL, 1)
    recorder = Recorder(FencedStore(Store(etcd), fence))
    with pytest.raises(Unavailable, match="not the leader any more"):
        await recorder.mark(seen, ENDING, journal.companions())
    await etcd.put(journal.keys[0], b"started\n")
    with pytest.raises(Unavailable, match="not the leader any more"):
        await recorder.mark(seen, ENDING, journal.companions())
    assert await is_stored(etcd, seen, journal) == (False, False)


async def test_companions_that_are_rejected_prevent_the_mark(
    etcd: Etcd, seen: KeyValue, prefix: bytes
) -> None:
    def reject(_: KeyValue | None) -> bytes | None:
        raise RunServiceRejected("never", code=9)

    async def write() -> None:
        raise AssertionError("it was rejected")

    companions = MarkCompanions([KeyChange(prefix + b"record", reject)], write)
    with pytest.raises(RunServiceRejected):
        await Recorder(Store(etcd)).mark(seen, ENDING, companions)
    assert await get(etcd, seen.key) == seen


# --- the run service of our own -------------------------------------------------------------------


@asynccontextmanager
async def leading(
    etcd: Etcd, prefix: bytes, external: RunService | None, *, count: list[Txn] | None = None
) -> AsyncIterator[ActionsClient]:
    """A client that leads, with our own run service, and maybe another one."""
    if count is not None:
        etcd = _Listening(etcd, count)  # type: ignore[assignment]
    async with open_own_run_service(etcd, Keyspace(prefix)) as own:
        service = own if external is None else BothRunServices(own, external)
        settings = replace(PROCESSOR, elect=True, save_every=60.0)
        async with open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=settings
        ) as client:
            await client.start_watching()
            await eventually(lambda: client.statistics().elected)
            yield client


class _Listening:
    """An etcd that keeps each transaction that writes."""

    def __init__(self, etcd: Etcd, txns: list[Txn]) -> None:
        self._etcd = etcd
        self._txns = txns

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn) -> TxnResult:
        if any(isinstance(each, Put) for each in txn.success):
            self._txns.append(txn)
        return await self._etcd.txn(txn)


async def end(client: ActionsClient, action_id: ActionId) -> None:
    await client.put_status(action_id, 1, ActionStatus(Phase.SUCCEEDED))


async def stored(etcd: Etcd, prefix: bytes, action_id: ActionId) -> tuple[KeyValue, ...]:
    """The object, its history and the record of its run."""
    keys = Keyspace(prefix)
    found = [
        await get(etcd, key)
        for key in (keys.task_action(action_id), keys.history(action_id), keys.run_record(ROOT))
    ]
    assert None not in found
    return tuple(kv for kv in found if kv is not None)


async def until(etcd: Etcd, key: bytes, holds: Callable[[bytes], bool]) -> None:
    """Return once the value of a key is as it should be."""

    async def is_so() -> bool:
        kv = await get(etcd, key)
        return kv is not None and holds(kv.value)

    await eventually_holds(is_so)


def _is_running(value: bytes) -> bool:
    status = decode_record(value).status
    return status is not None and status.phase == Phase.RUNNING


@pytest.mark.parametrize("external", [False, True])
async def test_an_ending_is_one_transaction(etcd: Etcd, prefix: bytes, external: bool) -> None:
    """Record, history and mark of a root; history and mark of another action."""
    txns: list[Txn] = []
    service = Scripted() if external else None
    async with leading(etcd, prefix, service, count=txns) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        for action_id in (ROOT, CHILD):
            await client.put_status(action_id, 1, ActionStatus(Phase.RUNNING))
        await until(etcd, Keyspace(prefix).run_record(ROOT), _is_running)
        await eventually(lambda: not client.statistics().outbox.keys)  # type: ignore[union-attr]
        for number, action_id in enumerate((CHILD, ROOT), 1):
            del txns[:]
            await end(client, action_id)
            await eventually(lambda: client.statistics().marks == {"marked": number})  # noqa: B023
            # The status, and what the leader does about it.
            assert len(txns) == 2
            obj, history, record = await stored(etcd, prefix, action_id)
            assert json.decode(obj.value).is_recorded
            assert history.mod_revision == obj.mod_revision
            assert decode_history(history.value).attempts[-1].phase == Phase.SUCCEEDED
            assert (record.mod_revision == obj.mod_revision) == (action_id == ROOT)
        assert client.statistics().reported["status"] >= 4
    if service is not None:
        assert (service.of("a0")[-1], service.of("c1")[-1]) == (Phase.SUCCEEDED,) * 2


async def test_neither_run_service_waits_for_the_other(etcd: Etcd, prefix: bytes) -> None:
    """While the other one is away ours has the end; it is marked when both have."""
    service = Scripted()
    service.failures["status", "a0"] = [RunServiceUnavailable("away")] * 10**6
    async with leading(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await end(client, ROOT)
        await until(etcd, Keyspace(prefix).history(ROOT), lambda _: True)
        assert client.statistics().marks == {}
        service.failures.clear()
        await eventually(lambda: client.statistics().marks == {"marked": 1})
    assert service.of("a0")[-1] is Phase.SUCCEEDED
    _, kept, _ = await stored(etcd, prefix, ROOT)
    assert kept.version == 1


async def test_a_record_of_a_newer_version_is_a_dead_letter(etcd: Etcd, prefix: bytes) -> None:
    """The end is not marked; when the record can be written again, it is."""
    keys = Keyspace(prefix)
    newer = encode(RunRecord(project="p", domain="d", name="r1", created=NOW, form=FORM + 1))
    async with leading(etcd, prefix, None) as client:
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: client.statistics().reported.get("record", 0) == 1)
        await etcd.put(keys.run_record(ROOT), newer)
        await end(client, ROOT)
        await eventually(lambda: "status" in {x.what for x in client.statistics().dead_letters})
        assert client.statistics().marks == {}
        await etcd.delete(KeyRange.of_key(keys.run_record(ROOT)))
        await client.stop_watching()
        await client.start_watching()
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert client.statistics().dead_letters == ()
