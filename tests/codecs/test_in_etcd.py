"""Whoever changes a stored object leaves it in the form that it has."""

import base64
import json

import pytest
import trio

from etcd_actions.change_history.history import Destination, LineReader
from etcd_actions.codecs import Codec, codec_of
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from tests.codecs.strategies import CODECS, JSON
from tests.data.captured import PUTS
from tests.support.endings import marked
from tests.support.load import make_run, root_of
from tests.support.recording import RecordingRunService, until_stored
from tests.support.scene import processing, subscribed

pytestmark = pytest.mark.memory


def form(codec: Codec, value: bytes) -> bytes:
    return codec.encode_tree(JSON.decode_tree(value))


def all_marked(stored: dict[bytes, KeyValue]) -> bool:
    return all(codec_of(kv.value).decode(kv.value).is_recorded for kv in stored.values())


async def test_a_mark_keeps_the_form(etcd: Etcd, prefix: bytes) -> None:
    """All three side by side, each state in another form than the one before it."""
    actions = make_run(prefix, "rc1", 6)
    run_service = RecordingRunService(etcd)
    with trio.fail_after(20):
        async with (
            processing(etcd, prefix, run_service) as processor,
            subscribed(processor, [root_of("rc1")]) as updates,
        ):
            for at, action in enumerate(actions):
                for left, state in reversed(list(enumerate(reversed(action.states)))):
                    await etcd.put(action.key, form(CODECS[(at + left) % len(CODECS)], state))
            stored = await until_stored(etcd, KeyRange.of_prefix(prefix), all_marked)
        assert processor.statistics().decode_errors == 0
    assert {update.key for update in updates} == {action.key for action in actions}
    for at, action in enumerate(actions):
        codec = CODECS[at % len(CODECS)]
        assert codec_of(stored[action.key].value) is codec
        kv = stored[action.key]
        assert kv.value == form(codec, marked(action.ended, kv.create_revision))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_replay_into_another_namespace_keeps_the_form(codec: Codec) -> None:
    value = form(codec, PUTS[0].value)
    line = {"type": "PUT", "key": "/a/flyte/c", "value": base64.b64encode(value).decode()}
    reader = LineReader("here", Destination(b"/p/", "other"))
    ((_, event),) = reader.feed(json.dumps(line).encode() + b"\n")
    assert event.value is not None
    assert codec_of(event.value) is codec
    assert JSON.encode_tree(codec.decode_tree(event.value)) == PUTS[0].value.replace(
        b'"namespace":"flyte"', b'"namespace":"other"'
    )
