"""What each member says of itself, and whether they say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import trio

from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.reach import Reached
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import EtcdError, InvalidRequest, PermissionDenied, Unauthenticated
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import Status
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.versions import Effect, EtcdVersion, KnownBug, free_of_known_bugs, known_bugs

NO_ANSWER = Kind(
    id="no-answer",
    severity=Severity.ERROR,
    meaning="The endpoint takes connections, and does not answer etcd's API.",
    remedy="see whether it is an etcd, what its log says, and whether a proxy before it passes "
    "HTTP/2; where only HTTP/1.1 passes use --transport gateway",
)
STATUS_HIDDEN = Kind(
    id="status-not-permitted",
    severity=Severity.NOTE,
    meaning="Size, leader and revision of this member were not looked at.",
    remedy="run doctor as a user with the role root to have them examined",
)
LEADER = Kind(id="leader", severity=Severity.OK)
NO_LEADER = Kind(
    id="no-leader",
    severity=Severity.ERROR,
    meaning="The member reaches no majority of its cluster: nothing can be read or written "
    "through it.",
    remedy="start the members that are down, or repair the network between them: etcdctl "
    "--endpoints <endpoint> member list",
)
MIXED_CLUSTERS = Kind(
    id="mixed-clusters",
    severity=Severity.ERROR,
    meaning="The endpoints belong to different clusters: after a change of endpoint other data "
    "is read and written.",
    remedy="name the members of one cluster only in --endpoints",
)
LEARNER = Kind(
    id="learner",
    severity=Severity.WARNING,
    meaning="A learner refuses most requests.",
    remedy="take it out of --endpoints, or: etcdctl member promote <member>",
)
LAGS = Kind(
    id="member-lags",
    severity=Severity.WARNING,
    meaning="A watch through this member is told late of everything.",
    remedy="see its disk and its network: etcdctl --endpoints <endpoint> endpoint status",
)
INCOMPLETE = Kind(
    id="endpoints-incomplete",
    severity=Severity.NOTE,
    meaning="When the named endpoints fail, the others are not tried.",
    remedy="--endpoints <endpoints>",
)
MEMBERS_HIDDEN = Kind(
    id="members-not-permitted",
    severity=Severity.NOTE,
    meaning="Whether --endpoints names all members was not looked at.",
    remedy="run doctor as a user with the role root to have it examined",
)
VERSION = Kind(id="version", severity=Severity.OK)
UNKNOWN_VERSION = Kind(
    id="version-unknown",
    severity=Severity.NOTE,
    meaning="Whether it has known bugs cannot be told; its answers to progress requests are "
    "not trusted.",
    remedy="etcdctl --endpoints <endpoint> endpoint status",
)
LOSES_WRITES = Kind(
    id="version-loses-writes",
    severity=Severity.ERROR,
    meaning=Effect.LOST_WRITES.value[0].upper() + Effect.LOST_WRITES.value[1:] + ".",
    remedy="update etcd to <version> or later",
)
HAS_BUGS = Kind(
    id="version-has-bugs",
    severity=Severity.WARNING,
    meaning="An update can be lost, or come late, by bugs of etcd that nothing works around.",
    remedy="update etcd to <version> or later",
)
AVERTED_BUGS = Kind(
    id="version-has-averted-bugs",
    severity=Severity.NOTE,
    meaning="etcd-actions works around these; other clients of this etcd may not.",
    remedy="update etcd to <version> or later",
)
MIXED_VERSIONS = Kind(
    id="mixed-versions",
    severity=Severity.WARNING,
    meaning="The cluster works as its oldest member does, and has the bugs of all.",
    remedy="finish the update of all members",
)

KINDS = (
    NO_ANSWER,
    STATUS_HIDDEN,
    LEADER,
    NO_LEADER,
    MIXED_CLUSTERS,
    LEARNER,
    LAGS,
    INCOMPLETE,
    MEMBERS_HIDDEN,
    VERSION,
    UNKNOWN_VERSION,
    LOSES_WRITES,
    HAS_BUGS,
    AVERTED_BUGS,
    MIXED_VERSIONS,
)


class MemberSeen(NamedTuple):
    """An endpoint that answers etcd's API; ``status`` is None where we may not see it."""

    reached: Reached
    status: Status | None

    @property
    def endpoint(self) -> Endpoint:
        """Its address."""
        return self.reached.endpoint

    @property
    def version(self) -> str | None:
        """The version of its etcd; None if unknown."""
        return self.reached.version if self.status is None else self.status.version

    @property
    def usable(self) -> bool:
        """Whether it has a leader, as far as is known."""
        return self.status is None or (self.status.leader != 0 and not self.status.is_learner)


async def check_member(
    subject: Subject, reached: Reached
) -> tuple[MemberSeen | None, list[Finding]]:
    """Ask one member about itself.

    Returns:
        What it said, None where it does not answer; and the findings.
    """
    endpoint = reached.endpoint
    try:
        status = await _ask_status(subject, endpoint)
    except EtcdError as error:
        return None, [NO_ANSWER.found(str(error), subject=endpoint)]
    member = MemberSeen(reached, status)
    findings = list(_judge_version(member))
    if status is None:
        findings.append(STATUS_HIDDEN.found("etcd does not let us see it", subject=endpoint))
    elif not status.leader:
        seen = f"member {status.member_id:x} has no leader, and is at revision {status.revision}"
        findings.append(NO_LEADER.found(seen, subject=endpoint, endpoint=endpoint))
    else:
        seen = f"member {status.member_id:x} follows leader {status.leader:x}"
        if status.leader == status.member_id:
            seen = f"member {status.member_id:x} is the leader"
        findings.append(LEADER.found(f"{seen}, at revision {status.revision}", subject=endpoint))
        if status.is_learner:
            findings.append(
                LEARNER.found(
                    f"member {status.member_id:x} is a learner",
                    subject=endpoint,
                    member=f"{status.member_id:x}",
                )
            )
    return member, findings


async def _ask_status(subject: Subject, endpoint: Endpoint) -> Status | None:
    """The member's status, None where we may not see it."""
    for anonymous in (False, True):
        async with subject.connect([endpoint], anonymous=anonymous) as etcd:
            try:
                return await etcd.status()
            except Unauthenticated:
                # etcd up to 3.5 tells it to everybody; a wrong password is found elsewhere.
                continue
            except (PermissionDenied, InvalidRequest):
                return None
    return None


def _judge_version(member: MemberSeen) -> Iterator[Finding]:
    endpoint = member.endpoint
    if member.version is None:
        seen = "neither its status nor its page /version tells it"
        yield UNKNOWN_VERSION.found(seen, subject=endpoint, endpoint=endpoint)
        return
    try:
        version = EtcdVersion.parse(member.version)
    except ValueError as error:
        yield UNKNOWN_VERSION.found(str(error), subject=endpoint, endpoint=endpoint)
        return
    bugs = known_bugs(version)
    if not bugs:
        yield VERSION.found(f"etcd {version} has no known bug that matters", subject=endpoint)
    target = free_of_known_bugs(version)
    losing = [bug for bug in bugs if bug.effect is Effect.LOST_WRITES]
    averted = [bug for bug in bugs if bug.averted]
    rest = [bug for bug in bugs if bug not in losing and not bug.averted]
    for kind, group in ((LOSES_WRITES, losing), (HAS_BUGS, rest), (AVERTED_BUGS, averted)):
        if group:
            seen = f"etcd {version}: {'; '.join(_told(bug, version) for bug in group)}"
            yield kind.found(seen, subject=endpoint, version=target)


def _told(bug: KnownBug, version: EtcdVersion) -> str:
    return f"{bug.consequence} ({bug.id}, fixed in {bug.fixed_in(version)})"


def check_agreement(subject: Subject, members: Sequence[MemberSeen]) -> Iterator[Finding]:
    """Compare what the members say."""
    told = [(member.endpoint, member.status) for member in members if member.status is not None]
    clusters: dict[int, list[str]] = {}
    for endpoint, status in told:
        clusters.setdefault(status.cluster_id, []).append(str(endpoint))
    if len(clusters) > 1:
        seen = "; ".join(f"cluster {id_:x}: {', '.join(at)}" for id_, at in clusters.items())
        yield MIXED_CLUSTERS.found(seen)
    for endpoint, status in told:
        newest = max(s.revision for _, s in told if s.cluster_id == status.cluster_id)
        if newest - status.revision > subject.limits.lag:
            seen = f"at revision {status.revision}, {newest - status.revision} behind the newest"
            yield LAGS.found(seen, subject=endpoint, endpoint=endpoint)
    versions: dict[str, list[str]] = {}
    for member in members:
        if member.version is not None:
            versions.setdefault(member.version, []).append(str(member.endpoint))
    if len(versions) > 1:
        seen = "; ".join(f"{version}: {', '.join(at)}" for version, at in versions.items())
        yield MIXED_VERSIONS.found(seen)


async def check_membership(subject: Subject, etcd: EtcdClient) -> list[Finding]:
    """Does the list of endpoints name all members?"""
    try:
        members = await etcd.members()
    except (PermissionDenied, Unauthenticated, InvalidRequest) as error:
        return [MEMBERS_HIDDEN.found(str(error))]
    known = len(subject.settings.endpoints)
    if len(members) <= known:
        return []
    urls = ",".join(url for member in members for url in member.client_urls[:1])
    seen = f"the cluster has {len(members)} members, and {known} of them are named"
    return [INCOMPLETE.found(seen, endpoints=urls)]


async def check_members(
    subject: Subject, reached: Sequence[Reached]
) -> tuple[list[MemberSeen], list[Finding]]:
    """Ask all members about themselves, side by side."""
    answers: dict[Endpoint, tuple[MemberSeen | None, list[Finding]]] = {}

    async def ask(each: Reached) -> None:
        answers[each.endpoint] = await check_member(subject, each)

    async with trio.open_nursery() as nursery:
        for each in reached:
            nursery.start_soon(ask, each)
    members, findings = [], []
    for each in reached:
        member, found = answers[each.endpoint]
        findings += found
        if member is not None:
            members.append(member)
    return members, [*findings, *check_agreement(subject, members)]
