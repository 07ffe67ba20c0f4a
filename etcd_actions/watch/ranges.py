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
_ENOUGH_KEYS = 256
_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyz"


class Keys(Sized, Iterable[bytes], Protocol):
    """DeliveredRevisions keys, in any order."""


def split(whole: KeyRange, count: int, known: Keys, *, likely_prefix: bytes) -> list[KeyRange]:
    """Cut ``whole`` into at most ``count`` adjacent ranges, which cover it.

    Args:
        whole: The range to cut.
        count: How many ranges to aim at.
        known: The keys that exist; enough of them decide the boundaries by their quantiles.
        likely_prefix: What most names begin with, for when there are few: the next
            character is taken to be a random letter or digit.
    """
    if len(known) >= _ENOUGH_KEYS:
        sample = sorted(islice(known, 0, None, max(1, len(known) // _SAMPLE)))
        cuts = [sample[len(sample) * i // count] for i in range(1, count)]
    else:
        letters = [_ALPHABET[len(_ALPHABET) * i // count] for i in range(1, count)]
        cuts = [likely_prefix + bytes((letter,)) for letter in letters]
    inner = sorted({cut for cut in cuts if whole.start < cut < whole.end})
    starts = [whole.start, *inner]
    return [KeyRange(start, end) for start, end in zip(starts, [*inner, whole.end], strict=True)]
