"""What a client keeps of the objects that it saw, and of parents."""

from __future__ import annotations

import pytest

from etcd_actions.actions import seen as seen_module
from etcd_actions.actions.parents import Parents
from etcd_actions.actions.seen import LARGEST, MOST, MOST_BYTES, OLDEST, Seen
from etcd_actions.codecs import json
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from tests.data.captured import PUTS


def kv(key: bytes, size: int = 1, revision: int = 1) -> KeyValue:
    return KeyValue(key, b"x" * size, 1, revision, 1)


def test_what_was_seen_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number, in bytes, and in the size of one; what is used stays."""
    seen = Seen()
    seen.keep(kv(b"large", LARGEST + 1))
    assert seen.get(b"large") is None
    seen.keep(kv(b"used"))
    for number in range(MOST + 10):
        seen.keep(kv(b"%d" % number))
        seen.get(b"used")
    assert len(seen) == MOST
    assert seen.get(b"used") is not None
    assert seen.get(b"10") is None
    for number in range(2 * MOST_BYTES // LARGEST):
        seen.keep(kv(b"l%d" % number, LARGEST))
    assert len(seen) == MOST_BYTES // LARGEST
    seen.forget(b"l%d" % (2 * MOST_BYTES // LARGEST - 1))
    seen.keep(kv(b"one more", LARGEST))
    assert len(seen) == MOST_BYTES // LARGEST
    monkeypatch.setattr(seen_module, "MOST", 1)
    seen.keep(kv(b"alone"))
    assert len(seen) == 1
    seen.clear()
    assert len(seen) == 0


def test_what_was_seen_long_ago_is_read_anew() -> None:
    """Though it was used meanwhile: a restored store may have other bytes at that revision."""
    now = 0.0
    seen = Seen(clock=lambda: now)
    seen.keep(kv(b"k"))
    now = OLDEST
    assert seen.get(b"k") is not None
    now = OLDEST + 1
    assert seen.get(b"k") is None
    assert len(seen) == 0
    seen.keep(kv(b"k"))
    assert seen.get(b"k") is not None


def test_a_parent_is_decoded_once_for_each_of_its_states() -> None:
    """Its bytes tell, and not its revision."""
    parents = Parents()
    states = [(put.key, put.value) for put in PUTS if b'"conditionSpec"' not in put.value][:2]
    (key, one), (_, other) = states
    first = parents.read(KeyValue(key, one, 1, 5, 1))
    assert parents.read(KeyValue(key, bytes(bytearray(one)), 1, 6, 2)) is first
    second = parents.read(KeyValue(key, other, 1, 5, 1))
    assert second is not first
    assert second.action_id == json.decode(other).action_id
    with pytest.raises(DecodeError):
        parents.read(KeyValue(key, b"{}", 1, 7, 1))


def test_a_larger_state_replaces_what_was_seen_with_nothing() -> None:
    """Not with the smaller one before it, which is old."""
    seen = Seen()
    seen.keep(kv(b"k"))
    seen.keep(kv(b"k", LARGEST + 1))
    assert seen.get(b"k") is None


def test_a_parent_is_guessed_again_when_it_rests() -> None:
    parents = Parents()
    assert parents.rests(kv(b"k", revision=1))
    parents.moved(kv(b"k", revision=2))
    assert parents.is_restless(b"k")
    assert not parents.rests(kv(b"k", revision=3))
    assert parents.is_restless(b"k")
    assert parents.rests(kv(b"k", revision=3))
    assert not parents.is_restless(b"k")
    for number in range(1000):
        parents.moved(kv(b"%d" % number))
        parents.note_aborts(b"%d" % number, True)
    assert parents.is_restless(b"999")
    assert not parents.is_restless(b"0")
    assert parents.has_aborts(b"999")
    assert not parents.has_aborts(b"0")
    parents.note_aborts(b"999", False)
    assert not parents.has_aborts(b"999")
