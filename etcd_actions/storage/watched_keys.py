"""Which keys are watched, and listed."""

from __future__ import annotations

from etcd_actions.etcd.api import KeyRange
from etcd_actions.model import DEFAULT_NAMESPACE

# Where Flyte names a run its name begins so.
_LIKELY_RUN = b"r"


def watched_keys(prefix: bytes, namespace: str | None) -> tuple[KeyRange, bytes]:
    """The range of keys to watch, and what most of them begin with."""
    scope = prefix if namespace is None else prefix + namespace.encode() + b"/"
    likely = prefix + f"{namespace or DEFAULT_NAMESPACE}/".encode() + _LIKELY_RUN
    return KeyRange.of_prefix(scope), likely
