"""Cached results: the outputs of an earlier action with the same cache key.

The catalogue is in etcd: one key for each scope and cache key, with a digest of the outputs, which
each use checks.
"""

from etcd_actions.catalog.cached_result import Entry, digest_of, source_of
from etcd_actions.catalog.catalog import Catalog, Found
from etcd_actions.catalog.scope import Scope, scope_of

__all__ = ["Catalog", "Entry", "Found", "Scope", "digest_of", "scope_of", "source_of"]
