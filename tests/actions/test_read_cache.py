"""What a client keeps of the objects that it saw, and of parents."""

from __future__ import annotations

import pytest

from etcd_actions.actions import read_cache
from etcd_actions.actions.parents import ParentCache
from etcd_actions.actions.read_cache import LARGEST, MOST, MOST_BYTES, OLDEST, ReadCache
from etcd_actions.codecs import json
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from tests.data.captured import PUTS


def kv(key: bytes, size: int = 1, revision: int = 1) -> KeyValue:
    return KeyValue(key, b"x" * size, 1, revision, 1)


def test_what_was_seen_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number, in bytes, and in the size of one; what is used stays."""
    cache = ReadCache()
    cache.put(kv(b"large", LARGEST + 1))
    assert cache.get(b"large") is None
    cache.put(kv(b"used"))
    for number in range(MOST + 10):
        cache.put(kv(b"%d" % number))
        cache.get(b"used")
    assert len(cache) == MOST
    assert cache.get(b"used") is not None
    assert cache.get(b"10") is None
    for number in range(2 * MOST_BYTES // LARGEST):
        cache.put(kv(b"l%d" % number, LARGEST))
    assert len(cache) == MOST_BYTES // LARGEST
    cache.forget(b"l%d" % (2 * MOST_BYTES // LARGEST - 1))
    cache.put(kv(b"one more", LARGEST))
    assert len(cache) == MOST_BYTES // LARGEST
    monkeypatch.setattr(read_cache, "MOST", 1)
    cache.put(kv(b"alone"))
    assert len(cache) == 1
    cache.clear()
    assert len(cache) == 0


def test_what_was_seen_long_ago_is_read_anew() -> None:
    """Though it was used meanwhile: a restored store may have other bytes at that revision."""
    now = 0.0
    cache = ReadCache(clock=lambda: now)
    cache.put(kv(b"k"))
    now = OLDEST
    assert cache.get(b"k") is not None
    now = OLDEST + 1
    assert cache.get(b"k") is None
    assert len(cache) == 0
    cache.put(kv(b"k"))
    assert cache.get(b"k") is not None


def test_a_parent_is_decoded_once_for_each_of_its_states() -> None:
    """Its bytes tell, and not its revision."""
    parents = ParentCache()
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
    cache = ReadCache()
    cache.put(kv(b"k"))
    cache.put(kv(b"k", LARGEST + 1))
    assert cache.get(b"k") is None


def test_a_parent_is_guessed_again_when_it_rests() -> None:
    parents = ParentCache()
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
