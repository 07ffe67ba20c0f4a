"""Alarms: why etcd refuses to work."""

from __future__ import annotations

from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.errors import InvalidRequest, PermissionDenied, Unauthenticated
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import AlarmType

NO_ALARM = Kind(id="no-alarm", severity=Severity.OK)
NO_SPACE = Kind(
    id="alarm-nospace",
    severity=Severity.ERROR,
    meaning="etcd's quota is used up: no mark and no new action can be written until this is "
    "lifted.",
    remedy="etcdctl compact <revision> && etcdctl defrag --cluster && etcdctl alarm disarm; "
    "where the live data is too much raise --quota-backend-bytes",
)
CORRUPT = Kind(
    id="alarm-corrupt",
    severity=Severity.ERROR,
    meaning="The members hold different data, and etcd refuses everything.",
    remedy="remove the member that differs, wipe its data directory and add it again: etcdctl "
    "member remove <member>",
)
HIDDEN = Kind(
    id="alarms-not-permitted",
    severity=Severity.NOTE,
    meaning="Whether there are alarms was not looked at.",
    remedy="run doctor as a user with the role root to have them examined",
)

KINDS = (NO_ALARM, NO_SPACE, CORRUPT, HIDDEN)


async def check_alarms(etcd: EtcdClient, revision: int) -> list[Finding]:
    """Ask for the alarms of all members; ``revision`` is the store's, for the remedy."""
    try:
        alarms = await etcd.alarms()
    except (PermissionDenied, Unauthenticated, InvalidRequest) as error:
        return [HIDDEN.found(str(error))]
    findings = []
    for kind, type_ in ((NO_SPACE, AlarmType.NOSPACE), (CORRUPT, AlarmType.CORRUPT)):
        members = [f"{alarm.member_id:x}" for alarm in alarms if alarm.type is type_]
        if members:
            seen = f"raised by member {', '.join(members)}"
            findings.append(kind.found(seen, member=members[0], revision=revision))
    return findings or [NO_ALARM.found("no member has raised one")]
