"""The state of each member, and whether the members agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from etcd_actions.doctor import reach
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.reach import Reached
from etcd_actions.doctor.scan import side_by_side
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import Status
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.quorum import quorum_loss
from etcd_actions.etcd.versions import Effect, EtcdVersion, free_of_known_bugs, known_bugs

STATUS_HIDDEN = Kind.note(
    "status-not-permitted",
    "Size, leader and revision of this member were not examined.",
    "run doctor as a user with the role root to have them examined",
)
LEADER = Kind.ok("leader")
NO_LEADER = Kind.error(
    "no-leader",
    "The member does not reach a majority of its cluster: it serves no read and no write.",
    "start the members that are down, or repair the network between them: etcdctl --endpoints "
    "<endpoint> member list",
)
QUORUM_LOST = Kind.error(
    "quorum-lost",
    "etcd needs more than half of its members: until then it answers no read and no write.",
    "start the members that are down; if their data is lost: etcdctl snapshot restore, or etcd "
    "--force-new-cluster on one member",
)
MIXED_CLUSTERS = Kind.error(
    "mixed-clusters",
    "The endpoints belong to different clusters: after a change of the endpoint, the process "
    "reads and writes other data.",
    "name only the members of one cluster in --endpoints",
)
LEARNER = Kind.warning(
    "learner",
    "A learner refuses most requests.",
    "remove it from --endpoints, or: etcdctl --endpoints <voter> member promote <member>",
)
LAGS = Kind.warning(
    "member-lags",
    "A watch through this member receives every change late.",
    "check its disk and its network: etcdctl --endpoints <endpoint> endpoint status",
)
INCOMPLETE = Kind.note(
    "endpoints-incomplete",
    "When the named endpoints fail, no other member is tried.",
    "--endpoints <endpoints>",
)
MEMBERS_HIDDEN = Kind.note(
    "members-not-permitted",
    "Whether --endpoints names all members was not examined.",
    "run doctor as a user with the role root to have it examined",
)
VERSION = Kind.ok("version")
UNKNOWN_VERSION = Kind.note(
    "version-unknown",
    "Its version is unknown, and so are its bugs; its answers to progress requests are not "
    "trusted.",
    "etcdctl --endpoints <endpoint> endpoint status",
)
LOSES_WRITES = Kind.error(
    "version-loses-writes",
    Effect.LOST_WRITES.value[0].upper() + Effect.LOST_WRITES.value[1:] + ".",
    "update etcd to <version> or later",
)
HAS_BUGS = Kind.warning(
    "version-has-bugs",
    "Bugs of etcd can lose or delay an update; etcd-actions does not work around them.",
    "update etcd to <version> or later",
)
AVERTED_BUGS = Kind.note(
    "version-has-averted-bugs",
    "etcd-actions works around these; other clients of this etcd may not.",
    "update etcd to <version> or later",
)
MIXED_VERSIONS = Kind.warning(
    "mixed-versions",
    "The cluster has the features of its oldest member, and the bugs of all members.",
    "finish the update of all members",
)

# Why etcd authenticates no user: at a learner, and at a member without a majority.
_NO_USERS = ("not supported for learner", "etcdserver: no leader", "etcdserver: request timed out")


class MemberSeen(NamedTuple):
    """An endpoint that answers etcd's API; ``status`` is None if we may not read it."""

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
    """Examine one member; returns None in its place if it does not answer."""
    endpoint = reached.endpoint
    try:
        status = await _read_status(subject, endpoint)
    except EtcdError as error:
        return None, [reach.NO_ANSWER.found(str(error), subject=endpoint)]
    member = MemberSeen(reached, status)
    findings = list(_judge_version(member))
    if status is None:
        findings.append(STATUS_HIDDEN.found("etcd does not permit it", subject=endpoint))
    elif not status.leader:
        seen = f"member {status.member_id:x} has no leader, and is at revision {status.revision}"
        findings.append(NO_LEADER.found(seen, subject=endpoint))
    else:
        seen = f"member {status.member_id:x} follows leader {status.leader:x}"
        if status.leader == status.member_id:
            seen = f"member {status.member_id:x} is the leader"
        findings.append(LEADER.found(f"{seen}, at revision {status.revision}", subject=endpoint))
    return member, findings


async def _read_status(subject: Subject, endpoint: Endpoint) -> Status | None:
    """The member's status; None if we may not read it."""
    for anonymous in (False, True):
        async with subject.connect([endpoint], anonymous=anonymous) as etcd:
            try:
                return await etcd.status()
            except Unauthenticated:
                # etcd up to 3.5 answers without a user; `check_access` reports a wrong password.
                continue
            except (PermissionDenied, InvalidRequest):
                return None
            except Unavailable as error:
                if anonymous or not any(each in str(error) for each in _NO_USERS):
                    raise
    return None


def _judge_version(member: MemberSeen) -> Iterator[Finding]:
    endpoint = member.endpoint
    if member.version is None:
        seen = "neither its status nor its page /version has it"
        yield UNKNOWN_VERSION.found(seen, subject=endpoint)
        return
    try:
        version = EtcdVersion.parse(member.version)
    except ValueError as error:
        yield UNKNOWN_VERSION.found(str(error), subject=endpoint)
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
            bugs_of = (f"{x.consequence} ({x.id}, fixed in {x.fixed_in(version)})" for x in group)
            seen = f"etcd {version}: {'; '.join(bugs_of)}"
            yield kind.found(seen, subject=endpoint, version=target)


def check_agreement(subject: Subject, members: Sequence[MemberSeen]) -> Iterator[Finding]:
    """Compare the members' clusters, revisions and versions."""
    known = [(member.endpoint, member.status) for member in members if member.status is not None]
    clusters: dict[int, list[str]] = {}
    for endpoint, status in known:
        clusters.setdefault(status.cluster_id, []).append(str(endpoint))
    if len(clusters) > 1:
        seen = "; ".join(f"cluster {id_:x}: {', '.join(at)}" for id_, at in clusters.items())
        yield MIXED_CLUSTERS.found(seen)
    # The leader first: the others forward a change of members to it, which can take too long.
    voters = [
        endpoint
        for endpoint, status in sorted(known, key=lambda each: each[1].leader != each[1].member_id)
        if not status.is_learner
    ]
    for endpoint, status in known:
        if status.is_learner:
            member_id = f"{status.member_id:x}"
            # A learner refuses the command itself.
            voter = voters[0] if voters else "LEADER:2379"
            seen = f"member {member_id} is a learner"
            yield LEARNER.found(seen, subject=endpoint, member=member_id, voter=voter)
    for endpoint, status in known:
        newest = max(s.revision for _, s in known if s.cluster_id == status.cluster_id)
        if newest - status.revision > subject.limits.lag:
            seen = f"at revision {status.revision}, {newest - status.revision} behind the newest"
            yield LAGS.found(seen, subject=endpoint)
    versions: dict[str, list[str]] = {}
    for member in members:
        if member.version is not None:
            versions.setdefault(member.version, []).append(str(member.endpoint))
    if len(versions) > 1:
        seen = "; ".join(f"{version}: {', '.join(at)}" for version, at in versions.items())
        yield MIXED_VERSIONS.found(seen)


async def check_membership(subject: Subject, etcd: EtcdClient) -> list[Finding]:
    """Whether the settings name all members as endpoints."""
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
    """Examine all members in parallel, then compare them."""
    found = await side_by_side(partial(check_member, subject), reached)
    members = [member for member, _ in found if member is not None]
    findings = [each for _, of_member in found for each in of_member]
    if not any(member.usable and member.status is not None for member in members) and (
        loss := await quorum_loss(subject.settings)
    ):
        findings.append(QUORUM_LOST.found(loss))
    return members, [*findings, *check_agreement(subject, members)]
