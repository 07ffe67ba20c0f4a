"""How to cut a prefix into key ranges of about equal traffic.

etcd serves each watcher of a stream by itself. One watcher under full load falls back
into history, where etcd reads 1,000 revisions each 100 ms; several side by side do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import islice
from typing import Protocol

from etcd_actions.etcd.api import KeyRange

_SAMPLE = 4096
"""About how many of the known keys are sorted to find the quantiles."""
_ENOUGH_KEYS = 256
"""Known keys from which on their quantiles are the boundaries."""
_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyz"


class KeyCollection(Sized, Iterable[bytes], Protocol):
    """Known keys, in any order."""


def split(
    keys: KeyRange, count: int, known: KeyCollection, *, likely_prefix: bytes
) -> list[KeyRange]:
    """Divide ``keys`` into at most ``count`` adjacent ranges.

    Args:
        keys: The range to divide.
        count: The number of ranges to aim at.
        known: The keys that exist; enough of them decide the boundaries by their quantiles.
        likely_prefix: The start of most keys, used if few keys are known: the next character is
            probably a random one of ``0-9a-z``.
    """
    if len(known) >= _ENOUGH_KEYS:
        sample = sorted(islice(known, 0, None, max(1, len(known) // _SAMPLE)))
        cuts = [sample[len(sample) * i // count] for i in range(1, count)]
    else:
        characters = [_ALPHABET[len(_ALPHABET) * i // count] for i in range(1, count)]
        cuts = [likely_prefix + bytes((character,)) for character in characters]
    inner = sorted({cut for cut in cuts if keys.start < cut < keys.end})
    starts = [keys.start, *inner]
    return [KeyRange(start, end) for start, end in zip(starts, [*inner, keys.end], strict=True)]
