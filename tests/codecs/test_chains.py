"""From any codec to any other and back: nothing changes, and all codecs see the same."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.codecs import Codec, codec_of
from etcd_actions.codecs import json as json_codec
from etcd_actions.errors import DecodeError
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED
from tests.codecs.labels import add_label
from tests.codecs.strategies import (
    BINARY,
    CODECS,
    JSON,
    MSGPACK,
    PROTOBUF,
    objects,
    stored,
    task_actions,
    texts,
)
from tests.data.captured import PUTS, Event
from tests.support.everyday import examples
from tests.support.table import table

each_put = table("event", PUTS, ids=lambda event: event.id)
each_binary = table("codec", BINARY, ids=lambda codec: codec.name)
chains = st.lists(st.sampled_from(CODECS), min_size=1, max_size=5)
few = settings(max_examples=examples(60))


def through(value: bytes, chain: list[Codec]) -> bytes:
    """Store a JSON value in one form after the other, then as JSON again."""
    for codec in [*chain, JSON]:
        value = codec.encode_tree(codec_of(value).decode_tree(value))
        assert codec_of(value) is codec
    return value


def outcome(function: Callable[[bytes], Any], value: bytes) -> Any:
    """What is read of a value, None where it is refused."""
    try:
        return function(value)
    except DecodeError:
        return None


# --- nothing is lost --------------------------------------------------------------------


@few
@given(objects, chains)
def test_any_object_through_any_chain(tree: dict[str, Any], chain: list[Codec]) -> None:
    value = stored(tree)
    assert through(value, chain) == value


@each_put
def test_captured_values_through_every_chain(event: Event) -> None:
    """Each order of the three, twice: each form follows on each other one."""
    for order in itertools.permutations(CODECS):
        assert through(event.value, [*order, *order]) == event.value


@pytest.mark.parametrize("depth", [1, 100, 400])
def test_deep_values_through_every_chain(depth: int) -> None:
    deep = b'{"x":' * depth + b"0.5" + b"}" * depth
    for place in (b'{"x":%s}\n', b'{"metadata":{"managedFields":[{"fieldsV1":{"x":%s}}]}}\n'):
        value = place % deep
        assert through(value, [MSGPACK, PROTOBUF, MSGPACK]) == value


@few
@given(objects)
def test_encoding_is_stable(tree: dict[str, Any]) -> None:
    """Equal objects have equal bytes, whatever the order of their fields."""
    tree = JSON.decode_tree(stored(tree))
    reverse = dict(reversed(tree.items()))
    for codec in CODECS:
        value = codec.encode_tree(tree)
        assert codec.encode_tree(reverse) == value
        assert codec.encode_tree(codec.decode_tree(value)) == value


# --- all see the same -------------------------------------------------------------------


@few
@given(objects)
def test_views_and_summaries_are_the_same(tree: dict[str, Any]) -> None:
    """What JSON refuses is refused, what it takes gives the same."""
    value = stored(tree)
    action = outcome(json_codec.decode, value)
    summary = outcome(json_codec.summarize, value)
    for codec in BINARY:
        other = codec.encode_tree(JSON.decode_tree(value))
        assert outcome(codec.decode, other) == action
        assert outcome(codec.summarize, other) == summary


@few
@given(task_actions)
def test_new_objects_are_the_same(tree: dict[str, Any]) -> None:
    """An object that was made here is the same in all forms, and reads back."""
    action = JSON.decode(JSON.encode_tree(tree))
    for codec in CODECS:
        value = codec.encode(action)
        assert codec.decode(value) == action
        assert codec.encode_tree(JSON.decode_tree(JSON.encode(action))) == value


@each_put
@each_binary
def test_captured_values_are_read_the_same(event: Event, codec: Codec) -> None:
    value = codec.encode_tree(JSON.decode_tree(event.value))
    assert len(value) < len(event.value)
    assert codec.decode(value) == JSON.decode(event.value)
    where: dict[str, Any] = {"key": event.key, "revision": event.mod_revision, "create_revision": 3}
    assert codec.summarize(value, **where) == JSON.summarize(event.value, **where)


# --- the label --------------------------------------------------------------------------


@few
@given(objects, texts | st.just(LABEL_TERMINAL_STATUS_RECORDED), texts | st.just("true"))
def test_a_label_changes_nothing_else(tree: dict[str, Any], label: str, text: str) -> None:
    value = stored(tree)
    expected = outcome(functools.partial(add_label, JSON, label=label, text=text), value)
    for codec in BINARY:
        before = codec.encode_tree(JSON.decode_tree(value))
        after = outcome(functools.partial(add_label, codec, label=label, text=text), before)
        if expected is None or expected is value:
            assert after is (None if expected is None else before)
        else:
            assert after == codec.encode_tree(JSON.decode_tree(expected))
            assert add_label(codec, after, label, text) is after


@each_put
@each_binary
def test_a_label_on_captured_values(event: Event, codec: Codec) -> None:
    label = (LABEL_TERMINAL_STATUS_RECORDED, "true")
    before = codec.encode_tree(JSON.decode_tree(event.value))
    after = add_label(codec, before, *label)
    assert through(after, []) == add_label(JSON, event.value, *label)
    assert add_label(codec, after, *label) is after
    marked = codec.decode(after)
    assert marked.is_recorded is marked.is_terminal


@each_binary
@table(
    ("tree", "reason"),
    [
        ({}, "metadata: not an object"),
        ({"metadata": []}, "metadata: not an object"),
        ({"metadata": None}, "metadata: not an object"),
        ({"metadata": {"labels": []}}, "metadata.labels: not an object"),
    ],
)
def test_a_label_without_a_place(codec: Codec, tree: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        add_label(codec, codec.encode_tree(tree), "l", "v", key=b"k", revision=3)
    assert (caught.value.key, caught.value.revision) == (b"k", 3)
