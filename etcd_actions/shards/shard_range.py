"""The range of keys of a shard, and the boundaries between shards.

A shard is a range of *suffixes* ``<namespace>/<name>``: the part of a key after the prefix of its
kind. So one range has the objects of some runs, their traces and all other keys of these runs.

A boundary never divides a run. The keys of a run are ``<run>`` (its record) and ``<run>-<action>``.
A boundary's name has no dash, and only characters above the dash in byte order, so each run's keys
are all below it, or all at or above it. In consequence runs whose names are equal up to the first
dash are in one shard, and a shard that has only such runs cannot be split.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import KeyRange
from etcd_actions.model import DEFAULT_NAMESPACE

MOST_INITIAL: Final = 60
"""The most shards of a new table: it is created in one transaction, of at most 128 operations."""

_NAMESPACE: Final = rb"[0-9A-Za-z](?:[-0-9A-Za-z.]{0,251}[0-9A-Za-z])?"
_BOUNDARY: Final = re.compile(_NAMESPACE + rb"/[0-9A-Za-z._]{0,253}")
_ALPHABET: Final = b"0123456789abcdefghijklmnopqrstuvwxyz"
# The first character of the names that Flyte chooses for runs.
_LIKELY_RUN: Final = b"r"
_ENOUGH_GROUPS: Final = 4
"""The least number of groups of runs for each shard; with fewer no quantiles are used."""


class ShardRange(NamedTuple):
    """The suffixes from ``start`` (included) to ``end`` (excluded), in byte order.

    An empty ``end`` means that the range has no upper bound.
    """

    start: bytes
    end: bytes

    def keys(self, prefix: bytes) -> KeyRange:
        """The keys with these suffixes below a prefix, such as that of all objects or traces."""
        end = prefix + self.end if self.end else KeyRange.of_prefix(prefix).end
        return KeyRange(prefix + self.start, end)

    def __contains__(self, suffix: object) -> bool:
        return (
            isinstance(suffix, bytes)
            and self.start <= suffix
            and (not self.end or suffix < self.end)
        )

    def __str__(self) -> str:
        start, end = (each.decode(errors="backslashreplace") for each in self)
        return f"[{start}, {end})"


EVERYTHING: Final = ShardRange(b"", b"")
"""The range of all keys."""


def scope_of(namespace: str | None) -> ShardRange:
    """The range that all shards of a table divide: one namespace, or with None all of them."""
    if namespace is None:
        return EVERYTHING
    return ShardRange(*KeyRange.of_prefix(namespace.encode() + b"/"))


def is_boundary(suffix: bytes) -> bool:
    """Whether a suffix may separate two shards; see the module docstring.

    It is ``<namespace>/<name>``; the name consists of characters of ``0-9A-Za-z._``, or is empty.
    """
    return _BOUNDARY.fullmatch(suffix) is not None


def boundary_before(suffix: bytes) -> bytes | None:
    """The boundary at the start of the group of a key.

    A group is the runs whose names are equal up to the first dash: no boundary divides them. So
    the boundary is the suffix up to its first dash, or other character that a boundary cannot have.

    Returns:
        The boundary; None if the suffix is no ``<namespace>/<name>``.
    """
    found = _BOUNDARY.match(suffix)
    return None if found is None else found[0]


def tiles(ranges: Iterable[ShardRange], scope: ShardRange) -> bool:
    """Whether ranges divide a scope: without a gap, an overlap, or a boundary inside a run."""
    in_order = sorted(ranges)
    if not in_order or in_order[0].start != scope.start or in_order[-1].end != scope.end:
        return False
    return all(
        before.end == after.start and after.start > before.start and is_boundary(after.start)
        for before, after in pairwise(in_order)
    )


def divided(range_: ShardRange, boundaries: Sequence[bytes]) -> list[ShardRange]:
    """The parts of a range between boundaries.

    Raises:
        ConfigError: Some text is no boundary, or they are not inside the range in ascending order.
    """
    for boundary in boundaries:
        if not is_boundary(boundary):
            raise ConfigError(
                f"boundary {boundary.decode(errors='backslashreplace')!r}: give "
                "<namespace>/<name>, where the name has 0-9, A-Z, a-z, . and _ only, so that it "
                "divides no run"
            )
    cuts = [range_.start, *boundaries]
    for before, after in pairwise(cuts):
        if not before < after or after not in range_:
            raise ConfigError(
                f"boundary {after.decode()!r}: it is not inside of {range_}, in ascending order"
            )
    return [ShardRange(*each) for each in zip(cuts, [*boundaries, range_.end], strict=True)]


def initial_ranges(scope: ShardRange, count: int, suffixes: Iterable[bytes]) -> list[ShardRange]:
    """Divide a scope into at most ``count`` ranges with about the same number of keys.

    Args:
        scope: See :func:`scope_of`.
        count: The number of ranges to aim at; fewer if too few boundaries are possible.
        suffixes: The suffixes of existing keys. If they are of many runs, their quantiles are the
            boundaries. Otherwise the boundaries divide the names that Flyte chooses evenly.

    Raises:
        ConfigError: The count is not between 1 and ``MOST_INITIAL``.
    """
    if not 1 <= count <= MOST_INITIAL:
        raise ConfigError(f"shards: {count} is no number of shards: give 1 to {MOST_INITIAL}")
    keys = sorted(suffix for suffix in suffixes if suffix in scope)
    groups = {boundary for key in keys if (boundary := boundary_before(key)) is not None}
    if len(groups) >= _ENOUGH_GROUPS * count:
        quantiles = (boundary_before(keys[len(keys) * i // count]) for i in range(1, count))
        cuts = {cut for cut in quantiles if cut is not None}
    else:
        namespace = scope.start or f"{DEFAULT_NAMESPACE}/".encode()
        cuts = {namespace + _LIKELY_RUN + _fraction(i, count) for i in range(1, count)}
    return divided(scope, sorted(cut for cut in cuts if cut > scope.start and cut in scope))


def _fraction(numerator: int, denominator: int) -> bytes:
    """The pair of characters at a fraction of the sorted list of all pairs."""
    base = len(_ALPHABET)
    first, second = divmod(base * base * numerator // denominator, base)
    return bytes((_ALPHABET[first], _ALPHABET[second]))


def split_boundary(range_: ShardRange, suffixes: Iterable[bytes]) -> bytes | None:
    """The boundary that divides the keys of a range into the most equal parts.

    Args:
        range_: The range of a shard.
        suffixes: The suffixes of existing keys; those outside of the range are ignored.

    Returns:
        The boundary; None if each possible boundary has all keys on one side.
    """
    keys = sorted(suffix for suffix in suffixes if suffix in range_)
    best: tuple[int, bytes] | None = None
    for boundary in {boundary_before(key) for key in keys}:
        if boundary is None or boundary <= range_.start:
            continue
        below = bisect_left(keys, boundary)
        if below:
            best = min(best or (len(keys), boundary), (abs(2 * below - len(keys)), boundary))
    return None if best is None else best[1]
