"""The etcd to examine, and the thresholds of findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from etcd_actions.etcd import EtcdClient, open_connection
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import Keyspace, NamespaceTemplate


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The thresholds of findings. Times are in seconds, sizes in bytes.

    Attributes:
        check_seconds: The longest that one check may take.
        scan_seconds: The longest that values are read; the rest is not examined.
        examples: How many keys one finding names.
        certificate_seconds: A certificate that ends sooner is a warning.
        clock_skew: The difference between the clocks that is a warning.
        lag: A member this many revisions behind the others lags.
        quota_warning: The part of the quota in use that is a warning.
        quota_error: The part of the quota in use that is an error.
        wasted: The free space in the database file from which a defragmentation is recommended.
        long_history: A store with this many revisions should have been compacted.
        short_history: With fewer revisions than this, a short disconnect needs a relist.
        slow_note: The median time of a read that is a note.
        slow_warning: The median time of a read that is a warning.
        hand_over: A shard without an owner for this time is not being handed over.
        large_value: A value of this size is near the most that a request may have.
    """

    check_seconds: float = 30.0
    scan_seconds: float = 20.0
    examples: int = 5
    certificate_seconds: float = 14 * 86_400.0
    clock_skew: float = 3.0
    lag: int = 10_000
    quota_warning: float = 0.8
    quota_error: float = 0.95
    wasted: int = 100 << 20
    long_history: int = 100_000
    short_history: int = 1_000
    slow_note: float = 0.1
    slow_warning: float = 1.0
    hand_over: float = 3.0
    large_value: int = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The etcd that the settings name, and the keys that etcd-actions has there.

    Attributes:
        settings: How to connect; each of the endpoints is examined.
        prefix: The part of the keys before ``<namespace>/<name>``.
        namespace: The only namespace to examine; None for all.
        template: Makes the namespace of each action; None if an action may be in any namespace.
        limits: The thresholds.
        clock: The time of this machine, in seconds since 1970.
    """

    settings: ConnectionSettings
    prefix: bytes
    namespace: str | None = None
    template: NamespaceTemplate | None = None
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time

    @property
    def watched_prefix(self) -> bytes:
        """The prefix of the examined actions."""
        return self.prefix + (f"{self.namespace}/".encode() if self.namespace else b"")

    @property
    def keys(self) -> KeyRange:
        """The keys of the examined actions."""
        return KeyRange.of_prefix(self.watched_prefix)

    @property
    def own_prefix(self) -> bytes:
        """The prefix of this package's other keys."""
        return Keyspace(self.prefix).own

    @property
    def probe(self) -> bytes:
        """A key that is never written: requests about it change nothing."""
        namespace = self.namespace or "etcd-actions"
        return self.prefix + f"{namespace}/doctor".encode()

    @property
    def user(self) -> str | None:
        """The user that etcd authenticates us as; None without one."""
        return None if self.settings.user is None else self.settings.user.name

    def connect(
        self, endpoints: Iterable[Endpoint], *, anonymous: bool = False
    ) -> AbstractAsyncContextManager[EtcdClient]:
        """Connect to some of the endpoints, without the user if ``anonymous``."""
        settings = replace(self.settings, endpoints=tuple(endpoints))
        return open_connection(replace(settings, user=None) if anonymous else settings)


def as_text(key: bytes) -> str:
    """A key as text; bytes that are not UTF-8 are escaped."""
    text = key.decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
