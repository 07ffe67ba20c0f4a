"""How fast a member answers, and whether a watch through it works."""

from __future__ import annotations

import statistics

import trio

from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import EtcdError, PermissionDenied, Unavailable
from etcd_actions.etcd.api import KeyRange, WatchCreate
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.reasons import error_kind

FAST = Kind(id="latency", severity=Severity.OK)
SLOW = Kind(
    id="latency-noticeable",
    severity=Severity.NOTE,
    meaning="Every mark takes at least as long.",
    remedy="see the disk of the leader (etcd_disk_wal_fsync_duration_seconds in /metrics should "
    "stay below 10 ms) and the network between the members",
)
VERY_SLOW = Kind(
    id="latency-high",
    severity=Severity.WARNING,
    meaning="Requests are about to time out; leaders may change for no other reason.",
    remedy="give etcd a disk of its own (etcd_disk_wal_fsync_duration_seconds in /metrics should "
    "stay below 10 ms), and see the network between the members",
)
WATCHES = Kind(id="watch", severity=Severity.OK)
NO_WATCH = Kind(
    id="watch-fails",
    severity=Severity.ERROR,
    meaning="Reads work, and changes cannot be followed.",
    remedy="see whether a proxy before etcd passes streams of HTTP/2; where only HTTP/1.1 passes "
    "use --transport gateway",
)

KINDS = (FAST, SLOW, VERY_SLOW, WATCHES, NO_WATCH)

_READS = 9


async def check_response(subject: Subject, endpoint: Endpoint) -> list[Finding]:
    """Read a key some times, then open a watch."""
    findings = []
    keys = KeyRange.of_key(subject.probe)
    times = []
    revision = 0
    async with subject.connect([endpoint]) as etcd:
        try:
            # The first has the connection and perhaps a token to make.
            for _ in range(1 + _READS):
                began = trio.current_time()
                revision = (await etcd.range(keys, keys_only=True)).revision
                times.append(trio.current_time() - began)
        except PermissionDenied:
            # What is missing is told elsewhere.
            return []
        median = statistics.median(times[1:])
        seen = f"a linearizable read takes {median * 1000:.1f} ms (median of {_READS})"
        kind = FAST
        if median >= subject.limits.slow_warning:
            kind = VERY_SLOW
        elif median >= subject.limits.slow_note:
            kind = SLOW
        findings.append(kind.found(seen, subject=endpoint))
        began = trio.current_time()
        try:
            with trio.fail_after(subject.settings.request_timeout):
                async with etcd.watch() as stream:
                    stream.create(WatchCreate(1, subject.keys, revision + 1))
                    created = (await stream.receive())[0]
            if created.canceled:
                reason = created.cancel_reason
                raise (error_kind(reason) or Unavailable)(f"etcd cancels it: {reason}")
        except PermissionDenied:
            return findings
        except (EtcdError, trio.TooSlowError, trio.EndOfChannel) as error:
            waited = f"nothing heard for {subject.settings.request_timeout:g} s"
            findings.append(NO_WATCH.found(str(error) or waited, subject=endpoint))
        else:
            took = (trio.current_time() - began) * 1000
            findings.append(WATCHES.found(f"opened in {took:.1f} ms", subject=endpoint))
    return findings
