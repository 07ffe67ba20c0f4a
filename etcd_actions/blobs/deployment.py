"""Which deployment the uploads of a store belong to: several may share a folder or a bucket."""

from __future__ import annotations

import re
import secrets
from typing import Final

import trio

from etcd_actions.errors import DecodeError, Unavailable
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget, Put, Txn
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store

_NAME: Final = re.compile(r"[0-9a-f]{16}")


class Deployment:
    """The name of what is kept below one prefix of one etcd.

    It is made at random by the first process that needs it, and is in etcd from then on. It is a
    part of the key of each upload. So who collects uploads knows which ones are its own, and what
    refers to one is found by the name, however the rest of its URL is written.

    Args:
        store: Where it is kept.
        keys: Under which key.
    """

    def __init__(self, store: Store, keys: Keyspace) -> None:
        self._store = store
        self._key = keys.deployment
        self._name = ""
        self._loading = trio.Lock()

    async def name(self) -> str:
        """16 hexadecimal digits. Cancelled, it may have been made.

        Raises:
            EtcdError: It could not be read, or made.
            DecodeError: What is stored is no such name.
        """
        async with self._loading:
            if not self._name:
                self._name = await self._read_or_make()
        return self._name

    async def _read_or_make(self) -> str:
        kv = await self._store.get(self._key)
        if kv is None:
            absent = Compare(self._key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
            made = Put(self._key, secrets.token_hex(8).encode())
            await self._store.txn(Txn((absent,), (made,), ()))
            # Another process may have been faster: what is there counts.
            kv = await self._store.get(self._key)
        if kv is None:
            raise Unavailable("the name of the deployment was deleted while it was made")
        name = kv.value.decode("ascii", "replace")
        if not _NAME.fullmatch(name):
            raise DecodeError(
                "it is no name of a deployment: delete the key",
                key=kv.key,
                revision=kv.mod_revision,
            )
        return name
