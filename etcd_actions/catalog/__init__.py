"""Cached results: where the outputs are that a task left for the same inputs before.

The catalogue is in etcd, one key for each scope and cache key, with a digest of the outputs. What
it says is checked at each use: an entry that cannot be read is none.
"""

from etcd_actions.catalog.cached_result import Entry, digest_of, source_of
from etcd_actions.catalog.catalog import Catalog, Found
from etcd_actions.catalog.scope import Scope, scope_of

__all__ = ["Catalog", "Entry", "Found", "Scope", "digest_of", "scope_of", "source_of"]
