"""Listings of runs, each shared by all callers that request the run at that time.

The keys of an action's children do not depend on the action, so the complete run is read. If a run
of thousands is deleted action by action, each deletion would read all of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import trio

T = TypeVar("T")

_MOST_RUNS: Final = 2
"""The most runs whose listing is kept."""
_LONGEST_KEPT: Final = 5.0
"""Seconds after which a listing is not used any more."""
# The pause before a listing, in multiples of the duration of the last one: so the listings of a run
# take at most a fifth of the time, whatever the number of requests.
_PAUSE: Final = 4.0
_LONGEST_PAUSE: Final = 1.0


class Run(NamedTuple):
    """The namespace and the name of a run."""

    namespace: str
    name: str


class Listed(NamedTuple, Generic[T]):
    """A listing of a run.

    Attributes:
        revision: The listing has all changes up to it.
        by_owner: The objects that name a parent, by the parent's key.
    """

    revision: int
    by_owner: Mapping[bytes, Sequence[T]]


class _Shared(Generic[T]):
    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.listed: Listed[T] | None = None
        self.began = self.ended = 0.0

    @property
    def is_old(self) -> bool:
        """Whether the listing is too old: an orphan that is written later may not be in it."""
        return trio.current_time() - self.began > _LONGEST_KEPT

    async def pause(self) -> None:
        """Wait after the last listing, for a multiple of its duration."""
        if self.listed is not None:
            took = self.ended - self.began
            await trio.sleep_until(self.ended + min(_PAUSE * took, _LONGEST_PAUSE))


class RunListings(Generic[T]):
    """The newest listings of a few runs, for some seconds.

    Args:
        read: Lists a run. It is called for one caller of a run at a time, and for the next caller
            if it fails or is cancelled.
    """

    def __init__(self, read: Callable[[Run], Awaitable[Listed[T]]]) -> None:
        self._read = read
        self._runs: OrderedDict[Run, _Shared[T]] = OrderedDict()

    async def owned(self, run: Run, owner_key: bytes, revision: int) -> Sequence[T]:
        """The objects that name a parent, at ``revision`` or later.

        The first caller waits before it lists, as after each listing. Callers that come in the
        meantime share its listing.

        Args:
            run: The run of the parent and the objects.
            owner_key: The parent's key.
            revision: The listing has to have all changes up to it; 0 for the newest.

        Raises:
            EtcdError: The list failed.
        """
        shared = self._of(run)
        async with shared.lock:
            listed = shared.listed
            if listed is None or not 0 < revision <= listed.revision or shared.is_old:
                await shared.pause()
                began = trio.current_time()
                listed = await self._read(run)
                shared.listed, shared.began, shared.ended = listed, began, trio.current_time()
            return listed.by_owner.get(owner_key, ())

    def _of(self, run: Run) -> _Shared[T]:
        """The shared listing of a run; it is dropped if it is unused, and others are newer."""
        shared = self._runs.setdefault(run, _Shared())
        self._runs.move_to_end(run)
        for each in list(self._runs)[:-_MOST_RUNS]:
            # It is locked while a caller reads, or waits.
            if not self._runs[each].lock.locked():
                del self._runs[each]
        return shared
