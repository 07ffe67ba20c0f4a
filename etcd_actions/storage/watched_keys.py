"""The range of keys that a process watches and lists."""

from __future__ import annotations

from etcd_actions.etcd.api import KeyRange
from etcd_actions.model import DEFAULT_NAMESPACE

# The names of runs that Flyte chooses begin with it.
_LIKELY_RUN = b"r"


def watched_keys(prefix: bytes, namespace: str | None) -> tuple[KeyRange, bytes]:
    """The range of keys to watch, and the likely start of most of them."""
    scope = prefix if namespace is None else prefix + namespace.encode() + b"/"
    likely = prefix + f"{namespace or DEFAULT_NAMESPACE}/".encode() + _LIKELY_RUN
    return KeyRange.of_prefix(scope), likely
