"""How much of its history etcd still has: what a watch can catch up with."""

from __future__ import annotations

import trio

from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import Compacted, Unavailable
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, WatchCreate

HISTORY = Kind(id="history", severity=Severity.OK)
NEVER_COMPACTED = Kind(
    id="never-compacted",
    severity=Severity.WARNING,
    meaning="etcd keeps every change there ever was, until its quota is used up and it refuses "
    "writes.",
    remedy="start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=1h; now: "
    "etcdctl compact <revision> && etcdctl defrag --cluster",
)
SHORT = Kind(
    id="history-short",
    severity=Severity.NOTE,
    meaning="Whoever is disconnected for longer than this lasts reads everything again, and is "
    "not told of what was changed twice meanwhile.",
    remedy="where etcd was not compacted just now, compact less: --auto-compaction-mode=periodic "
    "--auto-compaction-retention=1h",
)

KINDS = (HISTORY, NEVER_COMPACTED, SHORT)


async def check_history(subject: Subject, etcd: EtcdClient, revision: int) -> list[Finding]:
    """Find the oldest revision that etcd has; ``revision`` is the newest."""
    oldest = await oldest_revision(subject, etcd)
    kept = revision - oldest + 1
    seen = f"revisions {oldest} to {revision} are kept"
    if oldest > 1:
        kind = SHORT if kept < subject.limits.short_history else HISTORY
        return [kind.found(f"{seen}: {kept} of {revision}")]
    kind = NEVER_COMPACTED if revision >= subject.limits.long_history else HISTORY
    return [kind.found(f"{seen}: all that there ever were", revision=revision)]


async def oldest_revision(subject: Subject, etcd: EtcdClient) -> int:
    """The compaction revision; 1 where there was no compaction.

    etcd tells it to a watch that begins below it. Where there was none such a watch would
    make etcd read its whole history, so a read asks first whether there was.
    """
    keys = KeyRange.of_key(subject.probe)
    try:
        await etcd.range(keys, revision=1, keys_only=True)
    except Compacted:
        with trio.move_on_after(subject.settings.request_timeout):
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, keys, 1))
                while True:
                    for response in await stream.receive():
                        if response.compact_revision:
                            return response.compact_revision
        raise Unavailable("a watch below the compaction revision is not cancelled") from None
    return 1
