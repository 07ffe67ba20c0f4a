"""The base class of an index in memory: the decoded records below a prefix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from etcd_actions._internal.containment import Containment
from etcd_actions.etcd.api import Etcd
from etcd_actions.storage.undecodable import Undecodable
from etcd_actions.watch import Change, Demand, ReflectorSettings, Replica, open_replica

PATIENCE: Final = 10.0
"""Seconds for which a reader waits until the index is complete."""

_Record = TypeVar("_Record")
_Index = TypeVar("_Index", bound="PrefixIndex[Any]")


class PrefixIndex(ABC, Generic[_Record]):
    """The records below a prefix.

    A record that cannot be decoded is omitted; it is counted, and logged with its key.
    """

    _replica: Replica

    def __init__(self) -> None:
        self._undecodable = Undecodable()
        self._note_use: Callable[[], None] = lambda: None

    @property
    def is_loaded(self) -> bool:
        """Whether all records have been read, and are kept up to date."""
        return self._replica.is_loaded

    def has_readers(self) -> bool:
        """Whether a reader needs each change, so that the watch has to stay open."""
        return False

    def undecodable(self) -> dict[bytes, str]:
        """The keys of the records that cannot be decoded, and why."""
        return self._undecodable.reasons()

    async def ready(self, patience: float = PATIENCE) -> None:
        """Return once all records are read; it opens an index that is kept on demand.

        Args:
            patience: Seconds.

        Raises:
            EtcdError: etcd refused the read, or it took longer.
        """
        await self._replica.ready(patience)

    async def wait_for(self, revision: int, patience: float = 2.0) -> bool:
        """Wait until a written record is in the index; False if that takes too long.

        Args:
            revision: The revision of the transaction that wrote it.
            patience: Seconds.
        """
        return await self._replica.wait_for(revision, patience)

    def take(self, change: Change, /) -> None:
        """Apply a change. See :class:`~etcd_actions.watch.replica.ReplicaState`."""
        record = None
        try:
            if not change.is_delete:
                record = self._decode(change)
            self._undecodable.forget(change.key)
        except BaseException as error:
            self._undecodable.add(change.key, str(error))
            raise
        finally:
            self._put(change.key, record)

    def forget_all(self) -> None:
        """See :class:`~etcd_actions.watch.replica.ReplicaState`."""
        self._clear()
        self._undecodable.begin_again()

    @abstractmethod
    def _decode(self, change: Change) -> _Record:
        """The record; raises DecodeError."""

    @abstractmethod
    def _put(self, key: bytes, record: _Record | None) -> None:
        """Replace the record of a key; None if there is none, or it cannot be decoded."""

    @abstractmethod
    def _clear(self) -> None:
        """Remove all records."""


@asynccontextmanager
async def keep_index(
    index: _Index,
    etcd: Etcd,
    prefix: bytes,
    *,
    name: str,
    settings: ReflectorSettings | None,
    containment: Containment | None,
    on_demand: bool = False,
) -> AsyncIterator[_Index]:
    """Keep an index up to date by a watch, until the context is left.

    Args:
        index: The empty index.
        etcd: The connection; it must live longer.
        prefix: The prefix of its keys.
        name: The kind of its records, for messages.
        settings: How the prefix is watched.
        containment: Counts unexpected failures.
        on_demand: Watch only while the index is used; see :mod:`etcd_actions.watch.demand`.
    """
    async with open_replica(
        etcd,
        prefix,
        index,
        name=name,
        settings=settings or ReflectorSettings(),
        containment=containment or Containment(),
        demand=Demand(index.has_readers) if on_demand else None,
    ) as replica:
        index._replica, index._note_use = replica, replica.use
        yield index
