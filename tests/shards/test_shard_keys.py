"""The keys of shards, and values that cannot be decoded."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.errors import ConfigError, DecodeError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.shards import ShardKeys, ShardRange, load_table, member_name
from etcd_actions.shards.shard_keys import (
    CheckpointKey,
    MemberKey,
    OwnerKey,
    RangeKey,
    ReadyKey,
    check_member_name,
    decode_member,
    decode_range,
    decode_ready,
    encode_member,
    encode_range,
    encode_ready,
)
from etcd_actions.shards.shard_range import scope_of

pytestmark = pytest.mark.memory

KEYS = ShardKeys(Keyspace(b"/p/", "flyte"), "flyte")
SCOPE = scope_of("flyte")


def test_the_keys() -> None:
    below = b"/etcd-actions/p/shards/flyte/"
    assert KEYS.range(3) == below + b"range/0003"
    assert KEYS.owner(12345) == below + b"owner/12345"
    assert KEYS.checkpoint(3) == below + b"checkpoint/0003"
    assert KEYS.member("h/1/x") == below + b"member/h/1/x"
    assert KEYS.ready_member(3, "h/1/x") == below + b"ready/0003/h/1/x"
    assert ShardKeys(Keyspace(b"/p/"), None).prefix == b"/etcd-actions/p/shards/*/"
    assert KEYS.single_election == Keyspace(b"/p/").election("flyte")
    assert KEYS.single_checkpoint == Keyspace(b"/p/").checkpoint("flyte")


@given(st.integers(0, 10**9 - 1))
def test_a_key_is_parsed_to_what_it_was_made_of(shard: int) -> None:
    assert KEYS.parse(KEYS.range(shard)) == RangeKey(shard)
    assert KEYS.parse(KEYS.owner(shard)) == OwnerKey(shard)
    assert KEYS.parse(KEYS.checkpoint(shard)) == CheckpointKey(shard)
    assert KEYS.parse(KEYS.ready_member(shard, "h/1")) == ReadyKey(shard, "h/1")
    assert KEYS.parse(KEYS.member("h/1")) == MemberKey("h/1")


@pytest.mark.parametrize(
    "rest",
    [b"", b"range", b"range/", b"range/1", b"range/00001", b"range/0001/x", b"range/x", b"more/1",
     b"ready/0001", b"ready/0001/", b"member/", b"member/\xff", b"member/a//b", b"owner/+001"],
)  # fmt: skip
def test_other_keys_are_refused(rest: bytes) -> None:
    with pytest.raises(DecodeError):
        KEYS.parse(KEYS.prefix + rest)


def test_names_of_members() -> None:
    assert member_name() != member_name()
    assert check_member_name(member_name())
    assert re.fullmatch(r"[^/]+/\d+/[0-9a-f]{8}", member_name())
    for name in ("", "a b", "a/", "/a", "é", "a\n", "x" * 201):
        with pytest.raises(ConfigError, match="name of the member"):
            check_member_name(name)


def test_values() -> None:
    range_ = ShardRange(b"flyte/a", b"flyte/b")
    assert encode_range(range_) == b'{"start":"flyte/a","end":"flyte/b","form":1}'
    assert decode_range(encode_range(range_), SCOPE, key=b"k", revision=1) == range_
    assert decode_range(encode_range(SCOPE), SCOPE, key=b"k", revision=1) == SCOPE
    everything = scope_of(None)
    assert decode_range(encode_range(everything), everything, key=b"k", revision=1) == everything
    since = datetime(2026, 11, 29, tzinfo=UTC)
    assert decode_member(encode_member(since), key=b"k", revision=1).since == since
    assert decode_ready(encode_ready(7), key=b"k", revision=1).revision == 7


BAD_RANGES = [
    b"",
    b"[" * 5000,
    b'{"start":"flyte/a"}',
    b'{"start":"flyte/a","end":"flyte/b","form":2}',
    b'{"start":"flyte/b","end":"flyte/a"}',
    b'{"start":"flyte/a","end":"flyte/a"}',
    b'{"start":"flyte/a-b","end":"flyte/b"}',
    b'{"start":"flyte/a","end":""}',
    b'{"start":"flyte/a","end":"other/b"}',
    b'{"start":"","end":"flyte/b"}',
    b'{"start":"flyte/a","end":"flyte/\\u00e9"}',
    b'{"start":"flyte/a","end":7}',
]


@pytest.mark.parametrize("value", BAD_RANGES)
async def test_a_range_that_cannot_be_decoded_is_no_shard(
    etcd: Etcd, prefix: bytes, value: bytes
) -> None:
    """The table has a problem, which names the key, so nothing changes."""
    keys = ShardKeys(Keyspace(prefix, "flyte"), "flyte")
    await etcd.put(keys.range(0), encode_range(SCOPE))
    assert (await load_table(etcd, keys)).problem == ""
    await etcd.put(keys.range(1), value)
    table = await load_table(etcd, keys)
    assert len(table.shards) == 1
    assert f"{keys.range(1).decode()} cannot be decoded" in table.problem
    assert table.exists


def test_other_values_that_cannot_be_decoded() -> None:
    for value in (b"", b"{}", b'{"since":"2026-11-29T00:00:00"}', b'{"since":1}', b"[" * 5000):
        with pytest.raises(DecodeError):
            decode_member(value, key=b"k", revision=1)
        with pytest.raises(DecodeError):
            decode_ready(value, key=b"k", revision=1)
