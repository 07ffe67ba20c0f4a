"""The leader's side of dead letters: it writes them, and receives the requests of operators.

It watches their keys while this process leads. Each write compares the last known revision of the
dead letter, so no change of another process is overwritten. A fenced store compares the leader's
key, too. A write that etcd refuses raises: the turn of that action is repeated after a back-off,
and until then nothing is marked. A rejected call is treated equally while etcd refuses to list the
dead letters. An accepted terminal state is marked nevertheless: a user who may not read dead
letters has not written one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.dead_letters import dead_letter as form
from etcd_actions.dead_letters.cache import DeadLetterCache
from etcd_actions.dead_letters.dead_letter import RECORD, DeadLetter, DeadLetterKeys, LastReport
from etcd_actions.errors import DecodeError, EtcdError, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.model import ActionUpdate, Keyspace
from etcd_actions.storage.store import Store, key_of
from etcd_actions.watch import Reflector, ReflectorSettings

MOST_DEAD_LETTERS = 10_000
MOST_BYTES = 64 * 1024 * 1024
"""The most bytes of all dead letters of one leader; etcd's quota is 2 GiB by default."""

_BACKOFF = Backoff(initial=0.1, cap=10.0)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class DeadLetterStatistics:
    """The contents and the counts of a store.

    Attributes:
        dead_letters: The dead letters, also unusable ones; empty while another process leads.
        dropped: Number of dead letters that were deleted for newer ones.
    """

    dead_letters: tuple[DeadLetter, ...]
    dropped: int


class DeadLetterStore:
    """Writes dead letters. Several tasks may call its methods, each for another action.

    A method that reads or writes raises :class:`~etcd_actions.errors.EtcdError` if a request
    failed, which may have been applied: the caller has to repeat the call.

    Args:
        etcd: The connection.
        store: Writes to etcd, only while this process leads.
        keys: The keyspace of objects and dead letters.
        owns: See :class:`DeadLetterCache`.
        settings: How the dead letters are watched.
        containment: Counts unexpected failures.
        ranges: The ranges of the dead letters; by default all.
        most: The most dead letters; the oldest are deleted.
        most_bytes: The most bytes of all of them.
    """

    def __init__(
        self,
        etcd: Etcd,
        store: Store,
        keys: Keyspace,
        *,
        owns: Callable[[bytes], bool],
        settings: ReflectorSettings,
        containment: Containment,
        ranges: Sequence[KeyRange] = (),
        most: int = MOST_DEAD_LETTERS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._etcd = etcd
        self._store = store
        self._keys = DeadLetterKeys(keys)
        self._cache = DeadLetterCache(self._keys, owns)
        self._ranges = ranges or (KeyRange.of_prefix(self._keys.prefix),)
        self._settings = replace(settings, ranges=1, prev_kv=False)
        self._containment = containment
        self._most = most
        self._most_bytes = most_bytes
        # Set once the dead letters are listed, or once etcd refused that; then the refusal is set.
        self._loaded = trio.Event()
        self._refusal: EtcdError | None = None
        self._dropped = 0

    def statistics(self) -> DeadLetterStatistics:
        """The present contents and counts; see :class:`DeadLetterStatistics`."""
        dead_letters = tuple(self._cache.entries.values())
        return DeadLetterStatistics(dead_letters=dead_letters, dropped=self._dropped)

    @asynccontextmanager
    async def at_work(self, on_request: Callable[[bytes], None]) -> AsyncIterator[None]:
        """Watch the dead letters until the context is left; then the cache is cleared.

        Args:
            on_request: Called with the key of an object when another report of it is requested.
        """
        self._cache.clear()
        self._cache.on_request = on_request
        self._loaded, self._refusal = trio.Event(), None
        keep = self._containment.keep
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep, "task", "following the dead letters", self._follow)
                yield
                nursery.cancel_scope.cancel("not at work any more")
        finally:
            self._cache.clear()
            self._cache.on_request = lambda _key: None
            self._loaded, self._refusal = trio.Event(), None

    def requests(self, key: bytes) -> frozenset[str]:
        """The ids of the requests for another report of an object."""
        requests = (each.request for each in self._cache.requested(key))
        return frozenset(request.id for request in requests if request is not None)

    async def has(self, update: ActionUpdate) -> bool:
        """Whether there is a dead letter about an action of this key and identity."""
        if not await self._any():
            return False
        return any(self._key(update, what) in self._cache.entries for what in form.CALLS)

    async def reject(
        self, what: str, update: ActionUpdate, value: bytes | None, *, code: int, error: str
    ) -> None:
        """Write the dead letter of a rejected call; it answers a request for another report.

        Args:
            what: ``record`` or ``status``.
            update: The state that was rejected.
            value: The stored object; None if it is not known.
            code: A number of ``google.rpc.Code``.
            error: The run service's message.
        """
        await self._loaded.wait()
        if self._refusal is not None:
            # Raise at once: a wait would occupy a worker of the outbox.
            raise self._refusal
        key = self._key(update, what)
        while True:
            before = self._cache.entries.get(key)
            same = before if before is not None and form.is_about(before, update) else None
            last = LastReport(update, value)
            if value is None and same is not None and same.keeps == "object":
                kv = await self._read(same)
                last = LastReport(update, None if kv is None else _value_of(kv))
            stored = form.rejection(update, last, code=code, error=error, before=same)
            if await self._write(key, before, form.encode(stored)):
                break
        await self._evict_oldest()

    async def accept(self, what: str, update: ActionUpdate) -> None:
        """Delete the dead letter about a call that was accepted.

        A dead letter with a request stays until the action is reported completely, see
        :meth:`settle`: the request is the only reason to report the status of a marked or deleted
        action after its record.
        """
        if not await self._any():
            return
        key = self._key(update, what)
        while (before := self._cache.entries.get(key)) is not None and before.request is None:
            await self._write(key, before, None)

    async def carry(self, update: ActionUpdate, value: bytes | None) -> None:
        """Store the state that the run service accepted in the dead letter about its record.

        It is called before a terminal state is marked, and after a deletion was reported: the
        dead letter outlives the object, and keeps the data that the run service lacks.
        """
        if not await self._any():
            return
        key = self._key(update, RECORD)
        while (before := self._cache.entries.get(key)) is not None:
            same = (before.phase, before.attempts) == (update.phase, update.attempts)
            has_state = (before.revision, before.is_deleted) == (update.revision, update.is_deleted)
            if not form.is_about(before, update) or (same and (update.partial or has_state)):
                return
            if (kv := await self._read(before)) is None:
                continue
            last = LastReport(update, value if value is not None else _value_of(kv))
            stored = form.with_state(form.decode(kv), update, last)
            await self._write(key, before, form.encode(stored))

    async def settle(self, update: ActionUpdate, requests: frozenset[str]) -> None:
        """Delete the dead letters with these requests: the action was reported again.

        Those that are left then are about calls that were accepted, or that the present state does
        not need.
        """
        for what in form.CALLS:
            key = self._key(update, what)
            while _has_request(before := self._cache.entries.get(key), requests):
                await self._write(key, before, None)

    async def refuse_requests(self, key: bytes, reason: str) -> None:
        """Answer the requests about an object with the reason why it cannot be reported."""
        while requested := self._cache.requested(key):
            await self._answer(requested[0], reason)

    async def exists(self, key: bytes) -> bool:
        """Whether an object is in etcd: then the watch delivers its state, which is reported."""
        return await self._store.get(key) is not None

    async def last_reports(self, key: bytes, requests: frozenset[str]) -> Sequence[LastReport]:
        """The reports that the dead letters about an object keep, of those with these requests.

        There is one for each action, with its latest state. A request that cannot be fulfilled is
        answered.
        """
        found: dict[bytes, LastReport] = {}
        for dead_letter in self._cache.requested(key):
            if not _has_request(dead_letter, requests):
                continue
            if (kv := await self._read(dead_letter)) is None:
                continue
            try:
                last = form.last_report_of(form.decode(kv))
            except DecodeError as error:
                await self._answer(dead_letter, error.reason)
                continue
            if last is None:
                reason = "the object is deleted, and its state was not kept"
                await self._answer(dead_letter, reason)
            elif last.update.key != key or self._key(last.update, dead_letter.what) != kv.key:
                await self._answer(dead_letter, "its stored state belongs to another action")
            else:
                action = kv.key.rpartition(b"/")[2]
                found[action] = _newer(found[action], last) if action in found else last
        return tuple(found.values())

    def _key(self, update: ActionUpdate, what: str) -> bytes:
        return self._keys.key(update.key, update.action_id, what)

    async def _any(self) -> bool:
        """Wait until the dead letters are listed; returns whether there are any."""
        if not self._loaded.is_set():
            await self._loaded.wait()
        return bool(self._cache.entries)

    async def _follow(self) -> None:
        """Watch the keys of the dead letters, until cancelled."""
        async for attempt in retrying(_BACKOFF, on=EtcdError, report=self._report_unreadable):
            reflector = Reflector(
                self._etcd,
                self._ranges,
                self._cache,
                on_replaced=self._cache.clear,
                settings=self._settings,
                containment=self._containment,
            )
            with attempt:
                async with trio.open_nursery() as nursery:
                    await nursery.start(reflector.run)
                    self._refusal = None
                    self._loaded.set()
                    attempt.recovered()

    def _report_unreadable(self, error: Exception, failures: int, delay: float) -> None:
        if isinstance(error, EtcdError) and not isinstance(error, Unavailable):
            # A role may lack the permission for long: accepted states are marked nevertheless.
            self._refusal = error
            self._loaded.set()
        seldom(_log, "dead_letters_unreadable")(error, failures, delay)

    async def _write(self, key: bytes, before: DeadLetter | None, value: bytes | None) -> bool:
        """Write or delete a dead letter if it is unchanged; otherwise update the cache.

        Returns:
            Whether it was unchanged.

        Raises:
            Unavailable: This process is not the leader any more, or etcd was not reached.
        """
        unchanged = Compare.unchanged(key, 0 if before is None else before.dead_letter_revision)
        keys = KeyRange.of_key(key)
        change = Delete(keys) if value is None else Put(key, value)
        result = await self._store.txn(Txn([unchanged], [change], [Get(keys)]))
        if result.succeeded:
            if value is None:
                self._cache.remove(key, result.revision)
            else:
                created = result.revision if before is None else before.dead_letter_created
                self._cache.put(KeyValue(key, value, created, result.revision, 1))
            return True
        found = key_of(result.responses[0])
        if found is None:
            self._cache.remove(key)
        else:
            self._cache.put(found)
        return False

    async def _read(self, dead_letter: DeadLetter) -> KeyValue | None:
        """Read a dead letter; if it has changed, update the cache and return None."""
        kv = await self._store.get(dead_letter.dead_letter_key)
        if kv is None:
            self._cache.remove(dead_letter.dead_letter_key)
        elif kv.mod_revision != dead_letter.dead_letter_revision:
            self._cache.put(kv)
        else:
            return kv
        return None

    async def _answer(self, dead_letter: DeadLetter, note: str) -> None:
        """Write into a dead letter why the requested report cannot be made."""
        if (kv := await self._read(dead_letter)) is None:
            return
        stored = form.without_request(form.decode(kv), note)
        if await self._write(kv.key, dead_letter, form.encode(stored)):
            _log.warning("dead_letter_not_retried", reason=note, **_fields(dead_letter))

    async def _evict_oldest(self) -> None:
        cache = self._cache
        while len(cache.entries) > self._most or cache.size > self._most_bytes:
            oldest = min(cache.entries.values(), key=lambda each: each.dead_letter_created)
            if await self._write(oldest.dead_letter_key, oldest, None):
                self._dropped += 1
                _log.error("dead_letter_dropped", most=self._most, **_fields(oldest))


def _has_request(dead_letter: DeadLetter | None, requests: frozenset[str]) -> bool:
    request = None if dead_letter is None else dead_letter.request
    return request is not None and request.id in requests


def _value_of(kv: KeyValue) -> bytes | None:
    """The object that a dead letter keeps; None if it keeps none, or it cannot be decoded."""
    try:
        last = form.last_report_of(form.decode(kv))
    except DecodeError as error:
        key = kv.key.decode(errors="backslashreplace")
        _log.warning("dead_letter_state_unreadable", key=key, reason=error.reason)
        return None
    return None if last is None else last.value


def _newer(one: LastReport, other: LastReport) -> LastReport:
    """The later state, with its object or that of the earlier one."""
    later, earlier = (one, other) if one.update.revision >= other.update.revision else (other, one)
    return LastReport(later.update, later.value if later.value is not None else earlier.value)


def _fields(dead_letter: DeadLetter) -> dict[str, object]:
    key = dead_letter.key or dead_letter.dead_letter_key
    return {
        "key": key.decode(errors="backslashreplace"),
        "what": dead_letter.what,
        "code": dead_letter.code,
        "error": dead_letter.error or dead_letter.unreadable,
        "first": dead_letter.first,
    }
