"""The actions that an executor runs: those in the ranges of its process, which may change.

Without shards it is one range, of all actions. With shards a range comes with its shard: a snapshot
has its actions. When the shard goes to another process, that process runs the actions that are not
claimed. Actions that run here stay, with the updates of their shard, until they have ended. So no
running action is interrupted. While both processes have the range, the claim of an action decides.
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
        scope: Cancelled when they are not needed any more.
        is_left: Whether the range is not of this process any more.
        is_synced: Whether its first snapshot is complete.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_left: bool = False
    is_synced: bool = False


class OwnActions:
    """See the module's text.

    Args:
        shared: The parts of the executor.
        intake: Delivers the states of a range.
        held: Returns the actions that this executor has to finish, whichever process has them.
        admit: Schedules an action whose range came back, or is a part of an earlier one.
        forget: Forgets an action whose range is not followed any more.

    Attributes:
        is_synced: Whether the snapshots of all ranges were complete once.
    """

    def __init__(
        self,
        shared: Shared,
        intake: Intake,
        *,
        held: Callable[[], Iterable[str]],
        admit: Callable[[str], None],
        forget: Callable[[str], None],
    ) -> None:
        self._shared = shared
        self._intake = intake
        self._held = held
        self._admit = admit
        self._forget = forget
        self._own = shared.client.work.ranges()
        self._followed: dict[ShardRange, _Followed] = {}
        self._changed = trio.Event()
        self.is_synced = False

    def has(self, name: str) -> bool:
        """Whether this process is to run an action, ``<namespace>/<name>``."""
        return EVERYTHING in self._own or _is_in(name, self._own)

    def is_listing(self, name: str) -> bool:
        """Whether the first snapshot of an action's range is not complete."""
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
        self._own = own
        for range_ in own:
            followed = self._followed.get(range_)
            if followed is None:
                followed = self._followed[range_] = _Followed()
                nursery.start_soon(self._follow, range_, followed)
                # Another range that is still followed may have had its actions, as before a split:
                # their states in the snapshot are not new.
                self._admit_all(range_)
            elif followed.is_left:
                followed.is_left = False
                self._admit_all(range_)
        held = [name for name in self._held() if not self.has(name)]
        for range_, followed in self._followed.items():
            if range_ in own:
                continue
            if not followed.is_left:
                followed.is_left = True
                for name in self._names(range_):
                    if not self.has(name) and name not in held:
                        self._shared.schedule.drop(name)
            if not any(_is_in(name, (range_,)) for name in held):
                followed.scope.cancel("no action of the range is left here")
        self._note_synced()

    async def _follow(self, range_: ShardRange, followed: _Followed) -> None:
        unit = "updates" if range_ == EVERYTHING else f"updates of {range_}"
        containment = self._shared.client.containment
        with followed.scope:
            follow = partial(self._intake.follow, range_, partial(self._synced, followed))
            await containment.keep("executor", unit, follow)
        containment.forget("executor", unit)
        del self._followed[range_]
        held = set(self._held())
        for name in self._names(range_):
            if name not in held and not _is_in(name, self._followed):
                self._forget(name)
        self._shared.board.forget_ended(
            lambda name: _is_in(name, (range_,)) and not _is_in(name, self._followed)
        )
        # It may be of this process again.
        self.recheck()

    def _synced(self, followed: _Followed) -> None:
        followed.is_synced = True
        self._note_synced()

    def _note_synced(self) -> None:
        followed = (self._followed.get(each) for each in self._own)
        # One that was left, and came back, is absent until it is followed again.
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
