"""The response times of a member, and whether a watch through it works."""

from __future__ import annotations

import statistics

import trio

from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import EtcdError, PermissionDenied, Unavailable
from etcd_actions.etcd.api import KeyRange, WatchCreate
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.reasons import error_kind

FAST = Kind.ok("latency")
SLOW = Kind.note(
    "latency-noticeable",
    "Every mark takes at least as long.",
    "check the disk of the leader (etcd_disk_wal_fsync_duration_seconds in /metrics should "
    "stay below 10 ms) and the network between the members",
)
VERY_SLOW = Kind.warning(
    "latency-high",
    "Requests are close to their timeout; that alone may make etcd's leader change.",
    "give etcd a disk of its own (etcd_disk_wal_fsync_duration_seconds in /metrics should stay "
    "below 10 ms), and check the network between the members",
)
WATCHES = Kind.ok("watch")
NO_WATCH = Kind.error(
    "watch-fails",
    "Reads work, and changes cannot be followed.",
    "check that a proxy in front of etcd passes HTTP/2 streams; if only HTTP/1.1 passes, use "
    "--transport gateway",
)

_READS = 9


async def check_response(subject: Subject, endpoint: Endpoint) -> list[Finding]:
    """Time the reads of a key, then open a watch."""
    findings = []
    keys = KeyRange.of_key(subject.probe)
    times = []
    revision = 0
    async with subject.connect([endpoint]) as etcd:
        try:
            # The first read includes the connection and the token.
            for _ in range(1 + _READS):
                began = trio.current_time()
                revision = (await etcd.range(keys, keys_only=True)).revision
                times.append(trio.current_time() - began)
        except PermissionDenied:
            # `check_access` reports that.
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
            waited = f"no answer for {subject.settings.request_timeout:g} s"
            findings.append(NO_WATCH.found(str(error) or waited, subject=endpoint))
        else:
            took = (trio.current_time() - began) * 1000
            findings.append(WATCHES.found(f"opened in {took:.1f} ms", subject=endpoint))
    return findings
