"""Whether the clocks of etcd's machines and of this one agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.reach import Reached
from etcd_actions.doctor.subject import Subject

AGREES = Kind.ok("clock")
SKEWED = Kind.warning(
    "clock-skew",
    "Times in actions come from the clock of their writer: durations, and ages by which runs are "
    "deleted, are wrong by this much.",
    "chronyc tracking, or timedatectl timesync-status, on both machines: one of them has no time "
    "server",
)


def check_clocks(subject: Subject, reached: Sequence[Reached]) -> Iterator[Finding]:
    """Compare our clock with the dates of the endpoints' HTTP responses, to about a second."""
    for each in reached:
        if each.skew is None:
            continue
        direction = "ahead of" if each.skew > 0 else "behind"
        if abs(each.skew) > subject.limits.clock_skew:
            seen = f"its clock is {abs(each.skew):.0f} s {direction} this machine's"
            yield SKEWED.found(seen, subject=each.endpoint)
        else:
            yield AGREES.found("it agrees with this machine's", subject=each.endpoint)
