"""The keys of shards in etcd, and the values under them.

All are below ``<own>shards/<namespace or *>/``:

====================  ============================================  ====================
key                   value                                         attached to
====================  ============================================  ====================
``range/<id>``        the range of a shard                          nothing
``checkpoint/<id>``   see :mod:`etcd_actions.record.checkpoint`     nothing
``owner/<id>``        the name of the member that owns the shard    the election's lease
``member/<name>``     a member: since when, if it runs actions      the member's lease
``ready/<id>/<name>`` a member whose watch of the shard has listed  the member's lease
====================  ============================================  ====================

An id is a number that is used for one shard only, in at least four digits.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from datetime import datetime
from typing import Final, NamedTuple, final

import msgspec

from etcd_actions.errors import ConfigError, DecodeError
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.shards.shard_range import ShardRange, is_boundary, scope_of
from etcd_actions.storage.stored_form import StoredForm

_ID: Final = re.compile(rb"[0-9]{4,9}")
_NAME: Final = re.compile(r"[0-9A-Za-z._:@-]+(?:/[0-9A-Za-z._:@-]+)*")
_LONGEST_NAME: Final = 200


class StoredRange(msgspec.Struct, frozen=True):
    """The value of ``range/<id>``: the range of a shard, as text."""

    start: str
    end: str
    form: int = 1


class StoredMember(msgspec.Struct, frozen=True):
    """The value of ``member/<name>``: when the process became a member, and if it runs actions."""

    since: datetime
    form: int = 1
    executes: bool = False


class StoredReady(msgspec.Struct, frozen=True):
    """The value of ``ready/<id>/<name>``: the revision of the shard's range that was listed."""

    revision: int
    form: int = 1


_RANGE: Final = StoredForm(StoredRange, "range of a shard")
_MEMBER: Final = StoredForm(StoredMember, "member", times=("since",))
_READY: Final = StoredForm(StoredReady, "ready member of a shard")


class RangeKey(NamedTuple):
    """The key of a shard's range."""

    shard: int


class OwnerKey(NamedTuple):
    """The key of a shard's owner."""

    shard: int


class CheckpointKey(NamedTuple):
    """The key of a shard's checkpoint."""

    shard: int


class MemberKey(NamedTuple):
    """The key of a member."""

    name: str


class ReadyKey(NamedTuple):
    """The key of a member that is ready to own a shard."""

    shard: int
    name: str


ShardKey = RangeKey | OwnerKey | CheckpointKey | MemberKey | ReadyKey


def member_name() -> str:
    """A name that no other process has or had: ``<host>/<process>/<random number>``."""
    host = re.sub(r"[^0-9A-Za-z._:@-]", "-", socket.gethostname()) or "host"
    return f"{host[:100]}/{os.getpid()}/{secrets.token_hex(4)}"


def check_member_name(name: str) -> str:
    """Return a member's name if it can be part of a key.

    Raises:
        ConfigError: It cannot.
    """
    if len(name) > _LONGEST_NAME or _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"name of the member: {name[:80]!r} cannot be part of a key: give at most "
            f"{_LONGEST_NAME} of 0-9A-Za-z._:@- and single slashes"
        )
    return name


@final
class ShardKeys:
    """The keys of the shards of one namespace, or of all.

    Args:
        keyspace: The keyspace of the prefix.
        namespace: The namespace that the shards divide; None for all.

    Attributes:
        scope: The range that the shards divide.
        prefix: The prefix of all these keys.
        ranges: The prefix of the ranges.
        owners: The prefix of the owners.
        checkpoints: The prefix of the checkpoints.
        members: The prefix of the members.
        ready: The prefix of the ready members.
        single_election: The election's key of a leader without shards.
        single_checkpoint: The key of that leader's checkpoint.
    """

    def __init__(self, keyspace: Keyspace, namespace: str | None) -> None:
        self.scope: ShardRange = scope_of(namespace)
        self.prefix: bytes = keyspace.shards + (namespace or "*").encode() + b"/"
        self.ranges: bytes = self.prefix + b"range/"
        self.owners: bytes = self.prefix + b"owner/"
        self.checkpoints: bytes = self.prefix + b"checkpoint/"
        self.members: bytes = self.prefix + b"member/"
        self.ready: bytes = self.prefix + b"ready/"
        self.single_election: bytes = keyspace.election(namespace)
        self.single_checkpoint: bytes = keyspace.checkpoint(namespace)

    def range(self, shard: int) -> bytes:
        """The key of a shard's range."""
        return self.ranges + _id(shard)

    def owner(self, shard: int) -> bytes:
        """The key of a shard's owner: its election's key."""
        return self.owners + _id(shard)

    def checkpoint(self, shard: int) -> bytes:
        """The key of a shard's checkpoint."""
        return self.checkpoints + _id(shard)

    def member(self, name: str) -> bytes:
        """The key of a member."""
        return self.members + name.encode()

    def ready_member(self, shard: int, name: str) -> bytes:
        """The key of a member that is ready to own a shard."""
        return self.ready + _id(shard) + b"/" + name.encode()

    def shard_unchanged(self, shard: int, revision: int) -> Compare:
        """The compare that a shard exists as it was read: its range's ``mod_revision``.

        The creation of the owner key has it, so no process can own a shard that was replaced.
        """
        return Compare.unchanged(self.range(shard), revision)

    @property
    def no_table(self) -> Compare:
        """The compare that there are no shards, with which a leader without shards is elected."""
        return absent_below(self.ranges)

    def parse(self, key: bytes) -> ShardKey:
        """The meaning of a key.

        Raises:
            DecodeError: It is none of these keys.
        """
        kind, _, rest = key.removeprefix(self.prefix).partition(b"/")
        if kind == b"member" and (name := _name(rest)) is not None:
            return MemberKey(name)
        number, slash, name_bytes = rest.partition(b"/")
        if _ID.fullmatch(number) is not None and number == _id(int(number)):
            if kind == b"ready" and (name := _name(name_bytes)) is not None:
                return ReadyKey(int(number), name)
            if not slash and kind in _KINDS:
                return _KINDS[kind](int(number))
        raise DecodeError("the key is neither a shard's nor a member's", key=key)


_KINDS: Final[dict[bytes, type[RangeKey | OwnerKey | CheckpointKey]]] = {
    b"range": RangeKey,
    b"owner": OwnerKey,
    b"checkpoint": CheckpointKey,
}


def absent_below(prefix: bytes) -> Compare:
    """The compare that no key has a prefix."""
    target, end = CompareTarget.CREATE_REVISION, KeyRange.of_prefix(prefix).end
    return Compare(prefix, target, CompareResult.EQUAL, 0, end)


def unchanged_below(prefix: bytes, revision: int) -> Compare:
    """The compare that no key with a prefix was written after a revision.

    A deletion does not count: compare a key that must exist, too.
    """
    target, end = CompareTarget.MOD_REVISION, KeyRange.of_prefix(prefix).end
    return Compare(prefix, target, CompareResult.LESS, revision + 1, end)


def encode_range(range_: ShardRange) -> bytes:
    """The value of ``range/<id>``."""
    return msgspec.json.encode(StoredRange(range_.start.decode(), range_.end.decode()))


def decode_range(value: bytes, scope: ShardRange, *, key: bytes, revision: int) -> ShardRange:
    """The range in the value of ``range/<id>``.

    Raises:
        DecodeError: The value is not a range inside of the scope.
    """
    stored = _RANGE.decode(value, key=key, revision=revision)
    found = ShardRange(stored.start.encode(), stored.end.encode())
    starts = found.start == scope.start or (is_boundary(found.start) and found.start in scope)
    ends = found.end == scope.end or (is_boundary(found.end) and found.end in scope)
    if not starts or not ends or (found.end and found.end <= found.start):
        reason = f"the range {found} of a shard is not one inside of {scope}"
        raise DecodeError(reason, key=key, revision=revision)
    return found


def encode_member(since: datetime, *, executes: bool = False) -> bytes:
    """The value of ``member/<name>``; the time has a zone."""
    return msgspec.json.encode(StoredMember(since, executes=executes))


def decode_member(value: bytes, *, key: bytes, revision: int) -> StoredMember:
    """The value of ``member/<name>``.

    Raises:
        DecodeError: The value cannot be decoded.
    """
    return _MEMBER.decode(value, key=key, revision=revision)


def encode_ready(revision: int) -> bytes:
    """The value of ``ready/<id>/<name>``."""
    return msgspec.json.encode(StoredReady(revision))


def decode_ready(value: bytes, *, key: bytes, revision: int) -> StoredReady:
    """The value of ``ready/<id>/<name>``.

    Raises:
        DecodeError: The value cannot be decoded.
    """
    return _READY.decode(value, key=key, revision=revision)


def _id(shard: int) -> bytes:
    return b"%04d" % shard


def _name(text: bytes) -> str | None:
    """The name of a member in a part of a key; None if it cannot be one."""
    try:
        name = text.decode("ascii")
        return check_member_name(name)
    except (UnicodeDecodeError, ConfigError):
        return None
