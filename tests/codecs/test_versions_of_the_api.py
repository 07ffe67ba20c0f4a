"""Objects that an API server stored at another version of the CRD: read, and kept as they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import structlog.testing

from etcd_actions import ActionId, Phase
from etcd_actions.codecs import CODEC_NAMES, Codec, codec_named, codec_of
from etcd_actions.codecs import json as JSON
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import (
    API_VERSION,
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    Keyspace,
    pack,
    unpack,
)
from etcd_actions.storage.store import Store
from tests.codecs.labels import add_label
from tests.data.captured import PUTS, Event
from tests.record.test_outbox import Scripted, watching
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.table import table
from tests.support.waiting import eventually

VERSIONS = ("flyte.org/v1beta1", "flyte.org/v2")
MARK = (LABEL_TERMINAL_STATUS_RECORDED, "true", FINALIZER_RECORD)

each_form = pytest.mark.parametrize("form", first_everyday(CODEC_NAMES))
all_forms = table("form", CODEC_NAMES)
each_version = table("version", VERSIONS)


def tree_at(value: bytes, version: str) -> dict[str, Any]:
    return {**JSON.decode_tree(value), "apiVersion": version}


@all_forms
@each_version
@table("event", PUTS, ids=[event.id for event in PUTS])
def test_captured_values_at_another_version_are_read_and_marked_without_a_loss(
    event: Event, version: str, form: str
) -> None:
    """All that an API server wrote, as it would be at that version."""
    codec = codec_named(form)
    value = codec.encode_tree(tree_at(event.value, version))
    known = JSON.decode(event.value)
    action = codec.decode(value)
    assert action == msgspec.structs.replace(known, api_version=version)
    summary = codec.summarize(value, revision=7, create_revision=3)
    assert summary.other_version == version
    assert unpack(pack(summary)) == summary
    plain = JSON.summarize(event.value, revision=7, create_revision=3)
    assert msgspec.structs.replace(summary, other_version="") == plain
    assert codec.encode_tree(codec.decode_tree(value)) == value
    marked, expected = codec.release(value, *MARK), JSON.release(event.value, *MARK)
    assert codec.decode_tree(marked.value) == tree_at(expected.value, version)
    assert (marked.held, marked.deleting) == (expected.held, expected.deleting)
    labelled = add_label(codec, value, "team", "blue")
    assert codec.decode_tree(labelled)["apiVersion"] == version


@all_forms
@each_version
@table(
    ("change", "reason"),
    [
        ({"spec": {"project": "p"}}, "missing required field"),
        ({"spec": {"steps": []}}, r"missing required field `project` - at `\$\.spec`"),
        ({"status": {"conditions": {"Succeeded": True}}}, r"at `\$\.status\.conditions`"),
        ({"metadata": []}, r"got `array` - at `\$\.metadata`"),
    ],
)
def test_what_the_fields_of_another_version_forbid_names_the_version(
    form: str, version: str, change: dict[str, Any], reason: str
) -> None:
    codec = codec_named(form)
    value = codec.encode_tree({**tree_at(PUTS[0].value, version), **change})
    for decode in (codec.decode, codec.summarize):
        with pytest.raises(DecodeError, match=reason) as caught:
            decode(value)
        assert f"stored at {version}, and this etcd-actions knows {API_VERSION}" in str(
            caught.value
        )


@all_forms
@table(
    ("type_", "seen"),
    [
        ({"apiVersion": "v1", "kind": "Pod"}, "a Pod of v1,"),
        ({"kind": "TaskActionList"}, "a TaskActionList of flyte.org/v1,"),
        ({"apiVersion": "flyte.organic/v1"}, "a TaskAction of flyte.organic/v1,"),
        ({"apiVersion": "flyte.org"}, "a TaskAction of flyte.org,"),
        ({"apiVersion": "flyte.org/"}, "a TaskAction of flyte.org/,"),
        ({"apiVersion": "flyte.org/v1/x"}, "a TaskAction of flyte.org/v1/x,"),
        ({"apiVersion": "flyte.org/v2\n"}, "a TaskAction of flyte.org/v2"),
    ],
)
@table("spec", [{}, {"spec": None}], ids=["with-spec", "without-spec"])
def test_another_kind_or_group_is_said_to_be_no_task_action(
    form: str, type_: dict[str, Any], seen: str, spec: dict[str, Any]
) -> None:
    codec = codec_named(form)
    value = codec.encode_tree({**JSON.decode_tree(PUTS[0].value), **type_, **spec})
    for decode in (codec.decode, codec.summarize):
        with pytest.raises(DecodeError, match=r"no TaskAction of flyte\.org") as caught:
            decode(value)
        assert seen in caught.value.reason


@each_form
async def test_an_action_at_another_version_lives_and_keeps_it(
    etcd: Etcd, prefix: bytes, form: str
) -> None:
    """Told, signalled, reported, aborted and marked; every write keeps what was not known."""
    codec: Codec = codec_named(form)
    keys = Keyspace(prefix)
    names = ("a0", "c1", "c2")
    service = Scripted()

    async def stored(name: str) -> dict[str, Any]:
        kv = await Store(etcd).get(keys.task_action(ActionId("p", "d", "r1", name)))
        assert kv is not None
        assert codec_of(kv.value) is codec
        return codec_of(kv.value).decode_tree(kv.value)

    with structlog.testing.capture_logs() as logs:
        async with watching(etcd, prefix, service) as client:
            for name in names:
                parent = "" if name == "a0" else "a0"
                await client.enqueue(flyte.task(ActionId("p", "d", "r1", name), parent))
                key = keys.task_action(ActionId("p", "d", "r1", name))
                kv = await Store(etcd).get(key)
                assert kv is not None
                tree = codec_of(kv.value).decode_tree(kv.value)
                tree["apiVersion"] = "flyte.org/v2"
                tree["spec"]["later"] = {"of": [1, None, 2.50]}
                await etcd.put(key, codec.encode_tree(tree))
            c1, c2 = (ActionId("p", "d", "r1", name) for name in names[1:])
            await client.put_status(c1, 1, flyte.status(Phase.RUNNING))
            await client.put_status(c1, 1, flyte.status(Phase.SUCCEEDED))
            await client.abort_action(c2, "why")
            await client.put_status(ActionId("p", "d", "r1", "a0"), 1, flyte.status(Phase.FAILED))
            await eventually(lambda: client.statistics().marks == {"marked": 3})
            assert not client.statistics().undecodable
            for name in names:
                tree = await stored(name)
                assert tree["apiVersion"] == "flyte.org/v2"
                assert tree["spec"]["later"] == {"of": [1, None, 2.50]}
                assert tree["metadata"]["labels"][LABEL_TERMINAL_STATUS_RECORDED] == "true"
    assert service.of("c1")[-1] is Phase.SUCCEEDED
    assert service.of("c2")[-1] is Phase.ABORTED
    assert service.of("a0")[-1] is Phase.FAILED
    noted = [each for each in logs if each["event"] == "stored_at_another_version"]
    assert [(each["version"], each["known"]) for each in noted] == [("flyte.org/v2", API_VERSION)]
