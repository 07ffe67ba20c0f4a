"""Consumers that note what they were told, and ways to wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from etcd_actions import ActionObject, ActionUpdate, Phase
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, WatchCreate
from etcd_actions.record.recorder import TerminalState
from etcd_actions.run_service import RunService
from etcd_actions.watch import Change
from tests.support.patient import patiently

ACCEPTED = b"/accepted/"


class Bell:
    """Wakes whoever waits for a condition that others change."""

    def __init__(self) -> None:
        self._changed = trio.Event()

    def ring(self) -> None:
        """Something changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds; it is looked at whenever the bell rings."""
        while not condition():
            await self._changed.wait()


class RecordingSink:
    """A reflector's sink without conflation: keeps every change."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.bell = Bell()

    def dispatch(self, changes: Sequence[Change]) -> None:
        """Keep them."""
        self.changes += changes
        self.bell.ring()

    async def wait_list_capacity(self) -> None:
        """There always is."""
        await trio.lowlevel.checkpoint()

    async def wait_stream_capacity(self) -> None:
        """There always is."""
        await trio.lowlevel.checkpoint()

    def last(self) -> dict[bytes, Change]:
        """The newest change of each key."""
        return {change.key: change for change in self.changes}


class Told(NamedTuple):
    """The run service was told a state; ``at`` is a revision of etcd before it accepted."""

    key: bytes
    revision: int
    ending: TerminalState
    is_deleted: bool
    at: int


class Refused(Exception):
    """The run service does not want it now."""


class RecordingRunService(RunService):
    """Notes what it accepted, with a revision of etcd, so that marks can be compared.

    Args:
        etcd: Where the revision is taken from, by a write below :data:`ACCEPTED`.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.told: list[Told] = []
        self.recorded: list[tuple[bytes, str]] = []
        self.calls = 0
        self.bell = Bell()
        self.refuse: Callable[[ActionUpdate], bool] = lambda _: False
        self.hang: Callable[[ActionUpdate], bool] = lambda _: False

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Everything."""
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Note that it was introduced."""
        await self._obstruct(update)
        self.recorded.append((update.key, update.uid))
        self.bell.ring()

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Note that it was told."""
        await self._obstruct(update)
        try:
            at = (await self._etcd.put(ACCEPTED + update.key, b"")).revision
        except EtcdError as error:
            raise Refused(str(error)) from error
        ending = TerminalState.of(update)
        self.told.append(Told(update.key, update.revision, ending, update.is_deleted, at))
        self.bell.ring()

    async def _obstruct(self, update: ActionUpdate) -> None:
        self.calls += 1
        self.bell.ring()
        await self.bell.until(lambda: not self.hang(update))
        if self.refuse(update):
            raise Refused


async def until_stored(
    etcd: Etcd, keys: KeyRange, condition: Callable[[dict[bytes, KeyValue]], bool]
) -> dict[bytes, KeyValue]:
    """Wait until what is stored satisfies ``condition``, also while members and leaders go."""
    return await patiently(_until_stored, etcd, keys, condition)


async def _until_stored(
    etcd: Etcd, keys: KeyRange, condition: Callable[[dict[bytes, KeyValue]], bool]
) -> dict[bytes, KeyValue]:
    found = await etcd.range(keys)
    stored = {kv.key: kv for kv in found.kvs}
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, keys, found.revision + 1))
        while not condition(stored):
            for response in await stream.receive():
                if response.canceled:
                    raise Unavailable(response.cancel_reason)
                for event in response.events:
                    if event.is_delete:
                        stored.pop(event.key, None)
                    else:
                        stored[event.key] = event
    return stored


async def eventually(condition: Callable[[], bool]) -> None:
    """Look at a condition that rings no bell until it holds; bounded by the caller."""
    while not condition():  # noqa: ASYNC110 (nobody tells)
        await trio.sleep(0.005)
