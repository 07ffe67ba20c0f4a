"""Our other keys: runs, histories, tasks, projects, cached results, images."""

from __future__ import annotations

from collections import Counter

from etcd_actions.catalog import source_of
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.scan import Examples, scan
from etcd_actions.doctor.subject import Subject, as_text, size_text
from etcd_actions.errors import DecodeError, PermissionDenied
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import Keyspace
from etcd_actions.model.names import parse_key
from etcd_actions.registry.projects import decode as decode_project
from etcd_actions.registry.task_record import decode_head
from etcd_actions.runs.run_record import decode_history, decode_record

KEPT = Kind.ok("kept")
UNREADABLE = Kind.warning(
    "kept-undecodable",
    "These runs, histories, tasks, projects or cached results cannot be read: lists omit them, "
    "and nothing collects them. A later release or another program wrote them.",
    "etcdctl get '<key>' --print-value-only; update etcd-actions if a later release runs here, "
    "else: etcdctl del '<key>'",
)
ORPHANED = Kind.note(
    "orphaned-histories",
    "The runs of these histories have no record: no list shows them, and nothing collects them.",
    "etcdctl del '<key>'",
)


class _Tally:
    """Counts keys by kind, with a few examples of the unreadable ones."""

    def __init__(self, keys: Keyspace, examples: int) -> None:
        self.keys = keys
        self.counts: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.unreadable = Examples(examples)
        # By the key of the run's record: the number of histories, and the first.
        self.histories: dict[bytes, tuple[int, bytes]] = {}

    def take(self, kv: KeyValue) -> None:
        """Examine one key and its value."""
        kind = as_text(kv.key[len(self.keys.own) :].partition(b"/")[0])
        self.counts[kind] += 1
        self.sizes[kind] += len(kv.key) + len(kv.value)
        try:
            self._decode(kv)
        except DecodeError as error:
            self.unreadable.add(kv.key, f"revision {kv.mod_revision}: {error}")

    def _decode(self, kv: KeyValue) -> None:
        keys, key = self.keys, kv.key
        if key.startswith(keys.runs):
            decode_record(kv.value)
            # Histories come first, in the order of the keys.
            self.histories.pop(key, None)
        elif key.startswith(keys.histories):
            history = decode_history(kv.value)
            namespace, _ = parse_key(keys.histories, key)
            record = keys.runs + f"{namespace}/{history.run}".encode(errors="replace")
            count, first = self.histories.get(record, (0, key))
            self.histories[record] = count + 1, first
        elif key.startswith(keys.tasks):
            decode_head(keys.tasks, key, kv.value)
        elif key.startswith(keys.projects):
            decode_project(keys.projects, key, kv.value)
        elif key.startswith(keys.catalog + b"entries/"):
            source_of(kv.value)


async def check_kept(subject: Subject, etcd: EtcdClient) -> list[Finding]:
    """Read these keys in pages, within the limit of time; `check_access` reports a refusal."""
    tally = _Tally(Keyspace(subject.prefix), subject.limits.examples)
    keys = KeyRange.of_prefix(tally.keys.own)
    try:
        scanned = await scan(etcd, keys, subject.limits.scan_seconds, tally.take)
    except PermissionDenied:
        return []
    largest = ", ".join(
        f"{kind} {size_text(size)} in {tally.counts[kind]}"
        for kind, size in tally.sizes.most_common()
    )
    seen = f"keys and values of our own: {largest or 'none'}"
    findings = [KEPT.found(seen + ("" if scanned.complete else "; not all were read in time"))]
    if tally.unreadable.count:
        findings.append(UNREADABLE.found(str(tally.unreadable), key=tally.unreadable.first))
    if tally.histories and scanned.complete:
        count = sum(count for count, _ in tally.histories.values())
        _, key = next(iter(tally.histories.values()))
        seen = f"{count} of {len(tally.histories)} runs, such as {as_text(key)}"
        findings.append(ORPHANED.found(seen, key=as_text(key)))
    return findings
