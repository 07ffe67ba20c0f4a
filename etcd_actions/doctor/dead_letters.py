"""The calls that the run service refused for good."""

from __future__ import annotations

import math

from etcd_actions.dead_letters import read_dead_letters
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.scan import and_more, scan
from etcd_actions.doctor.subject import Subject, as_text
from etcd_actions.errors import PermissionDenied
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import Keyspace

DEAD_LETTERS = Kind.warning(
    "dead-letters",
    "The run service refused these for good: it shows their runs without them, or as running "
    "forever.",
    "etcd-actions dead-letters list shows the reasons; fix the cause, then: etcd-actions "
    "dead-letters retry --all",
)
UNREADABLE = Kind.warning(
    "dead-letters-unreadable",
    "Another program, or a later release, writes below the prefix of dead letters: these values "
    "cannot be decoded.",
    "etcdctl get '<key>'; if no program needs it: etcd-actions dead-letters delete '<key>'",
)


async def check_dead_letters(subject: Subject, etcd: EtcdClient) -> list[Finding]:
    """Read the dead letters; `check_access` reports a refusal."""
    keys = Keyspace(subject.prefix)
    kvs: list[KeyValue] = []
    try:
        stored = KeyRange.of_prefix(keys.dead_letters)
        await scan(etcd, stored, math.inf, kvs.append)
    except PermissionDenied:
        return []
    within = f"{subject.namespace}/" if subject.namespace else ""
    everything = read_dead_letters(keys, kvs)
    unreadable = [each for each in everything if each.unreadable]
    readable = [
        each
        for each in everything
        if not each.unreadable and each.namespace_and_name.startswith(within)
    ]
    findings = []
    if readable:
        readable.sort(key=lambda each: each.dead_letter_created)
        first = readable[: subject.limits.examples]
        named = "; ".join(f"the {x.what} of {x.namespace_and_name} ({x.error})" for x in first)
        seen = f"{len(readable)}, the oldest since {readable[0].first}: {named}"
        findings.append(DEAD_LETTERS.found(seen + and_more(len(readable), len(first))))
    if unreadable:
        key = as_text(unreadable[0].dead_letter_key)
        seen = f"{len(unreadable)}, such as {key}: {unreadable[0].unreadable}"
        findings.append(UNREADABLE.found(seen, key=key))
    return findings
