"""The permissions that a request needs, as text.

etcd reports only "permission denied". Its rules: a read, and each compare of a transaction, needs
``read`` on all of its range; a write needs ``write``; a watch needs ``read``. One permission must
cover all of a range, or several that overlap or adjoin (``auth/range_perm_cache.go``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from etcd_actions.etcd.api import Delete, Get, KeyRange, PermissionType, Put, Txn
from etcd_actions.etcd.rpc import RangeRequest, Request, Result, Rpc

_READ, _WRITE = PermissionType.READ, PermissionType.WRITE
_NAMED = 3

Need = tuple[PermissionType, KeyRange]


def needed_for(method: Rpc[Request, Result], request: Request) -> str:
    """The permissions for a request, such as ``read and write on the key /a/b``."""
    if isinstance(request, RangeRequest):
        return in_words([(_READ, request.keys)])
    if isinstance(request, Put | Delete | Txn):
        leased = "; and write on every key of its lease" if _leased(request) else ""
        return in_words(_needs(request)) + leased
    if method.name.startswith("Lease/"):
        return "write on every key of the lease"
    return "the role root"


def needed_to_watch(ranges: Iterable[KeyRange]) -> str:
    """The permission to watch some adjacent ranges."""
    parts = sorted(ranges)
    return in_words([(_READ, KeyRange(parts[0].start, max(part.end for part in parts)))])


def in_words(needs: Iterable[Need]) -> str:
    """Permissions for people, each range once; after the third one only their number."""
    by_range: dict[KeyRange, set[PermissionType]] = {}
    for kind, keys in needs:
        by_range.setdefault(keys, set()).add(kind)
    texts = [
        f"{' and '.join(kind.name.lower() for kind in sorted(kinds))} on {key_in_words(keys)}"
        for keys, kinds in by_range.items()
    ]
    more = len(texts) - _NAMED
    return "; ".join(texts[:_NAMED]) + (f"; and on {more} more" if more > 0 else "")


def _needs(operation: Get | Put | Delete | Txn) -> Iterator[Need]:
    match operation:
        case Get():
            yield _READ, operation.keys
        case Put():
            yield _WRITE, KeyRange.of_key(operation.key)
        case Delete():
            yield _WRITE, operation.keys
        case Txn():
            for each in operation.compare:
                one = KeyRange.of_key(each.key)
                yield _READ, KeyRange(each.key, each.range_end) if each.range_end else one
            for inner in (*operation.success, *operation.failure):
                yield from _needs(inner)


def _leased(operation: Get | Put | Delete | Txn) -> bool:
    """Whether it attaches a key to a lease: then all keys of the lease must be writable."""
    if isinstance(operation, Txn):
        return any(map(_leased, (*operation.success, *operation.failure)))
    return isinstance(operation, Put) and operation.lease != 0


def key_in_words(keys: KeyRange) -> str:
    """A range of keys for people."""
    start = _text(keys.start)
    if keys.is_one_key:
        return f"the key {start}"
    if keys.start.rstrip(b"\xff") and keys == KeyRange.of_prefix(keys.start):
        return f"all keys that begin with {start}"
    if keys.end == b"\0":
        return f"all keys from {start} on"
    return f"the keys from {start} up to {_text(keys.end)}"


def _text(key: bytes) -> str:
    text = key.decode(errors="backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
