"""Objects to report about: captured ones, with fields that nobody knows."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from etcd_actions.codecs import Codec, codec_of, json
from etcd_actions.errors import OutcomeUnknown
from etcd_actions.etcd.api import Etcd, Txn, TxnResult
from etcd_actions.model import ActionId, Keyspace
from etcd_actions.storage.store import Store
from tests.data.captured import PUTS

T0 = datetime(2026, 11, 23, 16, 14, 4, tzinfo=UTC)
TASK = ActionId("flytesnacks", "development", "rh7k2m9p4qv3", "a1")
CONDITION = ActionId("flytesnacks", "development", "rcond0000001", "c1")

Tree = dict[str, Any]


def at_t0() -> datetime:
    """A clock that stands still."""
    return T0


def captured(action: ActionId, revision: int = 0) -> Tree:
    """The captured object of an action, as created or at a revision."""
    put = next(
        put
        for put in PUTS
        if put.key.endswith(b"/" + action.object_name.encode())
        and put.mod_revision == (revision or put.create_revision)
    )
    return json.decode_tree(put.value)


def with_unknown_fields(tree: Tree) -> Tree:
    """The same object of a later version of Flyte."""
    tree["spec"]["laterField"] = {"deep": [1, 2.5, None, "é<&>"]}
    tree["metadata"]["annotations"] = {"example.org/note": "kept"}
    tree.setdefault("status", {})["laterField"] = "kept"
    tree["status"]["pluginState"] = base64.b64encode(bytes(range(9))).decode()
    return tree


async def store_tree(
    etcd: Etcd, keys: Keyspace, action: ActionId, tree: Tree, codec: Codec = json
) -> int:
    """Put an object where an action's is, at the revision that is returned."""
    return (await etcd.put(keys.task_action(action), codec.encode_tree(tree))).revision


async def stored_tree(etcd: Etcd, keys: Keyspace, action: ActionId) -> Tree:
    """The object of an action as it is."""
    value = await stored_value(etcd, keys, action)
    return codec_of(value).decode_tree(value)


async def stored_value(etcd: Etcd, keys: Keyspace, action: ActionId) -> bytes:
    """Its bytes."""
    kv = await Store(etcd).get(keys.task_action(action))
    assert kv is not None
    return kv.value


class LostAnswers:
    """Transactions whose answers get lost: done before, or not at all."""

    def __init__(self, etcd: Etcd, *, applied: bool, lost: int = 1) -> None:
        self._etcd = etcd
        self._applied = applied
        self._lost = lost
        self.calls = 0

    async def __call__(self, txn: Txn) -> TxnResult:
        """Do, or do not, and do not tell."""
        self.calls += 1
        if self.calls > self._lost:
            return await self._etcd.txn(txn)
        if self._applied:
            await self._etcd.txn(txn)
        raise OutcomeUnknown("the answer was lost")


class Overtaken:
    """Before each of the first transactions somebody else changes the object."""

    def __init__(self, etcd: Etcd, key: bytes, edit: Callable[[Tree], None], times: int) -> None:
        self._etcd = etcd
        self._key = key
        self._edit = edit
        self._times = times
        self.calls = 0

    async def __call__(self, txn: Txn) -> TxnResult:
        """Change it, then do the transaction."""
        self.calls += 1
        if self.calls <= self._times:
            kv = await Store(self._etcd).get(self._key)
            assert kv is not None
            tree = codec_of(kv.value).decode_tree(kv.value)
            self._edit(tree)
            await self._etcd.put(self._key, codec_of(kv.value).encode_tree(tree))
        return await self._etcd.txn(txn)
