"""The size of a member's database, compared with its quota."""

from __future__ import annotations

import re
from typing import NamedTuple

import trio

from etcd_actions.doctor import probe
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.members import MemberSeen
from etcd_actions.doctor.subject import Subject, size_text
from etcd_actions.errors import ConfigError

QUOTA = Kind.ok("quota")
QUOTA_HIGH = Kind.warning(
    "quota-high",
    "When the quota is used up, etcd refuses every write: no mark can be made.",
    "etcdctl compact <revision> && etcdctl --endpoints <endpoint> defrag, or raise "
    "--quota-backend-bytes",
)
QUOTA_FULL = Kind.error(
    "quota-nearly-full",
    "etcd is close to refusing every write; then no mark can be made.",
    "etcdctl compact <revision> && etcdctl --endpoints <endpoint> defrag, or raise "
    "--quota-backend-bytes",
)
QUOTA_UNKNOWN = Kind.note(
    "quota-unknown",
    "The distance to the quota is unknown: the member does not serve its page /metrics here, "
    "which has the quota.",
    "compare the size with etcd's --quota-backend-bytes (2 GiB by default)",
)
FRAGMENTED = Kind.note(
    "defragment",
    "Free space in the file counts against the quota until a defragmentation releases it.",
    "etcdctl --endpoints <endpoint> defrag, one member at a time: it does not answer while that "
    "runs",
)

_METRICS = re.compile(
    rb"^(etcd_server_quota_backend_bytes|etcd_mvcc_db_total_size_in_bytes"
    rb"|etcd_mvcc_db_total_size_in_use_in_bytes) ([-+.0-9eE]+)\s*$",
    re.MULTILINE,
)


class Sizes(NamedTuple):
    """Bytes of the file, those in use, and the quota; 0 if unknown."""

    file: int
    in_use: int
    quota: int


async def check_storage(subject: Subject, member: MemberSeen) -> list[Finding]:
    """Compare a member's database with its quota."""
    endpoint, status = member.endpoint, member.status
    sizes = await _read_metrics(subject, member)
    if status is not None:
        # The status of etcd 3.6.0 to 3.6.5 has a wrong quota: the metrics count first.
        sizes = Sizes(status.db_size, status.db_size_in_use, sizes.quota or status.db_size_quota)
    revision = "<revision>" if status is None else status.revision
    if not sizes.file:
        return [QUOTA_UNKNOWN.found("neither status nor metrics can be read", subject=endpoint)]
    seen = f"the database file has {size_text(sizes.file)}"
    findings = []
    if not sizes.quota:
        findings.append(QUOTA_UNKNOWN.found(seen, subject=endpoint))
    else:
        used = sizes.file / sizes.quota
        seen += f", {used:.0%} of the quota of {size_text(sizes.quota)}"
        limits = subject.limits
        kind = QUOTA
        if used >= limits.quota_error:
            kind = QUOTA_FULL
        elif used >= limits.quota_warning:
            kind = QUOTA_HIGH
        findings.append(kind.found(seen, subject=endpoint, revision=revision))
    wasted = sizes.file - sizes.in_use
    if sizes.in_use and wasted >= max(subject.limits.wasted, sizes.file // 2):
        seen = f"{size_text(wasted)} of the file's {size_text(sizes.file)} are free"
        findings.append(FRAGMENTED.found(seen, subject=endpoint, revision=revision))
    return findings


async def _read_metrics(subject: Subject, member: MemberSeen) -> Sizes:
    """The sizes on the page ``/metrics``; zeros if it is not served."""
    endpoint = member.endpoint
    if member.reached.version is None:
        return Sizes(0, 0, 0)
    tls = subject.settings.tls_for(endpoint)
    found: dict[bytes, int] = {}
    with trio.move_on_after(subject.settings.request_timeout):
        try:
            context = None if tls is None else probe.verifying_context(tls)
            async with probe.open_stream(
                endpoint, context, tls.server_name if tls else None
            ) as stream:
                page = await probe.get(stream, endpoint, "/metrics")
            found = {name: int(float(text)) for name, text in _METRICS.findall(page.body)}
        except (ConfigError, OSError, trio.BrokenResourceError, ValueError):
            return Sizes(0, 0, 0)
    return Sizes(
        found.get(b"etcd_mvcc_db_total_size_in_bytes", 0),
        found.get(b"etcd_mvcc_db_total_size_in_use_in_bytes", 0),
        max(0, found.get(b"etcd_server_quota_backend_bytes", 0)),
    )
