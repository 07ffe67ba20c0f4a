"""Writes that begin with a guess: how many requests they need, and that no guess is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.status import ActionStatus, put_status
from etcd_actions.codecs import CODEC_NAMES, codec_of, json
from etcd_actions.errors import (
    Aborted,
    AlreadyExists,
    ClaimLost,
    EtcdError,
    FailedPrecondition,
    InvalidArgument,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange, Put, RangeResult, Txn, TxnResult
from etcd_actions.etcd.group_members import reads_of
from etcd_actions.model import ErrorState, Incarnation, Keyspace
from etcd_actions.model.conditions import write_phase
from etcd_actions.storage.claims import open_claims
from etcd_actions.storage.store import Store
from tests.actions.stored import T0, Tree
from tests.support import flyte
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
RUNNING = ActionStatus(Phase.RUNNING)


class Recording:
    """Passes requests on to etcd, and notes them.

    Attributes:
        asked: ``read`` or ``write`` for each.
        before: Called before the next write, once.
        error: What the next write raises, once, and whether it is done all the same.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.asked: list[str] = []
        self.before: Callable[[], Awaitable[object]] | None = None
        self.error: tuple[EtcdError, bool] | None = None

    async def range(self, keys: KeyRange, *, revision: int = 0) -> RangeResult:
        self.asked.append("read")
        return await self._etcd.range(keys, revision=revision)

    async def txn(self, txn: Txn) -> TxnResult:
        if reads_of(txn) is not None:
            self.asked.append("read")
            return await self._etcd.txn(txn)
        self.asked.append("write")
        before, self.before = self.before, None
        if before is not None:
            await before()
        failure, self.error = self.error, None
        if failure is not None:
            error, done = failure
            if done:
                await self._etcd.txn(txn)
            raise error
        return await self._etcd.txn(txn)

    def requests(self) -> list[str]:
        """What was asked since the last time."""
        asked, self.asked = self.asked, []
        return asked


class Side:
    """One process: what it has seen, and what it asks."""

    def __init__(self, etcd: Etcd, keys: Keyspace) -> None:
        self.recording = Recording(etcd)
        self.store = Store(cast(Etcd, self.recording))
        self.cache = ReadCache()
        self.enqueuer = Enqueuer(self.store, keys, json, cache=self.cache)
        self._keys = keys

    async def enqueue(self, action_id: ActionId = CHILD, parent: str = "a0") -> list[str]:
        """Create a task; what that asked of etcd."""
        self.recording.requests()
        assert (await self.enqueuer.enqueue(flyte.task(action_id, parent))).created
        return self.recording.requests()

    async def report(self, phase: Phase = Phase.RUNNING, **given: object) -> list[str]:
        """Report on the root; what that asked of etcd."""
        self.recording.requests()
        status = ActionStatus(phase)
        await put_status(
            self.store,
            self._keys,
            ROOT,
            1,
            status,
            cache=self.cache,
            **given,  # type: ignore[arg-type]
        )
        return self.recording.requests()


@pytest.fixture
async def side(etcd: Etcd, keys: Keyspace) -> Side:
    """One that has seen a root."""
    side = Side(etcd, keys)
    await side.enqueue(ROOT, "")
    side.recording.requests()
    return side


@pytest.fixture
async def other(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    """Another process."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


async def edit(etcd: Etcd, key: bytes, change: Callable[[Tree], object]) -> None:
    (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
    tree = codec_of(kv.value).decode_tree(kv.value)
    change(tree)
    await etcd.put(key, codec_of(kv.value).encode_tree(tree))


# --- enqueue ------------------------------------------------------------------------------


async def test_what_was_seen_needs_one_request(side: Side) -> None:
    """A root, its children, and theirs."""
    assert await side.enqueue(ActionId("p", "d", "r2", "a0"), "") == ["write"]
    assert await side.enqueue() == ["write"]
    assert await side.enqueue(ActionId("p", "d", "r1", "g1"), "c1") == ["write"]


async def test_a_parent_that_nobody_saw_is_read_once(
    etcd: Etcd, keys: Keyspace, side: Side
) -> None:
    stranger = Side(etcd, keys)
    assert await stranger.enqueue() == ["read", "write"]
    assert await stranger.enqueue(ActionId("p", "d", "r1", "c2")) == ["write"]


async def test_what_a_child_takes_over_is_never_old(etcd: Etcd, keys: Keyspace, side: Side) -> None:
    """Labels, annotations and environment that somebody changed since the parent was seen."""

    def change(tree: Tree) -> None:
        tree["metadata"]["labels"]["team"] = "blue"
        tree["metadata"]["annotations"]["note"] = "new"
        tree["spec"]["envVars"] = {"LEVEL": "1"}

    await edit(etcd, keys.task_action(ROOT), change)
    enqueued = await side.enqueuer.enqueue(flyte.task(CHILD, "a0"))
    assert enqueued.action.metadata.labels["team"] == "blue"
    assert enqueued.action.metadata.annotations["note"] == "new"
    assert enqueued.action.spec.env_vars == {"LEVEL": "1"}
    assert side.recording.requests() == ["write", "write"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tree: tree["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"), "deleted"),
        (lambda tree: write_phase(tree, Phase.ABORTED, now=T0), "is aborted"),
        (lambda tree: tree["spec"].update(project="q"), "the parent is gone"),
    ],
    ids=["deleting", "aborted", "another's"],
)
async def test_a_parent_that_can_have_no_children_any_more(
    etcd: Etcd, keys: Keyspace, side: Side, change: Callable[[Tree], object], match: str
) -> None:
    """Though it is the same incarnation, and no abort is under way."""
    await side.enqueue()
    await edit(etcd, keys.task_action(ROOT), change)
    with pytest.raises(Aborted, match=match):
        await side.enqueuer.enqueue(flyte.task(ActionId("p", "d", "r1", "c2"), "a0"))


async def test_a_parent_that_was_made_again(etcd: Etcd, keys: Keyspace, side: Side) -> None:
    """The child is that of the one that is there."""
    key = keys.task_action(ROOT)
    (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
    await etcd.delete(KeyRange.of_key(key))
    await etcd.put(key, kv.value)
    await edit(etcd, key, lambda tree: tree["metadata"].update(uid="new"))
    enqueued = await side.enqueuer.enqueue(flyte.task(CHILD, "a0"))
    assert [each.uid for each in enqueued.action.metadata.owner_references] == ["new"]
    await etcd.delete(KeyRange.of_key(key))
    with pytest.raises(Aborted, match="the parent is gone"):
        await side.enqueuer.enqueue(flyte.task(ActionId("p", "d", "r1", "c2"), "a0"))


async def test_an_abort_that_nobody_here_saw(side: Side, other: ActionsClient) -> None:
    """Of the parent, or above it; beside it children are created as before."""
    await side.enqueue()
    await side.enqueue(ActionId("p", "d", "r1", "c2"))
    await side.enqueue(ActionId("p", "d", "r1", "g1"), "c1")
    await other.abort_action(CHILD, "enough")
    for parent, name in (("c1", "g2"), ("g1", "h1")):
        with pytest.raises(Aborted, match="aborted"):
            await side.enqueuer.enqueue(flyte.task(ActionId("p", "d", "r1", name), parent))
    # It is looked above its parent, too.
    asked = await side.enqueue(ActionId("p", "d", "r1", "g3"), "c2")
    assert asked == ["read", "read", "write"]


async def test_a_name_that_is_taken(side: Side, other: ActionsClient) -> None:
    """By the same request, or by another."""
    await other.enqueue(flyte.task(CHILD, "a0"))
    side.recording.requests()
    enqueued = await side.enqueuer.enqueue(flyte.task(CHILD, "a0"))
    assert enqueued == (await other.get_task_action(CHILD), False)
    assert side.recording.requests() == ["write"]
    with pytest.raises(AlreadyExists):
        await side.enqueuer.enqueue(flyte.task(CHILD, "a0", name="g"))


@pytest.mark.parametrize("error", [NoSpace("full"), OutcomeUnknown("lost")])
async def test_a_repeated_request_is_answered_though_etcd_takes_none(
    side: Side, other: ActionsClient, error: EtcdError
) -> None:
    """It needs no write; another request of that name is refused for what it is."""
    await other.enqueue(flyte.task(CHILD, "a0"))
    side.recording.error = error, False
    assert not (await side.enqueuer.enqueue(flyte.task(CHILD, "a0"))).created
    side.recording.error = error, False
    with pytest.raises(AlreadyExists):
        await side.enqueuer.enqueue(flyte.task(CHILD, "a0", name="g"))


async def test_what_is_created_beside(side: Side, etcd: Etcd, prefix: bytes) -> None:
    """A key that is there refuses the whole, by a guess, too."""
    beside = [Put(prefix + b"beside", b"1")]
    new = flyte.task(ActionId("p", "d", "r2", "a0"))
    assert (await side.enqueuer.enqueue(new, companions=beside)).created
    taken = flyte.task(ActionId("p", "d", "r3", "a0"))
    with pytest.raises(AlreadyExists, match=r"the key .*beside exists already"):
        await side.enqueuer.enqueue(taken, companions=beside)
    (kv,) = (await etcd.range(KeyRange.of_key(prefix + b"beside"))).kvs
    assert kv.version == 1


async def test_nothing_seen_outlives_a_lost_connection(side: Side) -> None:
    """etcd may be another store afterwards, restored, with equal revisions for other things."""
    await side.enqueue()
    side.recording.error = Unavailable("away"), False
    with pytest.raises(Unavailable):
        await side.enqueue(ActionId("p", "d", "r1", "c2"))
    assert len(side.cache) == 0
    assert await side.enqueue(ActionId("p", "d", "r1", "c2")) == ["read", "write"]


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_what_is_given_is_what_is_stored(etcd: Etcd, prefix: bytes, codec: str) -> None:
    """Though nothing was read back; a trace that is recorded again, too."""
    async with open_actions_client(etcd, prefix=prefix, codec=codec) as client:
        for request in (
            flyte.task(ROOT),
            flyte.task(CHILD, "a0"),
            flyte.condition(ActionId("p", "d", "r1", "c2"), "a0"),
        ):
            enqueued = await client.enqueue(request)
            assert enqueued == (await client.get_task_action(enqueued.action.action_id), True)
        trace = flyte.trace(ActionId("p", "d", "r1", "t1"), "a0")
        first = await client.enqueue(trace)
        again = await client.enqueue(trace)
        assert again.action == await client.get_task_action(again.action.action_id)
        assert again.action.create_revision == first.action.create_revision
        assert again.action.revision > first.action.revision


# --- reports ------------------------------------------------------------------------------


async def test_a_report_on_what_was_seen_needs_one_request(side: Side) -> None:
    assert await side.report() == ["write"]
    assert await side.report(Phase.SUCCEEDED) == ["write"]


async def test_a_report_on_what_changed_keeps_the_change(
    side: Side, etcd: Etcd, keys: Keyspace
) -> None:
    """The write that fails reads; the next is upon what is there."""
    key = keys.task_action(ROOT)
    await edit(etcd, key, lambda tree: tree["metadata"].update(labels={"theirs": "1"}))
    assert await side.report() == ["write", "write"]
    (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
    found = json.decode(kv.value)
    assert (found.phase, found.metadata.labels) == (Phase.RUNNING, {"theirs": "1"})


async def test_a_report_on_the_callers_last_state_needs_one_request(
    side: Side, other: ActionsClient
) -> None:
    """GuaranteedUpdate: it reads only after another one was faster."""
    seen = await other.get_task_action(ROOT)
    side.cache.clear()
    assert await side.report(seen=seen) == ["write"]
    side.cache.clear()
    assert await side.report(Phase.SUCCEEDED, seen=seen) == ["write", "write"]
    assert (await other.get_task_action(ROOT)).phase is Phase.SUCCEEDED


async def test_the_callers_last_state_is_no_proof(side: Side, other: ActionsClient) -> None:
    """That it says the same already, or forbids the report, may be old."""
    running = await other.put_status(ROOT, 1, ActionStatus(Phase.RUNNING))
    await other.put_status(ROOT, 1, ActionStatus(Phase.PAUSED))
    side.cache.clear()
    assert await side.report(seen=running) == ["read", "write"]
    assert (await other.get_task_action(ROOT)).phase is Phase.RUNNING


async def test_a_report_on_the_callers_last_state_is_about_that_object(
    side: Side, other: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    seen = await other.get_task_action(ROOT)
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
    await other.enqueue(flyte.task(ROOT))
    with pytest.raises(NotFound, match="is gone"):
        await side.report(seen=seen)
    await other.enqueue(flyte.task(CHILD, "a0"))
    with pytest.raises(InvalidArgument, match="seen: it is action c1 of run p/d/r1"):
        await side.report(seen=await other.get_task_action(CHILD))


async def test_that_nothing_changes_is_believed_of_what_is_there_only(
    side: Side, other: ActionsClient
) -> None:
    """It looked as if it said what it says; meanwhile somebody else wrote something else."""
    await side.report()
    await other.put_status(ROOT, 1, ActionStatus(Phase.PAUSED))
    assert await side.report() == ["read", "write"]
    assert (await other.get_task_action(ROOT)).phase is Phase.RUNNING
    assert await side.report() == ["read"]


async def test_a_refusal_is_believed_of_what_is_there_only(
    side: Side, other: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It was over when it was seen, and is a new one by now."""
    await side.report(Phase.FAILED)
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
    with pytest.raises(NotFound):
        await side.report()
    await other.enqueue(flyte.task(ROOT))
    assert await side.report() == ["read", "write"]
    await other.put_status(ROOT, 1, ActionStatus(Phase.FAILED), error=ErrorState("c"))
    with pytest.raises(FailedPrecondition, match="an end: RUNNING in attempt 1 cannot follow"):
        await side.report()


async def test_a_report_on_one_object_is_none_on_the_next(
    side: Side, other: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Without an incarnation it is about the one that is there, with one about that alone."""
    key = keys.task_action(ROOT)
    first = await other.get_task_action(ROOT)
    await etcd.delete(KeyRange.of_key(key))
    await other.enqueue(flyte.task(ROOT))
    with pytest.raises(NotFound, match="is gone"):
        await side.report(incarnation=first.incarnation)
    assert (await other.get_task_action(ROOT)).phase is Phase.UNSPECIFIED
    await side.report()
    assert (await other.get_task_action(ROOT)).phase is Phase.RUNNING


async def test_one_that_is_made_again_during_the_first_write(
    side: Side, other: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It was guessed: what is there by then is the one that is meant."""

    async def again() -> None:
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        await other.enqueue(flyte.task(ROOT))

    side.recording.before = again
    assert await side.report() == ["write", "write"]
    assert (await other.get_task_action(ROOT)).phase is Phase.RUNNING


async def test_a_lost_answer_to_a_guess(side: Side, other: ActionsClient) -> None:
    """Done or not is found out by a read."""
    side.recording.error = OutcomeUnknown("lost"), True
    assert await side.report() == ["write", "read"]
    assert (await other.get_task_action(ROOT)).phase is Phase.RUNNING
    side.recording.error = OutcomeUnknown("lost"), False
    with pytest.raises(OutcomeUnknown):
        await side.report(Phase.SUCCEEDED)
    assert len(side.cache) == 0


async def test_a_lost_answer_ends_all_guesses_though_the_write_is_found(
    side: Side, keys: Keyspace
) -> None:
    """Behind a connection that was lost there may be a restored store."""
    await side.enqueue()
    side.recording.error = OutcomeUnknown("lost"), True
    await side.report()
    assert side.cache.get(keys.task_action(CHILD)) is None
    assert side.cache.get(keys.task_action(ROOT)) is not None


# --- claims -------------------------------------------------------------------------------


async def test_the_start_of_an_action_is_two_requests(
    side: Side, etcd: Etcd, keys: Keyspace, other: ActionsClient
) -> None:
    """Claim and object, then the report; what changed before the claim is in what it reads."""
    first = await other.get_task_action(ROOT)
    async with open_claims(etcd, side.store, keys, ttl=60) as claims:
        await other.put_status(ROOT, 1, ActionStatus(Phase.QUEUED))
        side.recording.requests()
        claimed = await claims.claim_and_read(ROOT, first.incarnation)
        assert side.recording.requests() == ["write"]
        assert claimed is not None
        assert claimed.object is not None
        assert json.decode(claimed.object.value).phase is Phase.QUEUED
        side.cache.put(claimed.object)
        assert await side.report(fence=claimed.claim.fence) == ["write"]
        again = await claims.claim_and_read(ROOT, first.incarnation)
        assert again is not None
        assert again.claim == claimed.claim
        assert again.object is not None
        assert json.decode(again.object.value).phase is Phase.RUNNING
        await claims.release(claimed.claim)
        with pytest.raises(ClaimLost):
            await side.report(Phase.SUCCEEDED, fence=claimed.claim.fence)


async def test_a_claim_that_is_not_made_reads_nothing(
    side: Side, etcd: Etcd, keys: Keyspace, other: ActionsClient
) -> None:
    first = await other.get_task_action(ROOT)
    earlier = Incarnation(first.key, first.create_revision - 1, "")
    async with (
        open_claims(etcd, side.store, keys, ttl=60) as claims,
        other.open_claims() as others,
    ):
        assert await claims.claim_and_read(ROOT, earlier) is None
        assert await others.claim(ROOT, first.incarnation) is not None
        assert await claims.claim_and_read(ROOT, first.incarnation) is None


@pytest.mark.parametrize("done", [True, False])
async def test_a_claim_whose_answer_is_lost(
    side: Side, etcd: Etcd, keys: Keyspace, other: ActionsClient, done: bool
) -> None:
    first = await other.get_task_action(ROOT)
    async with open_claims(etcd, side.store, keys, ttl=60) as claims:
        side.recording.error = OutcomeUnknown("lost"), done
        if not done:
            with pytest.raises(OutcomeUnknown):
                await claims.claim_and_read(ROOT, first.incarnation)
            return
        claimed = await claims.claim_and_read(ROOT, first.incarnation)
        assert claimed is not None
        assert claimed.object is not None
        assert claimed.object.mod_revision == first.revision
