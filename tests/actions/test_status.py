"""put_status: what is reported is in etcd, whoever else writes there."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.actions.status import ActionStatus, put_status
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import Codec, codec_of
from etcd_actions.errors import (
    ActionError,
    DecodeError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
)
from etcd_actions.etcd.api import Etcd, KeyRange, Txn, TxnResult
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.model import (
    ANNOTATION_ORG,
    LABEL_COMPLETED_TIME,
    LABEL_TERMINAL_STATUS_RECORDED,
    LABEL_TERMINATION_STATUS,
    ActionId,
    ErrorState,
    Keyspace,
    Phase,
)
from etcd_actions.storage.store import Store
from etcd_actions.testing import EtcdServer
from tests.actions.stored import (
    T0,
    TASK,
    LostAnswers,
    Overtaken,
    Tree,
    at_t0,
    captured,
    store_tree,
    stored_tree,
    stored_value,
    with_unknown_fields,
)
from tests.codecs.strategies import CODECS
from tests.support import oracle
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory

PHASES = [phase for phase in Phase if phase is not Phase.UNSPECIFIED]


async def put(
    etcd: Etcd,
    keys: Keyspace,
    phase: Phase = Phase.UNSPECIFIED,
    attempt: int = 1,
    *,
    cache: int = 0,
    ended: datetime | None = None,
    error: ErrorState | None = None,
    message: str = "",
) -> StoredAction:
    return await put_status(
        Store(etcd),
        keys,
        TASK,
        attempt,
        ActionStatus(phase, attempt, cache, ended),
        error=error,
        message=message,
        clock=at_t0,
    )


# --- what is written --------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
async def test_a_life(
    shared_etcd: EtcdServer, transport: TransportName, keys: Keyspace, codec: Codec
) -> None:
    """Each phase in the form that the object has; nothing else in it changes."""
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        tree = with_unknown_fields(captured(TASK))
        revision = await store_tree(etcd, keys, TASK, tree, codec)
        life = [Phase.QUEUED, Phase.WAITING_FOR_RESOURCES, Phase.INITIALIZING, Phase.RUNNING]
        for phase in [*life, Phase.PAUSED, Phase.RUNNING, Phase.SUCCEEDED]:
            written = await put(etcd, keys, phase, cache=2)
            assert written.phase is phase
            assert written.revision > revision
            revision = written.revision
            kv = await Store(etcd).get(keys.task_action(TASK))
            assert kv is not None
            assert kv.mod_revision == revision
            assert kv.value[:3] == codec.encode_tree(tree)[:3]
            assert codec.decode(kv.value).status == written.status
        found = await stored_tree(etcd, keys, TASK)
        for label in (LABEL_TERMINATION_STATUS, LABEL_COMPLETED_TIME):
            assert found["metadata"]["labels"].pop(label)
        status = found.pop("status")
        told = " ".join(each["phase"] for each in status.pop("phaseHistory"))
        assert told == (
            "Queued WaitingForResources Initializing Executing Paused Executing Completed"
        )
        assert [each["type"] for each in status.pop("conditions")] == ["Progressing", "Succeeded"]
        assert status.pop("attempts") == 1
        assert status.pop("cacheStatus") == 2
        assert status == tree.pop("status")
        assert found == tree


async def test_flytes_message_is_a_report(etcd: Etcd, keys: Keyspace) -> None:
    run_definition = pytest.importorskip("flyteidl2.workflow.run_definition_pb2")
    await store_tree(etcd, keys, TASK, captured(TASK))
    status = run_definition.ActionStatus(phase=5, attempts=1, cache_status=3)
    status.end_time.FromDatetime(T0 - timedelta(minutes=3, microseconds=1))
    written = await put_status(Store(etcd), keys, TASK, 1, status)
    assert (written.phase, written.status.attempts) == (Phase.SUCCEEDED, 1)
    assert written.status.cache_status == 3
    assert written.end_time == "2026-11-23T16:11:03Z"
    assert written.metadata.labels[LABEL_COMPLETED_TIME] == "2026-11-23.16-11"


async def test_an_end_without_a_time_is_now(etcd: Etcd, keys: Keyspace) -> None:
    run_definition = pytest.importorskip("flyteidl2.workflow.run_definition_pb2")
    await store_tree(etcd, keys, TASK, captured(TASK))
    before = datetime.now(UTC).replace(microsecond=0)
    status = run_definition.ActionStatus(phase=8)
    written = await put_status(Store(etcd), keys, TASK, 1, status)
    assert written.phase is Phase.TIMED_OUT
    assert before <= datetime.fromisoformat(written.end_time) <= datetime.now(UTC)


async def test_an_error_and_a_message(etcd: Etcd, keys: Keyspace) -> None:
    error = ErrorState(code="OOMKilled", kind="USER", message="out of memory")
    await store_tree(etcd, keys, TASK, captured(TASK))
    running = await put(etcd, keys, Phase.RUNNING, message="Started")
    assert running.status.conditions[0].message == "Started"
    failed = await put(etcd, keys, Phase.FAILED, error=error)
    assert failed.status.error_state == error
    assert failed.status.conditions[-1].message == "out of memory"
    assert failed.status.phase_history[-1].message == "out of memory"


async def test_without_a_phase_only_the_numbers_are_written(etcd: Etcd, keys: Keyspace) -> None:
    """What upstream's PutStatus does, and all that it does."""
    await store_tree(etcd, keys, TASK, captured(TASK))
    running = await put(etcd, keys, Phase.RUNNING)
    written = await put(etcd, keys, cache=4)
    assert written.status.cache_status == 4
    assert written.status.conditions == running.status.conditions
    assert written.status.phase_history == running.status.phase_history
    ended = await put(etcd, keys, Phase.SUCCEEDED, cache=4)
    after = await put(etcd, keys, cache=5)
    assert (after.phase, after.status.cache_status) == (Phase.SUCCEEDED, 5)
    assert after.end_time == ended.end_time


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_the_same_report_writes_nothing(etcd: Etcd, keys: Keyspace, phase: Phase) -> None:
    """At whatever time, and though the value is not as this package would write it."""
    await store_tree(etcd, keys, TASK, captured(TASK))
    await put(etcd, keys, phase, cache=1)
    value = await stored_value(etcd, keys, TASK)
    loose = value.rstrip(b"\n").replace(b'"spec":', b' "spec": ')
    revision = (await etcd.put(keys.task_action(TASK), loose)).revision
    for clock in (at_t0, lambda: T0 + timedelta(hours=1)):
        again = await put_status(Store(etcd), keys, TASK, 1, ActionStatus(phase, 1, 1), clock=clock)
        assert again.revision == revision
    assert await stored_value(etcd, keys, TASK) == loose


# --- which phase may follow which -------------------------------------------------------

Q, W, I, R, P = (  # noqa: E741
    Phase.QUEUED,
    Phase.WAITING_FOR_RESOURCES,
    Phase.INITIALIZING,
    Phase.RUNNING,
    Phase.PAUSED,
)
ENDS = [phase for phase in PHASES if phase.is_terminal]
TABLE: dict[Phase, set[Phase]] = {
    Phase.UNSPECIFIED: {Q, W, I, R, P, *ENDS},
    Q: {Q, W, I, R, P, *ENDS},
    W: {Q, W, I, R, P, *ENDS},
    I: {I, R, P, *ENDS},
    R: {R, P, *ENDS},
    P: {R, P, *ENDS},
    **{end: {end} for end in ENDS},
}


async def in_phase(etcd: Etcd, keys: Keyspace, phase: Phase, attempt: int = 1) -> int:
    """An object in a phase; its revision."""
    revision = await store_tree(etcd, keys, TASK, captured(TASK))
    if phase is not Phase.UNSPECIFIED:
        revision = (await put(etcd, keys, phase, attempt)).revision
    return revision


@pytest.mark.parametrize("before", first_everyday(Phase, 4), ids=lambda phase: phase.name)
async def test_within_an_attempt(etcd: Etcd, prefix: bytes, before: Phase) -> None:
    for phase in PHASES:
        keys = Keyspace(prefix + phase.name.encode() + b"/")
        revision = await in_phase(etcd, keys, before)
        if phase in TABLE[before]:
            written = await put(etcd, keys, phase)
            assert written.phase is phase
            assert (written.revision == revision) == (phase is before)
            continue
        with pytest.raises(FailedPrecondition, match=rf"{before.name} in attempt 1.*{phase.name}"):
            await put(etcd, keys, phase)
        kv = await Store(etcd).get(keys.task_action(TASK))
        assert kv is not None
        assert kv.mod_revision == revision


@pytest.mark.parametrize("before", first_everyday(Phase, 4), ids=lambda phase: phase.name)
async def test_a_higher_attempt_begins_anew(etcd: Etcd, prefix: bytes, before: Phase) -> None:
    """From any phase that is no end; without a phase it is queued, as the executor's are."""
    for phase in Phase:
        keys = Keyspace(prefix + phase.name.encode() + b"/")
        await in_phase(etcd, keys, before)
        if before.is_terminal:
            with pytest.raises(FailedPrecondition, match=f"{before.name} in attempt 1, an end"):
                await put(etcd, keys, phase, 2)
            continue
        written = await put(etcd, keys, phase, 2)
        queued = Phase.UNSPECIFIED if before is Phase.UNSPECIFIED else Phase.QUEUED
        assert written.phase is (queued if phase is Phase.UNSPECIFIED else phase)
        assert written.status.attempts == 2
        if before is not Phase.UNSPECIFIED:
            assert len(written.status.phase_history) == 2


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
async def test_an_older_attempt_is_refused(etcd: Etcd, keys: Keyspace, phase: Phase) -> None:
    """Also with nothing but numbers in it: it would count them back."""
    revision = await in_phase(etcd, keys, Phase.RUNNING, 3)
    with pytest.raises(FailedPrecondition, match=r"RUNNING in attempt 3.* attempt 2"):
        await put(etcd, keys, phase, 2, cache=1)
    kv = await Store(etcd).get(keys.task_action(TASK))
    assert kv is not None
    assert kv.mod_revision == revision


async def test_a_retry_after_a_retryable_failure(etcd: Etcd, keys: Keyspace) -> None:
    """The executor's way to say so has no phase: anything may follow."""
    tree = captured(TASK)
    tree["status"] = {
        "attempts": 1,
        "conditions": [
            {
                "type": "Progressing",
                "status": "True",
                "reason": "RetryableFailure",
                "message": "evicted",
                "lastTransitionTime": "2026-11-23T16:14:04Z",
            }
        ],
        "errorState": {"code": "Evicted", "kind": "SYSTEM"},
    }
    await store_tree(etcd, keys, TASK, tree)
    written = await put(etcd, keys, Phase.QUEUED, 2)
    assert (written.phase, written.status.attempts) == (Phase.QUEUED, 2)
    assert written.status.error_state is None


async def test_an_aborted_action_keeps_its_end(etcd: Etcd, keys: Keyspace) -> None:
    await store_tree(etcd, keys, TASK, captured(TASK))
    aborted = await put(etcd, keys, Phase.ABORTED)
    for phase, attempt in ((Phase.SUCCEEDED, 1), (Phase.RUNNING, 2)):
        with pytest.raises(FailedPrecondition, match="ABORTED in attempt 1, an end"):
            await put(etcd, keys, phase, attempt)
    assert (await put(etcd, keys, Phase.ABORTED)).revision == aborted.revision


async def test_an_end_may_be_told_more_exactly_until_it_is_recorded(
    etcd: Etcd, keys: Keyspace
) -> None:
    """Afterwards nobody would be told of it."""
    error = ErrorState(code="E", kind="SYSTEM", message="why")
    await store_tree(etcd, keys, TASK, captured(TASK))
    first = await put(etcd, keys, Phase.FAILED)
    exact = await put(etcd, keys, Phase.FAILED, error=error)
    assert exact.status.error_state == error
    assert exact.end_time == first.end_time
    tree = await stored_tree(etcd, keys, TASK)
    tree["metadata"]["labels"][LABEL_TERMINAL_STATUS_RECORDED] = "true"
    revision = await store_tree(etcd, keys, TASK, tree)
    assert (await put(etcd, keys, Phase.FAILED, error=error)).revision == revision
    with pytest.raises(FailedPrecondition, match="FAILED and that is recorded"):
        await put(etcd, keys, Phase.FAILED, error=ErrorState(code="other"))


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "status", "extra", "field"),
    [
        (0, ActionStatus(Phase.RUNNING), {}, "attempt"),
        (-1, ActionStatus(Phase.RUNNING), {}, "attempt"),
        (2**32, ActionStatus(Phase.RUNNING), {}, "attempt"),
        (2, ActionStatus(Phase.RUNNING, attempts=3), {}, "status.attempts"),
        (1, ActionStatus(11), {}, "status.phase"),  # type: ignore[arg-type]
        (1, ActionStatus(Phase.RUNNING, cache_status=2**31), {}, "status.cache_status"),
        (1, ActionStatus(Phase.RUNNING), {"error": ErrorState(code="E")}, "error"),
        (1, ActionStatus(Phase.SUCCEEDED), {"error": ErrorState(code="E")}, "error"),
        (1, ActionStatus(), {"message": "m"}, "message"),
        (1, ActionStatus(Phase.FAILED, end_time=datetime(2026, 1, 1)), {}, "status.end_time"),
        (1, ActionStatus(Phase.FAILED), {"message": "\ud800"}, "status"),
        (1, ActionStatus(Phase.FAILED), {"error": ErrorState(message="x" * 1_700_000)}, "status"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_report_names_its_field(
    etcd: Etcd,
    keys: Keyspace,
    attempt: int,
    status: ActionStatus,
    extra: dict[str, ErrorState | str],
    field: str,
) -> None:
    await store_tree(etcd, keys, TASK, captured(TASK))
    before = await stored_value(etcd, keys, TASK)
    with pytest.raises(InvalidArgument) as caught:
        await put_status(Store(etcd), keys, TASK, attempt, status, **extra)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert await stored_value(etcd, keys, TASK) == before


async def test_an_end_time_beyond_the_calendar_is_refused(etcd: Etcd, keys: Keyspace) -> None:
    run_definition = pytest.importorskip("flyteidl2.workflow.run_definition_pb2")
    status = run_definition.ActionStatus(phase=5)
    status.end_time.seconds = 2**62
    with pytest.raises(InvalidArgument, match=r"status\.end_time"):
        await put_status(Store(etcd), keys, TASK, 1, status)


async def test_a_missing_action_is_not_found(
    shared_etcd: EtcdServer, transport: TransportName, keys: Keyspace
) -> None:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        with pytest.raises(NotFound, match="a1 of run flytesnacks/development/rh7k2m9p4qv3"):
            await put(etcd, keys, Phase.RUNNING)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (ActionId("other", TASK.domain, TASK.run, TASK.name), "flytesnacks/development"),
        (ActionId(TASK.project, "other", TASK.run, TASK.name), "flytesnacks/development"),
        (ActionId(TASK.project, TASK.domain, TASK.run, TASK.name, "b"), "organisation a, not b"),
    ],
)
async def test_another_actions_object_is_not_touched(
    etcd: Etcd, keys: Keyspace, other: ActionId, what: str
) -> None:
    """Neither project, domain nor organisation is in the key."""
    tree = captured(TASK)
    tree["metadata"]["annotations"] = {ANNOTATION_ORG: "a"}
    await store_tree(etcd, keys, TASK, tree)
    with pytest.raises(NotFound, match=what):
        await put_status(Store(etcd), keys, other, 1, ActionStatus(Phase.RUNNING))
    assert await stored_tree(etcd, keys, TASK) == tree


async def test_a_name_that_makes_no_key_is_refused(etcd: Etcd, keys: Keyspace) -> None:
    with pytest.raises(InvalidArgument, match="action_id"):
        await put_status(
            Store(etcd), keys, ActionId("p", "d", "r/../x", "a"), 1, ActionStatus(Phase.RUNNING)
        )


async def test_an_unreadable_object_is_told(etcd: Etcd, keys: Keyspace) -> None:
    await etcd.put(keys.task_action(TASK), b'{"kind":"TaskAction"}')
    with pytest.raises(DecodeError, match=TASK.object_name):
        await put(etcd, keys, Phase.RUNNING)


# --- others write, too ------------------------------------------------------------------


async def test_conflicts_are_tried_until_it_lands(etcd: Etcd, keys: Keyspace) -> None:
    """However often: what the others wrote meanwhile stays."""

    def edit(tree: Tree) -> None:
        status = tree.setdefault("status", {})
        status["pluginPhaseVersion"] = status.get("pluginPhaseVersion", 0) + 1

    await store_tree(etcd, keys, TASK, captured(TASK))
    overtaken = Overtaken(etcd, keys.task_action(TASK), edit, 60)
    store = Store(etcd, commit=overtaken)
    written = await put_status(store, keys, TASK, 1, ActionStatus(Phase.RUNNING))
    assert overtaken.calls == 61
    assert written.phase is Phase.RUNNING
    assert written.status.plugin_phase_version == 60


async def test_a_conflict_is_judged_anew(etcd: Etcd, keys: Keyspace) -> None:
    """Who was faster ended it: the report that was fine is one no more."""
    await store_tree(etcd, keys, TASK, captured(TASK))
    ended = captured(TASK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, etcd, keys, Phase.ABORTED)
    ended = await stored_tree(etcd, keys, TASK)
    await store_tree(etcd, keys, TASK, captured(TASK))

    def end(tree: Tree) -> None:
        tree |= ended

    store = Store(etcd, commit=Overtaken(etcd, keys.task_action(TASK), end, 1))
    with pytest.raises(FailedPrecondition, match="ABORTED in attempt 1, an end"):
        await put_status(store, keys, TASK, 1, ActionStatus(Phase.SUCCEEDED))
    assert await stored_tree(etcd, keys, TASK) == ended


async def test_an_action_deleted_meanwhile_is_not_written_again(etcd: Etcd, keys: Keyspace) -> None:
    await store_tree(etcd, keys, TASK, captured(TASK))

    async def commit(txn: Txn) -> TxnResult:
        await etcd.delete(KeyRange.of_key(keys.task_action(TASK)))
        return await etcd.txn(txn)

    with pytest.raises(NotFound):
        await put_status(Store(etcd, commit), keys, TASK, 1, ActionStatus(Phase.RUNNING))
    assert await Store(etcd).get(keys.task_action(TASK)) is None


async def history_of(etcd: Etcd, keys: Keyspace) -> list[StoredAction]:
    """Every state that the task had."""
    entries = await oracle.read_history(etcd, KeyRange.of_key(keys.task_action(TASK)))
    return [
        StoredAction(action.api_version, action.kind, action.metadata, action.spec, action.status)
        for action in (codec_of(entry.value).decode(entry.value) for entry in entries)
    ]


async def test_twenty_with_the_same_report_write_once(
    shared_etcd: EtcdServer, transport: TransportName, keys: Keyspace
) -> None:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        await store_tree(etcd, keys, TASK, captured(TASK))
        revisions: set[int] = set()

        async def report() -> None:
            revisions.add((await put(etcd, keys, Phase.RUNNING)).revision)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(report)
        assert len(revisions) == 1
        assert len(await history_of(etcd, keys)) == 2


async def test_twenty_attempts_at_once_only_go_up(etcd: Etcd, keys: Keyspace) -> None:
    await store_tree(etcd, keys, TASK, captured(TASK))
    landed: list[int] = []

    async def report(attempt: int) -> None:
        try:
            await put(etcd, keys, Phase.RUNNING, attempt)
        except FailedPrecondition:
            return
        landed.append(attempt)

    async with trio.open_nursery() as nursery:
        for attempt in range(20, 0, -1):
            nursery.start_soon(report, attempt)
    attempts = [action.status.attempts for action in await history_of(etcd, keys)][1:]
    assert attempts == sorted(landed)
    assert attempts[-1] == 20


async def test_twenty_ends_at_once_leave_one(etcd: Etcd, keys: Keyspace) -> None:
    await store_tree(etcd, keys, TASK, captured(TASK))
    outcomes: list[Phase | None] = []

    async def report(phase: Phase) -> None:
        try:
            outcomes.append((await put(etcd, keys, phase)).phase)
        except ActionError:
            outcomes.append(None)

    async with trio.open_nursery() as nursery:
        for at in range(20):
            nursery.start_soon(report, ENDS[at % len(ENDS)])
    (end,) = {phase for phase in outcomes if phase is not None}
    assert outcomes.count(end) == 4
    assert [action.phase for action in await history_of(etcd, keys)][1:] == [end]


@pytest.mark.slow
async def test_the_executor_overwrites_the_status_meanwhile(etcd: Etcd, keys: Keyspace) -> None:
    """Defect j: of our two, only the executor may lose what the other wrote.

    It reads, replaces the whole status by its own, and writes by compare-and-swap. Nothing
    here can make it look again; but none of our writes loses one of its.
    """
    await store_tree(etcd, keys, TASK, captured(TASK))
    store = Store(etcd)
    over = trio.Event()

    async def executor() -> None:
        for version in itertools.count(1):
            if over.is_set():
                return
            kv = await store.get(keys.task_action(TASK))
            assert kv is not None
            codec = codec_of(kv.value)
            tree = codec.decode_tree(kv.value)
            tree["status"] = {
                "attempts": 1,
                "pluginPhase": "Running",
                "pluginPhaseVersion": version,
            }
            await store.compare_and_put(kv, codec.encode_tree(tree))

    async def reporter(number: int) -> None:
        for at in range(5):
            await put(etcd, keys, Phase.RUNNING, message=f"{number}/{at}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor)
        async with trio.open_nursery() as reporters:
            for number in range(20):
                reporters.start_soon(reporter, number)
        over.set()
    states = [action.status for action in await history_of(etcd, keys)]
    ours = 0
    for before, after in itertools.pairwise(states):
        if after.phase_history:
            ours += 1
            assert after.plugin_phase_version == before.plugin_phase_version
        else:
            assert after.plugin_phase_version > before.plugin_phase_version
    assert ours == 100


# --- lost answers -----------------------------------------------------------------------


async def test_a_lost_answer_is_read_back(etcd: Etcd, keys: Keyspace) -> None:
    """It was applied: the same write is not made twice."""
    await store_tree(etcd, keys, TASK, captured(TASK))
    lost = LostAnswers(etcd, applied=True)
    store = Store(etcd, commit=lost)
    written = await put_status(store, keys, TASK, 2, ActionStatus(Phase.QUEUED))
    assert (lost.calls, written.phase, written.status.attempts) == (1, Phase.QUEUED, 2)
    assert len(await history_of(etcd, keys)) == 2


async def test_a_write_that_may_still_be_applied_is_told(etcd: Etcd, keys: Keyspace) -> None:
    await store_tree(etcd, keys, TASK, captured(TASK))
    store = Store(etcd, commit=LostAnswers(etcd, applied=False))
    with pytest.raises(OutcomeUnknown):
        await put_status(store, keys, TASK, 1, ActionStatus(Phase.RUNNING))
    again = await put_status(store, keys, TASK, 1, ActionStatus(Phase.RUNNING))
    assert again.phase is Phase.RUNNING


async def test_an_outcome_that_cannot_be_read_stays_unknown(etcd: Etcd, keys: Keyspace) -> None:
    """Not the read's error: that one says that nothing was changed."""
    await store_tree(etcd, keys, TASK, captured(TASK))

    class Blind(Store):
        reads = 0

        async def get(self, key: bytes, *, revision: int = 0) -> None:
            self.reads += 1
            if self.reads > 1:
                raise PermissionDenied("no more")
            return await super().get(key, revision=revision)  # type: ignore[return-value]

    store = Blind(etcd, commit=LostAnswers(etcd, applied=True))
    with pytest.raises(OutcomeUnknown):
        await put_status(store, keys, TASK, 1, ActionStatus(Phase.RUNNING))
