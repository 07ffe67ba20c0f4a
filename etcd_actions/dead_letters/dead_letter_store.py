"""The dead letters as the leader keeps them.

It follows their keys while it works, so it knows which calls have a letter, and hears of what
an operator asks for. Each write compares that this process still leads, and that
the letter is as it is known, so that nothing of anybody else is overwritten. A write that etcd
does not do raises: the turn of that one action is tried again, with a back-off, and until then
nothing is marked. So it is with what is refused while etcd refuses to show the letters: one who may
not read them cannot have written one, so what is accepted needs none, and is marked.
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
from etcd_actions.dead_letters.dead_letter import RECORD, DeadLetter, DeadLetterKeys, Kept
from etcd_actions.errors import DecodeError, EtcdError, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.model import ActionUpdate, Keyspace
from etcd_actions.storage.store import Store
from etcd_actions.watch import Change, Reflector, ReflectorSettings

MOST_DEAD_LETTERS = 10_000
MOST_BYTES = 64 * 1024 * 1024
"""Of keys and values of all letters of one leader; etcd's quota is 2 GiB unless raised."""

_BACKOFF = Backoff(initial=0.1, cap=10.0)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class DeadLetterStatistics:
    """What a book holds and has done.

    Attributes:
        dead_letters: The dead letters, unreadable ones too; empty while another process leads.
        dropped: How many were deleted to make room for newer ones.
    """

    dead_letters: tuple[DeadLetter, ...]
    dropped: int


class DeadLetterStore:
    """See the module's text. Its calls may be made from several tasks, one task an action.

    Args:
        etcd: The connection.
        store: Where to write.
        keys: Where objects and letters are.
        owns: Whether an object is among those that this process works on; letters about
            others are another leader's.
        settings: How the letters are watched.
        containment: Where unexpected failures are counted.
        most: How many letters there may be; the oldest go.
        most_bytes: The same of all their bytes.
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
        most: int = MOST_DEAD_LETTERS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._etcd = etcd
        self._store = store
        self._keys = DeadLetterKeys(keys)
        self._owns = owns
        self._settings = replace(settings, ranges=1, prev_kv=False)
        self._containment = containment
        self._most = most
        self._most_bytes = most_bytes
        self._fence: Compare | None = None
        self._on_asked: Callable[[bytes], None] = lambda _key: None
        # Set once the letters are known, or etcd has refused to show them: then it says why.
        self._loaded = trio.Event()
        self._refusal: EtcdError | None = None
        self._letters: dict[bytes, DeadLetter] = {}
        self._bytes = 0
        # By letter, the revision of a deletion that the watch has yet to tell.
        self._deleted: dict[bytes, int] = {}
        self._asked: dict[bytes, set[bytes]] = {}
        self._dropped = 0

    def statistics(self) -> DeadLetterStatistics:
        """See :class:`DeadLetterStatistics`."""
        return DeadLetterStatistics(
            dead_letters=tuple(self._letters.values()), dropped=self._dropped
        )

    @asynccontextmanager
    async def at_work(
        self, fence: Compare | None, on_asked: Callable[[bytes], None]
    ) -> AsyncIterator[None]:
        """Follow the letters; on leaving they are forgotten, and stay in etcd.

        Args:
            fence: Holds while this process leads; None where there is no election.
            on_asked: Called with the key of an object of which a letter is to be tried again.
        """
        self._forget_all()
        self._fence, self._on_asked = fence, on_asked
        keep = self._containment.keep
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep, "task", "following the dead letters", self._follow)
                yield
                nursery.cancel_scope.cancel("not at work any more")
        finally:
            self._forget_all()

    def asked(self, key: bytes) -> frozenset[str]:
        """The ids of the requests for another try of letters about an object."""
        if not (asked := self._asked.get(key)):
            return frozenset()
        requests = (self._letters[each].request for each in asked)
        return frozenset(request.id for request in requests if request is not None)

    async def refused(
        self, what: str, update: ActionUpdate, value: bytes | None, *, code: int, error: str
    ) -> None:
        """Write down that a call was refused for good; it answers a request for another try.

        Args:
            what: ``record`` or ``status``.
            update: The state that was refused.
            value: The stored object, None where it is not known.
            code: A number of ``google.rpc.Code``.
            error: What the run service said.

        Raises:
            EtcdError: It is not written, or maybe is: to be called again.
        """
        await self._loaded.wait()
        if self._refusal is not None:
            # No other action's worker waits for this.
            raise self._refusal
        key = self._keys.key(update.key, update.action_id, what)
        while True:
            before = self._letters.get(key)
            same = before if before is not None and form.is_about(before, update) else None
            kept = Kept(update, value)
            if value is None and same is not None and same.keeps == "object":
                kept = Kept(update, await self._kept_value(same))
            stored = form.refusal(update, kept, code=code, error=error, before=same)
            if await self._write(key, before, form.encode(stored)):
                break
        await self._make_room()

    async def accepted(self, what: str, update: ActionUpdate) -> None:
        """A call was accepted: the letter about it goes.

        One that is to be tried again stays until all is told, see :meth:`settle`: of an action
        that is marked, or gone, nobody else would tell the status behind the record.

        Raises:
            EtcdError: It is still there, or maybe is: to be called again.
        """
        if not self._loaded.is_set():
            await self._loaded.wait()
        if not self._letters:
            return
        key = self._keys.key(update.key, update.action_id, what)
        while (before := self._letters.get(key)) is not None and before.request is None:
            await self._write(key, before, None)

    async def has(self, update: ActionUpdate) -> bool:
        """Whether a letter is about an action of this key and identity."""
        if not self._loaded.is_set():
            await self._loaded.wait()
        keys = (self._keys.key(update.key, update.action_id, what) for what in form.CALLS)
        return bool(self._letters) and any(key in self._letters for key in keys)

    async def carry(self, update: ActionUpdate, value: bytes | None) -> None:
        """Have a letter about a record say what the run service accepted of the action since.

        Before an ending is marked, and after a deletion was told: the letter outlives the
        object, and has all that the run service lacks.

        Raises:
            EtcdError: It is not written, or maybe is: to be called again.
        """
        if not self._loaded.is_set():
            await self._loaded.wait()
        if not self._letters:
            return
        key = self._keys.key(update.key, update.action_id, RECORD)
        while (before := self._letters.get(key)) is not None:
            same = (before.phase, before.attempts) == (update.phase, update.attempts)
            if not form.is_about(before, update) or (
                same and (update.partial or _says(before, update))
            ):
                return
            if (kv := await self._read(before)) is None:
                continue
            kept_value = value if value is not None else _value_of(kv)
            stored = form.with_state(form.decode(kv), update, Kept(update, kept_value))
            await self._write(key, before, form.encode(stored))

    async def settle(self, update: ActionUpdate, asked: frozenset[str]) -> None:
        """All of an action was told again, and what was refused is written: the rest goes.

        That is what was accepted, or what the present state has no need of.

        Args:
            update: What was told.
            asked: The requests that were there before.

        Raises:
            EtcdError: It is still there, or maybe is: to be called again.
        """
        for what in form.CALLS:
            key = self._keys.key(update.key, update.action_id, what)
            while (letter := self._letters.get(key)) is not None:
                if letter.request is None or letter.request.id not in asked:
                    break
                await self._write(key, letter, None)

    async def unanswerable(self, key: bytes, reason: str) -> None:
        """Nothing can be told of an object: answer the requests with why.

        Raises:
            EtcdError: It is not written, or maybe is: to be called again.
        """
        while asked := self._asked.get(key):
            await self._answer(self._letters[next(iter(asked))], reason)

    async def is_there(self, key: bytes) -> bool:
        """Whether an object is in etcd: then its state, which the watch brings, is told.

        Raises:
            EtcdError: etcd could not be asked.
        """
        return await self._store.get(key) is not None

    async def kept(self, key: bytes, asked: frozenset[str]) -> Sequence[Kept]:
        """What the letters about an object have for those of some requests that are still open.

        One for each action, with its latest state. A request that cannot be met is answered.

        Raises:
            EtcdError: etcd did not do it; to be called again.
        """
        found: dict[bytes, Kept] = {}
        for letter_key in list(self._asked.get(key, ())):
            letter = self._letters[letter_key]
            if letter.request is None or letter.request.id not in asked:
                continue
            if (kv := await self._read(letter)) is None:
                continue
            try:
                kept = form.kept_of(form.decode(kv))
            except DecodeError as error:
                await self._answer(letter, error.reason)
                continue
            if kept is None:
                await self._answer(letter, "the object is gone, and its state was not kept")
            elif (kept.update.key, self._key_of(kept, letter)) != (key, letter_key):
                await self._answer(letter, "what it keeps is about another action")
            else:
                action = letter_key.rpartition(b"/")[2]
                found[action] = _newer(found[action], kept) if action in found else kept
        return tuple(found.values())

    def _key_of(self, kept: Kept, letter: DeadLetter) -> bytes:
        return self._keys.key(letter.key, kept.update.action_id, letter.what)

    # Following the keys.

    async def _follow(self) -> None:
        """Keep up with the letters' keys, for ever."""
        async for attempt in retrying(_BACKOFF, on=EtcdError, report=self._unreadable):
            reflector = Reflector(
                self._etcd,
                KeyRange.of_prefix(self._keys.prefix),
                self,
                on_replaced=self._forget_letters,
                settings=self._settings,
                containment=self._containment,
                names_known_bugs=False,
            )
            with attempt:
                async with trio.open_nursery() as nursery:
                    await nursery.start(reflector.run)
                    self._refusal = None
                    self._loaded.set()
                    attempt.recovered()

    def _unreadable(self, error: Exception, failures: int, delay: float) -> None:
        if isinstance(error, EtcdError) and not isinstance(error, Unavailable):
            # A role may lack the keys for long: what is accepted is marked all the same.
            self._refusal = error
            self._loaded.set()
        seldom(_log, "dead_letters_unreadable")(error, failures, delay)

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Take what the watch tells."""
        for change in changes:
            key, revision = change.key, change.mod_revision
            if revision <= self._deleted.get(key, 0):
                if change.is_delete:
                    del self._deleted[key]
                continue
            self._deleted.pop(key, None)
            known = self._letters.get(key)
            if known is not None and revision <= known.letter_revision:
                continue
            if change.is_delete:
                self._forget(key)
            else:
                value = change.value
                self._learn(KeyValue(key, value, change.create_revision, revision, change.version))

    async def wait_list_room(self) -> None:
        """Letters are bounded: there is room."""
        await trio.lowlevel.checkpoint()

    async def wait_stream_room(self) -> None:
        """Letters are bounded: there is room."""

    def _learn(self, kv: KeyValue) -> None:
        """A letter is as it was read or written."""
        letter = form.read(self._keys, kv)
        if letter.key and not self._owns(letter.key):
            return
        self._forget(kv.key)
        self._letters[kv.key] = letter
        self._bytes += letter.size
        if letter.request is not None:
            self._asked.setdefault(letter.key, set()).add(kv.key)
            self._on_asked(letter.key)

    def _forget(self, key: bytes) -> None:
        letter = self._letters.pop(key, None)
        if letter is None:
            return
        self._bytes -= letter.size
        if asked := self._asked.get(letter.key):
            asked.discard(key)
            if not asked:
                del self._asked[letter.key]

    def _forget_letters(self) -> None:
        self._letters.clear()
        self._asked.clear()
        self._deleted.clear()
        self._bytes = 0

    def _forget_all(self) -> None:
        self._forget_letters()
        self._fence = None
        self._loaded, self._refusal = trio.Event(), None
        self._on_asked = lambda _key: None

    # Writing.

    async def _write(self, key: bytes, before: DeadLetter | None, value: bytes | None) -> bool:
        """Write or delete a letter that still is as it is known; else learn what it is.

        Raises:
            Unavailable: This process does not lead any more, among other causes.
        """
        expected = 0 if before is None else before.letter_revision
        compare = [Compare(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, expected)]
        if self._fence is not None:
            compare.append(self._fence)
        keys = KeyRange.of_key(key)
        change = Delete(keys) if value is None else Put(key, value)
        result = await self._store.txn(Txn(compare, [change], [Get(keys)]))
        if result.succeeded:
            if value is None:
                self._forget(key)
                self._deleted[key] = result.revision
            else:
                created = result.revision if before is None else before.letter_created
                self._learn(KeyValue(key, value, created, result.revision, 1))
            return True
        found = result.responses[0]
        assert isinstance(found, RangeResult)
        now = found.kvs[0] if found.kvs else None
        if (now.mod_revision if now is not None else 0) == expected:
            raise Unavailable("another process was elected: the dead letters are for it to write")
        if now is None:
            self._forget(key)
        else:
            self._learn(now)
        return False

    async def _read(self, letter: DeadLetter) -> KeyValue | None:
        """A letter's key, if it still is as it is known; else learn what it is."""
        kv = await self._store.get(letter.letter_key)
        if kv is None:
            self._forget(letter.letter_key)
            return None
        if kv.mod_revision != letter.letter_revision:
            self._learn(kv)
            return None
        return kv

    async def _kept_value(self, letter: DeadLetter) -> bytes | None:
        kv = await self._read(letter)
        return None if kv is None else _value_of(kv)

    async def _answer(self, letter: DeadLetter, note: str) -> None:
        """Say in a letter why the try that it asks for cannot be made."""
        if (kv := await self._read(letter)) is None:
            return
        stored = form.without_request(form.decode(kv), note)
        if await self._write(letter.letter_key, letter, form.encode(stored)):
            _log.warning("dead_letter_not_retried", reason=note, **_named(letter))

    async def _make_room(self) -> None:
        """Delete the oldest letters where there are too many."""
        while len(self._letters) > self._most or self._bytes > self._most_bytes:
            oldest = min(self._letters.values(), key=lambda letter: letter.letter_created)
            if await self._write(oldest.letter_key, oldest, None):
                self._dropped += 1
                _log.error("dead_letter_dropped", most=self._most, **_named(oldest))


def _says(letter: DeadLetter, update: ActionUpdate) -> bool:
    return (letter.revision, letter.is_deleted) == (update.revision, update.is_deleted)


def _value_of(kv: KeyValue) -> bytes | None:
    """The object that a letter keeps, None where it keeps none that can be read."""
    try:
        kept = form.kept_of(form.decode(kv))
    except DecodeError as error:
        key = kv.key.decode(errors="backslashreplace")
        _log.warning("dead_letter_state_unreadable", key=key, reason=error.reason)
        return None
    return None if kept is None else kept.value


def _newer(one: Kept, other: Kept) -> Kept:
    """The later state, with the object of either."""
    later, earlier = (one, other) if one.update.revision >= other.update.revision else (other, one)
    return Kept(later.update, later.value if later.value is not None else earlier.value)


def _named(letter: DeadLetter) -> dict[str, object]:
    return {
        "key": (letter.key or letter.letter_key).decode(errors="backslashreplace"),
        "what": letter.what,
        "code": letter.code,
        "error": letter.error or letter.unreadable,
        "first": letter.first,
    }
