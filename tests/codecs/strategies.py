"""TaskActions, and things like them, for property tests over all codecs."""

from __future__ import annotations

import base64 as b64
from typing import Any, TypeAlias

from hypothesis import strategies as st

from etcd_actions.codecs import Codec, codec_named
from etcd_actions.codecs.json import Number

JSON, PROTOBUF, MSGPACK = (codec_named(name) for name in ("json", "protobuf", "msgpack"))
CODECS: tuple[Codec, ...] = (JSON, PROTOBUF, MSGPACK)
BINARY: tuple[Codec, ...] = (PROTOBUF, MSGPACK)

Strategy: TypeAlias = st.SearchStrategy[Any]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = (
    st.integers(-10, 10)
    | st.sampled_from([2**31, 2**32, 2**63, -(2**63) - 1, 2**64 - 1, 2**64, -(10**400)])
    | st.sampled_from([0.5, -0.0, 1.0, 1e16, 1e300, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["1.0", "-0.0", "1.50", "1e5", "1E+05", "1e400", "0.1", "2e-7"]).map(Number)
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)

# Base64, and what Go or a reader without care would take for it.
_base64 = st.binary(max_size=6).map(lambda data: b64.b64encode(data).decode()) | st.sampled_from(
    ["", "AAB=", "AA", "AA==\n", "A A=", "=", "é", "AA-_", "AA==AA=="]
)
_text_map = st.dictionaries(texts, texts, max_size=3)
_phases = st.sampled_from(["Progressing", "Succeeded", "Failed", ""]) | texts
_reasons = st.sampled_from(["Queued", "Executing", "Aborted", "TimedOut", ""]) | texts
_int64 = st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)])

_OWNER: dict[str, Strategy] = {
    "apiVersion": texts,
    "kind": texts,
    "name": texts,
    "uid": texts,
    "controller": st.booleans(),
    "blockOwnerDeletion": st.booleans(),
}
_MANAGED: dict[str, Strategy] = {
    "manager": texts,
    "operation": texts,
    "apiVersion": texts,
    "time": texts,
    "fieldsType": texts,
    "fieldsV1": st.dictionaries(texts, anything, max_size=2),
    "subresource": texts,
}
_CONDITION: dict[str, Strategy] = {
    "type": _phases,
    "status": st.sampled_from(["True", "False", ""]),
    "reason": _reasons,
    "message": texts,
    "lastTransitionTime": texts,
    "observedGeneration": _int64,
}
_TRANSITION: dict[str, Strategy] = {"phase": _reasons, "occurredAt": texts, "message": texts}
_ERROR: dict[str, Strategy] = {"code": texts, "kind": texts, "message": texts}


def _objects(loose: bool) -> Strategy:
    """Objects of Flyte's schema with more fields; loose ones with anything in any place."""

    def part(fields: dict[str, Strategy], *required: str) -> Strategy:
        kinds = {name: kind | anything if loose else kind for name, kind in fields.items()}
        optional = {name: kind for name, kind in kinds.items() if loose or name not in required}
        always = {} if loose else {name: kinds[name] for name in required}
        known = st.fixed_dictionaries(always, optional=optional)
        others: Strategy = st.just({}) | st.dictionaries(texts, anything, max_size=2)
        return st.tuples(others, known).map(lambda pair: {**pair[0], **pair[1]})

    def list_of(*fields: Any) -> Strategy:
        return st.lists(part(*fields), max_size=2)

    metadata: dict[str, Strategy] = {
        "name": texts,
        "namespace": texts,
        "uid": texts,
        "generation": _int64,
        "creationTimestamp": texts,
        "deletionTimestamp": texts,
        "deletionGracePeriodSeconds": _int64,
        "labels": _text_map | st.just({"flyte.org/terminal-status-recorded": "true"}),
        "annotations": _text_map | st.just({"etcd-actions.io/org": "o"}),
        "finalizers": st.lists(texts, max_size=2),
        "ownerReferences": list_of(_OWNER, "apiVersion", "kind", "name", "uid"),
        "managedFields": list_of(_MANAGED),
    }
    spec: dict[str, Strategy] = {
        **dict.fromkeys(("project", "domain", "runName", "actionName"), texts),
        **dict.fromkeys(("parentActionName", "inputUri", "runOutputBase", "group"), texts),
        **dict.fromkeys(("taskTemplate", "conditionSpec"), _base64),
        "envVars": _text_map,
        "interruptible": st.booleans(),
    }
    status: dict[str, Strategy] = {
        "stateJson": texts,
        "pluginState": _base64,
        "pluginStateVersion": _int64,
        "attempts": st.integers(0, 3) | st.sampled_from([2**32 - 1]),
        "cacheStatus": st.integers(-3, 3),
        "conditions": list_of(_CONDITION, "type", "status"),
        "phaseHistory": list_of(_TRANSITION, "phase", "occurredAt"),
        "errorState": part(_ERROR),
        "signalValue": _base64,
        "signalledBy": texts,
    }
    action: dict[str, Strategy] = {
        "apiVersion": st.just("flyte.org/v1"),
        "kind": st.just("TaskAction"),
        "metadata": part(metadata, "name"),
        "spec": part(spec, "project", "domain", "runName", "actionName"),
        "status": part(status),
    }
    return part(action, "apiVersion", "kind", "metadata", "spec")


task_actions = _objects(loose=False)
"""Trees that every codec's `decode` takes."""
objects = task_actions | _objects(loose=True)
"""Those, and ones with anything anywhere."""


def stored(tree: dict[str, Any]) -> bytes:
    """The JSON that an API server has of a tree once it has read and written it."""
    return JSON.encode_tree(JSON.decode_tree(JSON.encode_tree(tree)))
