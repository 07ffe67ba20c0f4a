"""The handler: inline, conflating, and what fails is put off with all that follows of its key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions.etcd.api import KeyValue
from etcd_actions.follow import Handler, Index, SetAside
from etcd_actions.follow.subscriptions import Subscriptions
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.model import ActionObject, ActionUpdate, Summary
from etcd_actions.watch import Change, ChangeKind
from tests.support.load import make_action

PREFIX = b"/p/"
ACTIONS = {name: make_action(PREFIX, "r1", name) for name in ("a1", "a2", "a3")}


class Recording:
    """Wants everything, and fails where it is told to."""

    working = True

    def __init__(self) -> None:
        self.delivered: list[tuple[bytes, int, bool]] = []
        self.fails: Callable[[Change], bool] = lambda _: False

    def must_handle(self, change: Change, summary: Summary) -> bool:
        return True

    def deliver(
        self, change: Change, update: ActionUpdate | None, action: ActionObject | None = None
    ) -> None:
        if self.fails(change):
            raise MemoryError
        self.delivered.append((change.key, change.mod_revision, change.is_delete))


class Scene:
    """A handler that hands everything to a recording."""

    def __init__(self, backoff: Backoff) -> None:
        self.index = Index()
        self.recording = Recording()
        self.containment = Containment()
        self.handler = Handler(
            self.index,
            Subscriptions(self.containment),
            SetAside(self.containment),
            reports=self.recording,
            timeouts=None,
            reread=self._reread,
            settings=WorkQueueSettings(backoff=backoff),
            containment=self.containment,
        )

    @staticmethod
    async def _reread(change: Change) -> Change | None:
        raise AssertionError("nothing was dropped")


@asynccontextmanager
async def handling() -> AsyncIterator[Scene]:
    scene = Scene(Backoff(1.0, 1.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.handler.retry)
        yield scene
        nursery.cancel_scope.cancel("the test is over")


def put(name: str, revision: int, created: int) -> Change:
    kind = ChangeKind.ADDED if created == revision else ChangeKind.MODIFIED
    action = ACTIONS[name]
    kv = KeyValue(action.key, action.ended, created, revision, revision - created + 1)
    return Change(kind, kv)


def delete(name: str, revision: int) -> Change:
    return Change.deletion(ACTIONS[name].key, revision)


async def test_it_is_done_when_dispatch_returns() -> None:
    """No task has had its turn meanwhile."""
    async with handling() as scene:
        scene.handler.dispatch([put("a1", 3, 3), put("a2", 3, 3)])
        assert [each[:2] for each in scene.recording.delivered] == [
            (ACTIONS["a1"].key, 3),
            (ACTIONS["a2"].key, 3),
        ]
        assert scene.index.revision_of(ACTIONS["a1"].key) == 3
        statistics = scene.handler.statistics()
        assert (statistics.dispatched, statistics.handled, statistics.keys) == (2, 2, 0)


async def test_of_a_batch_the_latest_state_is_handled() -> None:
    """Never across a delete, or another incarnation."""
    key = ACTIONS["a1"].key
    changes = [put("a1", r, 3) for r in (3, 4, 5)] + [delete("a1", 6), put("a1", 7, 7)]
    async with handling() as scene:
        changes += [put("a1", 8, 7), put("a2", 8, 8)]
        scene.handler.dispatch(scene.handler.latest(changes))
        told = [each[1:] for each in scene.recording.delivered if each[0] == key]
        assert told == [(5, False), (6, True), (8, False)]
        statistics = scene.handler.statistics()
        assert (statistics.conflated, statistics.handled) == (3, 4)


async def test_a_key_that_fails_is_put_off_and_all_others_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What follows of it waits behind, is known as delivered, and holds the position back."""
    bad, good = ACTIONS["a1"].key, ACTIONS["a2"].key
    async with handling() as scene:
        scene.handler.dispatch([put("a1", 3, 3)])
        scene.recording.fails = lambda change: change.key == bad
        scene.handler.dispatch([delete("a1", 4), put("a2", 5, 5)])
        scene.handler.dispatch([put("a1", 6, 6)])
        assert [each[0] for each in scene.recording.delivered] == [bad, good]
        (failing,) = scene.handler.statistics().failing
        assert (failing.key, failing.failures) == (bad, 1)
        assert scene.containment.failures == {"change": 1}
        assert scene.index.revision_of(bad) == 6
        assert scene.handler.oldest_delete == 4
        await trio.sleep(2.5)  # On a clock that jumps: it is tried again meanwhile.
        assert scene.handler.statistics().failing[0].failures >= 2
        scene.recording.fails = lambda _: False
        await scene.handler.wait_idle()
        assert [each[1:] for each in scene.recording.delivered if each[0] == bad] == [
            (3, False),
            (4, True),
            (6, False),
        ]
        assert scene.index.revision_of(bad) == 6
        assert scene.handler.statistics().failing == ()
        facts = scene.index.get(bad)
        assert facts is not None
        assert facts.revision == 6
        assert scene.handler.oldest_delete is None


async def test_what_was_put_off_counts_as_delivered_after_a_new_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is still to be handled: a list must not conclude its deletion again."""
    bad = ACTIONS["a1"].key
    async with handling() as scene:
        scene.handler.dispatch([put("a1", 3, 3), put("a2", 3, 3)])
        scene.recording.fails = lambda change: change.key == bad
        scene.handler.dispatch([delete("a1", 4)])
        assert (scene.index.revision_of(bad), len(scene.index)) == (0, 1)
        scene.handler.dispatch([put("a3", 5, 5)])
        scene.index.redeliver_all()
        assert (scene.index.revision_of(bad), scene.handler.oldest_delete) == (0, 4)
        assert set(scene.index) == {ACTIONS["a2"].key, ACTIONS["a3"].key}
        scene.handler.dispatch([put("a1", 6, 6)])
        scene.index.redeliver_all()
        assert scene.index.revision_of(bad) == -6


@st.composite
def schedules(draw: st.DrawFn) -> list[list[Change]]:
    """Histories of a few keys, mixed, in batches."""
    batches: list[list[Change]] = [[]]
    created: dict[str, int] = {}
    for revision in range(1, draw(st.integers(1, 40))):
        name = draw(st.sampled_from(sorted(ACTIONS)))
        if name in created and draw(st.booleans()):
            batches[-1].append(delete(name, revision))
            del created[name]
        else:
            created.setdefault(name, revision)
            batches[-1].append(put(name, revision, created[name]))
        if draw(st.booleans()):
            batches.append([])
    return batches


@pytest.mark.slow
@given(schedules(), st.lists(st.booleans(), max_size=60))
def test_over_any_schedule_all_ends_are_handled_in_order_and_the_index_is_exact(
    batches: list[list[Change]], failing: list[bool]
) -> None:
    """Whatever fails: after each batch the index says what was delivered, for the reflector."""
    last: dict[bytes, Change] = {}
    deletes: dict[bytes, list[int]] = defaultdict(list)

    async def main() -> list[tuple[bytes, int, bool]]:
        failures = iter(failing)
        async with handling() as scene:
            scene.recording.fails = lambda _: next(failures, False)
            for batch in batches:
                scene.handler.dispatch(scene.handler.latest(batch))
                for change in batch:
                    last[change.key] = change
                    if change.is_delete:
                        deletes[change.key].append(change.mod_revision)
                _check_revisions(scene.index, last)
                oldest = scene.handler.oldest_delete
                waiting = [each.revision for each in scene.index.deletions()]
                handled = {each[1] for each in scene.recording.delivered if each[2]}
                missing = {r for all_ in deletes.values() for r in all_} - handled
                assert missing <= {*waiting, *range(oldest or 10**9, 10**3)}
                await trio.sleep(0.5)
            await scene.handler.wait_idle()
            _check_revisions(scene.index, last)
            for key, change in last.items():
                facts = scene.index.get(key)
                expected = change.mod_revision if change.version else None
                assert (facts and facts.revision) == expected
            statistics = scene.handler.statistics()
            assert statistics.dispatched == statistics.handled + statistics.conflated
            return scene.recording.delivered

    delivered = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    for key, change in last.items():
        revisions = [each[1] for each in delivered if each[0] == key]
        assert revisions == sorted(set(revisions))
        assert revisions[-1] == change.mod_revision or (change.is_delete and len(revisions) == 0)
        ends = [each[1] for each in delivered if each[0] == key and each[2]]
        assert ends == deletes[key] or len(deletes[key]) > 8


def _check_revisions(index: Index, last: dict[bytes, Change]) -> None:
    expected = {key: change.mod_revision for key, change in last.items() if change.version}
    assert {key: index.revision_of(key) for key in index} == expected
    assert all(index.revision_of(key) == 0 for key in last if key not in expected)
