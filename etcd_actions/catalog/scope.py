"""The scope of a cached result: a project and domain, or all of them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from urllib.parse import quote

from etcd_actions.model import ANNOTATION_CACHE_SCOPE, CACHE_SCOPE_GLOBAL, ActionObject, Keyspace


class Scope(NamedTuple):
    """The keys of one scope.

    Attributes:
        entries: The prefix of its entries.
        reservations: The prefix of the claims of actions that produce a result.
    """

    entries: bytes
    reservations: bytes

    def entry(self, cache_key: str) -> bytes:
        """The key of a call's result."""
        return self.entries + _hashed(cache_key)

    def reservation(self, cache_key: str) -> bytes:
        """The key that exists while an action produces a call's result."""
        return self.reservations + _hashed(cache_key)


def scope_of(keys: Keyspace, action: ActionObject) -> Scope:
    """The scope that an action's run sets; by default, its project and domain."""
    if action.metadata.annotations.get(ANNOTATION_CACHE_SCOPE) == CACHE_SCOPE_GLOBAL:
        return _scope(keys, "global/")
    spec = action.spec
    project, domain = (
        quote(part, safe="", errors="replace") for part in (spec.project, spec.domain)
    )
    return _scope(keys, f"project/{project}/{domain}/")


def _scope(keys: Keyspace, below: str) -> Scope:
    return Scope(
        keys.catalog + f"entries/{below}".encode(), keys.catalog + f"reserved/{below}".encode()
    )


def _hashed(cache_key: str) -> bytes:
    """A cache key may be any text; keys of etcd should be short."""
    return hashlib.sha256(cache_key.encode(errors="surrogatepass")).hexdigest().encode()
