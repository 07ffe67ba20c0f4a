"""Alarms of etcd's members."""

from __future__ import annotations

from collections.abc import Mapping

from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.errors import InvalidRequest, PermissionDenied, Unauthenticated
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import AlarmType
from etcd_actions.etcd.endpoints import Endpoint

NO_ALARM = Kind.ok("no-alarm")
NO_SPACE = Kind.error(
    "alarm-nospace",
    "etcd's quota is used up: no mark and no new action can be written until the alarm is "
    "disarmed.",
    "etcdctl compact <revision> && etcdctl defrag --cluster && etcdctl alarm disarm; if the "
    "live data is too large, raise --quota-backend-bytes",
)
CORRUPT = Kind.error(
    "alarm-corrupt",
    "The members hold different data, and etcd refuses everything.",
    "remove the member that differs, wipe its data directory and add it again: etcdctl member "
    "remove <member>",
)
HIDDEN = Kind.note(
    "alarms-not-permitted",
    "The alarms were not examined.",
    "run doctor as a user with the role root to have them examined",
)


async def check_alarms(
    etcd: EtcdClient, revision: int, endpoints: Mapping[int, Endpoint]
) -> list[Finding]:
    """Read the alarms of all members.

    Args:
        etcd: The connection.
        revision: The store's, for the remedy.
        endpoints: The named endpoints by the ids of their members.
    """
    try:
        alarms = await etcd.alarms()
    except (PermissionDenied, Unauthenticated, InvalidRequest) as error:
        return [HIDDEN.found(str(error))]
    findings = []
    for kind, type_ in ((NO_SPACE, AlarmType.NOSPACE), (CORRUPT, AlarmType.CORRUPT)):
        for alarm in alarms:
            if alarm.type is type_:
                member = f"{alarm.member_id:x}"
                endpoint = endpoints.get(alarm.member_id)
                seen = "it raised the alarm" if endpoint else f"member {member} raised the alarm"
                values = {"member": member, "revision": revision}
                findings.append(kind.found(seen, subject=endpoint or "", **values))
    return findings or [NO_ALARM.found("no member has raised one")]
