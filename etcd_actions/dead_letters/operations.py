"""The operator's side of dead letters, in any process."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from uuid import uuid4

import trio

from etcd_actions.dead_letters import dead_letter as form
from etcd_actions.dead_letters.dead_letter import DeadLetter, DeadLetterKeys, Request
from etcd_actions.errors import FailedPrecondition
from etcd_actions.etcd.api import Etcd, Get, KeyRange, Txn
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store, key_of

_AT_ONCE = 100
"""Keys that one transaction reads; etcd's --max-txn-ops is 128."""
_CHECK_EVERY = 0.2
"""Seconds between two checks for an answer."""


class DeadLetterOperations:
    """Reads dead letters, and requests other reports from the leader.

    Every method raises :class:`~etcd_actions.errors.EtcdError` if etcd refuses or is not reached.

    Args:
        etcd: The connection.
        store: Reads and writes keys.
        keys: The keyspace of objects and dead letters.
    """

    def __init__(self, etcd: Etcd, store: Store, keys: Keyspace) -> None:
        self._etcd = etcd
        self._store = store
        self._keys = DeadLetterKeys(keys)
        self._elections = KeyRange.of_prefix(keys.elections)
        self._shards = KeyRange.of_prefix(keys.shards)

    async def list_dead_letters(self) -> list[DeadLetter]:
        """All dead letters of the prefix, at one revision, the oldest first."""
        kvs, _ = await self._store.read(KeyRange.of_prefix(self._keys.prefix))
        found = [form.read(self._keys, kv) for kv in kvs]
        return sorted(found, key=lambda each: each.dead_letter_created)

    async def objects(self, dead_letters: Collection[DeadLetter]) -> dict[bytes, int]:
        """The keys of the dead letters' objects that exist, with their ``create_revision``."""
        keys = iter(sorted({each.key for each in dead_letters if each.key}))
        found: dict[bytes, int] = {}
        while batch := list(islice(keys, _AT_ONCE)):
            reads = [Get(KeyRange.of_key(key), keys_only=True) for key in batch]
            result = await self._etcd.txn(Txn([], reads))
            kvs = filter(None, map(key_of, result.responses))
            found.update((kv.key, kv.create_revision) for kv in kvs)
        return found

    async def retry(self, dead_letter: DeadLetter) -> DeadLetter | None:
        """Request another report. The same request again changes nothing.

        Returns:
            The present dead letter with its request; None if it does not exist: the call was
            accepted, or an operator deleted it.

        Raises:
            FailedPrecondition: It cannot be decoded.
        """
        while (kv := await self._store.get(dead_letter.dead_letter_key)) is not None:
            now = form.read(self._keys, kv)
            if now.unreadable:
                raise FailedPrecondition(f"this is not a dead letter: {now.unreadable}")
            if now.request is not None:
                return now
            requested = form.with_request(form.decode(kv), Request(uuid4().hex, form.timestamp()))
            applied, current = await self._store.compare_and_put(kv, form.encode(requested))
            if applied and current is not None:
                return form.read(self._keys, current)
        return None

    async def wait_answer(self, requested: DeadLetter) -> DeadLetter | None:
        """Return once a request is answered; the caller limits the time.

        Args:
            requested: The result of :meth:`retry`.

        Returns:
            None if the dead letter does not exist any more: the call was accepted. Otherwise the
            dead letter, with the new rejection or a note why nothing could be reported.
        """
        request = requested.request
        while (kv := await self._store.get(requested.dead_letter_key)) is not None:
            now = form.read(self._keys, kv)
            if request is None or now.request is None or now.request.id != request.id:
                return now
            await trio.sleep(_CHECK_EVERY)
        return None

    async def delete(self, dead_letter: DeadLetter) -> bool:
        """Delete a dead letter unless it changed since it was read; return whether it did."""
        kv = await self._store.get(dead_letter.dead_letter_key)
        if kv is None or kv.mod_revision != dead_letter.dead_letter_revision:
            return False
        return (await self._store.compare_and_delete(kv)).applied

    async def is_served(self) -> bool:
        """Whether there is a leader, or an owner of a shard, which repeats calls."""
        found = await self._etcd.range(self._elections, limit=1, keys_only=True)
        if not found.kvs:
            found = await self._etcd.range(self._shards, keys_only=True)
            return any(b"/owner/" in kv.key for kv in found.kvs)
        return True
