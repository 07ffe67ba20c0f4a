"""Those who write directly in etcd, past all methods: older statuses, copies, orphans.

Each write compares the revision that was read, and leaves a stamp on the object: so the oracle
knows what was done, also where the answer was lost.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from etcd_actions import ActionId, Phase
from etcd_actions.codecs import codec_of
from etcd_actions.errors import NotFound, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Etcd,
    KeyRange,
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionObject,
    Keyspace,
)
from etcd_actions.model.conditions import write_phase
from tests.schedules.facts import STAMP
from tests.schedules.plan import PHASES, Step

Tree = dict[str, Any]


async def put_back(etcd: Etcd, keys: Keyspace, target: ActionId, step: Step) -> None:
    """Put an older status over a recorded ending; with ``mark=gone`` as it was before the mark."""
    key = keys.task_action(target)
    kv = await _read(etcd, key)
    if not _decoded(kv).state(kv.create_revision).recorded:
        # It waits for the mark: that is what it is to write over.
        raise Unavailable("it is not recorded yet")
    tree = codec_of(kv.value).decode_tree(kv.value)
    write_phase(tree, Phase.RUNNING, now=datetime.now(UTC), attempts=int(step.args["attempt"]))
    if step.args["mark"] == "gone":
        tree["metadata"].get("labels", {}).pop(LABEL_TERMINAL_STATUS_RECORDED, None)
        tree["metadata"].get("annotations", {}).pop(ANNOTATION_RECORDED, None)
        tree["metadata"]["finalizers"] = [FINALIZER_RECORD]
    await _write(etcd, kv, tree, step)


async def put_end(etcd: Etcd, keys: Keyspace, target: ActionId, step: Step) -> None:
    """Write another ending than the one that it had, into what it has become."""
    kv = await _read(etcd, keys.task_action(target))
    state = _decoded(kv).state(kv.create_revision)
    phase = Phase(PHASES[step.args["phase"]])
    if state.phase is phase:
        phase = Phase.SUCCEEDED if phase is Phase.FAILED else Phase.FAILED
    tree = codec_of(kv.value).decode_tree(kv.value)
    write_phase(tree, phase, now=datetime.now(UTC), attempts=max(state.attempts, 1))
    await _write(etcd, kv, tree, step)


async def copy(etcd: Etcd, keys: Keyspace, target: ActionId, step: Step) -> None:
    """Make an object as a copy of another one, as a restore does: with its uid, or without one."""
    source = ActionId(target.project, target.domain, target.run, step.args["of"])
    kv = await _read(etcd, keys.task_action(source))
    key = keys.task_action(target)
    tree = codec_of(kv.value).decode_tree(kv.value)
    metadata = tree["metadata"]
    metadata["name"] = target.object_name
    tree["spec"]["actionName"] = target.name
    if step.args["uid"] == "none":
        metadata.pop("uid", None)
    await _write(etcd, KeyValue(key, kv.value, 0, 0, 0, 0), tree, step)


async def orphan(etcd: Etcd, keys: Keyspace, target: ActionId) -> None:
    """Delete an object and leave its children, as ``kubectl delete --cascade=orphan`` does."""
    key = keys.task_action(target)
    parent = _decoded(await _read(etcd, key)).metadata.uid
    for kv in (await etcd.range(KeyRange.of_prefix(keys.prefix))).kvs:
        metadata = _decoded(kv).metadata
        if any(owner.uid == parent for owner in metadata.owner_references):
            tree = codec_of(kv.value).decode_tree(kv.value)
            tree["metadata"].pop("ownerReferences", None)
            await _write(etcd, kv, tree)
    await etcd.delete(KeyRange.of_key(key))


async def _read(etcd: Etcd, key: bytes) -> KeyValue:
    found = (await etcd.range(KeyRange.of_key(key))).kvs
    if not found:
        raise NotFound(f"there is no {key.decode()}")
    return found[0]


def _decoded(kv: KeyValue) -> ActionObject:
    return codec_of(kv.value).decode(kv.value)


async def _write(etcd: Etcd, seen: KeyValue, tree: Tree, step: Step | None = None) -> None:
    if step is not None:
        annotations = tree["metadata"].setdefault("annotations", {})
        if annotations.get(STAMP) == step.stamp:
            return
        annotations[STAMP] = step.stamp
    unchanged = Compare(
        seen.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, seen.mod_revision
    )
    value = codec_of(seen.value).encode_tree(tree)
    if not (await etcd.txn(Txn([unchanged], [Put(seen.key, value, seen.lease)]))).succeeded:
        raise Unavailable("it has changed meanwhile")
