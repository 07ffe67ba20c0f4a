"""The keys that a command reads, so that it reads no others."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange
from etcd_actions.model import run_key_prefix


async def find_namespaces(
    etcd: Etcd, prefix: bytes, only: str | None, revision: int = 0
) -> tuple[Sequence[str], int]:
    """The namespaces that have keys, and the revision of that state.

    It makes one read for each namespace, for any number of keys. A namespace whose name is empty
    or not UTF-8 contains no objects and is omitted.

    Args:
        etcd: The connection.
        prefix: The part of keys before ``<namespace>/<name>``.
        only: The only namespace; None for all.
        revision: The revision to read at; 0 for the present one.

    Raises:
        EtcdError: etcd cannot be read.
    """
    full = KeyRange.of_prefix(prefix if only is None else prefix + only.encode() + b"/")
    found: list[str] = []
    start = full.start
    while True:
        page = await etcd.range(
            KeyRange(start, full.end), revision=revision, limit=1, keys_only=True
        )
        revision = revision or page.revision
        if not page.kvs:
            return found, revision
        key = page.kvs[0].key
        namespace, slash, _ = key[len(prefix) :].partition(b"/")
        if not slash:
            start = key + b"\0"
            continue
        if namespace:
            with contextlib.suppress(UnicodeDecodeError):
                found.append(namespace.decode())
        start = KeyRange.of_prefix(prefix + namespace + b"/").end


async def run_ranges(
    etcd: Etcd, prefix: bytes, only: str | None, run: str
) -> tuple[list[KeyRange], int]:
    """The ranges of keys with a run's actions, and the revision at which to read them.

    They also contain the actions of runs whose names begin with ``<run>-``.

    Args:
        etcd: The connection.
        prefix: The part of keys before ``<namespace>/<name>``.
        only: The only namespace; None for all that have keys.
        run: The name of the run.

    Raises:
        ConfigError: The text is not a valid name of a run.
        EtcdError: etcd cannot be read.
    """
    if not run or "/" in run:
        raise ConfigError(f"{quoted(run)} is not a valid name of a run: give one without a slash")
    namespaces, revision = await find_namespaces(etcd, prefix, only)
    return [
        KeyRange.of_prefix(run_key_prefix(prefix, namespace, run)) for namespace in namespaces
    ], revision
