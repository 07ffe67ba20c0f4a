"""What is kept beside the actions: runs, histories, tasks, projects, cached results, images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import trio

from etcd_actions.catalog import source_of
from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.subject import Subject, as_text, size_text
from etcd_actions.errors import DecodeError, PermissionDenied, first_error
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.etcd.paging import open_pages
from etcd_actions.model import Keyspace
from etcd_actions.model.names import parse_key
from etcd_actions.registry.projects import decode as decode_project
from etcd_actions.registry.task_record import decode_head
from etcd_actions.runs.run_record import decode_history, decode_record

KEPT = Kind(id="kept", severity=Severity.OK)
UNREADABLE = Kind(
    id="kept-undecodable",
    severity=Severity.WARNING,
    meaning="What these say of runs, histories, tasks, projects or cached results is not known: "
    "lists leave them out, and nothing collects them. A later release wrote them, or somebody "
    "else.",
    remedy="etcdctl get '<key>' --print-value-only; update etcd-actions where a later release runs "
    "beside it, else: etcdctl del '<key>'",
)
ORPHANED = Kind(
    id="orphaned-histories",
    severity=Severity.NOTE,
    meaning="The runs of these histories have no record: nobody shows them, and nothing collects "
    "them.",
    remedy="etcdctl del '<key>'",
)
KINDS = (KEPT, UNREADABLE, ORPHANED)

_PAGE_BYTES = 4 << 20
_BATCH = 100


@dataclass
class _Tally:
    """What was counted; of the keys only a few are kept."""

    keys: Keyspace
    examples: int
    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    named: list[tuple[bytes, str]] = field(default_factory=list)
    histories: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    """Of a run, by the key of its record: how many there are, and the first."""

    def take(self, kv: KeyValue) -> None:
        """Look at one key and its value."""
        kind = as_text(kv.key[len(self.keys.side) :].partition(b"/")[0])
        self.counts[kind] += 1
        self.sizes[kind] += len(kv.key) + len(kv.value)
        try:
            self._read(kv)
        except DecodeError as error:
            self.unreadable += 1
            if len(self.named) < self.examples:
                self.named.append((kv.key, f"revision {kv.mod_revision}: {error}"))

    def _read(self, kv: KeyValue) -> None:
        """Decode what this package can; raises DecodeError."""
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
    """Read what is kept, page by page, for as long as the limits let.

    Whether that is permitted is another check's finding.
    """
    tally = _Tally(Keyspace(subject.prefix), subject.limits.examples)
    denied: PermissionDenied | None = None
    with trio.move_on_after(subject.limits.scan_seconds) as scope:
        try:
            keys = KeyRange.of_prefix(tally.keys.side)
            async with open_pages(etcd, keys, page_bytes=_PAGE_BYTES) as pages:
                async for page in pages:
                    for number, kv in enumerate(page.kvs):
                        tally.take(kv)
                        if number % _BATCH == 0:
                            await trio.lowlevel.checkpoint()
        except* PermissionDenied as group:
            denied = first_error(group)
    return [] if denied is not None else _judge(tally, cut=scope.cancelled_caught)


def _judge(tally: _Tally, *, cut: bool) -> list[Finding]:
    largest = ", ".join(
        f"{kind} {size_text(size)} in {tally.counts[kind]}"
        for kind, size in tally.sizes.most_common()
    )
    seen = f"keys and values of our own: {largest or 'none'}"
    findings = [KEPT.found(seen + ("; not all were read in time" if cut else ""))]
    if tally.unreadable:
        named = "; ".join(f"{as_text(key)} ({text})" for key, text in tally.named)
        more = tally.unreadable - len(tally.named)
        seen = f"{tally.unreadable}: {named}" + (f"; and {more} more" if more else "")
        findings.append(UNREADABLE.found(seen, key=as_text(tally.named[0][0])))
    if tally.histories and not cut:
        count = sum(count for count, _ in tally.histories.values())
        _, first = next(iter(tally.histories.values()))
        seen = f"{count} of {len(tally.histories)} runs, such as {as_text(first)}"
        findings.append(ORPHANED.found(seen, key=as_text(first)))
    return findings
