"""Something unexpected is thrown into each unit of work: all others go on, and it heals."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
import trio

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionUpdate,
    SnapshotEnd,
    WatchingSettings,
    open_actions_client,
)
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import json
from etcd_actions.codecs import object_tree as trees
from etcd_actions.errors import EtcdError, UnexpectedFailure
from etcd_actions.etcd import messages
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.etcd.election import Election
from etcd_actions.etcd.group_commit import GroupCommit
from etcd_actions.etcd.session import Session
from etcd_actions.follow import Handler
from etcd_actions.follow import handler as handling
from etcd_actions.follow.subscriptions import Subscription
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings
from etcd_actions.model import Keyspace
from etcd_actions.monitoring.health import Health
from etcd_actions.monitoring.metrics import Metrics
from etcd_actions.record import leader as leading
from etcd_actions.record.checkpoint import Checkpoint
from etcd_actions.record.deferred_reports import DeferredReports
from etcd_actions.record.leader import Leader
from etcd_actions.record.outbox import Outbox
from etcd_actions.record.reporter import Reporter
from etcd_actions.watch import ReflectorSettings
from etcd_actions.watch.range_stream import RangeStream
from tests.boundaries.table import BOUNDARIES
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.load import Action, make_run
from tests.support.recording import RecordingRunService
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory

SOON = Backoff(0.01, 0.1)
SETTINGS = WatchingSettings(
    save_every=0.05,
    outbox_workers=8,
    collect_orphans=False,
    reflector=ReflectorSettings(dead_after=3, backoff=SOON),
    queue=WorkQueueSettings(backoff=SOON),
)
# One of each in the everyday tests, the others in the marked tier.
ERRORS = [
    pytest.param(
        BaseExceptionGroup("several", [RuntimeError("a"), MemoryError(), SystemExit(1)]),
        id="group",
    ),
    *(
        pytest.param(error, id=type(error).__name__, marks=pytest.mark.slow)
        for error in (
            RuntimeError("unexpected"),
            RecursionError("too deep"),
            MemoryError(),
            SystemExit(1),
        )
    ),
]
each_error = pytest.mark.parametrize("error", ERRORS)


@dataclass
class Fault:
    """Something that goes wrong, a few times or as long as it is there."""

    error: BaseException
    left: int = 0
    raised: int = 0

    def strike(self) -> None:
        """Raise, if it is there."""
        if self.left > 0:
            self.left -= 1
            self.raised += 1
            raise copy.copy(self.error)

    def end(self) -> None:
        """It is gone."""
        self.left = 0

    def before(self, function: Callable[..., Any], wanted: Callable[..., bool]) -> Any:
        """A function that goes wrong where ``wanted`` says of its arguments that it should."""

        def strike(*args: Any, **kwargs: Any) -> Any:
            if wanted(*args, **kwargs):
                self.strike()
            return function(*args, **kwargs)

        return strike


@dataclass
class Scene:
    """A client that watches, leads, tells and marks, and a reader of all that it tells."""

    client: ActionsClient
    etcd: Etcd
    prefix: bytes
    run_service: RecordingRunService
    updates: list[ActionUpdate] = field(default_factory=list)
    synced: bool = False

    @property
    def failures(self) -> dict[str, int]:
        return self.client.containment.failures

    async def read(self) -> None:
        """Read as a client of the service does: anew when a subscription fails."""
        while True:
            try:
                async with self.client.subscribe_all() as updates:
                    async for item in updates:
                        if isinstance(item, SnapshotEnd):
                            self.synced = True
                        else:
                            self.updates.append(item)
            except EtcdError:
                continue

    async def end(self, action: Action) -> None:
        """Write the end of an action, as an executor does."""
        await self.etcd.put(action.key, action.ended)

    def is_done(self, action: Action) -> bool:
        """Whether readers and the run service know that it ended, and it is marked."""
        marked = any(each.key == action.key and each.recorded for each in self.updates)
        return marked and any(each.key == action.key for each in self.run_service.told)


@asynccontextmanager
async def playing(etcd: Etcd, prefix: bytes) -> AsyncIterator[Scene]:
    run_service = RecordingRunService(etcd)
    with trio.fail_after(50):
        async with open_actions_client(
            etcd, prefix=prefix, settings=SETTINGS, run_service=run_service
        ) as client:
            scene = Scene(client, etcd, prefix, run_service)
            await client.start_watching()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scene.read)
                await eventually(lambda: scene.synced and client.statistics().elected)
                yield scene
                nursery.cancel_scope.cancel("seen enough")


def is_bad(text: bytes | str) -> bool:
    return b"bad" in text if isinstance(text, bytes) else "bad" in text


def whatever(*_: Any, **__: Any) -> bool:
    return True


# A unit of which kind fails, where the fault is put, for what, and how often.
PLACES: dict[str, tuple[str, Any, str, Callable[..., bool], int]] = {
    "a watch response": ("watch", RangeStream, "_accept", whatever, 3),
    "a batch that the sink does not take": ("watch", Handler, "dispatch", whatever, 1),
    "a probe of the stream": ("watch", RangeStream, "request_progress", whatever, 2),
    "a handler": (
        "change",
        Handler,
        "handle_task_action_event",
        lambda _, change, *__: is_bad(change.key),
        3,
    ),
    "what is told of a run service": (
        "delivery",
        Reporter,
        "_call",
        lambda _, __, ___, update, *____: is_bad(update.key),
        3,
    ),
    "a mark": (
        "delivery",
        Outbox,
        "mark_terminal_status_recorded",
        lambda _, seen, *__: is_bad(seen.key),
        3,
    ),
    "whether a state is wanted": ("run_service", RecordingRunService, "accepts", whatever, 1000),
    "a subscription": (
        "subscription",
        Subscription,
        "deliver",
        lambda _, update: is_bad(update.key),
        1,
    ),
    "forming a group": ("transaction_group", GroupCommit, "_fill", whatever, 3),
    "sending a group": ("transaction_group", GroupCommit, "_commit", whatever, 3),
    "leading": ("election", Election, "_wait_ended", whatever, 1),
    "saving the position": ("task", Checkpoint, "save", whatever, 1),
    "the backlog of a new leader": ("task", Leader, "_deliver_backlog", whatever, 2),
    "a worker": ("task", WorkQueue, "_next", whatever, 6),
    "cleaning up": ("task", Aborter, "resume", whatever, 2),
    "a second look": ("task", Handler, "_recheck", whatever, 2),
    "retries": ("task", WorkQueue, "retry_failed", whatever, 2),
    "deferred reports": ("task", DeferredReports, "run", whatever, 1),
    "all of a watch": ("task", leading, "open_election", whatever, 2),
}
ONCE = {
    "_wait_ended",
    "_deliver_backlog",
    "resume",
    "_recheck",
    "retry_failed",
    "open_election",
    "run",
}
"""At work once a term, or once a start."""


@each_error
@pytest.mark.parametrize("place", PLACES)
async def test_whatever_goes_wrong_in_a_unit_ends_it_alone(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    """Others are delivered, told and marked; so is what failed, once the fault is gone."""
    unit, owner, name, wanted, times = PLACES[place]
    fault = Fault(error)
    monkeypatch.setattr(owner, name, fault.before(getattr(owner, name), wanted))
    good, before = make_run(prefix, "good", 2)[:2]
    bad = make_run(prefix, "bad", 1)[0]
    async with playing(etcd, prefix) as scene:
        await scene.end(before)
        await eventually(lambda: scene.is_done(before))
        fault.left = times
        if name in ONCE:
            await scene.client.stop_watching()
            await scene.client.start_watching()
        await scene.end(bad)
        await scene.end(good)
        await eventually(lambda: scene.is_done(good) and fault.raised > 0)
        fault.end()
        await eventually(lambda: scene.is_done(bad))
        await eventually(lambda: scene.failures.get(unit, 0) > 0)
        assert scene.client.statistics().watching
        # It is as good as new.
        after = make_run(prefix, "after", 1)[0]
        await scene.end(after)
        await eventually(lambda: scene.is_done(after) and scene.client.statistics().elected)
    marks = [each for each in scene.updates if each.recorded]
    assert {each.key for each in marks} >= {good.key, bad.key, before.key, after.key}


@each_error
async def test_a_value_that_a_decoder_fails_at_is_set_aside(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Not tried for ever, but listed; the next good write heals."""
    fault = Fault(error, left=1000)
    monkeypatch.setattr(json, "decode", fault.before(json.decode, lambda value, **_: is_bad(value)))
    good, bad = make_run(prefix, "good", 1)[0], make_run(prefix, "bad", 1)[0]
    async with playing(etcd, prefix) as scene:
        await scene.end(bad)
        await scene.end(good)
        await eventually(lambda: scene.is_done(good))
        statistics = scene.client.statistics()
        assert set(statistics.undecodable) == {bad.key}
        assert statistics.handlers is not None
        assert statistics.handlers.failing == ()
        # Others decode it, too: a sweep for orphans, say.
        assert statistics.decode_errors == 1
        fault.end()
        await scene.end(bad)
        await eventually(lambda: scene.is_done(bad))
        assert scene.client.statistics().undecodable == {}


async def test_a_value_that_may_be_good_is_looked_at_again(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of memory passes: nobody need write the value anew."""
    monkeypatch.setattr(handling, "_RECHECK", 0.05)

    async def nothing(_: OrphanCollector) -> None:
        await trio.lowlevel.checkpoint()

    # It reads the values, too, at the start of the term.
    monkeypatch.setattr(OrphanCollector, "sweep", nothing)
    fault = Fault(MemoryError(), left=2)
    decode = fault.before(json._decode_facts, is_bad)
    monkeypatch.setattr(json, "_decode_facts", decode)
    also = fault.before(json._decode_action, is_bad)
    monkeypatch.setattr(json, "_decode_action", also)
    without_memory = Fault(MemoryError(), left=1)
    tree = without_memory.before(trees.from_json, is_bad)
    monkeypatch.setattr(trees, "from_json", tree)
    (bad, *_) = make_run(prefix, "bad", 1)
    async with playing(etcd, prefix) as scene:
        await scene.end(bad)
        await eventually(lambda: scene.client.statistics().decode_errors == 1)
        await eventually(lambda: scene.is_done(bad))
        assert scene.client.statistics().undecodable == {}


@each_error
async def test_an_abort_that_fails_holds_up_no_other(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    await _cut_off_aborts(etcd, prefix, "bad", "good")
    fault = Fault(error, left=1000)
    finish = fault.before(Aborter._finish, lambda _, key, __: is_bad(key))
    monkeypatch.setattr(Aborter, "_finish", finish)
    aborts = KeyRange.of_prefix(Keyspace(prefix).aborts)
    async with playing(etcd, prefix) as scene:
        await _until_keys(etcd, aborts, ["bad-a0"])
        await eventually(lambda: [each.kind for each in _parked(scene.client)] == ["abort"])
        fault.end()
        await _until_keys(etcd, aborts, [])
        await eventually(lambda: _parked(scene.client) == [])


@each_error
async def test_an_orphan_that_fails_holds_up_no_other(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    containment = Containment()
    root, child = ActionId("p", "d", "bad", "a0"), ActionId("p", "d", "bad", "c1")
    other, others = ActionId("p", "d", "good", "a0"), ActionId("p", "d", "good", "c1")
    async with open_actions_client(etcd, prefix=prefix) as client:
        for parent, below in ((root, child), (other, others)):
            await client.enqueue(flyte.task(parent))
            await client.enqueue(flyte.task(below, "a0"))
            await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(parent)))
        fault = Fault(error, left=1)
        collect = fault.before(OrphanCollector._collect, lambda _, one: is_bad(one.key))
        monkeypatch.setattr(OrphanCollector, "_collect", collect)
        collector = OrphanCollector(client._store, Keyspace(prefix), containment=containment)
        with pytest.raises(EtcdError, match="failed unexpectedly"):
            await collector.sweep()
        assert (await client.get_task_action(others)).is_terminal
        assert not (await client.get_task_action(child)).is_terminal
        assert [each.kind for each in containment.parked] == ["orphan"]
        await collector.sweep()
        assert (await client.get_task_action(child)).is_terminal
        assert containment.parked == ()


@each_error
async def test_a_request_that_fails_is_told_in_an_error_of_the_package(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fault = Fault(error, left=1)
    monkeypatch.setattr(Enqueuer, "enqueue", fault.before(Enqueuer.enqueue, whatever))
    async with open_actions_client(etcd, prefix=prefix) as client:
        root = flyte.task(ActionId("p", "d", "r1", "a0"))
        with pytest.raises(UnexpectedFailure, match="enqueue: "):
            await client.enqueue(root)
        assert (await client.enqueue(root)).created
        assert client.containment.failures == {"request": 1}


@each_error
async def test_claims_are_renewed_on(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A claim outlives the time that its lease would last, were it not renewed."""
    root = ActionId("p", "d", "r1", "a0")
    fault = Fault(error, left=1)
    monkeypatch.setattr(Session, "keep_alive", fault.before(Session.keep_alive, whatever))
    async with (
        open_actions_client(etcd, prefix=prefix) as client,
        client.open_claims(ttl=2) as claims,
    ):
        created = (await client.enqueue(flyte.task(root))).action
        claim = await claims.claim(root, created.incarnation)
        await trio.sleep(3)
        assert claim == await claims.claim(root, created.incarnation)
        assert client.containment.failures == {"task": 1}


@each_error
async def test_a_check_and_a_metric_that_fail_hide_no_other(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        health = Health(client, etcd, prefix, silence_limit=60)
        metrics = Metrics(client, health)
        assert all(check.ok for check in await health.ready())
        fault = Fault(error, left=1000)
        statistics = fault.before(ActionsClient.statistics, whatever)
        monkeypatch.setattr(ActionsClient, "statistics", statistics)
        checks = {check.name: check.reason for check in await health.ready()}
        assert {name for name, reason in checks.items() if reason} == {
            "listed",
            "stream",
            "handlers",
            "values",
            "recording",
        }
        assert checks["listed"].startswith("the check failed: ")
        text = (await metrics.text()).decode()
        assert "etcd_actions_group_commit_members_total" in text
        assert 'etcd_actions_contained_failures_total{unit="check"}' in text
        assert "etcd_actions_watch_revision" not in text
        fault.end()
        assert "etcd_actions_watch_revision" in (await metrics.text()).decode()
        assert all(check.ok for check in await health.ready())


async def test_a_metric_that_cannot_be_written_hides_no_other(etcd: Etcd, prefix: bytes) -> None:
    async with open_actions_client(etcd, prefix=prefix) as client:
        metrics = Metrics(client, Health(client, etcd, prefix, silence_limit=60))
        client.containment._failures["\ud800"] = 1
        text = (await metrics.text()).decode()
        assert "etcd_actions_build_info" in text
        assert "etcd_actions_group_commit_members_total" in text


@each_error
async def test_a_log_that_cannot_be_written_stops_nothing(
    etcd: Etcd, prefix: bytes, error: BaseException
) -> None:
    """Not even where it is to tell of a failure."""
    bad, good = make_run(prefix, "bad", 1)[0], make_run(prefix, "good", 1)[0]
    fault = Fault(error)

    def write(*_: object) -> structlog.typing.EventDict:
        fault.strike()
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[write])
    try:
        async with playing(etcd, prefix) as scene:
            scene.run_service.refuse = lambda update: fault.left > 0 and is_bad(update.key)
            fault.left = 1000
            await scene.end(bad)
            await scene.etcd.put(prefix + b"flyte/garbage", b"garbage")
            await scene.end(good)
            await eventually(lambda: scene.is_done(good))
            fault.end()
            await eventually(lambda: scene.is_done(bad))
            assert scene.failures["log_line"] > 0
    finally:
        structlog.configure(processors=before)


@pytest.mark.network
@pytest.mark.parametrize("what", ["watch_response", "range_result", "_operation_result"])
@pytest.mark.parametrize(
    "error", first_everyday([RuntimeError("odd"), RecursionError(), MemoryError()]), ids=repr
)
async def test_an_answer_of_etcds_that_cannot_be_read_is_an_error_of_the_package(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    """The stream is opened anew, the call is made again, and nothing is lost."""
    fault = Fault(error)
    good, before = make_run(prefix, "good", 2)[:2]
    monkeypatch.setattr(messages, what, fault.before(getattr(messages, what), whatever))
    decoder = messages._METHODS["KV/Range"][1]
    monkeypatch.setattr(decoder, "result", fault.before(decoder.result, whatever))
    async with playing(etcd, prefix) as scene:
        await scene.end(before)
        await eventually(lambda: scene.is_done(before))
        fault.left = 2
        with pytest.raises(EtcdError, match="the answer cannot be read"):
            await etcd.range(KeyRange.of_key(b"x"))
        await scene.end(good)
        await eventually(lambda: scene.is_done(good))
        assert scene.failures.keys() <= {"delivery"}


def test_all_boundaries_are_in_the_table() -> None:
    thrown_into = {unit for unit, *_ in PLACES.values()}
    thrown_into |= {"value", "abort", "orphan", "request", "check", "metric", "log_line"}
    assert {boundary.unit for boundary in BOUNDARIES} == thrown_into


def _parked(client: ActionsClient) -> list[Any]:
    return [each for each in client.containment.parked if each.kind == "abort"]


async def _until_keys(etcd: Etcd, keys: KeyRange, names: list[str]) -> None:
    async def are_there() -> bool:
        found = await etcd.range(keys, keys_only=True)
        return [kv.key.rpartition(b"/")[2].decode() for kv in found.kvs] == names

    await eventually_holds(are_there)


async def _cut_off_aborts(etcd: Etcd, prefix: bytes, *runs: str) -> None:
    """Leave the markers of aborts whose action is gone."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        for run in runs:
            root = ActionId("p", "d", run, "a0")
            await client.enqueue(flyte.task(root))
            await client.abort_action(root)
            await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(root)))
