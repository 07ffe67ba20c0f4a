"""The deployment that uploads belong to: several may share a folder or a bucket."""

from __future__ import annotations

import re
import secrets
from typing import Final

import trio

from etcd_actions.errors import DecodeError
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store

_NAME: Final = re.compile(r"[0-9a-f]{16}")


class Deployment:
    """The name of the deployment below one prefix of one etcd.

    The first process that needs it creates a random name in etcd. The key of each upload has the
    name. So the collector of uploads recognises its own, and finds a reference by the name in any
    spelling of the rest of the URL.

    Args:
        store: Reads and writes.
        keys: The keys of the deployment.
    """

    def __init__(self, store: Store, keys: Keyspace) -> None:
        self._store = store
        self._key = keys.deployment
        self._name = ""
        self._loading = trio.Lock()

    async def exists(self) -> bool:
        """Whether the name has been created; without it there are no uploads."""
        return bool(self._name) or await self._store.get(self._key) is not None

    async def name(self) -> str:
        """16 hexadecimal digits. Cancelled, it may have been created.

        Raises:
            EtcdError: It could not be read, or created.
            DecodeError: The stored value is not such a name.
        """
        async with self._loading:
            if not self._name:
                kv = await self._store.get_or_create(self._key, _random_name)
                name = kv.value.decode("ascii", "replace")
                if not _NAME.fullmatch(name):
                    raise DecodeError(
                        "it is not a valid name of a deployment: delete the key",
                        key=kv.key,
                        revision=kv.mod_revision,
                    )
                self._name = name
        return self._name


def _random_name() -> bytes:
    return secrets.token_hex(8).encode()
