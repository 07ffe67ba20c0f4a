"""The leases of workers: the id of a lease shows which worker's name it belongs to, and its kind.

The service chooses the ids. The upper half is random; the lower half is a digest of that, of the
worker's name and of the kind. So each service recognises the leases of each name without storing
them, also after a restart. The probability that the id of one name also belongs to another is one
to four billion, and a worker cannot choose ids to try.
"""

from __future__ import annotations

import enum
import secrets
from hashlib import blake2b
from typing import Final

from etcd_actions.storage.claims import LONGEST_TTL

MOST_LEASES: Final = 10_000
"""The most leases of one name that are alive, as far as this process granted or renewed them."""

_DIGEST: Final = 4
_NONCES: Final = 2**31


class LeaseKind(enum.Enum):
    """Whether a lease may outlive its owner for long: one of a claim must not."""

    SHORT = b"s"
    LONG = b"l"

    @classmethod
    def of(cls, ttl: int) -> LeaseKind:
        """The kind of a lease with a time to live in seconds."""
        return cls.SHORT if ttl <= LONGEST_TTL else cls.LONG


def new_lease_id(name: str, kind: LeaseKind) -> int:
    """An id for a new lease of a worker; etcd refuses one that is taken."""
    nonce = secrets.randbelow(_NONCES - 1) + 1
    return nonce << 32 | _digest(name, kind, nonce)


def kind_of_lease(name: str, lease: int) -> LeaseKind | None:
    """The kind of a lease that was granted to a worker of this name; None for any other lease."""
    nonce, digest = lease >> 32, lease & 0xFFFFFFFF
    if not 0 < nonce < _NONCES:
        return None
    return next((kind for kind in LeaseKind if digest == _digest(name, kind, nonce)), None)


class LiveLeases:
    """Counts the live leases of one name, so that it has at most :data:`MOST_LEASES`.

    Times are trio's.
    """

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def has_space(self, now: float) -> bool:
        """Whether one more may be granted."""
        if len(self._until) >= MOST_LEASES:
            self._until = {lease: at for lease, at in self._until.items() if at > now}
        return len(self._until) < MOST_LEASES

    def renewed(self, lease: int, until: float) -> None:
        """Note that a lease was granted or renewed, and when it expires."""
        if lease in self._until or len(self._until) < MOST_LEASES:
            self._until[lease] = until

    def ended(self, lease: int) -> None:
        """Note that a lease has ended."""
        self._until.pop(lease, None)


def _digest(name: str, kind: LeaseKind, nonce: int) -> int:
    text = nonce.to_bytes(4, "big") + kind.value + name.encode()
    return int.from_bytes(blake2b(text, digest_size=_DIGEST).digest(), "big")
