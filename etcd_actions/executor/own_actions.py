"""The actions that an executor runs: those in the ranges of its process, which may change.

Without shards there is one range, of all actions. With shards each shard of this process is a
range. When this process gets a shard, a snapshot has the actions of its range. When the shard goes
to another process, that process runs the actions that are not claimed. Actions that run here stay,
and the updates of the range are received, until they have ended. So no running action is
interrupted. While both processes have the range, the claim of an action decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import trio

from etcd_actions.executor.intake import Intake
from etcd_actions.executor.shared import Shared
from etcd_actions.shards import EVERYTHING, ShardRange


@dataclass(eq=False)
class _Followed:
    """A range whose updates are received.

    Attributes:
        scope: Cancelled when the updates are not needed any more.
        was_left: Whether the range was this process's, and is another's now.
        is_synced: Whether its first snapshot is complete.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    was_left: bool = False
    is_synced: bool = False


class OwnActions:
    """Follows the ranges of this process, and those in which actions still run here.

    Args:
        shared: The parts of the executor.
        intake: Delivers the states of a range.
        unfinished: Returns the actions that this executor has to finish, also if their range is
            another process's now.
        admit: Schedules an action whose range is this process's again, or is a part of an earlier
            one.
        forget: Forgets an action whose range is not followed any more.

    Attributes:
        is_synced: Whether the snapshots of all ranges were complete once.
    """

    def __init__(
        self,
        shared: Shared,
        intake: Intake,
        *,
        unfinished: Callable[[], Iterable[str]],
        admit: Callable[[str], None],
        forget: Callable[[str], None],
    ) -> None:
        self._shared = shared
        self._intake = intake
        self._unfinished = unfinished
        self._admit = admit
        self._forget = forget
        self._own = shared.client.work.ranges()
        self._followed: dict[ShardRange, _Followed] = {}
        self._changed = trio.Event()
        self.is_synced = False

    def has(self, name: str) -> bool:
        """Whether an action, ``<namespace>/<name>``, is in a range of this process."""
        return EVERYTHING in self._own or _is_in(name, self._own)

    def is_listing(self, name: str) -> bool:
        """Whether the first snapshot of an action's range is still incomplete."""
        return _is_in(name, (each for each, one in self._followed.items() if not one.is_synced))

    def recheck(self) -> None:
        """Check again which ranges are needed, as after the end of an action."""
        self._changed.set()

    async def follow(self) -> None:
        """Follow the ranges of this process; does not return."""
        self._followed.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._recheck_after_changes)
            while True:
                self._changed = trio.Event()
                self._apply(self._shared.client.work.ranges(), nursery)
                await self._changed.wait()

    async def _recheck_after_changes(self) -> None:
        work = self._shared.client.work
        while True:
            seen = work.ranges()
            self.recheck()
            await work.wait_changed(seen)

    def _apply(self, own: frozenset[ShardRange], nursery: trio.Nursery) -> None:
        """Start to follow new ranges, and stop where nothing is left to finish."""
        self._own = own
        for range_ in own:
            followed = self._followed.get(range_)
            if followed is None:
                followed = self._followed[range_] = _Followed()
                nursery.start_soon(self._follow, range_, followed)
                # Another range that is still followed may have had its actions, as before a split:
                # their states in the snapshot are not new.
                self._admit_all(range_)
            elif followed.was_left:
                followed.was_left = False
                self._admit_all(range_)
        unfinished = [name for name in self._unfinished() if not self.has(name)]
        for range_, followed in self._followed.items():
            if range_ not in own:
                self._leave(range_, followed, unfinished)
        self._note_synced()

    def _leave(self, range_: ShardRange, followed: _Followed, unfinished: list[str]) -> None:
        """Start nothing more in a range, and stop following it once nothing runs there."""
        if not followed.was_left:
            followed.was_left = True
            for name in self._names(range_):
                if not self.has(name) and name not in unfinished:
                    self._shared.schedule.drop(name)
        if not any(_is_in(name, (range_,)) for name in unfinished):
            followed.scope.cancel("no action of the range is left here")

    async def _follow(self, range_: ShardRange, followed: _Followed) -> None:
        """Receive the updates of a range until its scope is cancelled, then forget its actions."""
        unit = "updates" if range_ == EVERYTHING else f"updates of {range_}"
        containment = self._shared.client.containment
        with followed.scope:
            follow = partial(self._intake.follow, range_, partial(self._synced, followed))
            await containment.keep("executor", unit, follow)
        containment.forget("executor", unit)
        del self._followed[range_]
        unfinished = set(self._unfinished())
        for name in self._names(range_):
            if name not in unfinished and not _is_in(name, self._followed):
                self._forget(name)
        self._shared.board.forget_ended(
            lambda name: _is_in(name, (range_,)) and not _is_in(name, self._followed)
        )
        # The range may be this process's again.
        self.recheck()

    def _synced(self, followed: _Followed) -> None:
        followed.is_synced = True
        self._note_synced()

    def _note_synced(self) -> None:
        followed = (self._followed.get(each) for each in self._own)
        # A range that was left, and came back, is absent until it is followed again.
        if all(one is not None and one.is_synced for one in followed):
            self.is_synced = True

    def _admit_all(self, range_: ShardRange) -> None:
        """Schedule the known actions of a range, which were dropped while it was not own."""
        for name in self._names(range_):
            self._admit(name)

    def _names(self, range_: ShardRange) -> list[str]:
        return [name for name in self._shared.board.names() if _is_in(name, (range_,))]


def _is_in(name: str, ranges: Iterable[ShardRange]) -> bool:
    suffix = name.encode()
    return any(suffix in range_ for range_ in ranges)
