"""Listings of runs, each shared by all callers that request the run at that time.

The children of an action cannot be read from their keys, so all of the run is read. If a run of
thousands is deleted action by action, each would read it again: thousands squared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import trio

T = TypeVar("T")

_MOST_RUNS: Final = 2
_LONGEST_KEPT: Final = 5.0
# Of the time a run's listings take at most a fifth, however many callers request it one by one.
_PAUSE: Final = 4.0
_LONGEST_PAUSE: Final = 1.0


class Run(NamedTuple):
    """Which run."""

    namespace: str
    name: str


class Listed(NamedTuple, Generic[T]):
    """What a run held at one revision.

    Attributes:
        revision: What happened up to it is in the listing.
        by_owner: The objects that name an owner, by the owner's key.
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
        """Whether what is written without a look at its owner may be missed for too long."""
        return trio.current_time() - self.began > _LONGEST_KEPT

    async def pause(self) -> None:
        """Wait until the listing before is some time ago, by how long it took."""
        if self.listed is not None:
            took = self.ended - self.began
            await trio.sleep_until(self.ended + min(_PAUSE * took, _LONGEST_PAUSE))


class RunListings(Generic[T]):
    """The newest listings of a few runs, for some seconds.

    Args:
        read: Lists a run. It is called for one caller at a time of each run, and again for the
            next where it fails or is cancelled.
    """

    def __init__(self, read: Callable[[Run], Awaitable[Listed[T]]]) -> None:
        self._read = read
        self._runs: OrderedDict[Run, _Shared[T]] = OrderedDict()

    async def owned(self, run: Run, owner_key: bytes, revision: int) -> Sequence[T]:
        """What named an owner, at ``revision`` or later.

        Waits for a listing of the run, whose caller waits in turn until the one before is some time
        ago: so callers that come until then share one.

        Args:
            run: The run of both.
            owner_key: The owner's key.
            revision: What happened up to it counts; 0 for all that has happened by now.

        Raises:
            EtcdError: etcd did not list.
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
        """What is shared of a run; it is dropped when no caller requests the run."""
        shared = self._runs.setdefault(run, _Shared())
        self._runs.move_to_end(run)
        for each in list(self._runs)[:-_MOST_RUNS]:
            # Locked while a caller reads, or waits.
            if not self._runs[each].lock.locked():
                del self._runs[each]
        return shared
