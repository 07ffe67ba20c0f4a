"""The dead letters as an operator sees them, from any process."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from uuid import uuid4

import trio

from etcd_actions.dead_letters import dead_letter as form
from etcd_actions.dead_letters.dead_letter import DeadLetter, DeadLetterKeys, Request
from etcd_actions.errors import FailedPrecondition
from etcd_actions.etcd.api import Etcd, Get, KeyRange, RangeResult, Txn
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store

_AT_ONCE = 100
"""Keys that one transaction reads; etcd's --max-txn-ops is 128."""
_LOOK_EVERY = 0.2


class DeadLetterOperations:
    """Reads letters, and asks the leader for another try.

    Args:
        etcd: The connection.
        store: Where to read and write.
        keys: Where objects and letters are.
    """

    def __init__(self, etcd: Etcd, store: Store, keys: Keyspace) -> None:
        self._etcd = etcd
        self._store = store
        self._letters = DeadLetterKeys(keys)
        self._elections = KeyRange.of_prefix(keys.elections)

    async def letters(self) -> list[DeadLetter]:
        """All letters of the prefix, at one revision, the oldest first."""
        kvs, _ = await self._store.read(KeyRange.of_prefix(self._letters.prefix))
        return sorted(
            (form.read(self._letters, kv) for kv in kvs), key=lambda each: each.letter_created
        )

    async def objects(self, letters: Collection[DeadLetter]) -> dict[bytes, int]:
        """Which of the letters' objects are there, with the ``create_revision`` of each."""
        keys = iter(sorted({letter.key for letter in letters if letter.key}))
        found: dict[bytes, int] = {}
        while batch := list(islice(keys, _AT_ONCE)):
            reads = [Get(KeyRange.of_key(key), keys_only=True) for key in batch]
            result = await self._etcd.txn(Txn([], reads))
            for response in result.responses:
                assert isinstance(response, RangeResult)
                found.update((kv.key, kv.create_revision) for kv in response.kvs)
        return found

    async def retry(self, letter: DeadLetter) -> DeadLetter | None:
        """Ask for another try of what a letter is about; asked again, it stays one request.

        Returns:
            The letter with its request, as it is now; None where it is gone: it was accepted,
            or given up.

        Raises:
            FailedPrecondition: It cannot be read: there is nothing to try.
        """
        while (kv := await self._store.get(letter.letter_key)) is not None:
            now = form.read(self._letters, kv)
            if now.unreadable:
                raise FailedPrecondition(f"this is no dead letter: {now.unreadable}")
            if now.request is not None:
                return now
            asked = form.with_request(form.decode(kv), Request(uuid4().hex, form.timestamp()))
            applied, current = await self._store.compare_and_put(kv, form.encode(asked))
            if applied and current is not None:
                return form.read(self._letters, current)
        return None

    async def wait_answer(self, asked: DeadLetter) -> DeadLetter | None:
        """Return once a request is answered; for how long that may take is up to the caller.

        Args:
            asked: What :meth:`retry` returned.

        Returns:
            None where the letter is gone: what it was about was accepted. Else the letter,
            with the new refusal, or a note why nothing could be told.
        """
        request = asked.request
        while (kv := await self._store.get(asked.letter_key)) is not None:
            now = form.read(self._letters, kv)
            if request is None or now.request is None or now.request.id != request.id:
                return now
            await trio.sleep(_LOOK_EVERY)
        return None

    async def delete(self, letter: DeadLetter) -> bool:
        """Give up on a letter, if it still is as it was read; whether it was deleted.

        Of a letter that has changed meanwhile nothing is deleted.
        """
        kv = await self._store.get(letter.letter_key)
        if kv is None or kv.mod_revision != letter.letter_revision:
            return False
        return (await self._store.compare_and_delete(kv)).applied

    async def is_served(self) -> bool:
        """Whether a process is elected that may offer letters again.

        A process that works without an election cannot be seen.
        """
        found = await self._etcd.range(self._elections, limit=1, keys_only=True)
        return bool(found.kvs)
