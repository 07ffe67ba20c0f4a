"""The history that etcd keeps, from which a watch can resume."""

from __future__ import annotations

from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.subject import Subject
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.oldest_revision import find_oldest_revision

HISTORY = Kind.ok("history")
NEVER_COMPACTED = Kind.warning(
    "never-compacted",
    "etcd keeps all changes since its creation, until its quota is used up and it refuses writes.",
    "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=1h; now: etcdctl "
    "compact <revision> && etcdctl defrag --cluster",
)
SHORT = Kind.note(
    "history-short",
    "A watch that is disconnected for longer than this must list again, and misses the "
    "intermediate state of a key that changed twice in that time.",
    "if etcd was not compacted just now, compact less: --auto-compaction-mode=periodic "
    "--auto-compaction-retention=1h",
)


async def check_history(subject: Subject, etcd: EtcdClient, revision: int) -> list[Finding]:
    """Find the oldest revision that etcd has; ``revision`` is the newest."""
    probe = KeyRange.of_key(subject.probe)
    oldest = await find_oldest_revision(etcd, probe, within=subject.settings.request_timeout)
    kept = revision - oldest + 1
    seen = f"revisions {oldest} to {revision} are kept"
    if oldest > 1:
        kind = SHORT if kept < subject.limits.short_history else HISTORY
        return [kind.found(f"{seen}: {kept} of {revision}")]
    kind = NEVER_COMPACTED if revision >= subject.limits.long_history else HISTORY
    return [kind.found(f"{seen}: all since its creation", revision=revision)]
