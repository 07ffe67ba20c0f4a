"""Objects that are over, held by whom one likes, and where they are."""

from __future__ import annotations

from typing import Any

from etcd_actions import Phase
from etcd_actions.codecs import Codec, codec_of, json
from etcd_actions.etcd.api import Etcd, KeyValue
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    build_action_update,
)
from etcd_actions.record.recorder import TerminalState
from etcd_actions.storage.store import Store
from tests.data.captured import PUTS

MARK = (LABEL_TERMINAL_STATUS_RECORDED, "true", FINALIZER_RECORD)
"""What Flyte's mark does to a value, as arguments of a codec's ``release``."""


def captured(phase: Phase) -> dict[str, Any]:
    """The tree of an action in a phase, as the API server wrote it."""
    for put in PUTS:
        action = json.decode(put.value)
        wanted = ("rh7k2m9p4qv3-a1", phase, False)
        if (action.metadata.name, action.phase, action.is_recorded) == wanted:
            return json.decode_tree(put.value)
    raise LookupError(phase)


def ended(
    *finalizers: str, deleting: bool = False, codec: Codec = json, phase: Phase = Phase.SUCCEEDED
) -> bytes:
    """A captured value with just these finalizers."""
    tree = captured(phase)
    metadata = tree["metadata"]
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = [*finalizers]
    if deleting:
        metadata["deletionTimestamp"] = "2026-11-24T03:00:00Z"
    return codec.encode_tree(tree)


def marked(value: bytes, create_revision: int, *, finalizer: str = FINALIZER_RECORD) -> bytes:
    """What a mark makes of a value, by its tree."""
    codec = codec_of(value)
    update = build_action_update(codec.decode(value), key=b"k", revision=1)
    tree = codec.decode_tree(value)
    metadata = tree["metadata"]
    metadata.setdefault("labels", {})[MARK[0]] = MARK[1]
    annotations = metadata.setdefault("annotations", {})
    annotations[ANNOTATION_RECORDED] = TerminalState.of(update).mark(create_revision)
    kept = [each for each in metadata.pop("finalizers", []) if each != finalizer]
    if kept:
        metadata["finalizers"] = kept
    return codec.encode_tree(tree)


async def put(etcd: Etcd, key: bytes, value: bytes, *, lease: int = 0) -> KeyValue:
    await etcd.put(key, value, lease=lease)
    found = await get(etcd, key)
    assert found is not None
    return found


async def get(etcd: Etcd, key: bytes) -> KeyValue | None:
    return await Store(etcd).get(key)


ENDING = TerminalState.of(build_action_update(json.decode(ended()), key=b"k", revision=1))
"""What the run service accepted of :func:`ended`."""


async def write_for_ever(etcd: Etcd, key: bytes, value: bytes) -> None:
    """Write until etcd refuses."""
    while True:
        await etcd.put(key, value)
