"""Which keys a command reads, so that it reads no more than it must."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange
from etcd_actions.model import run_key_prefix


async def find_namespaces(etcd: Etcd, prefix: bytes, only: str | None) -> tuple[Sequence[str], int]:
    """The namespaces that hold keys, and the revision at which they do.

    It takes a read a namespace, however many keys there are. Those whose names are empty or not
    UTF-8 hold no objects and are left out.

    Args:
        etcd: The connection.
        prefix: What comes before ``<namespace>/<name>`` in the keys.
        only: The only one wanted; all when None.
    """
    whole = KeyRange.of_prefix(prefix if only is None else prefix + only.encode() + b"/")
    found: list[str] = []
    start, revision = whole.start, 0
    while True:
        page = await etcd.range(
            KeyRange(start, whole.end), revision=revision, limit=1, keys_only=True
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


async def find_run(
    etcd: Etcd, prefix: bytes, only: str | None, run: str
) -> tuple[list[KeyRange], int]:
    """The ranges that hold a run's actions, and the revision at which to read them.

    They hold those of runs whose names begin with ``<run>-``, too.

    Raises:
        ConfigError: No run can be called that.
    """
    if not run or "/" in run:
        raise ConfigError(f"{quoted(run)} is no name of a run: give one without a slash")
    namespaces, revision = await find_namespaces(etcd, prefix, only)
    return [
        KeyRange.of_prefix(run_key_prefix(prefix, namespace, run)) for namespace in namespaces
    ], revision
